"""Plain re-derivations that the pyramid's tests compare against: matrices, NumPy schedules, exact linear maps."""

import importlib
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, Schedule, VariancePreservingSchedule

jump_module = importlib.import_module("tpdiff.pyramid.jump")

FLOW = FlowMatchingSchedule()
VP = VariancePreservingSchedule()
SCHEDULES = [pytest.param(FLOW, id="flow"), pytest.param(VP, id="vp")]

# The stable-diffusion noise levels, computed here once more: betas are the squares of an even grid of roots.
SD_ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def coefficients(schedule: Schedule, t: float) -> tuple[float, float]:
    """(γ, σ) at time t: 1 - t and t for flow; for VP through λ, linear between the thousand levels."""
    if isinstance(schedule, FlowMatchingSchedule):
        return 1 - t, t
    log_snr = np.interp(t * 999, np.arange(1000), 0.5 * np.log(SD_ALPHAS_CUMPROD / (1 - SD_ALPHAS_CUMPROD)))
    return 1 / math.sqrt(1 + math.exp(-2 * log_snr)), 1 / math.sqrt(1 + math.exp(2 * log_snr))


@dataclass(frozen=True)
class Setting:
    """A way to shrink: strides finest first, whether time is causal, and a full size that three stages can hold."""

    factors: tuple[tuple[int, int, int], ...]
    causal: bool
    size: tuple[int, int, int]
    block: int

    def pyramid(self, schedule: Schedule, **levels) -> Pyramid:
        return Pyramid(schedule, self.factors, causal_time=self.causal, **levels)

    def ratio(self, k: int) -> tuple[int, ...]:
        return tuple(c // f for f, c in zip(self.factors[k], self.factors[k + 1], strict=True))


TIME = ((1, 1, 1), (2, 1, 1), (4, 1, 1))
SPACE = ((1, 1, 1), (1, 2, 2), (1, 4, 4))
BOTH = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
SETTINGS = [
    pytest.param(Setting(TIME, False, (8, 2, 2), 2), id="T"),
    pytest.param(Setting(TIME, True, (9, 2, 2), 2), id="T-causal"),
    pytest.param(Setting(SPACE, False, (2, 4, 8), 4), id="HW"),
    pytest.param(Setting(SPACE, True, (3, 4, 8), 4), id="HW-causal"),
    pytest.param(Setting(BOTH, False, (8, 4, 4), 8), id="THW"),
    pytest.param(Setting(BOTH, True, (5, 4, 4), 8), id="THW-causal"),
    pytest.param(Setting(TIME, True, (1, 2, 2), 2), id="T-causal-one-frame"),
    pytest.param(Setting(BOTH, True, (1, 4, 4), 8), id="THW-causal-one-frame"),
]


def groups(length: int, stride: int, causal: bool = False) -> list[list[int]]:
    """Which fine elements every coarse element stands for."""
    alone = [[0]] if causal else []
    return alone + [list(range(i, i + stride)) for i in range(len(alone), length, stride)]


def mean_matrix(length: int, stride: int, causal: bool = False) -> np.ndarray:
    members = groups(length, stride, causal)
    matrix = np.zeros((len(members), length))
    for row, group in zip(matrix, members, strict=True):
        row[group] = 1 / len(group)
    return matrix


def copy_matrix(length: int, stride: int, causal: bool = False) -> np.ndarray:
    return (mean_matrix(length, stride, causal) > 0).astype(float).T


def shrink(x: Tensor, strides, causal: bool) -> Tensor:
    """Block means of (B, C, T, H, W) by one matrix an axis."""
    t, h, w = (
        torch.from_numpy(mean_matrix(n, r, causal and axis == 0))
        for axis, (n, r) in enumerate(zip(x.shape[2:], strides, strict=True))
    )
    return torch.einsum("bcthw,it,jh,kw->bcijk", x, t, h, w)


def enlarge(x: Tensor, strides, causal: bool) -> Tensor:
    """Copies of every element of (B, C, T, H, W) over its block, by one matrix an axis."""
    fine = [n * r for n, r in zip(x.shape[2:], strides, strict=True)]
    if causal:
        fine[0] = 1 + (x.shape[2] - 1) * strides[0]
    t, h, w = (
        torch.from_numpy(copy_matrix(n, r, causal and axis == 0))
        for axis, (n, r) in enumerate(zip(fine, strides, strict=True))
    )
    return torch.einsum("bcthw,it,jh,kw->bcijk", x, t, h, w)


def copying(size, strides, causal: bool) -> np.ndarray:
    """U as one (fine elements, coarse elements) matrix for a fine (T, H, W) size."""
    parts = [copy_matrix(n, r, causal and axis == 0) for axis, (n, r) in enumerate(zip(size, strides, strict=True))]
    return np.kron(np.kron(parts[0], parts[1]), parts[2])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noise_map(pyramid: Pyramid, k: int, size) -> np.ndarray:
    """The matrix from the unit normals a jump into stage k draws to the noise it adds, fine (T, H, W) size `size`.

    The jump is given zeros and, in place of its draw, all basis vectors at once.
    """
    count = math.prod(size)
    basis = torch.eye(count, dtype=torch.float64).reshape(count, 1, *size)
    coarse = torch.zeros_like(shrink(basis, [int(r) for r in pyramid.ratio(k)], pyramid.causal_time))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jump_module, "randn", lambda shape, *_: basis.reshape(shape))
        return pyramid.jump(coarse, k).flatten(1).numpy().T
