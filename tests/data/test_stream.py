"""Indices and draws of the endless stream."""

from collections import Counter
from itertools import islice

import pytest

from tpdiff.data import StreamSampler, stream_indices
from tpdiff.data.stream import draw_start, epoch_order


@pytest.mark.parametrize("start", [0, 5, 6, 7])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_share_the_stream_without_overlap(start, world_size):
    parts = [list(stream_indices(start, 20, rank, world_size)) for rank in range(world_size)]
    assert sorted(index for part in parts for index in part) == list(range(start, 20))
    assert all(index % world_size == rank for rank, part in enumerate(parts) for index in part)


def test_a_stream_without_end_and_a_sampler_that_can_be_read_twice():
    assert list(islice(stream_indices(10, None, 1, 4), 3)) == [13, 17, 21]
    sampler = StreamSampler(3, 6)
    assert list(sampler) == list(sampler) == [3, 4, 5]
    assert list(stream_indices(9, 4)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-1,), "start -1"), ((0, None, 2, 2), "rank 2 is not one of 2"), ((0, 1, 0, 0), "rank 0")],
)
def test_bad_arguments_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        StreamSampler(*arguments)


def test_each_epoch_has_each_video_once_in_its_own_order():
    orders = [epoch_order(0, epoch, 12) for epoch in range(3)]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len(set(orders)) == 3 and epoch_order(1, 0, 12) != orders[0]


def test_starts_are_even_and_keyed_by_seed_and_index():
    starts = [draw_start(0, index, 5) for index in range(2000)]
    assert all(340 < count < 460 for count in Counter(starts).values()) and set(starts) == set(range(5))
    assert starts == [draw_start(0, index, 5) for index in range(2000)]
    assert starts != [draw_start(1, index, 5) for index in range(2000)]
