"""Frames as tensors: resize them, turn bytes into numbers around zero and back.

Resizing is torch's antialiased bicubic interpolation on uint8 (no torchvision, the same result on every
machine that has the same torch).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

RESIZE_MODES = ("crop", "stretch")


def resize_frames(
    frames: Tensor, size: tuple[int, int], mode: str = "crop", shown: tuple[int, int] | None = None
) -> Tensor:
    """Bring frames to `size`.

    frames: uint8 (T, H, W, 3). size: (height, width) in pixels. shown: (height, width) at which the frames have
    their true proportions, where their pixels are not square; None: their own.
    mode "crop" keeps the proportions: the largest centred window with the proportions of `size` is cut out
    and scaled. mode "stretch" scales the whole picture.
    Returns uint8 (T, height, width, 3); the input itself when it has that size, and those proportions, already.
    Raises ValueError for an unknown mode or a size below one pixel.
    """
    check_size(size)
    check_mode(mode)
    target_h, target_w = size
    height, width = frames.shape[1:3]
    shown_h, shown_w = shown or (height, width)
    pixel = (shown_w * height) / (shown_h * width)  # its width over its height
    if (height, width) == (target_h, target_w) and (pixel == 1 or mode == "stretch"):
        return frames
    if mode == "crop":
        cut_h = max(1, min(height, round(width * pixel * target_h / target_w)))
        cut_w = max(1, min(width, round(height / pixel * target_w / target_h)))
        top, left = (height - cut_h) // 2, (width - cut_w) // 2
        frames = frames[:, top : top + cut_h, left : left + cut_w]
    planes = frames.permute(0, 3, 1, 2)
    planes = functional.interpolate(planes, size=size, mode="bicubic", antialias=True)
    return planes.permute(0, 2, 3, 1).contiguous()


def to_float(video: Tensor) -> Tensor:
    """uint8 in [0, 255], any shape -> float32 in [-1, 1]. Raises ValueError for another dtype."""
    if video.dtype != torch.uint8:
        raise ValueError(f"to_float takes uint8 video in [0, 255], got {video.dtype}")
    return video.to(torch.float32).div_(127.5).sub_(1.0)


def to_uint8(video: Tensor) -> Tensor:
    """Floating point in [-1, 1], any shape -> uint8 in [0, 255], rounded; values outside are clamped.

    Exact inverse of `to_float`.
    Raises ValueError for an integer tensor or for values that are not finite.
    """
    if not video.is_floating_point():
        raise ValueError(f"to_uint8 takes floating point video in [-1, 1], got {video.dtype}")
    if not bool(torch.isfinite(video).all()):
        raise ValueError("to_uint8 takes finite values; this video holds NaN or infinity")
    return video.detach().to(torch.float32).add(1.0).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def frames_to_uint8(frames: Tensor | np.ndarray) -> Tensor:
    """Floating point in [0, 1] as pipelines return it, any shape -> uint8, rounded; values outside are clamped."""
    return (torch.as_tensor(frames).float() * 255).round().clamp(0, 255).to(torch.uint8)


def check_size(size: tuple[int, int]) -> None:
    """Raise ValueError unless `size` is (height, width), whole numbers of at least 1."""
    if len(size) != 2 or any(int(side) != side or side < 1 for side in size):
        raise ValueError(f"size {size} is not (height, width) in whole pixels of at least 1")


def check_rate(fps: float) -> None:
    """Raise ValueError unless `fps` is a finite number of frames a second above 0."""
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps {fps} is not above 0")


def check_mode(mode: str) -> None:
    """Raise ValueError unless `mode` is one of `RESIZE_MODES`."""
    if mode not in RESIZE_MODES:
        raise ValueError(f"resize {mode!r} is unknown; choose one of {', '.join(RESIZE_MODES)}")
