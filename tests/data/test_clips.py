"""The dataset: one stream whatever the workers, the cache or the point of entry."""

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tpdiff.data import ClipDataset, DataError, StreamSampler, collate
from tpdiff.data import clips as clips_module


def make(folder, **options):
    return ClipDataset(folder, **({"frames": 9, "height": 48, "width": 64, "seed": 1} | options))


def same(first, second):
    keys = ("caption", "index", "path")
    return torch.equal(first["video"], second["video"]) and all(first[key] == second[key] for key in keys)


def numbers(tools, sample):
    return tools.read_numbers(sample["video"].permute(1, 2, 3, 0))


def test_samples(tools, mixed):
    data = make(mixed)
    assert len(data) == 3 and data.bad == () and data.damaged == ()
    assert data.captions == ["it counts to 30", "it counts to 40", "it counts to 50"]
    for index in range(12):
        sample = data[index]
        assert sample["video"].shape == (3, 9, 48, 64) and sample["video"].dtype == torch.uint8
        assert sample["video"].is_contiguous() and sample["index"] == index
        shown = numbers(tools, sample)
        assert shown == list(range(shown[0], shown[0] + 9))
        assert sample["path"].endswith(f"v{sample['caption'].split()[-1]}.mp4")
    with pytest.raises(IndexError, match="-1"):
        data[-1]


def test_every_epoch_has_every_video_and_starts_vary(tools, mixed):
    data = make(mixed)
    for epoch in range(4):
        assert len({data[3 * epoch + place]["path"] for place in range(3)}) == 3
    starts = {}
    for index in range(90):
        sample = data[index]
        starts.setdefault(sample["path"][-7:], set()).add(numbers(tools, sample)[0])
    assert all(len(found) > 10 for found in starts.values())
    assert max(starts["v30.mp4"]) <= 21 and max(starts["v50.mp4"]) > 31


def test_the_first_and_the_last_start_are_reached(tools, mixed):
    data = make(mixed, frames=28)
    found = {numbers(tools, data[i])[0] for i in range(60) if data[i]["path"].endswith("v30.mp4")}
    assert found == {0, 1, 2}


def test_the_stream_is_keyed_by_seed_and_index(mixed):
    data, again, other = make(mixed), make(mixed), make(mixed, seed=2)
    backwards = {index: again[index] for index in reversed(range(12))}
    assert all(same(data[index], backwards[index]) for index in range(12))
    assert not all(same(data[index], other[index]) for index in range(12))


def test_global_generators_are_left_alone(mixed):
    torch.manual_seed(5)
    np.random.seed(5)
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    data = make(mixed)
    first = data[7]
    assert torch.equal(before, torch.get_rng_state()) and (before_numpy == np.random.get_state()[1]).all()
    torch.manual_seed(6)
    assert same(first, data[7])


@pytest.mark.parametrize("cache", ["memory", "none"])
def test_workers_and_entry_point_do_not_matter(mixed, cache):
    data = make(mixed, cache=cache)
    direct = collate([data[index] for index in range(6, 14)])
    for workers in (0, 2):
        loader = DataLoader(data, 4, sampler=StreamSampler(6, 14), num_workers=workers, collate_fn=collate)
        batches = list(loader)
        assert torch.equal(torch.cat([batch["video"] for batch in batches]), direct["video"])
        assert [text for batch in batches for text in batch["caption"]] == direct["caption"]
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(6, 14))
    assert direct["video"].shape == (8, 3, 9, 48, 64) and direct["index"].dtype == torch.int64


@pytest.mark.parametrize("fps", [None, 16, 10, 24])
@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_caches_give_identical_clips(mixed, tmp_path_factory, fps, resize):
    options = {"fps": fps, "height": 20, "width": 36, "resize": resize}
    stored = tmp_path_factory.mktemp("cache")
    memory, plain = make(mixed, cache="memory", **options), make(mixed, cache="none", **options)
    disk = make(mixed, cache="disk", cache_dir=stored, **options)
    for index in range(9):
        assert same(memory[index], plain[index]) and same(memory[index], disk[index])


def test_frame_rate_is_respected(tools, mixed):
    shown = numbers(tools, make(mixed, fps=8, frames=5)[0])
    assert np.diff(shown).tolist() == [2, 2, 2, 2]


