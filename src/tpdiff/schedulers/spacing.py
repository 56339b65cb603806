"""Where a wrapped scheduler would put its steps, so that the stages put theirs alike (MATH 3).

A flow-matching scheduler spreads its steps uniformly in some u in [0, 1] and maps them to noise levels by a rising
function σ(u): a table, if a pipeline gives one, then a time shift, then a stretch that ends at a terminal level.
A stage of n steps takes n + 1 points uniform in u between its own two ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpdiff.schedulers.options import option


@dataclass(frozen=True)
class Spacing:
    """σ(u), rising from σ(0) = 0 to σ(1) = 1.

    Attributes:
        shift: a in a u / (1 + (a - 1) u); 1 leaves u as it is (arXiv 2403.03206, section 5.3.2).
        table: levels at equal distances in u, falling, without the last, 0; None: uniform.
        terminal: the level that the last of `count` steps starts from; None: where it falls.
        count: steps of the whole schedule, for `terminal`.
    """

    shift: float = 1.0
    table: tuple[float, ...] | None = None
    terminal: float | None = None
    count: int = 1

    def sigma(self, u: np.ndarray | float) -> np.ndarray:
        """σ at u in [0, 1], float64."""
        return self._stretch(self._shift(np.interp(u, *self._knots())))

    def u(self, sigma: np.ndarray | float) -> np.ndarray:
        """The u whose level is σ, float64: the inverse of `sigma`."""
        at, levels = self._knots()
        return np.interp(self._unshift(self._unstretch(sigma)), levels, at)

    def between(self, start: float, end: float, steps: int) -> list[float]:
        """steps + 1 levels from `start` down to `end`, both included, uniform in u."""
        u = np.linspace(self.u(start), self.u(end), steps + 1)
        inner = np.asarray(self.sigma(u[1:-1])).tolist()
        return [start, *inner, end]

    def _knots(self) -> tuple[np.ndarray, np.ndarray]:
        if self.table is None:
            return np.array([0.0, 1.0]), np.array([0.0, 1.0])
        levels = np.array([0.0, *self.table[::-1]], dtype=np.float64)
        return np.linspace(0, 1, len(levels)), levels

    def _shift(self, v: np.ndarray | float) -> np.ndarray:
        v = np.asarray(v, dtype=np.float64)
        return self.shift * v / (1 + (self.shift - 1) * v)

    def _unshift(self, w: np.ndarray | float) -> np.ndarray:
        w = np.asarray(w, dtype=np.float64)
        return w / (self.shift - (self.shift - 1) * w)

    @property
    def _last(self) -> tuple[float, float]:
        """The level that the last of `count` steps would start from, before and after the stretch."""
        before = float(self._shift(np.interp(1 / self.count, *self._knots())))
        return before, before if self.terminal is None else self.terminal

    def _stretch(self, w: np.ndarray) -> np.ndarray:
        before, after = self._last
        if before == after or before in (0.0, 1.0):
            return w
        return np.where(w >= before, 1 - (1 - w) * (1 - after) / (1 - before), w * after / before)

    def _unstretch(self, sigma: np.ndarray | float) -> np.ndarray:
        sigma = np.asarray(sigma, dtype=np.float64)
        before, after = self._last
        if before == after or before in (0.0, 1.0):
            return sigma
        return np.where(sigma >= after, 1 - (1 - sigma) * (1 - before) / (1 - after), sigma * before / after)


def spacing_of(base: Any, count: int, sigmas: Sequence[float] | None, mu: float | None) -> Spacing:
    """The spacing of a flow-matching scheduler of diffusers'.

    Args:
        base: the scheduler.
        count: steps of the whole schedule.
        sigmas: levels before the shift that a pipeline asks for, falling from 1; None: uniform.
        mu: the dynamic shift's parameter.

    Raises:
        ValueError: levels that do not fall from 1, or a dynamic shift without `mu`.
    """
    dynamic = option(base, "use_dynamic_shifting")
    if dynamic and mu is None:
        raise ValueError("`mu` must be passed when the scheduler's `use_dynamic_shifting` is set")
    if dynamic:
        assert mu is not None
        shift = math.exp(mu) if option(base, "time_shift_type", "exponential") == "exponential" else mu
    else:
        set_later = base.shift if isinstance(getattr(type(base), "shift", None), property) else None  # by set_shift
        shift = set_later or option(base, "flow_shift") or option(base, "shift") or 1.0
    table = None
    if sigmas is not None:
        table = tuple(float(sigma) for sigma in sigmas)
        if abs(table[0] - 1) > 1e-3 or any(b >= a for a, b in zip(table, [*table[1:], 0.0], strict=True)):
            raise ValueError(f"sigmas must fall from 1 towards 0; got {table[0]:g} ... {table[-1]:g}")
        table = (1.0, *table[1:])
    return Spacing(float(shift), table, option(base, "shift_terminal") or None, count)
