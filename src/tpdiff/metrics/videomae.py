"""VideoMAE (arXiv 2203.12602), from a folder as transformers' save_pretrained writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpdiff.models.digest import weights_digest

KIND = "videomae"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the published weights expect
PROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class VideoMAE:
    """The encoder and what it takes.

    Attributes:
        network: transformers' VideoMAEModel, ready for inference, float32.
        digest: of its weights and all that decides what they compute, 32 hexadecimal letters.
        frames: of a clip, exactly.
        side: pixels of a frame's height and width.
        mean, deviation: of each colour in [0, 1], by which frames are normalised.
    """

    network: Any
    digest: str
    frames: int
    side: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    def pooled(self, frames: Tensor) -> Tensor:
        """float32 (T, 3, H, W) in [0, 1] -> (D,): the tokens of the last layer, averaged."""
        mean, deviation = (frames.new_tensor(values)[:, None, None] for values in (self.mean, self.deviation))
        return self.network(((frames - mean) / deviation)[None]).last_hidden_state[0].mean(dim=0)


def load_videomae(folder: Path) -> VideoMAE:
    """The encoder in a folder (safetensors), of a pretrained or of a fine-tuned model; a head or a decoder beside it
    is left out. Colours are normalised as the folder's image processor says, else by ImageNet's statistics.

    Raises:
        ValueError: no VideoMAE there, or not all of its weights.
    """
    from transformers import VideoMAEModel

    kind = _read(folder / "config.json").get("model_type")
    if kind != KIND:
        raise ValueError(f"{folder} holds {'no model' if kind is None else repr(kind)}; features come from {KIND!r}")
    options: dict[str, Any] = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32}
    try:
        loaded: Any = VideoMAEModel.from_pretrained(str(folder), output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"no VideoMAE in {folder}: {' '.join(str(error).split())}") from error
    network, report = loaded
    if absent := report["missing_keys"]:
        raise ValueError(f"{folder} does not hold VideoMAE's weights: {len(absent)} absent, such as {min(absent)}")
    config = network.config
    side, processor = config.image_size, next(filter(None, (_read(folder / name) for name in PROCESSORS)), {})
    if not isinstance(side, int) or config.num_channels != 3:
        raise ValueError(f"{folder} takes {config.num_channels} channels of {side} pixels; nearest: 3, of a square")
    mean, deviation = (
        tuple(processor.get(key, known)) for key, known in (("image_mean", MEAN), ("image_std", DEVIATION))
    )
    told = json.dumps([config.num_attention_heads, config.hidden_act, config.layer_norm_eps, config.tubelet_size])
    digest = weights_digest(network, told, json.dumps([config.num_frames, side, mean, deviation]))
    return VideoMAE(network.eval().requires_grad_(False), digest, config.num_frames, side, mean, deviation)


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's values; of one that is absent none."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