def test_the_disk_cache_is_used_and_checked(mixed, tmp_path_factory, monkeypatch):
    stored = tmp_path_factory.mktemp("cache")
    first = make(mixed, cache="disk", cache_dir=stored)
    files = sorted(stored.glob("*.npy"))
    assert len(files) == 3 and len(list(stored.iterdir())) == 6
    expected = [first[index] for index in range(6)]
    decoded = []
    read = clips_module.read_frames
    monkeypatch.setattr(clips_module, "read_frames", lambda path, **k: decoded.append(path) or read(path, **k))
    assert same(make(mixed, cache="disk", cache_dir=stored)[0], expected[0]) and not decoded

    data = files[0].read_bytes()
    files[0].write_bytes(data[: len(data) // 2])  # a write that was cut off
    middle = len(files[1].read_bytes()) // 2
    flipped = bytearray(files[1].read_bytes())
    flipped[middle] ^= 255  # one byte altered, nothing missing
    files[1].write_bytes(flipped)
    files[2].write_bytes(b"")
    repaired = make(mixed, cache="disk", cache_dir=stored)
    assert len(decoded) == 3
    assert all(same(repaired[index], sample) for index, sample in enumerate(expected))
    assert not list(stored.glob("*.part"))

    make(mixed, cache="disk", cache_dir=stored, height=24)  # another geometry
    assert len(decoded) == 6 and len(list(stored.glob("*.npy"))) == 6
    shutil.copy(mixed / "v40.mp4", mixed / "v30.mp4")  # another video under the same name
    make(mixed, cache="disk", cache_dir=stored)
    assert len(decoded) == 7


def test_the_disk_cache_keeps_what_decoding_found(mixed, broken, tmp_path_factory, monkeypatch):
    shutil.copy(broken["front_cut"], mixed / "cut.mp4")
    options = {"frames": 5, "cache": "disk", "cache_dir": tmp_path_factory.mktemp("cache"), "require_captions": False}
    plain = make(mixed, **options | {"cache": "none"})
    wanted = [video.info for video in plain.videos]
    assert {info.fps for info in wanted} == {16} and "claims 40 frames" in plain.damaged[0].reason
    assert [video.info for video in make(mixed, **options).videos] == wanted
    next(options["cache_dir"].glob("*.json")).write_text("{")  # a write that was cut off
    assert [video.info for video in make(mixed, **options).videos] == wanted
    monkeypatch.setattr(clips_module, "probe", None)  # nothing is decoded again
    again = make(mixed, **options)
    assert [video.info for video in again.videos] == wanted and again.damaged == plain.damaged


def test_bad_files_are_set_aside_with_reasons(mixed, broken, tools):
    for name, path in broken.items():
        if path.exists():
            shutil.copy(path, mixed / f"{name}.mp4")
            (mixed / f"{name}.txt").write_text("broken")
    tools.encode(mixed / "short.mp4", tools.numbered(20))
    (mixed / "short.txt").write_text("short")
    calls = []
    data = make(mixed, frames=12, fps=8, max_bad_share=0.8, progress=lambda *call: calls.append(call))
    assert len(data) == 3
    assert calls == [*((n, 10) for n in range(1, 11)), (1, 3), (2, 3), (3, 3)]  # looked at, then kept in memory
    reasons = {item.path.name: item.reason for item in data.bad}
    assert reasons["short.mp4"] == "has 10 frames at 8 fps, 12 are needed"
    assert reasons["single.mp4"] == "has 1 frames at 8 fps, 12 are needed"
    assert "moov" in reasons["back_cut.mp4"] and "0 bytes" in reasons["empty.mp4"]
    assert "not a video" in reasons["text.mp4"] and "only audio" in reasons["sound.mp4"]
    assert "12 are needed (the header claims 40 frames" in reasons["front_cut.mp4"]
    with pytest.raises(DataError, match=r"7 of 10 videos cannot be used(.*\n)+.*moov"):
        make(mixed, frames=12, fps=8)


def test_a_damaged_file_serves_as_far_as_it_goes(tmp_path, broken):
    shutil.copy(broken["front_cut"], tmp_path / "a.mp4")
    data = make(tmp_path, frames=5, require_captions=False)
    assert data.bad == () and "claims 40 frames" in data.damaged[0].reason
    clips = [data[index] for index in range(20)]
    plain = make(tmp_path, frames=5, require_captions=False, cache="none")
    assert all(same(clip, plain[index]) for index, clip in enumerate(clips))
    assert clips[0]["caption"] == ""


def test_splits_and_captions(digits, mixed):
    size = {"height": 32, "width": 32}
    assert len(make(digits.folder, split="train", **size)) == 18
    assert len(make(digits.folder, split="test", **size)) == 6
    with pytest.raises(DataError, match="known splits: test, train"):
        make(digits.folder, split="valid", **size)
    (mixed / "v40.txt").unlink()
    with pytest.raises(DataError, match=r"1 of 3 videos in .* have no caption: v40\.mp4"):
        make(mixed)


def test_refusals(mixed, tmp_path):
    with pytest.raises(DataError, match=r"3 of 3 videos cannot be used(.*\n)*.*has 30 frames, 60 are needed"):
        make(mixed, frames=60, max_bad_share=1.0)
    with pytest.raises(
        DataError, match=r"more than the memory allowed, 9\.31e-07 GiB; nearest: data\.cache=disk with "
    ):
        make(mixed, cache="memory", memory_budget=1000)
    assert make(mixed, cache="auto", memory_budget=1000)[0]["video"].shape == (3, 9, 48, 64)
    for options, message in [
        ({"cache": "ram"}, "cache 'ram' is unknown; choose one of auto, memory, disk, none"),
        ({"cache": "disk"}, "needs cache_dir"),
        ({"frames": 0}, "frames 0 is below 1"),
        ({"height": 0}, r"size \(0, 64\)"),
        ({"fps": -1}, "fps -1"),
        ({"resize": "fit"}, "resize 'fit'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(tmp_path / "not looked at", **options)
