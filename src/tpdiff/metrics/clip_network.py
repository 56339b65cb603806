"""The network that names what a clip shows, and what it is shown of a clip.

A clip is thinned to at most `FRAMES` frames, a frame averaged down by a whole factor until it has at most `PIXELS`
pixels. The network sees colours and what changed since the frame before; three convolutions over time and space; each
channel's strongest answer over space tells what is there, its mean in four parts of the time how it moves. Motion below
a pixel a frame hardly shows in averaged pictures: its direction is read off the optical flow, averaged over 4 x 4 parts
of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tpdiff.metrics.motion import optical_flow

FRAMES, PIXELS = 32, 1024
FLOW_PIXELS = 128 * 128  # flow is computed at this size or less
WIDTHS, DRIFT_WIDTH = (24, 48, 64), 64
PARTS, GRID = 4, 4  # of the time, and of either side of the frame
RECIPE = (FRAMES, PIXELS, FLOW_PIXELS, WIDTHS, DRIFT_WIDTH, PARTS, GRID)


class ClipNet(nn.Module):
    """Answers (B, values) for each attribute.

    Its inputs: clips as `network_input` makes them (B, 6, T, H, W), and their `drift` (B, 2, T, 4, 4).
    """

    def __init__(self, answers: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 6
        for number, width in enumerate(WIDTHS):
            stride = (2 if number else 1, 2, 2)
            layers += [nn.Conv3d(channels, width, 3, stride, 1), nn.GroupNorm(8, width), nn.SiLU()]
            channels = width
        self.body = nn.Sequential(*layers)
        drifts = 2 * PARTS * GRID * GRID
        self.drift = nn.Sequential(nn.BatchNorm1d(drifts), nn.Linear(drifts, DRIFT_WIDTH), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(channels * (PARTS + 1) + DRIFT_WIDTH, count) for count in answers)

    def forward(self, clips: Tensor, drift: Tensor) -> list[Tensor]:
        maps = self.body(clips)
        motion = functional.adaptive_avg_pool3d(maps, (PARTS, 1, 1)).flatten(1)
        content = maps.amax((3, 4)).mean(2)
        moved = self.drift(functional.adaptive_avg_pool3d(drift, (PARTS, GRID, GRID)).flatten(1))
        features = torch.cat([motion, content, moved], dim=1)
        return [head(features) for head in self.heads]


def thinning(frames: int) -> int:
    """n, the least so that every n-th of so many frames leaves at most `FRAMES`."""
    return -(-frames // FRAMES)


def thin(videos: Tensor) -> Tensor:
    """Every n-th frame of (..., T, H, W), n by `thinning`."""
    return videos[..., :: thinning(videos.shape[-3]), :, :]


def drift(video: Tensor, lag: int = 1) -> Tensor:
    """How the parts of a picture have moved since `lag` frames before; nothing in the first `lag` frames.

    Args:
        video: uint8 (3, T, H, W).

    Returns:
        float32 (2, T, 4, 4): optical flow (x, y), averaged over each part; pixels of a frame of at most 128 x 128.
    """
    frames = fewer_pixels(video, FLOW_PIXELS).permute(1, 2, 3, 0).contiguous()
    moved = torch.zeros(2, len(frames), GRID, GRID)
    if len(frames) > lag:
        flow = optical_flow(frames[:-lag], frames[lag:], fast=True)
        moved[:, lag:] = functional.adaptive_avg_pool2d(flow, GRID).transpose(0, 1)
    return moved


def fewer_pixels(videos: Tensor, most: int = PIXELS) -> Tensor:
    """uint8 (..., 3, T, H, W) averaged over the least squares that leave at most so many pixels a frame.

    What is left over at the right and lower edge is cut off.
    """
    factor = 1
    while (videos.shape[-2] // factor) * (videos.shape[-1] // factor) > most:
        factor += 1
    if factor == 1:
        return videos
    small = functional.avg_pool2d(videos.flatten(0, -4).float(), factor)
    return small.round().to(torch.uint8).unflatten(0, videos.shape[:-3])


def network_input(videos: Tensor) -> Tensor:
    """uint8 (B, 3, T, H, W) -> float32 (B, 6, T, H, W): colours in [-1, 1], and twice the change since the last."""
    colours = videos.float() / 127.5 - 1
    change = torch.zeros_like(colours)
    change[:, :, 1:] = 2 * (colours[:, :, 1:] - colours[:, :, :-1])
    return torch.cat([colours, change], dim=1)
