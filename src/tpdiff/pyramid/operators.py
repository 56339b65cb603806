"""Resizing operators: how a stage's latent becomes the next stage's, and what a jump must add (MATH 4).

An operator is a pair D (down) and U (up) over latents (B, C, T, H, W), the same along every axis that it resizes, and
the noise that makes an upsampled latent's noise white again. `ratio` is the (T, H, W) shrinkage between two stages.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import lru_cache
from typing import Protocol

import pywt
import torch
from torch import Tensor
from torch.nn import functional

Ratio = tuple[float, float, float]
AXES = (2, 3, 4)
AXIS_NAMES = ("frames", "height", "width")
NOTHING = 1e-12  # a variance that rounding alone leaves, as a share of the whole


class Operator(Protocol):
    """What the pyramid asks of a resizing operator on a plain (non-causal) grid."""

    def check_ratio(self, ratio: Ratio) -> None:
        """Raise ValueError where the operator cannot resize by `ratio`."""

    def block(self, ratio: Ratio) -> float:
        """d: the largest eigenvalue of U Uᵀ, how much more variance than white noise the copied noise can have."""

    def down(self, x: Tensor, ratio: Ratio) -> Tensor:
        """D x: (B, C, T, H, W) -> each axis divided by its ratio."""

    def up(self, x: Tensor, ratio: Ratio) -> Tensor:
        """U x: (B, C, T, H, W) -> each axis multiplied by its ratio."""

    def corrective_noise(self, z: Tensor, ratio: Ratio, sigma: float, sigma_up: float) -> Tensor:
        """From white z at the fine size, noise of covariance sigma² I - sigma_up² U Uᵀ, same shape."""


class Projection(ABC):
    """Operators of orthonormal rows A along each axis: D = A/√r, U = √r Aᵀ, so that UD = AᵀA is a projection."""

    name: str

    @abstractmethod
    def rows(self, coarse: int, fine: int) -> Tensor:
        """A, float64 (coarse, fine), A Aᵀ = I and A 1 = √r 1."""

    def check_ratio(self, ratio: Ratio) -> None:
        """Whole ratios, unless a subclass says otherwise."""
        _check_whole(self.name, ratio)

    def block(self, ratio: Ratio) -> float:
        """The product of the ratios."""
        return math.prod(ratio)

    def down(self, x: Tensor, ratio: Ratio) -> Tensor:
        """D x."""
        for axis, r in resized(ratio):
            rows = self._rows(_divide(x.shape[axis], r), x.shape[axis])
            x = _along(rows / math.sqrt(r), x, axis)
        return x

    def up(self, x: Tensor, ratio: Ratio) -> Tensor:
        """U x."""
        for axis, r in resized(ratio):
            rows = self._rows(x.shape[axis], round(x.shape[axis] * r))
            x = _along(rows.T * math.sqrt(r), x, axis)
        return x

    def corrective_noise(self, z: Tensor, ratio: Ratio, sigma: float, sigma_up: float) -> Tensor:
        """sigma (z - UDz) + sqrt(sigma² - d sigma_up²) UDz: what U spans, at the variance that is missing (MATH 3)."""
        missing = sigma**2 - self.block(ratio) * sigma_up**2
        root = math.sqrt(missing) if missing > NOTHING * sigma**2 else 0.0
        return sigma * z + (root - sigma) * self.up(self.down(z, ratio), ratio)

    @lru_cache(maxsize=64)  # noqa: B019  operators are few and live as long as the program
    def _rows(self, coarse: int, fine: int) -> Tensor:
        with torch.inference_mode(False):
            return self.rows(coarse, fine)


class Haar(Projection):
    """Block mean down, nearest neighbour up: UD is the projection onto blocks of equal values."""

    name = "haar"

    def rows(self, coarse: int, fine: int) -> Tensor:
        """Blocks of 1/√r."""
        r = fine // coarse
        return torch.eye(coarse, dtype=torch.float64).repeat_interleave(r, 1) / math.sqrt(r)

    def down(self, x: Tensor, ratio: Ratio) -> Tensor:
        """Means of blocks."""
        for axis, r in resized(ratio):
            x = x.unflatten(axis, (-1, int(r))).mean(axis + 1)
        return x

    def up(self, x: Tensor, ratio: Ratio) -> Tensor:
        """Copies."""
        for axis, r in resized(ratio):
            x = x.repeat_interleave(int(r), axis)
        return x


class Cosine(Projection):
    """The lowest m of N cosines, read off at m points: any ratio N/m, not only whole ones."""

    name = "dct"

    def check_ratio(self, ratio: Ratio) -> None:
        """Any ratio from 1 on."""
        for name, r in zip(AXIS_NAMES, ratio, strict=True):
            if r < 1:
                raise ValueError(f"{self.name} resizes by ratios from 1 on; {name} has ratio {r:g}")

    def rows(self, coarse: int, fine: int) -> Tensor:
        """C_mᵀ times the first m rows of C_N, C the orthonormal DCT-II."""
        return _cosines(coarse).T @ _cosines(fine)[:coarse]


class Wavelet(Projection):
    """The approximation coefficients of an orthogonal two-band filter of PyWavelets', periodic at the ends."""

    def __init__(self, name: str):
        self.name = name
        self.filter = torch.tensor(pywt.Wavelet(name).rec_lo, dtype=torch.float64)
        centre = float((self.filter * torch.arange(len(self.filter))).sum() / self.filter.sum())
        self.before = round(centre - 0.5)  # taps before a pair, so that the filter's centre of mass lies in its middle

    def check_ratio(self, ratio: Ratio) -> None:
        """Powers of two."""
        for name, r in zip(AXIS_NAMES, ratio, strict=True):
            if r < 1 or not math.log2(r).is_integer():
                raise ValueError(f"{self.name} resizes by powers of two from stage to stage; {name} has ratio {r:g}")

    def rows(self, coarse: int, fine: int) -> Tensor:
        """One level after the other."""
        whole = torch.eye(fine, dtype=torch.float64)
        while len(whole) > coarse:
            size = len(whole)
            level = torch.zeros(size // 2, size, dtype=torch.float64)
            for row in range(size // 2):
                for tap, value in enumerate(self.filter):
                    level[row, (2 * row + tap - self.before) % size] += value
            whole = level @ whole
        return whole


class Linear:
    """Block mean down, linear interpolation up (corners not aligned, edges clamped). U Uᵀ has many eigenvalues, so the
    corrective noise is made in the eigenvectors of every axis (Kronecker): exact, without a Cholesky factor.
    """

    name = "linear"

    def check_ratio(self, ratio: Ratio) -> None:
        """Whole ratios."""
        _check_whole(self.name, ratio)

    def block(self, ratio: Ratio) -> float:
        """U's rows and columns have the sums 1 and r, so that U Uᵀ's largest eigenvalue is the ratios' product."""
        return math.prod(ratio)

    def down(self, x: Tensor, ratio: Ratio) -> Tensor:
        """Means of blocks."""
        return OPERATORS["haar"].down(x, ratio)

    def up(self, x: Tensor, ratio: Ratio) -> Tensor:
        """Interpolation."""
        for axis, r in resized(ratio):
            x = _along(_interpolation(x.shape[axis], int(r)), x, axis)
        return x

    def corrective_noise(self, z: Tensor, ratio: Ratio, sigma: float, sigma_up: float) -> Tensor:
        """Q sqrt(sigma² - sigma_up² Λ) Qᵀ z, U Uᵀ = Q Λ Qᵀ."""
        values = torch.ones((), dtype=torch.float64)
        bases: list[tuple[int, Tensor]] = []
        for axis, r in resized(ratio):
            own, basis = _eigen(_divide(z.shape[axis], r), int(r))
            values = values[..., None] * own
            bases.append((axis, basis))
            z = _along(basis.T, z, axis)
        missing = sigma**2 - sigma_up**2 * values
        root = missing.where(missing > NOTHING * sigma**2, 0.0).sqrt()
        shape = [z.shape[axis] if r != 1 else 1 for axis, r in zip(AXES, ratio, strict=True)]
        z = z * root.reshape(shape).to(z.device, z.dtype)
        for axis, basis in bases:
            z = _along(basis, z, axis)
        return z


def resized(ratio: Ratio) -> Iterator[tuple[int, float]]:
    """(axis of (B, C, T, H, W), ratio) of the axes that change."""
    return ((axis, r) for axis, r in zip(AXES, ratio, strict=True) if r != 1)


def find_operator(name: str) -> Operator:
    """An operator by name: "haar", "dct", "linear", or an orthogonal wavelet of PyWavelets' ("db2", "sym4").

    Raises:
        ValueError: there is none of that name.
    """
    if name not in OPERATORS and name in ORTHOGONAL:
        OPERATORS[name] = Wavelet(name)
    if name not in OPERATORS:
        raise ValueError(
            f"unknown resize {name!r}; known: dct, haar, linear, and orthogonal wavelets, such as db2, sym4, coif1"
        )
    return OPERATORS[name]


OPERATORS: dict[str, Operator] = {operator.name: operator for operator in (Haar(), Cosine(), Linear())}
ORTHOGONAL = frozenset(name for name in pywt.wavelist(kind="discrete") if pywt.Wavelet(name).orthogonal) - {"haar"}


def _check_whole(operator: str, ratio: Ratio) -> None:
    for name, r in zip(AXIS_NAMES, ratio, strict=True):
        if r < 1 or r != int(r):
            raise ValueError(f"{operator} resizes by whole ratios from stage to stage; {name} has ratio {r:g}")


def _divide(size: int, ratio: float) -> int:
    return round(size / ratio)


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """A matrix (n, m), float64, applied to an axis of m elements, in x's precision, autocast or not."""
    with torch.autocast(x.device.type, enabled=False):
        return (x.movedim(axis, -1) @ matrix.T.to(x.device, x.dtype)).movedim(-1, axis)


def _cosines(size: int) -> Tensor:
    """The orthonormal DCT-II, (size, size): row k holds cos(π k (n + ½) / size)."""
    steps = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * steps[:, None] * (steps + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix


@lru_cache(maxsize=64)
def _interpolation(coarse: int, ratio: int) -> Tensor:
    """U along one axis, float64 (coarse · ratio, coarse)."""
    with torch.inference_mode(False):
        points = torch.eye(coarse, dtype=torch.float64)[:, None]
        return functional.interpolate(points, scale_factor=float(ratio), mode="linear")[:, 0].T.contiguous()


@lru_cache(maxsize=64)
def _eigen(coarse: int, ratio: int) -> tuple[Tensor, Tensor]:
    """(eigenvalues (fine,), eigenvectors (fine, fine) in columns) of U Uᵀ along one axis."""
    with torch.inference_mode(False):
        up = _interpolation(coarse, ratio)
        values, vectors = torch.linalg.eigh(up @ up.T)
        return values.clamp_min(0), vectors
