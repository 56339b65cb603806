"""Data-noise alignment: give each clip a noise close to it (TPDiff Algorithm 1; MATH 6).

Only samples of one stage, at that stage's size, are aligned together.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

METHODS = ("none", "assignment", "knn")
_CHUNK = 1 << 16  # elements a sample that are multiplied at a time: bounds the memory of casts


@dataclass(frozen=True)
class Alignment:
    """Which noise each clip was given.

    Attributes:
        noise: the aligned noise, (B, ...).
        before: mean squared distance of clip and noise as drawn, per element.
        after: the same as aligned.
    """

    noise: Tensor
    before: float
    after: float

    @property
    def reduction(self) -> float:
        """Share of the mean squared distance that alignment took away, in [0, 1]."""
        return 1 - self.after / self.before


def align_noise(
    clean: Tensor,
    noise: Tensor,
    method: str = "assignment",
    condition: Sequence[Hashable] | Tensor | None = None,
) -> Tensor:
    """Pair every clip with a noise near it.

    Args:
        clean: D_k x_0, (B, ...).
        noise: candidates: (B, ...) for "none" and "assignment", (m, B, ...) for "knn".
        method: "assignment" permutes the noises so that the summed squared distance is least; their law over
            the batch stays N(0, I). "knn" keeps the nearest of m noises for each clip, needs no batch, but the
            noise kept is **no longer exactly N(0, I)**: it leans towards the data, the more so the larger m is.
        condition: one value a clip (caption, class). Assignment then permutes among clips of equal condition
            only, which keeps N(0, I) given the condition too; without it, bright captions collect bright noises
            and a prompt's samples start off-distribution.

    Returns:
        Noise (B, ...) as the clips should use it.

    Raises:
        ValueError: an unknown method or shapes that do not match.
    """
    return align(clean, noise, method, condition).noise


def align(
    clean: Tensor,
    noise: Tensor,
    method: str = "assignment",
    condition: Sequence[Hashable] | Tensor | None = None,
) -> Alignment:
    """`align_noise`, with the distances before and after it."""
    if method not in METHODS:
        raise ValueError(f"unknown alignment {method!r}; known: {', '.join(METHODS)}")
    wanted = noise.shape[1:] if method == "knn" else noise.shape
    if wanted != clean.shape:
        axes = "(m, B, ...)" if method == "knn" else "(B, ...)"
        raise ValueError(f"{method} wants noise {axes} for clips {tuple(clean.shape)}, got {tuple(noise.shape)}")
    if method == "knn":
        chosen = _nearest(clean, noise)
        return Alignment(chosen, mean_squared_distance(clean, noise[0]), mean_squared_distance(clean, chosen))
    products = inner_products(clean, noise)
    rows = np.arange(len(clean))
    columns = rows
    if method == "assignment":
        columns = assign(products, [list(rows)] if condition is None else _groups(condition, len(clean)))
    chosen = noise[torch.from_numpy(columns).to(noise.device)]
    energy = _energy(clean) + _energy(noise)
    before, after = (energy - 2 * float(products[rows, c].sum()) for c in (rows, columns))
    return Alignment(chosen, before / clean.numel(), after / clean.numel())


def _energy(x: Tensor) -> float:
    """Sum of squares in float32 or better, without a copy of x."""
    return float(torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))) ** 2


def mean_squared_distance(clean: Tensor, noise: Tensor) -> float:
    """Mean of (x - ε)² over all elements of two (B, ...) tensors."""
    return float((clean.float() - noise.float()).square().mean())


def inner_products(clean: Tensor, noise: Tensor) -> np.ndarray:
    """⟨x_i, ε_j⟩ as (B, B) float64, in chunks of elements.

    Squared distances differ from -2 ⟨x_i, ε_j⟩ by a constant a row and a constant a column, which no
    permutation feels: one matrix product is all the assignment needs.
    """
    x, e = clean.flatten(1), noise.flatten(1)
    total = torch.zeros(len(x), len(e), dtype=torch.float32, device=x.device)
    for a, b in zip(x.split(_CHUNK, dim=1), e.split(_CHUNK, dim=1), strict=True):
        total += a.float() @ b.float().T
    return total.double().cpu().numpy()


def assign(products: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """The column given to every row, (B,): the best permutation inside each group of row indices."""
    columns = np.arange(len(products))
    for group in groups:
        rows = np.asarray(group)
        columns[rows] = rows[linear_sum_assignment(products[np.ix_(rows, rows)], maximize=True)[1]]
    return columns


def _nearest(clean: Tensor, noise: Tensor) -> Tensor:
    """The nearest of m noises (m, B, ...) to each clip (B, ...), by ½‖ε‖² - ⟨x, ε⟩."""
    products = torch.einsum("bn,mbn->mb", clean.flatten(1).float(), noise.flatten(2).float())
    best = (0.5 * noise.flatten(2).float().square().sum(2) - products).argmin(dim=0)
    return noise[best, torch.arange(len(clean), device=best.device)]


def _groups(condition: Sequence[Hashable] | Tensor, batch: int) -> list[list[int]]:
    keys = condition.tolist() if isinstance(condition, Tensor) else list(condition)
    if len(keys) != batch:
        raise ValueError(f"{len(keys)} conditions for a batch of {batch}")
    groups: dict[Hashable, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)
    return list(groups.values())
