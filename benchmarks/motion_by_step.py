"""How far pictures move from each frame to the next, in real clips and in a model's: whether clips have cuts.

    python benchmarks/motion_by_step.py pretrained/gameplay-pyramid data/doom-film --guidance-scale 3

A mean over all frames hides one large step among small ones. Real clips are those of the test split, and samples have
their captions.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from study_command import carry_out
from torch import Tensor

from tpdiff.cli.device import as_device, as_dtype
from tpdiff.evaluation.made import model_geometry
from tpdiff.evaluation.samples import Sampling, sampled_clips
from tpdiff.metrics.clips import choose_clips, find_sources, load_clips
from tpdiff.metrics.motion import cuts, step_lengths
from tpdiff.sampling.opening import open_pipeline

BATCH = 32


def main() -> int:
    """Print what is asked for; the exit status."""
    args = _arguments()
    return carry_out(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    """A line for real clips and one for the model's: pixels from frame to frame, and how many steps are cuts."""
    pipeline, _ = open_pipeline(args.model, as_device(args.device), as_dtype(args.dtype))
    geometry = model_geometry(args.model)
    clips = choose_clips(find_sources(args.data, geometry, "test"), geometry, args.clips, 0)
    captions = [clip.source.entry.caption for clip in clips]
    sampling = Sampling(args.steps, guidance_scale=args.guidance_scale, batch=BATCH)
    real = [step_lengths(load_clips(clips[i : i + BATCH], geometry)) for i in range(0, len(clips), BATCH)]
    print(said("real", torch.cat(real)))
    made = [step_lengths(batch) for batch in sampled_clips(pipeline, captions, sampling)]
    print(said(str(args.model), torch.cat(made)))


def said(name: str, steps: Tensor) -> str:
    """The line of some clips' steps (clips, T - 1)."""
    usual = steps.median(dim=1).values
    by_step = " ".join(f"{value:.2f}" for value in steps.mean(0).tolist())
    shares = " ".join(f"{100 * share:.0f}" for share in cuts(steps).float().mean(0).tolist())
    return (
        f"{name}, {len(steps)} clips: mean {steps.mean():.2f} pixels a frame, median step {usual.mean():.2f}\n"
        f"  by step: {by_step}\n"
        f"  more than twice the clip's median step (and 0.1), % of clips: {shares}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run, a checkpoint or a saved pipeline")
    parser.add_argument("data", type=Path, help="a set with a test split")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--device", help="cpu or cuda; cuda if there is one")
    parser.add_argument("--dtype", default="bfloat16", help="of the network's weights")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
