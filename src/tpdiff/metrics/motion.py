"""How videos move: flicker, length and steadiness of the optical flow, and how well a flow explains the next frame.

Flow is OpenCV's dense inverse search (Kroeger et al. 2016, "Fast Optical Flow using Dense Inverse Search"), medium
preset, on grey frames. That preset stops at half resolution with patches of 8 pixels, too coarse for thumbnails, so
frames whose shorter side is below `FLOW_SIDE` are first enlarged by the least whole factor (bicubic); the flow is
averaged back to the frame's own pixels. Flow and its reductions run on one thread: the same clip gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

try:
    import cv2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('optical flow needs OpenCV: pip install "tpdiff[metrics]"') from error

FLOW_SIDE = 96  # pixels of the shorter side that the flow is computed at, or more
LEAST_SIDE = 8
LEAST_FRAMES = 3
CUT_RATIO, CUT_LEAST = 2, 0.1  # times a clip's median step, pixels beyond it


@dataclass(frozen=True)
class Motion:
    """Figures of N clips, each float64 (N,) in the clips' order.

    Attributes:
        flicker: mean absolute difference of consecutive frames, in [0, 1]; 1 is black against white. It is 1 minus
            the temporal flickering score of VBench (Huang et al. 2024), without that benchmark's choice of still
            scenes: motion raises it too.
        magnitude: mean length of the flow, pixels a frame.
        acceleration: smoothness, lower is smoother: the mean length of what a point's flow changes by from one
            frame to the next, |f(t+1)(x + f(t)(x)) - f(t)(x)|, over points that stay in sight; pixels a frame².
        warping_error: mean squared difference, values in [0, 1], between a frame and the next one brought back
            along the flow, over points that stay in sight (E_warp of Lai et al. 2018).
        cut: 1 where the clip jumps (`cuts`) between some frames, otherwise 0: the mean is the share of clips that do,
            which the means of the others hide.
    """

    flicker: Tensor
    magnitude: Tensor
    acceleration: Tensor
    warping_error: Tensor
    cut: Tensor

    @property
    def clips(self) -> int:
        """N."""
        return len(self.flicker)

    def means(self) -> dict[str, float]:
        """The mean of each figure over the clips, by name."""
        return {name: float(values.mean()) for name, values in self.per_clip().items()}

    def per_clip(self) -> dict[str, Tensor]:
        """Each figure (N,) by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def measure_motion(videos: Tensor) -> Motion:
    """Figures of a batch of clips; join those of many batches with `join_motion`.

    Args:
        videos: uint8 RGB (B, 3, T, H, W), at least 3 frames (steadiness compares two flows) of 8 pixels a side.

    Raises:
        ValueError: another dtype, shape, or too few frames or pixels.
    """
    _check(videos)
    with one_thread():
        rows = [_figures(clip.permute(1, 2, 3, 0).contiguous().cpu()) for clip in videos]
    return Motion(*torch.tensor(rows, dtype=torch.float64).reshape(-1, len(fields(Motion))).unbind(1))


def join_motion(parts: Iterable[Motion]) -> Motion:
    """The figures of several batches as one, in order.

    Raises:
        ValueError: there are none.
    """
    rows = [list(part.per_clip().values()) for part in parts]
    if not rows:
        raise ValueError("no motion figures to join; measure at least one batch")
    return Motion(*(torch.cat(column) for column in zip(*rows, strict=True)))


