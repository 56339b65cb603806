"""Distances between two sets of features, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.intp]
BLOCK = 512  # rows of a kernel matrix that are held at a time
REAL_SEED = 0  # of `paired_draws`' draws of real clips


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """value, low, high."""
        return {"value": self.value, "low": self.low, "high": self.high}


def frechet_distance(real: Array, made: Array) -> float:
    """Fréchet distance of two Gaussians with the moments of two sets of features, (N, D) and (M, D):

        |μ - ν|² + tr(A + B - 2 (A B)^½)      (Dowson and Landau 1982; squared, as is the custom)

    Covariances are unbiased. The figure has an upward bias that shrinks with the number of clips: compare sets of
    equal size only.

    Raises:
        ValueError: other shapes, fewer than two clips, or values that are not finite.
    """
    real, made = _checked(real, made)
    return frechet_from_moments(*moments(real), *moments(made))


def moments(features: Array) -> tuple[Array, Array]:
    """(N, D) -> mean (D,) and unbiased covariance (D, D)."""
    mean = features.mean(axis=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def frechet_from_moments(mean_a: Array, cov_a: Array, mean_b: Array, cov_b: Array) -> float:
    """The same from means (D,) and covariances (D, D), which may be singular.

    tr (A B)^½ is the sum of the singular values of A^½ B^½; both roots come from symmetric eigenvalues, so nothing
    is iterated and nothing is divided by.
    """
    cross = np.linalg.svd(_root(cov_a) @ _root(cov_b), compute_uv=False).sum()
    shift = mean_a - mean_b
    return float(max(0.0, shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * cross))


def kernel_distance(real: Array, made: Array) -> float:
    """Unbiased squared maximum mean discrepancy under the kernel (x·y / D + 1)³ (KID, arXiv 1801.01401).

    Sets are (N, D) and (M, D). Its expectation is 0 for equal distributions, so it may come out below 0.
    Memory stays bounded whatever N and M.

    Raises:
        ValueError: as `frechet_distance`.
    """
    real, made = _checked(real, made)
    n, m = len(real), len(made)
    return _off_diagonal(real) / (n * (n - 1)) + _off_diagonal(made) / (m * (m - 1)) - 2 * _sum(real, made) / (n * m)


def frechet_interval(
    real: Array, made: Array, rounds: int = 1000, seed: int = 0, videos: Sequence[int] | None = None
) -> Interval:
    """The Fréchet distance with a 95 % bootstrap interval over the clips of both sets, each drawn anew with repeats.

    `videos` says which video each real clip is of, (N,): clips of one video are alike, so that whole videos are drawn.
    None, or all of one video: clips are drawn.

    A set with repeats looks smaller than it is, which adds the bias of small sets a second time; the percentiles of
    the drawn distances are therefore taken about their own mean and put around the distance itself.
    """
    real, made = _checked(real, made)
    value, rng, together = frechet_distance(real, made), np.random.default_rng(seed), _rows_of(videos)
    drawn = [frechet_distance(_redrawn(real, rng, together), _redrawn(made, rng)) for _ in range(rounds)]
    return _around(value, np.array(drawn), floor=0.0)


def paired_bootstrap(real: Array, a: Array, b: Array, rounds: int = 1000, seed: int = 0) -> tuple[float, float, float]:
    """How much farther `a` is from `real` than `b`: (difference of Fréchet distances, low, high), 95 %.

    A difference whose interval lies above 0 means that `b` is better. Percentiles of `paired_draws` are centred as in
    `frechet_interval`.

    Raises:
        ValueError: as `frechet_distance`, or `a` and `b` of different length.
    """
    drawn = paired_draws(real, a, b, rounds, seed)
    result = _around(frechet_distance(real, a) - frechet_distance(real, b), drawn)
    return result.value, result.low, result.high


def paired_draws(
    real: Array, a: Array, b: Array, rounds: int = 1000, seed: int = 0, videos: Sequence[int] | None = None
) -> Array:
    """Bootstrap draws (rounds,) of the difference of two sets' Fréchet distances, `a`'s less `b`'s.

    In each round one draw of the real clips serves both, and one draw of clip numbers serves both made sets: clip i
    of `a` and clip i of `b` belong together (same seed, same caption). The r-th draw of the real clips is the same
    whatever the seed: draws of several studies against one real set may be averaged round by round, and their mean then
    scatters by the real set's chance, which they share, and by the made sets', which they do not.

    Args:
        real: (N, D).
        a, b: (M, D).
        rounds: how many draws.
        seed: of the draws of clip numbers.
        videos: which video each real clip is of, as for `frechet_interval`.

    Raises:
        ValueError: as `paired_bootstrap`.
    """
    real, a = _checked(real, a)
    _, b = _checked(real, b)
    if len(a) != len(b):
        raise ValueError(f"pairs need two sets of equal length, got {len(a)} and {len(b)} clips")
    together = _rows_of(videos)
    of_real, rng, drawn = np.random.default_rng(REAL_SEED), np.random.default_rng([seed, 1]), np.empty(rounds)
    for number in range(rounds):
        drawn_real = moments(_redrawn(real, of_real, together))
        rows = rng.integers(len(a), size=len(a))
        apart = [frechet_from_moments(*drawn_real, *moments(made[rows])) for made in (a, b)]
        drawn[number] = apart[0] - apart[1]
    return drawn


def _around(value: float, drawn: Array, floor: float | None = None) -> Interval:
    low, high = (value + end for end in np.percentile(drawn - drawn.mean(), [2.5, 97.5]).tolist())
    return Interval(value, low if floor is None else max(floor, low), high)


def _redrawn(features: Array, rng: np.random.Generator, together: Sequence[Rows] | None = None) -> Array:
    """As many rows with repeats, or as many of the groups of rows that are drawn together."""
    if together is None:
        return features[rng.integers(len(features), size=len(features))]
    return features[np.concatenate([together[i] for i in rng.integers(len(together), size=len(together))])]


def _rows_of(videos: Sequence[int] | None) -> list[Rows] | None:
    """The rows of each video; None where there is nothing to draw together, or one video alone."""
    numbers = np.unique([] if videos is None else np.asarray(videos))
    if videos is None or len(numbers) in (1, len(videos)):
        return None
    return [np.flatnonzero(np.asarray(videos) == number) for number in numbers]


def _root(cov: Array) -> Array:
    """The symmetric root of a symmetric matrix; eigenvalues that rounding left below 0 count as 0."""
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _kernel(x: Array, y: Array) -> Array:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _sum(x: Array, y: Array) -> float:
    return sum(
        float(_kernel(x[i : i + BLOCK], y[j : j + BLOCK]).sum())
        for i in range(0, len(x), BLOCK)
        for j in range(0, len(y), BLOCK)
    )


def _off_diagonal(x: Array) -> float:
    diagonal = ((x * x).sum(axis=1) / x.shape[1] + 1) ** 3
    return _sum(x, x) - float(diagonal.sum())


def _checked(real: Array, made: Array) -> tuple[Array, Array]:
    real, made = np.asarray(real, dtype=np.float64), np.asarray(made, dtype=np.float64)
    if real.ndim != 2 or made.ndim != 2 or real.shape[1] != made.shape[1]:
        raise ValueError(f"features must be (N, D) and (M, D), got {real.shape} and {made.shape}")
    for name, features in (("real", real), ("made", made)):
        if len(features) < 2:
            raise ValueError(f"a distance needs at least 2 {name} clips, got {len(features)}")
        if not np.isfinite(features).all():
            raise ValueError(f"the {name} features hold NaN or infinity")
    return real, made
