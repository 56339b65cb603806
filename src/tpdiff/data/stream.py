"""An endless stream of samples by global index: which video, which start.

Sample i depends on (seed, i) alone, never on who asks or what was asked before. So a run resumes at any
index, and any number of workers and machines share one stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import count, islice

import torch
from torch.utils.data import Sampler


def generator_for(seed: int, purpose: str, number: int) -> torch.Generator:
    """A generator whose draws depend on these three values only."""
    digest = blake2b(f"{seed}/{purpose}/{number}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """The order in which `size` videos appear in an epoch: each once."""
    return tuple(torch.randperm(size, generator=generator_for(seed, "order", epoch)).tolist())


def draw_start(seed: int, index: int, choices: int) -> int:
    """The start of sample `index`, one of 0 ... choices - 1, all equally likely."""
    return int(torch.randint(choices, (), generator=generator_for(seed, "start", index)))


def legal_starts(choices: int, most: int | None = None) -> Sequence[int]:
    """The frames of a video at which clips start: all `choices` of them, or `most`, evenly spread from the first
    possible to the last.
    """
    if most is None or most >= choices:
        return range(choices)
    return [place * (choices - 1) // max(1, most - 1) for place in range(most)]


def stream_indices(start: int = 0, stop: int | None = None, rank: int = 0, world_size: int = 1) -> Iterator[int]:
    """Global sample indices from `start` up to `stop` (None: without end) that fall to this process.

    Index i falls to process i mod world_size, wherever a run starts. With batches of B on each of W
    processes, step n covers n·B·W up to (n + 1)·B·W.
    Raises ValueError for a negative start or a rank outside 0 ... world_size - 1.
    """
    if start < 0:
        raise ValueError(f"start {start} is below 0; nearest: 0")
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes (0 ... {world_size - 1})")
    first = start + (rank - start) % world_size
    numbers = count(first, world_size)
    return numbers if stop is None else islice(numbers, max(0, -(-(stop - first) // world_size)))


class StreamSampler(Sampler[int]):
    """`stream_indices` as a sampler: DataLoader(dataset, batch_size, sampler=StreamSampler(start=step *
    batch)).
    """

    def __init__(self, start: int = 0, stop: int | None = None, rank: int = 0, world_size: int = 1) -> None:
        stream_indices(start, stop, rank, world_size)
        self.start, self.stop, self.rank, self.world_size = start, stop, rank, world_size

    def __iter__(self) -> Iterator[int]:
        return stream_indices(self.start, self.stop, self.rank, self.world_size)
