"""Moving digits: real handwritten digits that cross a dark canvas and bounce off its walls, with captions.

The handwriting is the 8 × 8 digits set that comes inside scikit-learn. It is the smallest captioned set on
which a text-to-video model can be seen to learn what moves and where.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .errors import DataError
from .frames import check_rate
from .recipe import MadeSet, count_test, finish_set, open_set
from .stream import epoch_order, generator_for
from .writing import write_video

DIRECTIONS = {  # name in the caption: (rightwards, downwards)
    "to the right": (1, 0),
    "down and to the right": (1, 1),
    "down": (0, 1),
    "down and to the left": (-1, 1),
    "to the left": (-1, 0),
    "up and to the left": (-1, -1),
    "up": (0, -1),
    "up and to the right": (1, -1),
}
SLOWEST, FASTEST = (
    0.040,
    0.060,
)  # of the canvas, a frame: the other wall is reached in 8 to 13 frames from the first
RUN_UP = 0.4  # the start lies in this part of the free way, counted from the wall behind
TEST_SAMPLES = 0.2  # of the handwritten samples of each digit are seen in the test split only
CRF = 10


def render_digits(
    out: str | Path,
    *,
    clips: int = 1000,
    frames: int = 16,
    size: int = 32,
    seed: int = 0,
    test_share: float = 0.1,
    fps: float = 8,
    progress: Callable[[int, int], None] | None = None,
) -> MadeSet:
    """Render the set into `out`: <split>/NNNNN.mp4 and metadata.jsonl (caption, split, digit, direction,
    sample, fps).

    Each clip is `frames` pictures of size × size pixels, white on black. A digit half as wide as the canvas
    moves with constant speed in one of eight directions, named in the caption as it is at the start ("the
    digit 3 moves up and to the left"), and bounces off the walls. The two splits share no handwritten sample
    (`sample` is its row in scikit-learn's set). Same parameters, same clips; a call that was interrupted is
    continued.
    progress: called with (clips done, clips in all).
    Raises ValueError for a bad number, DataError when `out` holds something else or scikit-learn is missing.
    """
    if size < 16 or size % 2:
        raise ValueError(f"size {size} is not an even number of at least 16; nearest: {max(16, size - size % 2)}")
    if frames < 1:
        raise ValueError(f"frames {frames} is below 1")
    check_rate(fps)
    testing = count_test(clips, test_share)
    glyphs, pools = _handwriting(seed)
    recipe = dict(kind="digits", clips=clips, frames=frames, size=size, seed=seed, test_share=test_share, fps=fps)
    folder = open_set(out, recipe)
    rows, written = [], 0
    for number in range(clips):
        split = "test" if number < testing else "train"
        row, start, step = _plan(number, split, pools, seed)
        path = folder / row["file_name"]
        if not path.is_file():
            video = render_bounce(glyphs[row["sample"]], start, step, frames, size)
            write_video(path, video, fps, crf=CRF, preset="veryfast")
            written += 1
        rows.append(row | {"fps": fps})
        if progress is not None:
            progress(number + 1, clips)
    return finish_set(folder, rows, written)


def render_bounce(
    glyph: Tensor, start: tuple[float, float], step: tuple[float, float], frames: int, size: int
) -> Tensor:
    """A glyph (8, 8) in [0, 1] that moves and bounces: uint8 (frames, size, size, 3).

    start: (x, y) in 0 ... 1 of the free way, the canvas less the glyph, which is half as wide. step: (x, y)
    of the canvas a frame.
    """
    side = size // 2
    large = functional.interpolate(glyph[None, None], size=(side, side), mode="bicubic").clamp(0, 1)
    free = size - side
    time = torch.arange(frames, dtype=torch.float64)
    x = _bounce(start[0] * free + time * step[0] * size, free)
    y = _bounce(start[1] * free + time * step[1] * size, free)
    pixel = torch.arange(size, dtype=torch.float64) + 0.5
    columns = (pixel[None] - x[:, None]) * 2 / side - 1  # (T, size), in the glyph's -1 ... 1
    lines = (pixel[None] - y[:, None]) * 2 / side - 1
    grid = torch.stack([columns[:, None, :].expand(-1, size, -1), lines[:, :, None].expand(-1, -1, size)], dim=-1).to(
        torch.float32
    )
    canvas = functional.grid_sample(large.expand(frames, -1, -1, -1), grid, align_corners=False)
    return canvas.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3)


def _bounce(way: Tensor, free: float) -> Tensor:
    """Fold a straight way into 0 ... free, as a ball between two walls."""
    return free - (way.remainder(2 * free) - free).abs()


def _plan(
    number: int, split: str, pools: dict[str, list[list[int]]], seed: int
) -> tuple[dict[str, Any], tuple[float, float], tuple[float, float]]:
    """What clip `number` shows: its row of the metadata, start and step. Digits and directions come
    evenly.
    """
    kinds = 10 * len(DIRECTIONS)
    digit, turn = divmod(epoch_order(seed, number // kinds, kinds)[number % kinds], len(DIRECTIONS))
    name = list(DIRECTIONS)[turn]
    draw = torch.rand(4, generator=generator_for(seed, "digit", number)).tolist()
    pool = pools[split][digit]
    speed = SLOWEST + draw[1] * (FASTEST - SLOWEST)
    ways = DIRECTIONS[name]
    start_x, start_y = (_start(way, chance) for way, chance in zip(ways, draw[2:], strict=True))
    row = {
        "file_name": f"{split}/{number:05d}.mp4",
        "caption": f"the digit {digit} moves {name}",
        "split": split,
        "digit": digit,
        "direction": name,
        "sample": pool[int(draw[0] * len(pool))],
    }
    return row, (start_x, start_y), (speed * ways[0], speed * ways[1])


def _start(way: int, chance: float) -> float:
    """Where to start on one axis, 0 ... 1: with room ahead, or anywhere when the digit does not move along
    it.
    """
    return {0: chance, 1: RUN_UP * chance, -1: 1 - RUN_UP * chance}[way]


def _handwriting(seed: int) -> tuple[Tensor, dict[str, list[list[int]]]]:
    """Glyphs (N, 8, 8) in [0, 1], and for each split the rows of each digit 0 ... 9."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError('the digits need scikit-learn: pip install "tpdiff[digits]"') from error
    data: Any = load_digits()
    pools: dict[str, list[list[int]]] = {"train": [], "test": []}
    for digit in range(10):
        rows = np.flatnonzero(data.target == digit)
        order = torch.randperm(len(rows), generator=generator_for(seed, "handwriting", digit)).numpy()
        cut = round(len(rows) * TEST_SAMPLES)
        pools["test"].append(sorted(rows[order[:cut]].tolist()))
        pools["train"].append(sorted(rows[order[cut:]].tolist()))
    return torch.from_numpy(data.images / 16.0).to(torch.float32), pools
