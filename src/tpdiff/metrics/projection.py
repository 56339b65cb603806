"""Principal directions of a set of long vectors: fitted once on training clips, then fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RANK_TOLERANCE = 1e-10  # of the largest eigenvalue; directions below it are rounding

Parts = Callable[[], Iterable[np.ndarray]]  # each call goes through the same rows, some at a time


@dataclass(frozen=True)
class Projection:
    """Vectors (D,) to (d,): the mean is taken off, nothing is divided by.

    Attributes:
        mean: float64 (D,).
        directions: float64 (d, D), orthonormal, the largest variance first.
    """

    mean: NDArray[np.float64]
    directions: NDArray[np.float64]

    def __call__(self, vectors: np.ndarray) -> NDArray[np.float64]:
        """(N, D) -> float64 (N, d). A row does not depend on the rows beside it, to the last bit."""
        if vectors.ndim != 2 or vectors.shape[1] != len(self.mean):
            raise ValueError(f"this projection takes vectors of {len(self.mean)} numbers, got {vectors.shape}")
        return np.stack([self.directions @ (row - self.mean) for row in vectors])

    def pack(self) -> NDArray[np.float32]:
        """float32 (1 + d, D), as it is kept on disk: the mean, then the directions."""
        return np.concatenate([self.mean[None], self.directions]).astype(np.float32)

    @classmethod
    def unpack(cls, packed: np.ndarray) -> Projection:
        """What `pack` made."""
        return cls(packed[0].astype(np.float64), packed[1:].astype(np.float64))


def fit_projection(parts: Parts, dimensions: int) -> Projection:
    """Principal component analysis through the N × N matrix of products, N being far below D.

    At most two parts are in memory at a time. The largest entry of each direction is positive, so the result is
    determined. Fewer than `dimensions` directions come out where the rows span fewer.

    Raises:
        ValueError: fewer than two rows, or rows that are all the same.
    """
    total, rows = 0.0, 0
    for part in parts():
        total, rows = total + part.sum(axis=0, dtype=np.float64), rows + len(part)
    if rows < 2:
        raise ValueError(f"a projection needs at least 2 clips, got {rows}")
    mean = np.asarray(total / rows)
    values, vectors = np.linalg.eigh(_products(parts, mean, rows))
    order = np.argsort(values)[::-1][:dimensions]
    order = order[values[order] > RANK_TOLERANCE * values.max()]
    if values.max() <= 0 or not len(order):
        raise ValueError("the training clips all have the same features; a projection needs different clips")
    directions, first = np.zeros((len(order), len(mean))), 0
    for part in parts():
        directions += vectors[first : first + len(part), order].T @ (part - mean)
        first += len(part)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    largest = directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)]
    return Projection.unpack(Projection(mean, directions * np.sign(largest)[:, None]).pack())


def _products(parts: Parts, mean: NDArray[np.float64], rows: int) -> NDArray[np.float64]:
    """(N, N) inner products of the centred rows."""
    products, first = np.empty((rows, rows)), 0
    for left in parts():
        centred, second = left - mean, 0
        for right in parts():
            if second <= first:
                block = centred @ (right - mean).T
                products[first : first + len(left), second : second + len(right)] = block
                products[second : second + len(right), first : first + len(left)] = block.T
            second += len(right)
        first += len(left)
    return products
