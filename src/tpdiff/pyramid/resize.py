"""Resizing operators: how a stage's latent becomes the next stage's, and what a jump must add (MATH 4).

An operator is a pair D (down) and U (up) over latents (B, C, T, H, W), and the noise that makes an upsampled
latent's noise white again. `ratio` is the whole-number (T, H, W) shrinkage from one stage to the next.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

Ratio = tuple[float, float, float]
AXES = (2, 3, 4)
AXIS_NAMES = ("frames", "height", "width")


class Operator(Protocol):
    """What the pyramid asks of a resizing operator on a plain (non-causal) grid."""

    def check_ratio(self, ratio: Ratio) -> None:
        """Raise ValueError where the operator cannot resize by `ratio`."""

    def block(self, ratio: Ratio) -> float:
        """d: the number of fine elements one coarse element becomes (MATH 1)."""

    def down(self, x: Tensor, ratio: Ratio) -> Tensor:
        """D x: (B, C, T, H, W) -> each axis divided by its ratio."""

    def up(self, x: Tensor, ratio: Ratio) -> Tensor:
        """U x: (B, C, T, H, W) -> each axis multiplied by its ratio."""

    def corrective_noise(self, z: Tensor, ratio: Ratio, sigma: float, sigma_up: float) -> Tensor:
        """From white z at the fine size, noise of covariance sigma² I - sigma_up² U Uᵀ, same shape."""


class Haar:
    """Block mean down, nearest neighbour up: UD is the projection onto blocks of equal values."""

    def check_ratio(self, ratio: Ratio) -> None:
        for name, r in zip(AXIS_NAMES, ratio, strict=True):
            if r < 1 or r != int(r):
                raise ValueError(f"haar resizes by whole ratios from stage to stage; {name} has ratio {r:g}")

    def block(self, ratio: Ratio) -> float:
        return math.prod(ratio)

    def down(self, x: Tensor, ratio: Ratio) -> Tensor:
        for axis, r in _resized(ratio):
            x = x.unflatten(axis, (-1, r)).mean(axis + 1)
        return x

    def up(self, x: Tensor, ratio: Ratio) -> Tensor:
        for axis, r in _resized(ratio):
            x = x.repeat_interleave(r, axis)
        return x

    def corrective_noise(self, z: Tensor, ratio: Ratio, sigma: float, sigma_up: float) -> Tensor:
        """sigma (z - UDz) + sqrt(sigma² - d sigma_up²) UDz: z's block mean at the variance that is missing (MATH 3)."""
        missing = sigma**2 - self.block(ratio) * sigma_up**2
        root = math.sqrt(missing) if missing > 1e-12 * sigma**2 else 0.0
        return sigma * z + (root - sigma) * self.up(self.down(z, ratio), ratio)


def _resized(ratio: Ratio) -> list[tuple[int, int]]:
    return [(axis, int(r)) for axis, r in zip(AXES, ratio, strict=True) if r != 1]


OPERATORS: dict[str, Operator] = {"haar": Haar()}


class Resizer:
    """An operator on a plain or a causal time axis.

    A causal time axis (video VAEs of 1 + 4n frames) keeps its first frame and resizes the rest, so that
    21 latent frames become 11 and then 6. The first frame's blocks are then smaller than the others' (MATH 4).

    Args:
        name: an operator of `OPERATORS`.
        causal_time: whether the first frame stands alone.

    Raises:
        ValueError: an unknown operator.
    """

    def __init__(self, name: str = "haar", causal_time: bool = False):
        if name not in OPERATORS:
            raise ValueError(f"unknown resize {name!r}; known: {', '.join(sorted(OPERATORS))}")
        self.name = name
        self.operator = OPERATORS[name]
        self.causal_time = causal_time

    def down(self, x: Tensor, ratio: Ratio) -> Tensor:
        """D x, (B, C, T, H, W) at the finer size -> the coarser size."""
        return torch.cat([self.operator.down(part, r) for part, r in self._parts(x, ratio)], dim=2)

    def up(self, x: Tensor, ratio: Ratio) -> Tensor:
        """U x, (B, C, T, H, W) at the coarser size -> the finer size."""
        return torch.cat([self.operator.up(part, r) for part, r in self._parts(x, ratio)], dim=2)

    def corrective_noise(self, z: Tensor, ratio: Ratio, sigma: float, sigma_up: float) -> Tensor:
        """`Operator.corrective_noise` for every element's own block size."""
        parts = self._parts(z, ratio)
        return torch.cat([self.operator.corrective_noise(p, r, sigma, sigma_up) for p, r in parts], dim=2)

    def _parts(self, x: Tensor, ratio: Ratio) -> list[tuple[Tensor, Ratio]]:
        """The stretches of time that are resized on their own, with their ratios."""
        if not self.causal_time or ratio[0] == 1:
            return [(x, ratio)]
        first, rest = x[:, :, :1], x[:, :, 1:]
        alone: list[tuple[Tensor, Ratio]] = [(first, (1, *ratio[1:]))]
        return alone + ([(rest, ratio)] if rest.shape[2] else [])


def ratio_between(fine: Sequence[float], coarse: Sequence[float]) -> Ratio:
    """The (T, H, W) ratio from a stage of strides `fine` to the next coarser of strides `coarse`."""
    t, h, w = (c / f for f, c in zip(fine, coarse, strict=True))
    return t, h, w
