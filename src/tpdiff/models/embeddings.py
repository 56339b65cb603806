"""From video to tokens and back, by each stage's own layers if wanted, and the embeddings of time and text."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def overlapping(video: Tensor, frames: int, overlap: int) -> Tensor:
    """(B, C, T, H, W) -> (B, C, T / frames * (frames + 2 overlap), H, W): every patch's frames between its neighbours'.

    A patch of ``frames`` frames is shown with the ``overlap`` frames before it and after it; the video's ends repeat.
    """
    if not overlap:
        return video
    edges = (0, 0, 0, 0, overlap, overlap)
    windows = F.pad(video, edges, mode="replicate").unfold(2, frames + 2 * overlap, frames)  # (B, C, n, H, W, window)
    return windows.permute(0, 1, 2, 5, 3, 4).flatten(2, 3)


def blended(video: Tensor, frames: int, overlap: int) -> Tensor:
    """Back from what :func:`overlapping` gives: where two patches say a frame, they are cross-faded linearly."""
    if not overlap:
        return video
    windows = video.unflatten(2, (-1, frames + 2 * overlap))  # (B, C, n, window, H, W)
    own = windows[:, :, :, overlap:-overlap]
    before = torch.cat((own[:, :, :1, :overlap], windows[:, :, :-1, -overlap:]), dim=2)
    after = torch.cat((windows[:, :, 1:, :overlap], own[:, :, -1:, -overlap:]), dim=2)
    ramp = torch.arange(overlap, device=video.device, dtype=video.dtype).add(0.5).div(2 * overlap).add(0.5)
    share = ramp[:, None, None]  # of a frame's own patch, from a half at its edge
    first = before.lerp(own[:, :, :, :overlap], share)
    last = after.lerp(own[:, :, :, -overlap:], share.flip(0))
    return torch.cat((first, own[:, :, :, overlap : frames - overlap], last), dim=3).flatten(2, 3)


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


class StageLinear(nn.Module):
    """A linear layer a stage, all alike before training: a token of a coarse stage spans more of the video."""

    def __init__(self, num_stages: int, in_features: int, out_features: int) -> None:
        super().__init__()
        first = torch.empty(out_features, in_features)
        nn.init.xavier_uniform_(first)  # in place: a loader that skips initialisation makes it return None
        self.weight = nn.Parameter(first.repeat(num_stages, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_stages, out_features))

    def forward(self, tokens: Tensor, stage: int) -> Tensor:
        """(B, N, in_features) -> (B, N, out_features), by the layer of ``stage``."""
        return F.linear(tokens, self.weight[stage], self.bias[stage])


class TextEmbedding(nn.Module):
    """Normed, projected text after one learned null token, which every sample attends to.

    The null token is all that a sample without a prompt (a mask that is all False) attends to.
    """

    def __init__(self, text_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.projection = nn.Linear(text_dim, hidden_size)
        self.null = nn.Parameter(0.02 * torch.randn(1, 1, hidden_size))

    def forward(self, text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """(B, L, text_dim) and (B, L) bool -> (B, 1 + L, D) and (B, 1, 1, 1 + L) bool, True where attended to."""
        text = self.projection(F.layer_norm(text.to(self.projection.weight.dtype), text.shape[-1:]))
        text = torch.cat((self.null.to(text.dtype).expand(text.shape[0], -1, -1), text), dim=1)
        return text, None if mask is None else F.pad(mask, (1, 0), value=True)[:, None, None]
