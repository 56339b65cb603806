"""From video to tokens and back, and the embedding of time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def patchify(video: Tensor, patch_size: Sequence[int]) -> Tensor:
    """(B, C, T, H, W) -> (B, tokens, C * patch volume); tokens in T, H, W order, channels slowest in a token."""
    batch, channels, *size = video.shape
    (t, h, w), (p, q, r) = size, patch_size
    cells = video.view(batch, channels, t // p, p, h // q, q, w // r, r)
    return cells.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(batch, -1, channels * p * q * r)


def unpatchify(tokens: Tensor, size: Sequence[int], patch_size: Sequence[int]) -> Tensor:
    """The inverse of :func:`patchify`: (B, tokens, C * patch volume) -> (B, C, T, H, W); ``size`` is (T, H, W)."""
    (t, h, w), (p, q, r) = size, patch_size
    cells = tokens.view(tokens.shape[0], t // p, h // q, w // r, -1, p, q, r)
    return cells.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(tokens.shape[0], -1, t, h, w)


def timestep_embedding(timestep: Tensor, dim: int, *, scale: float = 1000.0, theta: float = 10_000.0) -> Tensor:
    """Cosines and sines of ``scale * timestep`` at ``dim / 2`` geometric frequencies from 1 down to 1 / theta.

    Args:
        timestep: (B,) diffusion time in [0, 1], 1 is pure noise.
        dim: even number of channels.

    Returns:
        float32 tensor of shape (B, dim), whatever the dtype of ``timestep`` or of the network.
    """
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = scale * timestep.float()[:, None] * torch.exp(-math.log(theta) * exponent)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)
