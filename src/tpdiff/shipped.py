"""Where the trained models lie that come along: beside the package in a checkout, inside it when installed."""

import json
from pathlib import Path
from typing import Any

CARD = "made.json"


def shipped_models() -> dict[str, Path]:
    """Folders that `PyramidPipeline.from_pretrained` loads, by name ("gameplay-vanilla"), sorted; {} without any."""
    here = Path(__file__).resolve().parent
    for folder in (here / "pretrained", here.parents[1] / "pretrained"):
        if folder.is_dir():
            cards = sorted(path.parent for path in folder.glob(f"*/{CARD}"))
            return {p.name: p for p in cards if (p / "model_index.json").is_file()}
    return {}


def card(folder: Path) -> dict[str, Any]:
    """How a shipped model was made: command, seed, data, seconds, figures."""
    return dict(json.loads((folder / CARD).read_text()))
