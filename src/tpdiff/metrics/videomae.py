"""VideoMAE (arXiv 2203.12602): what its encoder says of a clip."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tpdiff.metrics.encoders import colours, load_encoder
from tpdiff.models.digest import weights_digest

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # colours that the published weights expect


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
    """The encoder in a folder, of a pretrained or of a fine-tuned model. Colours are normalised as the folder's image
    processor says, else by ImageNet's statistics.

    Raises:
        ValueError: no VideoMAE there, or not all of its weights.
    """
    network = load_encoder(folder, "videomae", "VideoMAEModel")
    config, (mean, deviation) = network.config, colours(folder, IMAGENET)
    side = config.image_size
    if not isinstance(side, int) or config.num_channels != 3:
        raise ValueError(f"{folder} takes {config.num_channels} channels of {side} pixels; nearest: 3, of a square")
    told = [config.num_attention_heads, config.hidden_act, config.layer_norm_eps, config.tubelet_size]
    digest = weights_digest(network, json.dumps([*told, config.num_frames, side, mean, deviation]))
    return VideoMAE(network, digest, config.num_frames, side, mean, deviation)
