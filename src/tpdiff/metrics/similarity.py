"""How alike two videos are, frame against frame: PSNR and SSIM."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW, SIGMA = 11, 1.5  # pixels; Wang et al. 2004
K1, K2 = 0.01, 0.03


def psnr(videos: Tensor, references: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip in decibels, float64 (B,): 10 log10(255² / MSE).

    The mean squared error is that of the whole clip, all frames and channels; equal clips give infinity.

    Args:
        videos, references: uint8 RGB of one shape (B, 3, T, H, W).

    Raises:
        ValueError: another dtype, or shapes that differ or are not those of clips.
    """
    _check(videos, references)
    errors = [(a.double() - b.double()).square().mean() for a, b in zip(videos, references, strict=True)]
    return 10 * torch.log10(255.0**2 / _stack(errors))


def ssim(videos: Tensor, references: Tensor) -> Tensor:
    """Structural similarity of each clip, float64 (B,), at most 1, which equal clips have.

    Wang et al. 2004 with their constants (Gaussian window of 11 × 11, σ 1.5, K 0.01 and 0.03), on each of the three
    channels; the mean over channels, frames and the places where the whole window lies within the frame.

    Args:
        videos, references: uint8 RGB of one shape (B, 3, T, H, W), at least 11 pixels a side.

    Raises:
        ValueError: another dtype, shapes that differ or are not those of clips, or frames below the window.
    """
    _check(videos, references)
    if videos.shape[3] < WINDOW or videos.shape[4] < WINDOW:
        sides = " x ".join(map(str, videos.shape[3:]))
        raise ValueError(f"SSIM looks through windows of {WINDOW} x {WINDOW} pixels, these frames have {sides}")
    return _stack([_ssim(a, b) for a, b in zip(videos, references, strict=True)])


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    """The mean of the map over one clip (3, T, H, W)."""
    x, y = (clip.flatten(0, 1)[:, None].double() / 255 for clip in (a, b))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    cov = _blur(x * y) - mean_x * mean_y
    light = (2 * mean_x * mean_y + K1**2) / (mean_x**2 + mean_y**2 + K1**2)
    return (light * (2 * cov + K2**2) / (var_x + var_y + K2**2)).mean()


def _blur(pictures: Tensor) -> Tensor:
    """Gaussian means of (N, 1, H, W), only where the window fits."""
    place = torch.arange(WINDOW, dtype=torch.float64, device=pictures.device) - WINDOW // 2
    weights = torch.softmax(-(place**2) / (2 * SIGMA**2), dim=0)
    return functional.conv2d(functional.conv2d(pictures, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))


def _stack(figures: list[Tensor]) -> Tensor:
    return torch.stack(figures).cpu() if figures else torch.zeros(0, dtype=torch.float64)


def _check(videos: Tensor, references: Tensor) -> None:
    for tensor in (videos, references):
        if tensor.dtype != torch.uint8:
            raise ValueError(f"similarity is measured on uint8 video in [0, 255], got {tensor.dtype}")
    if videos.shape != references.shape:
        raise ValueError(f"videos of different shapes: {tuple(videos.shape)} and {tuple(references.shape)}")
    if videos.ndim != 5 or videos.shape[1] != 3:
        raise ValueError(f"similarity is measured on clips (B, 3, T, H, W), got {tuple(videos.shape)}")
