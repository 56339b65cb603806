"""Shards: the same bytes always, an order that is a function of seed and index, sizes to buckets."""

import io
import tarfile
from collections import Counter

import pytest

from tpdiff.data.buckets import Bucket, Buckets
from tpdiff.data.shard_files import ShardWriter, digest_of_file, pack, unpack
from tpdiff.data.shard_order import bucket_of, place_of

COUNTS = (5, 0, 7, 1, 10)


def entries(start, stop, counts=COUNTS, window=4, seed=3, name="a"):
    return [place_of(seed, name, counts, window, index) for index in range(start, stop)]


def test_an_epoch_has_every_clip_once_and_the_next_another_order():
    size = sum(COUNTS)
    everything = sorted((shard, clip) for shard, count in enumerate(COUNTS) for clip in range(count))
    epochs = [entries(first, first + size) for first in (0, size, 2 * size)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert entries(0, size, seed=4) != epochs[0] and entries(0, size, name="b") != epochs[0]
    assert entries(7, 31) == [*epochs[0], *epochs[1]][7:31]


def test_clips_are_shuffled_within_the_buffer_alone():
    counts = (6,) * 8
    narrow, wide = (entries(0, 48, counts, window) for window in (1, 48))
    shards = [shard for shard, _ in narrow]
    assert [clip for _, clip in narrow] == [0, 1, 2, 3, 4, 5] * 8 and sorted(set(shards)) == list(range(8))
    assert shards != sorted(shards)  # shards come in random order
    order = list(dict.fromkeys(shards))
    assert [shard for shard, _ in wide] != shards
    for first in range(0, 48, 12):  # a window of two shards holds two shards
        seen = {shard for shard, _ in entries(first, first + 12, counts, 12)}
        assert seen == set(order[first // 6 : first // 6 + 2])


def test_batches_take_turns_between_buckets_in_proportion():
    counts, size = (40, 9, 1), 4
    turns = [bucket_of(0, counts, size, batch) for batch in range(13 * 2)]
    assert Counter(bucket for bucket, _ in turns) == {0: 20, 1: 4, 2: 2}
    for bucket in range(3):  # each batch of a bucket follows the one before
        assert [before for b, before in turns if b == bucket] == list(range(Counter(b for b, _ in turns)[bucket]))
    assert [b for b, _ in turns[:13]] != [b for b, _ in turns[13:]]


def test_a_sample_comes_back_and_is_a_piece_of_a_plain_tar(tmp_path):
    members = {"latents.safetensors": b"x" * 700, "json": b"{}", "empty": b""}
    sample = pack("k-000001", members)
    assert unpack(sample) == ("k-000001", members)
    with ShardWriter(tmp_path / "shard-00000.tar") as shard:
        places = [shard.add(sample), shard.add(pack("k-000002", {"json": b"[]"}))]
    content = (tmp_path / "shard-00000.tar").read_bytes()
    assert content[places[0].offset : places[0].offset + places[0].size] == sample
    assert shard.digest == digest_of_file(tmp_path / "shard-00000.tar") and shard.size == len(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        assert [m.name for m in archive] == [f"k-000001.{e}" for e in members] + ["k-000002.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in archive} == {(0, 0, 0, "", 0o644)}


def test_a_shard_that_fails_is_not_there(tmp_path):
    with pytest.raises(OSError, match="no"), ShardWriter(tmp_path / "shard-00000.tar") as shard:
        shard.add(pack("k", {"json": b"{}"}))
        raise OSError("no")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("video", "bucket"),
    [
        ((60, 480, 832), (49, 480, 832)),
        ((49, 240, 416), (49, 480, 832)),  # proportions before area
        ((60, 832, 480), (49, 832, 480)),
        ((60, 700, 700), (49, 512, 512)),
        ((48, 480, 832), (17, 256, 448)),  # as long as the video fills
        ((1, 1080, 1920), (1, 480, 832)),
        ((1, 300, 310), (1, 512, 512)),
    ],
)
def test_a_video_goes_to_the_nearest_bucket_that_it_fills(video, bucket):
    sizes = [(49, 480, 832), (49, 832, 480), (49, 512, 512), (17, 256, 448), (1, 480, 832), (1, 512, 512)]
    buckets = Buckets(tuple(Bucket(*size) for size in sizes), Bucket(1, 1, 1), lambda size: size)
    assert buckets.of(*video) == bucket
    assert Buckets((Bucket(49, 8, 8),), Bucket(1, 1, 1), lambda size: size).of(48, 8, 8) is None


def test_without_choices_a_video_keeps_its_proportions_and_is_not_enlarged():
    def legal(size):
        frames, height, width = 1 + (size.frames - 1) // 4 * 4, size.height // 16 * 16, size.width // 16 * 16
        return Bucket(frames, height, width) if min(height, width) else None

    buckets = Buckets(None, Bucket(17, 64, 64), legal)
    assert buckets.of(100, 128, 128) == (17, 64, 64)
    assert buckets.of(12, 128, 32) == (9, 128, 32)
    assert buckets.of(12, 256, 64) == (9, 128, 32)
    assert buckets.of(12, 40, 40) == (9, 32, 32)
    assert buckets.of(12, 15, 40) is None
    assert buckets.pictures
