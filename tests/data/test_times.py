"""When frames are shown, in files whose times start again and in those that begin anywhere."""

import pytest
import torch

from tpdiff.data import ClipDataset, read_clip, read_video
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
    assert len(video) == grid_length(times, info.fps, fps)
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
