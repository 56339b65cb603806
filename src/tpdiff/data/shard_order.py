"""The order in which clips of shards are seen: a pure function of (seed, index), so that a place in it is a number.

An epoch takes the shards in a new random order and their clips through a shuffle buffer: the clips, shard after shard,
are cut into windows of so many, and each window is shuffled. What is read lies within a few shards at any time.
Batches take turns between buckets in proportion to their clips.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate

import torch

from .stream import generator_for


def place_of(seed: int, name: str, counts: tuple[int, ...], window: int, index: int) -> tuple[int, int]:
    """(shard, clip in it) of entry `index` of an endless stream, in which each clip comes once an epoch.

    Args:
        seed, name: name the stream.
        counts: clips of each shard.
        window: clips of the shuffle buffer.
    """
    epoch, place = divmod(index, sum(counts))
    order, ends = _shards(seed, name, counts, epoch)
    number, within = divmod(place, window)
    first = number * window
    place = first + _window(seed, name, epoch, number, min(window, ends[-1] - first))[within]
    turn = bisect_right(ends, place)
    return order[turn], place - (ends[turn - 1] if turn else 0)


@lru_cache(maxsize=1024)
def bucket_of(seed: int, counts: tuple[int, ...], size: int, batch: int) -> tuple[int, int]:
    """(bucket, batches of this bucket before) of batch number `batch`.

    Args:
        counts: clips of each bucket.
        size: clips of a batch.

    In a round every bucket has as many batches as its clips fill, rounded, and at least one, in random order.
    """
    batches = tuple(max(1, round(count / size)) for count in counts)
    round_, turn = divmod(batch, sum(batches))
    order = _round(seed, batches, round_)
    bucket = order[turn]
    return bucket, round_ * batches[bucket] + order[:turn].count(bucket)


@lru_cache(maxsize=64)
def _shards(seed: int, name: str, counts: tuple[int, ...], epoch: int) -> tuple[list[int], list[int]]:
    generator = generator_for(seed, f"shards of {name}", epoch)
    order = torch.randperm(len(counts), generator=generator).tolist()
    return order, list(accumulate(counts[shard] for shard in order))


@lru_cache(maxsize=64)
def _window(seed: int, name: str, epoch: int, number: int, size: int) -> list[int]:
    return torch.randperm(size, generator=generator_for(seed, f"window {number} of {name}", epoch)).tolist()


@lru_cache(maxsize=4)
def _round(seed: int, batches: tuple[int, ...], round_: int) -> tuple[int, ...]:
    turns = torch.tensor([bucket for bucket, count in enumerate(batches) for _ in range(count)])
    return tuple(turns[torch.randperm(len(turns), generator=generator_for(seed, "buckets", round_))].tolist())
