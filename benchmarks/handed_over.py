"""Where a model loses its distance: real clips, noised, are handed to a stage; it and the finer ones are sampled.

    python benchmarks/handed_over.py pretrained/gameplay-pyramid data/doom-film --guidance-scale 3
    python benchmarks/handed_over.py pretrained/gameplay-vanilla data/doom-film --guidance-scale 3 --ends 0.414 0.8

The stages that are left out are then as good as real. --ends divides the process of a model of one stage: a clip at
noise-to-signal κ whose frames are averaged by n is as noisy as the whole one at √n κ, so that 0.414 and 0.8 are where
temporal stages that end at 1/3 and 2/3 hand over. The set has a training and a test split.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpdiff import PyramidPipeline
from tpdiff.cli.quiet import quiet
from tpdiff.data import frames_to_uint8, to_float
from tpdiff.evaluation.made import model_geometry
from tpdiff.metrics import Reference
from tpdiff.metrics.clips import load_clips
from tpdiff.metrics.distance import frechet_distance
from tpdiff.models.autoencoder import encode_video
from tpdiff.pyramid import Pyramid
from tpdiff.pyramid.noise import randn
from tpdiff.sampling.trained import newest_checkpoint
from tpdiff.training.clean import clean_pair

BATCH = 32


def main() -> None:
    """A line for every stage that is handed real clips, the finest first, and for samples from noise."""
    args = _arguments()
    quiet()
    pipe = PyramidPipeline.from_pretrained(newest_checkpoint(args.model)).lowered(torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    geometry = model_geometry(args.model)
    if len(pipe.pyramid) == 1 and args.ends:
        pipe.pyramid = Pyramid(pipe.pyramid.schedule, [(1, 1, 1)] * (len(args.ends) + 1), ends=args.ends)
    reference = Reference.fit(args.data, **geometry._asdict(), cache_dir=args.cache_dir)
    if args.clips > len(reference.clips):
        raise SystemExit(f"--clips {args.clips}: there are {len(reference.clips)} real clips; nearest: that many")
    steps = [max(1, round(args.steps * (s.start - s.end))) for s in pipe.pyramid.stages[::-1]]
    for first in [*range(len(pipe.pyramid) - 1), None]:
        made = handed(pipe, reference, args.clips, first, steps, args.guidance_scale)
        distance = frechet_distance(reference.real, np.concatenate([reference.project(clips) for clips in made]))
        which = "from noise" if first is None else f"stage {first}, from t = {pipe.pyramid.stages[first].start:.3f}"
        print(f"{which}: {distance:.0f}", flush=True)


def handed(
    pipe: Any, reference: Reference, count: int, first: int | None, steps: Sequence[int], guidance: float
) -> Iterator[Tensor]:
    """uint8 (B, 3, T, H, W): samples with the captions of the real clips; from the clips as stage `first` meets them,
    or from noise.
    """
    for begin in range(0, count, BATCH):
        clips = reference.clips[begin : min(begin + BATCH, count)]
        generator = [torch.Generator().manual_seed(begin + i) for i in range(len(clips))]
        made = pipe(
            [clip.source.entry.caption for clip in clips],
            num_inference_steps=steps if first is None else steps[-first - 1 :],
            guidance_scale=guidance,
            generator=generator,
            latents=None if first is None else met(pipe, load_clips(clips, reference.geometry), first, generator),
            first_stage=first,
            output_type="pt",
        )
        yield frames_to_uint8(made.frames).transpose(1, 2)


def met(pipe: Any, video: Tensor, stage: int, generator: list[torch.Generator]) -> Tensor:
    """What a stage starts from, of real clips: uint8 (B, 3, T, H, W) -> (B, C, T, H, W) at the stage's size."""
    pyramid, whole = pipe.pyramid, to_float(video)
    whole = (whole if pipe.vae is None else encode_video(pipe.vae, whole)) * pipe.config.latent_scale
    clean, coarse = clean_pair(pyramid, whole, stage)
    pair = pyramid.pair(clean, coarse, randn(clean.shape, generator), stage)
    return pair.at(torch.full((len(video),), pyramid.stages[stage].start))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a pipeline of tpdiff, or a run")
    parser.add_argument("data", type=Path, help="the folder of clips it was trained on")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="of the whole process, shared out by the stages' length")
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--ends", type=float, nargs="+", default=[0.414, 0.8], help="for a model of one stage")
    parser.add_argument("--cache-dir", type=Path, default=Path("runs/features"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
