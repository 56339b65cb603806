"""Resizing between stages, on a plain or a causal time axis (MATH 4)."""

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from tpdiff.pyramid.operators import Ratio, find_operator


class Resizer:
    """An operator on a plain or a causal time axis.

    A causal time axis (video VAEs of 1 + 4n frames) keeps its first frame and resizes the rest, so that
    21 latent frames become 11 and then 6. The first frame's blocks are then smaller than the others' (MATH 4).

    Args:
        name: an operator, see `find_operator`.
        causal_time: whether the first frame stands alone.

    Raises:
        ValueError: an unknown operator.
    """

    def __init__(self, name: str = "haar", causal_time: bool = False):
        self.name = name
        self.operator = find_operator(name)
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


def ratio_between(fine: Sequence[Fraction], coarse: Sequence[Fraction]) -> Ratio:
    """The (T, H, W) ratio from a stage of strides `fine` to the next coarser of strides `coarse`.

    Divided as fractions: in floats 20/3 over 4/3 is not 5.
    """
    t, h, w = (float(c / f) for f, c in zip(fine, coarse, strict=True))
    return t, h, w
