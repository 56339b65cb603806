"""Encoders of pictures and videos, from folders as transformers' save_pretrained writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")
Colours = tuple[tuple[float, ...], tuple[float, ...]]


def load_encoder(folder: Path, kind: str, model: str) -> Any:
    """An encoder in float32, ready for inference. Its weights are safetensors; what else the folder holds, such as a
    head or a decoder, is left out.

    Args:
        folder: where it lies.
        kind: its "model_type", which its configuration must name.
        model: its class in transformers.

    Raises:
        ValueError: no such encoder there, or not all of its weights.
    """
    import transformers

    found = _read(folder / "config.json").get("model_type")
    if found != kind:
        raise ValueError(f"{folder} holds {'no model' if found is None else repr(found)}; what is needed is {kind!r}")
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
    try:
        network, report = getattr(transformers, model).from_pretrained(str(folder), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"no {model} in {folder}: {' '.join(str(error).split())}") from error
    if absent := report["missing_keys"]:
        raise ValueError(f"{folder} does not hold all weights: {len(absent)} absent, such as {min(absent)}")
    return network.eval().requires_grad_(False)


def colours(folder: Path, otherwise: Colours) -> Colours:
    """Mean and deviation of each colour in [0, 1], by which the folder's image processor normalises."""
    told = next(filter(None, (_read(folder / name) for name in PROCESSORS)), {})
    mean, deviation = otherwise
    return tuple(told.get("image_mean", mean)), tuple(told.get("image_std", deviation))


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's values; of one that is absent none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
