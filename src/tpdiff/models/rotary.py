"""Three-axis rotary positions shared by all stages of a pyramid (MATH 7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tpdiff.pyramid.positions import positions


def split_pairs(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's ``head_dim / 2`` rotated pairs go to T, H and W: a third each, the rest to T."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def rotary_angles(
    size: Sequence[int],
    strides: Sequence[float],
    head_dim: int,
    *,
    modes: Sequence[str] = ("interpolate",) * 3,
    theta: float = 1000.0,
    causal_time: bool = False,
) -> Tensor:
    """Rotation angle of every token and pair, in radians.

    Pair j of the n pairs of an axis turns by ``position * theta^(-j/n)``, position in full-size elements.

    Args:
        size: (T, H, W) in tokens.
        strides: (T, H, W) full-size elements per token.
        head_dim: channels of one attention head.
        modes: position mode of each axis, see :func:`tpdiff.pyramid.positions.positions`.
        theta: ratio of the longest wavelength to the shortest.
        causal_time: whether the first frame stands alone.

    Returns:
        float64 tensor of shape (T * H * W, head_dim / 2), tokens in T, H, W order, pairs of T first.
    """
    parts = []
    for axis, pairs in enumerate(split_pairs(head_dim)):
        where = positions(size[axis], strides[axis], mode=modes[axis], causal=causal_time and axis == 0)
        frequency = theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        shape = [1, 1, 1, pairs]
        shape[axis] = size[axis]
        parts.append((where[:, None] * frequency).view(shape).expand(*size, pairs))
    return torch.cat(parts, dim=-1).flatten(0, 2)


@dataclass(frozen=True)
class Rotary:
    """The rotary positions of a network: see :func:`rotary_angles` for the fields."""

    head_dim: int
    modes: tuple[str, ...] = ("interpolate",) * 3
    theta: float = 1000.0
    causal_time: bool = False

    def table(
        self, size: tuple[int, ...], strides: tuple[float, ...], device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """Cosines and sines of all tokens of ``size`` (T, H, W), remembered between calls.

        Pair j is made of channels j and j + head_dim / 2, so that rotating x is
        ``x * cos + swap_halves(x) * sin``.

        Returns:
            tensor of shape (2, T * H * W, head_dim): the cosines, twice; the sines, first negated, then as
            they are.
        """
        build = _build_table if torch.compiler.is_compiling() else _remembered_table
        return build(self, size, strides, device, dtype)


def angle_features(table: Tensor) -> Tensor:
    """(2, N, head_dim) of `Rotary.table` -> (N, head_dim): the cosines of a token's angles, then their sines."""
    half = table.shape[-1] // 2
    return torch.cat((table[0, :, :half], table[1, :, half:]), dim=-1)


def _build_table(
    rope: Rotary, size: tuple[int, ...], strides: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    angles = rotary_angles(
        size, strides, rope.head_dim, modes=rope.modes, theta=rope.theta, causal_time=rope.causal_time
    )
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).to(device, dtype)


@lru_cache(maxsize=64)
def _remembered_table(
    rope: Rotary, size: tuple[int, ...], strides: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> Tensor:
    with torch.inference_mode(False):  # a table first made while sampling must also serve training
        return _build_table(rope, size, strides, device, dtype)
