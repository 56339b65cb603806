"""Which weights a saved pipeline has, wherever it lies."""

import hashlib
import json
from pathlib import Path

from tpdiff.metrics.clips import file_digest
from tpdiff.sampling.trained import HERE, TOLD
from tpdiff.sampling.tuned import LORA


def pipeline_digest(folder: Path) -> str:
    """SHA-256 over what a pipeline is loaded from; the state of training beside it does not count."""
    patterns = ("model_index.json", TOLD, LORA, "*/*.safetensors", "*/*.json")
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    lines = [f"{file.relative_to(folder).as_posix()} {file_digest(file)}" for file in files]
    if (folder / TOLD).is_file() and (base := json.loads((folder / TOLD).read_text(encoding="utf-8"))["base"]) != HERE:
        lines.append(pipeline_digest(Path(base)) if Path(base).is_dir() else base)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
