"""The network that names what a clip shows, and what it is shown of a clip.

A clip is thinned to at most `FRAMES` frames, a frame averaged down by a whole factor until it has at most `PIXELS`
pixels. The network sees colours and what changed since the frame before; three convolutions over time and space; each
channel's strongest answer over space tells what is there, its mean in four parts of the time how it moves.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

FRAMES, PIXELS = 32, 1024
WIDTHS = (24, 48, 64)
PARTS = 4  # of the time


class ClipNet(nn.Module):
    """Answers (B, values) for each attribute, from clips as `network_input` makes them (B, 6, T, H, W)."""

    def __init__(self, answers: Sequence[int]):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 6
        for number, width in enumerate(WIDTHS):
            stride = (2 if number else 1, 2, 2)
            layers += [nn.Conv3d(channels, width, 3, stride, 1), nn.GroupNorm(8, width), nn.SiLU()]
            channels = width
        self.body = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Linear(channels * (PARTS + 1), count) for count in answers)

    def forward(self, clips: Tensor) -> list[Tensor]:
        maps = self.body(clips)
        motion = functional.adaptive_avg_pool3d(maps, (PARTS, 1, 1)).flatten(1)
        content = maps.amax((3, 4)).mean(2)
        features = torch.cat([motion, content], dim=1)
        return [head(features) for head in self.heads]


def thin(videos: Tensor) -> Tensor:
    """Every n-th frame of (..., T, H, W), n the least that leaves at most `FRAMES`."""
    return videos[..., :: -(-videos.shape[-3] // FRAMES), :, :]


def fewer_pixels(videos: Tensor) -> Tensor:
    """uint8 (..., 3, T, H, W) averaged over the least squares that leave at most `PIXELS` pixels a frame.

    What is left over at the right and lower edge is cut off.
    """
    factor = 1
    while (videos.shape[-2] // factor) * (videos.shape[-1] // factor) > PIXELS:
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
