"""When frames are shown: times that start again, files that begin anywhere, rates that the header guesses."""

import json

import pytest
import torch

from tpdiff.data import ClipDataset, probe, read_clip, read_video
from tpdiff.data.store import load_info, store_info
from tpdiff.data.video import grid_length, inspect


@pytest.fixture(params=[("ts", "libx264", 10), ("mpg", "mpeg2video", 25)], ids=["ts", "mpg"], scope="module")
def kind(request):
    """(suffix, codec, frames a second) of a format whose files are joined by writing one after another."""
    return request.param


@pytest.fixture(params=[(50, 20), (20, 50), (20, 30, 20)], ids=str, scope="module")
def joined(tools, kind, tmp_path_factory, request):
    """(file, frames a second): 70 numbered frames, in parts whose times all start at the same."""
    (suffix, codec, fps), folder = kind, tmp_path_factory.mktemp("joined")
    parts = tools.numbered(70).split(request.param)
    files = [tools.encode(folder / f"{i}.part.{suffix}", part, fps=fps, codec=codec) for i, part in enumerate(parts)]
    path = folder / "data" / f"joined.{suffix}"
    path.parent.mkdir()
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    path.with_suffix(".txt").write_text("it counts to 70\n")
    return path, fps


def test_times_that_start_again_go_on(tools, joined):
    path, fps = joined
    info, times = inspect(path)
    assert times == pytest.approx([number / fps for number in range(70)], abs=0.002)
    assert (info.frames, info.fps, info.damage) == (70, fps, None)
    assert info.duration == pytest.approx(70 / fps, abs=0.002)
    assert tools.read_numbers(read_video(path)) == list(range(70))
    assert tools.read_numbers(read_video(path, fps=fps)) == list(range(70))


@pytest.mark.parametrize("fps", [None, 10, 25, 7, 60])
def test_a_clip_of_joined_files_is_a_part_of_the_video(joined, fps):
    path, _ = joined
    info, times = inspect(path)
    video = read_video(path, fps=fps)
    assert len(video) == grid_length(times, info.claimed_fps, fps)
    for first in range(0, len(video) - 7, 3):
        start = times[first] if fps is None else first / fps
        assert torch.equal(read_clip(path, start=start, frames=8, fps=fps), video[first : first + 8])


@pytest.mark.parametrize("fps", [None, 10])
def test_the_dataset_gives_every_clip_of_joined_files(joined, fps):
    path, _ = joined
    options = {"frames": 8, "height": 48, "width": 64, "fps": fps}
    plain, memory = (ClipDataset(path.parent, cache=cache, **options) for cache in ("none", "memory"))
    video = read_video(path, fps=fps)
    for data in (plain, memory):
        assert data.bad == () and data.videos[0].length == len(video)
        for start in data.starts_of(data.videos[0]):
            assert torch.equal(data.clip(0, start).permute(1, 2, 3, 0), video[start : start + 8])


@pytest.mark.parametrize(("codec", "fps"), [("libx264", 10), ("mpeg2video", 25)])
@pytest.mark.parametrize("share", [0.1, 0.35, 0.6])
def test_a_recording_cut_from_a_longer_one_begins_with_the_first_frame_that_decodes(tools, tmp_path, codec, fps, share):
    data = tools.encode(tmp_path / "whole.ts", tools.numbered(80), fps=fps, codec=codec).read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(data[int(len(data) // 188 * share) * 188 :])
    info, times = inspect(path)
    first = tools.read_numbers(read_video(path))[0]
    assert first > 0
    assert times == pytest.approx([number / fps for number in range(80 - first)], abs=0.002)
    assert info.duration == pytest.approx((80 - first) / fps, abs=0.002)
    assert tools.read_numbers(read_video(path, fps=fps)) == list(range(first, 80))
    assert tools.read_numbers(read_clip(path, frames=5, fps=fps)) == list(range(first, first + 5))


UNEVEN = [0, 20, 130, 160, 280, 300, 420, 440, 560, 690, 710, 830]  # milliseconds
OF_UNEVEN = pytest.approx(11 / 0.83)


def uneven(tools, folder):
    """12 numbered frames at uneven times, in a file whose header says 30 frames a second."""
    return tools.encode(folder / "uneven.webm", tools.numbered(12), times=UNEVEN, fps=30, codec="libvpx")


def without_rate(path):
    """The file, of which the header no longer says how long a frame is, as browsers record; it is then guessed."""
    data = path.read_bytes()
    place = data.index(b"\x23\xe3\x83")  # DefaultDuration, of which Void takes the place
    length = data[place + 3] & 0x7F
    path.write_bytes(data[:place] + bytes([0xEC, 0x80 | length + 2]) + bytes(length + 2) + data[place + 4 + length :])
    return path


def test_the_rate_is_that_of_the_frames_where_the_header_says_another(tools, tmp_path):
    path = uneven(tools, tmp_path)
    assert probe(path).fps == probe(path).claimed_fps == 30
    info = probe(path, decode=True)
    assert info.fps == OF_UNEVEN and info.claimed_fps == 30
    assert info.duration == pytest.approx(0.83 + 0.83 / 11)
    info = probe(without_rate(path), decode=True)
    assert info.fps == OF_UNEVEN and info.claimed_fps == 1000


def test_the_rate_is_that_of_the_header_where_the_frames_come_near_it(tools, tmp_path):
    path = tools.encode(tmp_path / "even.mkv", tools.numbered(20), fps=30)  # its times are in whole milliseconds
    info, times = inspect(path)
    assert 19 / times[-1] != 30 and info.fps == info.claimed_fps == 30


def test_the_rate_of_one_frame_is_that_of_the_header(tools, tmp_path):
    info = probe(tools.encode(tmp_path / "one.mkv", tools.numbered(1), fps=30), decode=True)
    assert info.fps == info.claimed_fps == 30


@pytest.mark.parametrize("fps", [None, 60, 30, 24, 13.25, 8, 1])
@pytest.mark.parametrize("known", [True, False])
def test_a_video_of_another_rate_than_its_header_has_as_many_frames_as_are_read(tools, tmp_path, known, fps):
    path = uneven(tools, tmp_path)
    path.with_suffix(".txt").write_text("it counts to 12\n")
    if not known:
        without_rate(path)
    info, times = inspect(path)
    video = read_video(path, fps=fps)
    assert len(video) == grid_length(times, info.claimed_fps, fps)
    data = ClipDataset(tmp_path, frames=1, height=48, width=64, fps=fps, cache="memory")
    assert torch.equal(torch.cat([data.clip(0, start) for start in range(len(video))], 1).permute(1, 2, 3, 0), video)


def test_what_was_kept_before_claimed_rates_were_is_still_read(tools, tmp_path):
    info = probe(uneven(tools, tmp_path), decode=True)
    store_info(tmp_path / "kept.npy", info)
    assert load_info(tmp_path / "kept.npy", info.path) == info
    facts = json.loads((tmp_path / "kept.json").read_text())
    facts.pop("claimed_fps")
    (tmp_path / "kept.json").write_text(json.dumps(facts))
    assert load_info(tmp_path / "kept.npy", info.path).fps == info.fps
