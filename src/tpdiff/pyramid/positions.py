"""Where the elements of a stage stand on the full-size axis (MATH 7)."""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("interpolate", "extrapolate")


def positions(length: int, stride: float, *, mode: str = "interpolate", causal: bool = False) -> Tensor:
    """Positions of the ``length`` elements of one axis, in units of full-size elements (MATH 7).

    ``"interpolate"`` puts element i at the centre of the ``stride`` full-size elements it replaces,
    ``(i + 1/2) f - 1/2``, so that every stage reads the same axis. On a causal axis, whose first element stands
    alone, element 0 is at 0 and element i >= 1 at ``i f - (f - 1) / 2``.
    ``"extrapolate"`` numbers the elements 0 .. length - 1 whatever the stride (Pyramid Flow's spatial axes).

    Args:
        length: number of elements of the axis at this stage.
        stride: full-size elements one element replaces; any positive number, 1 at full size.
        mode: ``"interpolate"`` or ``"extrapolate"``.
        causal: whether the first element is a single full-size element.

    Returns:
        float64 tensor of shape (length,).

    Raises:
        ValueError: a stride that is not positive, a negative length, an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"unknown position mode {mode!r}; known modes: {', '.join(MODES)}")
    if not stride > 0:
        raise ValueError(f"stride {stride} must be positive; full size is 1")
    if length < 0:
        raise ValueError(f"length {length} must not be negative")
    index = torch.arange(length, dtype=torch.float64)
    if mode == "extrapolate":
        return index
    if causal:
        return (index * stride - (stride - 1) / 2).where(index > 0, 0.0)
    return (index + 0.5) * stride - 0.5
