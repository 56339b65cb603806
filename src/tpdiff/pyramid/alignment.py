"""Data-noise alignment: give each clip a noise close to it (TPDiff Algorithm 1; MATH 6).

Only samples of one stage, at that stage's size, are aligned together; those of all processes, if there are several.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

METHODS = ("none", "assignment", "knn")
_CHUNK = 1 << 16  # elements a sample that are multiplied at a time: bounds the memory of casts


class Processes(Protocol):
    """Processes that share a batch, clip i at process i mod their number; accelerate's `Accelerator` is one."""

    @property
    def num_processes(self) -> int:
        """How many there are."""

    @property
    def process_index(self) -> int:
        """Which one this is, counted from 0."""

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors (b, ...) of all processes, one after another, on every one."""


class _Alone:
    num_processes, process_index = 1, 0

    def gather(self, tensor: Tensor) -> Tensor:
        return tensor


ALONE: Processes = _Alone()


@dataclass(frozen=True)
class Alignment:
    """Which noise each clip was given.

    Attributes:
        noise: the aligned noise, (B, ...).
        before: mean squared distance of clip and noise as drawn, per element, over the clips aligned together.
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
    processes: Processes = ALONE,
) -> Alignment:
    """`align_noise`, with the distances before and after it, over the clips of all `processes`.

    "assignment" is then the one assignment of the global batch: each process multiplies its clips with everyone's
    noises, which it holds for that moment, and all solve the same problem from the same products.
    """
    if method not in METHODS:
        raise ValueError(f"unknown alignment {method!r}; known: {', '.join(METHODS)}")
    wanted = noise.shape[1:] if method == "knn" else noise.shape
    if wanted != clean.shape:
        axes = "(m, B, ...)" if method == "knn" else "(B, ...)"
        raise ValueError(f"{method} wants noise {axes} for clips {tuple(clean.shape)}, got {tuple(noise.shape)}")
    if method == "knn":
        chosen = _nearest(clean, noise)
        return Alignment(chosen, mean_squared_distance(clean, noise[0]), mean_squared_distance(clean, chosen))
    if condition is not None and len(condition) != len(clean):
        raise ValueError(f"{len(condition)} conditions for a batch of {len(clean)}")
    rows = np.arange(len(clean) * processes.num_processes)
    groups = [rows.tolist()] if condition is None else _groups(condition, processes, clean.device)
    if method == "none" or all(len(group) == 1 for group in groups):
        distance = _gather(torch.tensor([mean_squared_distance(clean, noise)], device=clean.device), processes)
        return Alignment(noise, float(distance.mean()), float(distance.mean()))
    everyone = _gather(noise, processes)
    products = _gather(_products(clean, everyone), processes).double().cpu().numpy()
    columns = assign(products, groups)
    own_columns = columns[processes.process_index :: processes.num_processes].copy()
    chosen = everyone[torch.from_numpy(own_columns).to(everyone.device)]
    own_energy = torch.tensor([_energy(clean) + _energy(noise)], dtype=torch.float64, device=clean.device)
    energy = float(_gather(own_energy, processes).sum())
    before, after = (energy - 2 * float(products[rows, c].sum()) for c in (rows, columns))
    elements = len(rows) * clean[0].numel()
    return Alignment(chosen, before / elements, after / elements)


def _gather(rows: Tensor, processes: Processes) -> Tensor:
    """The rows (b, ...) of all processes in the order of the batch, so that equal clips are told apart as by one."""
    if processes.num_processes == 1:
        return rows
    by_process: Tensor = processes.gather(rows)
    return by_process.unflatten(0, (processes.num_processes, -1)).transpose(0, 1).flatten(0, 1)


def _energy(x: Tensor) -> float:
    """Sum of squares in float32 or better, without a copy of x."""
    return float(torch.linalg.vector_norm(x, dtype=torch.promote_types(x.dtype, torch.float32))) ** 2


def mean_squared_distance(clean: Tensor, noise: Tensor) -> float:
    """Mean of (x - ε)² over all elements of two (B, ...) tensors."""
    return float((clean.float() - noise.float()).square().mean())


def inner_products(clean: Tensor, noise: Tensor) -> np.ndarray:
    """⟨x_i, ε_j⟩ of (b, ...) and (B, ...) as (b, B) float64.

    Squared distances differ from -2 ⟨x_i, ε_j⟩ by a constant a row and a constant a column, which no
    permutation feels: one matrix product is all the assignment needs.
    """
    return _products(clean, noise).double().cpu().numpy()


def _products(clean: Tensor, noise: Tensor) -> Tensor:
    """`inner_products` as they are computed: float32, in chunks of elements, where the clips are."""
    x, e = clean.flatten(1), noise.flatten(1)
    total = torch.zeros(len(x), len(e), dtype=torch.float32, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        for a, b in zip(x.split(_CHUNK, dim=1), e.split(_CHUNK, dim=1), strict=True):
            total += a.float() @ b.float().T
    return total


def assign(products: np.ndarray, groups: Sequence[Sequence[int]]) -> np.ndarray:
    """The column given to every row, (B,): the best permutation inside each group of row indices."""
    columns = np.arange(len(products))
    for group in groups:
        rows = np.asarray(group)
        columns[rows] = rows[linear_sum_assignment(products[np.ix_(rows, rows)], maximize=True)[1]]
    return columns


def _nearest(clean: Tensor, noise: Tensor) -> Tensor:
    """The nearest of m noises (m, B, ...) to each clip (B, ...), by ½‖ε‖² - ⟨x, ε⟩."""
    with torch.autocast(clean.device.type, enabled=False):
        products = torch.einsum("bn,mbn->mb", clean.flatten(1).float(), noise.flatten(2).float())
    best = (0.5 * noise.flatten(2).float().square().sum(2) - products).argmin(dim=0)
    return noise[best, torch.arange(len(clean), device=best.device)]


def _groups(condition: Sequence[Hashable] | Tensor, processes: Processes, device: torch.device) -> list[list[int]]:
    """The rows of each condition, among those of all processes; conditions are the same if they print the same."""
    values = condition.tolist() if isinstance(condition, Tensor) else condition
    digests = [int.from_bytes(blake2b(repr(v).encode(), digest_size=8).digest(), "big", signed=True) for v in values]
    groups: dict[int, list[int]] = {}
    for row, digest in enumerate(_gather(torch.tensor(digests, device=device), processes).tolist()):
        groups.setdefault(digest, []).append(row)
    return list(groups.values())