def optical_flow(first: Tensor, second: Tensor, fast: bool = False) -> Tensor:
    """Flow from each first frame to its second: float32 (N, 2, H, W), (x, y) in pixels.

    Args:
        first, second: uint8 RGB (N, H, W, 3).
        fast: by the ultrafast preset, at a sixth of the time and less detail.
    """
    height, width = first.shape[1:3]
    factor = -(-FLOW_SIDE // min(height, width))
    preset = cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST if fast else cv2.DISOPTICAL_FLOW_PRESET_MEDIUM
    dis: Any = cv2.DISOpticalFlow.create(preset)
    pairs = zip(_grey(first, factor), _grey(second, factor), strict=True)
    flows = np.stack([dis.calc(a, b, None) for a, b in pairs])
    return functional.avg_pool2d(torch.from_numpy(flows).permute(0, 3, 1, 2), factor) / factor


def step_lengths(videos: Tensor) -> Tensor:
    """uint8 RGB (B, 3, T, H, W) -> (B, T - 1), mean length of the flow from each frame to the next, pixels."""
    frames = videos.permute(0, 2, 3, 4, 1)  # (B, T, H, W, 3)
    first, second = (part.flatten(0, 1).contiguous() for part in (frames[:, :-1], frames[:, 1:]))
    return _length(optical_flow(first, second)).mean((1, 2)).unflatten(0, (len(videos), -1))


def cuts(steps: Tensor) -> Tensor:
    """Which steps from frame to frame are jumps: more than twice the clip's median step, and 0.1 pixels beyond that.

    Args:
        steps: (..., T - 1), the mean length of the flow of each step, pixels.

    Returns:
        bool of the same shape.
    """
    return steps > CUT_RATIO * steps.median(dim=-1, keepdim=True).values + CUT_LEAST


def visible(forward: Tensor, backward: Tensor) -> Tensor:
    """Where a point is still in sight in the second frame: bool (N, H, W).

    It has to land within the frame, and the backward flow there has to lead back:
    |w + w'|² < 0.01 (|w|² + |w'|²) + 0.5 with w' the backward flow at x + w (Sundaram et al. 2010).

    Args:
        forward, backward: flows between the same two frames, (N, 2, H, W), pixels.
    """
    returning, inside = follow(backward, forward)
    gap = (forward + returning).square().sum(1)
    return inside & (gap < 0.01 * (forward.square().sum(1) + returning.square().sum(1)) + 0.5)


def follow(pictures: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
    """Pictures (N, C, H, W) read at x + flow(x), bilinear; and where that lies within them, bool (N, H, W).

    Outside, the nearest value at the border is read.
    """
    height, width = pictures.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    x, y = x + flow[:, 0], y + flow[:, 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], dim=-1)
    read = functional.grid_sample(pictures, grid, padding_mode="border", align_corners=True)
    return read, inside


def _figures(frames: Tensor) -> tuple[float, ...]:
    """The figures of one clip, uint8 (T, H, W, 3), in `Motion`'s order."""
    values = frames.permute(0, 3, 1, 2).float() / 255
    forward, backward = optical_flow(frames[:-1], frames[1:]), optical_flow(frames[1:], frames[:-1])
    seen = visible(forward, backward)
    change = follow(forward[1:], forward[:-1])[0] - forward[:-1]
    residue = follow(values[1:], forward)[0] - values[:-1]
    steps = _length(forward).double().mean((1, 2))
    return (
        float((values[1:] - values[:-1]).abs().double().mean()),
        float(_length(forward).double().mean()),
        _mean_seen(_length(change), seen[:-1]),
        _mean_seen(residue.square().mean(1), seen),
        float(cuts(steps).any()),
    )


def _mean_seen(values: Tensor, seen: Tensor) -> float:
    """Mean over the pairs of the mean over points in sight; a pair with none in sight counts with all of its points."""
    weights = seen.double()
    weights[~seen.flatten(1).any(1)] = 1
    return float(((values * weights).sum((1, 2)) / weights.sum((1, 2))).mean())


def _length(flow: Tensor) -> Tensor:
    return torch.linalg.vector_norm(flow, dim=1)


def _grey(frames: Tensor, factor: int) -> list[np.ndarray]:
    """Grey (H, W) uint8 pictures, enlarged by a whole factor."""
    pictures = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames.numpy()]
    if factor == 1:
        return pictures
    return [cv2.resize(p, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC) for p in pictures]


def _check(videos: Tensor) -> None:
    if videos.dtype != torch.uint8:
        raise ValueError(
            f"motion is measured on uint8 video in [0, 255], got {videos.dtype}; `to_uint8` brings it there"
        )
    if videos.ndim != 5 or videos.shape[1] != 3:
        raise ValueError(f"motion is measured on clips (B, 3, T, H, W), got {tuple(videos.shape)}")
    frames, height, width = videos.shape[2:]
    if frames < LEAST_FRAMES:
        raise ValueError(f"motion is measured on at least {LEAST_FRAMES} frames, got {frames}; nearest: {LEAST_FRAMES}")
    if min(height, width) < LEAST_SIDE:
        raise ValueError(f"motion is measured on sides of at least {LEAST_SIDE} pixels, got {height} x {width}")


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch and OpenCV on one thread: how work is split among threads changes the last bits of its result."""
    before, torch_before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
        torch.set_num_threads(torch_before)
