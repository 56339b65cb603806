"""Pipelines of diffusers as they are saved: opened, whole or with parts that are known by their configuration alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from huggingface_hub import snapshot_download
from torch import nn

from tpdiff.families.base import packages_for

Dtypes = torch.dtype | dict[str, torch.dtype]  # of all components, or by name, "default" that of the others
OWN = "PyramidPipeline"
IMPORTED_AS = {"protobuf": "google.protobuf"}


def load_stock(path: str, dtype: Dtypes = torch.float32, hollow: Callable[[str], bool] | None = None) -> Any:
    """A diffusers pipeline from a folder or the hub, safetensors only.

    Args:
        path: the folder, or its name on the hub.
        dtype: of its networks.
        hollow: name of a network -> whether it shall have no weights; they are then neither read nor kept. Components
            that were saved as None then stay so.

    Raises:
        ValueError: none is there, one of a class that diffusers lacks (tpdiff's own among them), or it needs packages
            that are not installed, by their names.
    """
    with _is_a_pipeline(path):
        missing = missing_packages(path)
    if missing:
        raise ValueError(
            f"the pipeline in {path!r} needs {' and '.join(missing)}: pip install {' '.join(missing)}, "
            "or 'tpdiff[pipelines]'"
        )
    with _is_a_pipeline(path):
        folder = stock_folder(path)
        if hollow is None:
            return DiffusionPipeline.from_pretrained(str(folder), dtype=dtype, use_safetensors=True)
        parts = _hollow_parts(folder, dtype, hollow)
        return _pipeline_class(folder).from_pretrained(str(folder), dtype=dtype, use_safetensors=True, **parts)


def missing_packages(path: str) -> list[str]:
    """What a pipeline's tokenizers and calls need and is not installed. Of one on the hub, no weights are fetched.

    Raises:
        OSError, ValueError: no pipeline is there, or none of diffusers.
    """
    small = ["model_index.json", "tokenizer*/*"]
    folder = Path(path if Path(path).is_dir() else snapshot_download(path, allow_patterns=small))
    index: Any = DiffusionPipeline.load_config(str(folder))
    _check_class(index.get("_class_name"))
    needed = [*packages_for(str(index.get("_class_name")))]
    if any(not (model.parent / "tokenizer.json").is_file() for model in folder.glob("tokenizer*/*.model")):
        needed += ["sentencepiece", "protobuf"]
    return [package for package in needed if not _is_installed(package)]


def stock_folder(path: str) -> Path:
    """Where a pipeline lies: its folder, or that of the copy that the hub's library keeps."""
    return Path(path if Path(path).is_dir() else DiffusionPipeline.download(path, use_safetensors=True))


def is_hollow(network: nn.Module) -> bool:
    """Whether a network has no weights."""
    return any(p.is_meta for p in network.parameters())


@contextmanager
def _is_a_pipeline(path: str) -> Iterator[None]:
    """Whatever fails within says that there is none."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(f"no diffusers pipeline in {path!r}: {' '.join(str(error).split())}") from error


def _check_class(name: Any) -> None:
    """Raise ValueError for the name of a class that is none of diffusers."""
    if name == OWN:
        raise ValueError(f"it holds a {OWN}, which tpdiff made; what is wanted here is a pipeline of diffusers")
    if isinstance(name, str) and not hasattr(diffusers, name):
        raise ValueError(f"it holds a {name}, which diffusers {diffusers.__version__} does not have")


def _is_installed(package: str) -> bool:
    try:
        return find_spec(IMPORTED_AS.get(package, package)) is not None
    except ModuleNotFoundError:  # what it is a part of is missing
        return False


def _pipeline_class(folder: Path) -> Any:
    """The class itself, which knows its optional components: `DiffusionPipeline` loads those anew that it is given."""
    index: Any = DiffusionPipeline.load_config(str(folder))
    name = index["_class_name"]
    return getattr(diffusers, name, DiffusionPipeline) if isinstance(name, str) else DiffusionPipeline


def _hollow_parts(folder: Path, dtype: Dtypes, hollow: Callable[[str], bool]) -> dict[str, nn.Module | None]:
    index: Any = DiffusionPipeline.load_config(str(folder))
    parts: dict[str, nn.Module | None] = {name: None for name, saved in index.items() if saved == [None, None]}
    for name, saved in index.items():
        kind = _network_class(*saved) if isinstance(saved, list) and len(saved) == 2 else None
        if kind is not None and hollow(name):
            told = dtype.get(name, dtype["default"]) if isinstance(dtype, dict) else dtype
            parts[name] = _without_weights(kind, folder / name).to(told).eval()
    return parts


def _network_class(library: str | None, name: str | None) -> Any:
    """The class of a component that is a network; None for what else pipelines have."""
    kind = getattr({"diffusers": diffusers, "transformers": transformers}.get(library or ""), name or "", None)
    return kind if isinstance(kind, type) and issubclass(kind, nn.Module) else None


def _without_weights(kind: Any, folder: Path) -> nn.Module:
    with init_empty_weights():
        if issubclass(kind, transformers.PreTrainedModel):
            return kind(kind.config_class.from_pretrained(str(folder)))
        return kind.from_config(kind.load_config(str(folder)))
