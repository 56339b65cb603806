"""Samples of a model in numbers: batch by batch, each clip by its own seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor

from tpdiff.data import frames_to_uint8
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.sampling.tuned import TunedPipeline
from tpdiff.training.config import Config
from tpdiff.training.trainer import Trainer

AnyPipeline = PyramidPipeline | TunedPipeline


@dataclass(frozen=True)
class Sampling:
    """How clips are sampled.

    Attributes:
        steps: network evaluations of the solver, in all or a stage, coarsest first.
        guidance_scale: classifier-free guidance; 1 is none. None: what the pipeline does when it is not told.
        solver: "euler", "ddim" or "heun"; None: the pipeline's own scheduler, where that samples.
        batch: clips made at a time.
    """

    steps: int | Sequence[int] = 30
    guidance_scale: float | None = 1.0
    solver: str | None = "euler"
    batch: int = 32


def sampler(trainer: Trainer) -> Any:
    """A pipeline over a copy of the averaged weights, in the precision it was trained in."""
    with trainer.ema.whole(True, trainer.device):
        return trainer.pipeline().lowered(precision(trainer.config))


def reopened(folder: Path, config: Config) -> Any:
    """A trained pipeline from its folder, in the precision it was trained in, on the device that is trained on."""
    pipeline: Any = PyramidPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.lowered(precision(config)).to(PartialState().device)


def precision(config: Config) -> torch.dtype:
    """What a model trained so is sampled in."""
    return torch.bfloat16 if config.train.precision == "bf16" else torch.float32


def sampled_clips(
    pipeline: AnyPipeline, captions: Sequence[str | None], sampling: Sampling, seed: int = 0
) -> Iterator[Tensor]:
    """uint8 (B, 3, T, H, W), batch by batch, one clip a caption; the i-th clip depends on seed + i alone."""
    for first in range(0, len(captions), sampling.batch):
        yield sample_batch(pipeline, captions[first : first + sampling.batch], sampling, seed + first)


def sample_batch(
    pipeline: AnyPipeline,
    captions: Sequence[str | None],
    sampling: Sampling,
    seed: int = 0,
    size: tuple[int | None, int | None, int | None] = (None, None, None),
) -> Tensor:
    """uint8 (B, 3, T, H, W) on the CPU, one clip a caption, all at once.

    size: (frames, height, width) in pixels; None: as trained.
    """
    frames, height, width = size
    told: dict[str, Any] = {"guidance_scale": sampling.guidance_scale, "solver": sampling.solver}
    videos = pipeline(
        captions,
        num_inference_steps=sampling.steps,
        num_frames=frames,
        height=height,
        width=width,
        generator=[torch.Generator().manual_seed(seed + i) for i in range(len(captions))],
        output_type="pt",
        **{name: value for name, value in told.items() if value is not None},
    ).frames
    return frames_to_uint8(videos).transpose(1, 2).contiguous().cpu()
