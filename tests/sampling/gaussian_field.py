"""A Gaussian field over (T, H, W) whose stages hold its lowest cosines, and its perfect denoisers.

D is built here from SciPy's cosine transform. Two denoisers: the stage-wise one, of a network trained on the
pyramid's virtual pairs, and the base one, of a network that takes every stage for ordinary diffusion of D_k x_0.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from gaussian import GaussianVideo

from tpdiff.pyramid import Pyramid


def cosines(size: int) -> np.ndarray:
    """The orthonormal DCT-II as a matrix; row k holds cosine k."""
    return scipy.fft.dct(np.eye(size), norm="ortho", axis=0)


def low_pass(fine: int, coarse: int, alone: int = 0) -> np.ndarray:
    """D along one axis: the first cosines, read off at `coarse` points; `alone` first elements stay as they are."""
    n, m = fine - alone, coarse - alone
    matrix = np.zeros((coarse, fine))
    matrix[:alone, :alone] = np.eye(alone)
    matrix[alone:, alone:] = cosines(m).T @ cosines(n)[:m] * math.sqrt(m / n)
    return matrix


def kron(parts) -> np.ndarray:
    t, h, w = parts
    return np.kron(np.kron(t, h), w)


def diagonal_field(power: np.ndarray) -> np.ndarray:
    """The covariance over (T, H, W) whose cosines are independent, of the given powers."""
    basis = kron([cosines(n) for n in power.shape])
    return basis.T @ (power.reshape(-1, 1) * basis)


@dataclass
class GaussianField(GaussianVideo):
    """N(mean, cov) over `size` flattened, resized by "dct"; `base`: see above."""

    size: tuple[int, int, int] = (1, 1, 1)
    base: bool = False

    def __post_init__(self) -> None:
        alone = (int(self.pyramid.causal_time), 0, 0)
        grids = []
        for stage in self.pyramid.stages:
            grids.append([a + round((n - a) / f) for n, f, a in zip(self.size, stage.factors, alone, strict=True)])
        self.grids = grids
        self.downs = [kron(map(low_pass, self.size, grid, alone)) for grid in grids]
        self.lifted = list(self.downs)  # as if there were nothing to add
        if self.base:
            return
        for k in range(len(grids) - 1):
            down = kron(map(low_pass, grids[k], grids[k + 1], alone))
            self.lifted[k] = np.linalg.pinv(down) @ self.downs[k + 1]


def base_field(pyramid: Pyramid, power: np.ndarray) -> GaussianField:
    """A field of independent cosines and no mean, for the base denoiser."""
    cov = diagonal_field(power)
    return GaussianField(pyramid, np.zeros(len(cov)), cov, "flow_prediction", size=power.shape, base=True)
