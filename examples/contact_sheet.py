"""Samples of trained models as one picture: a row a prompt, a column a frame, the models one below the other.

    python examples/contact_sheet.py runs/digits-flow-vanilla runs/digits-flow-pyramid --out sheet.png \
        --prompt "the digit 3 moves up" --prompt "the digit 7 moves to the left"

Video n of every model has seed n; nothing is selected.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tpdiff import PyramidPipeline


def frames_of(run: Path, prompts: list[str], steps: int, guidance_scale: float, every: int = 1) -> np.ndarray:
    """Every n-th frame of one model's videos side by side in time: (rows × H, T × W, 3) in [0, 1]."""
    pipeline = PyramidPipeline.from_pretrained(run)
    generators = [torch.Generator().manual_seed(n) for n in range(len(prompts))]
    videos = pipeline(prompts, num_inference_steps=steps, guidance_scale=guidance_scale, generator=generators).frames
    return np.concatenate([np.concatenate(list(video[::every]), axis=1) for video in videos], axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--prompt", action="append", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=2.0)
    parser.add_argument("--zoom", type=int, default=2)
    parser.add_argument("--every", type=int, default=1, help="show every n-th frame")
    options = parser.parse_args()
    look = (options.prompt, options.steps, options.guidance_scale, options.every)
    sheets = [frames_of(run, *look) for run in options.runs]
    gap = np.full((4, sheets[0].shape[1], 3), 0.5)
    rows = [part for sheet in sheets for part in (sheet, gap)][:-1]
    picture = (np.concatenate(rows) * 255).round().astype(np.uint8)
    image = Image.fromarray(picture)
    image = image.resize((image.width * options.zoom, image.height * options.zoom), Image.Resampling.NEAREST)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    image.save(options.out)
    print(options.out)


if __name__ == "__main__":
    main()
