"""Reading: exact frames at exact times, and files that lie or are broken."""

from fractions import Fraction

import pytest
import torch

from tpdiff.data import VideoError, check_folder, decoding, probe, read_clip, read_video
from tpdiff.data.folder import SUFFIXES
from tpdiff.data.video import grid_length, inspect


@pytest.fixture(scope="module")
def counted(tools, tmp_path_factory):
    """60 numbered frames at 30 frames a second, a key frame every 8, with frames that depend on later ones."""
    return tools.encode(tmp_path_factory.mktemp("counted") / "counted.mp4", tools.numbered(60), fps=30)


def test_the_fixture_holds_what_it_says(tools, counted):
    assert tools.read_numbers(read_video(counted)) == list(range(60))


@pytest.mark.parametrize(
    ("start", "fps", "expected"),
    [
        (0.0, None, [0, 1, 2, 3]),
        (0.0, 30, [0, 1, 2, 3]),
        (0.0, 15, [0, 2, 4, 6]),
        (1.0, 10, [30, 33, 36, 39]),
        (0.51, 30, [15, 16, 17, 18]),  # 0.51 s lies nearest to frame 15 at 0.5 s
        (0.52, None, [16, 17, 18, 19]),  # and 0.52 s to frame 16 at 0.533 s
        (0.0, 12, [0, 2, 5, 7]),  # 2.5 is a tie: the earlier; 7.5 as well
        (0.0, 60, [0, 0, 1, 1]),
        (1.9, 30, [57, 58, 59]),
    ],
)
def test_frames_nearest_in_time(tools, counted, start, fps, expected):
    clip = read_clip(counted, start=start, frames=len(expected), fps=fps)
    assert tools.read_numbers(clip) == expected
    assert clip.shape == (len(expected), 48, 64, 3) and clip.dtype == torch.uint8


@pytest.mark.parametrize("fps", [None, 30, 24, 20, 12, 7, 29.97, 60])
def test_a_clip_is_a_part_of_the_video(counted, fps):
    info, times = inspect(counted)
    video = read_video(counted, fps=fps)
    assert len(video) == grid_length(times, info.claimed_fps, fps)
    for first in range(0, len(video) - 4, 5):
        start = times[first] if fps is None else first / fps
        assert torch.equal(read_clip(counted, start=start, frames=4, fps=fps), video[first : first + 4])


def test_a_search_that_lands_too_late(tools, counted, monkeypatch):
    seek = decoding._seek
    for late in (0.5, 2.5):
        monkeypatch.setattr(decoding, "_seek", lambda container, time, by=late: seek(container, time and time + by))
        assert tools.read_numbers(read_clip(counted, start=1.1, frames=2)) == [33, 34]


def test_uneven_frame_times(tools, tmp_path):
    times = [0, 100, 150, 200, 500, 900, 1000, 1400]  # milliseconds
    path = tools.encode(tmp_path / "uneven.mp4", tools.numbered(8), times=times, key_every=3)
    found = inspect(path)[1]
    assert found == pytest.approx([time / 1000 for time in times], abs=1e-6)
    assert tools.read_numbers(read_clip(path, frames=8)) == list(range(8))
    #  wanted 0, .25, .5, .75, 1, 1.25: nearest 0, 3 (.2), 4 (.5), 5 (.9), 6 (1), 7 (1.4)
    assert tools.read_numbers(read_clip(path, frames=6, fps=4)) == [0, 3, 4, 5, 6, 7]
    assert tools.read_numbers(read_clip(path, start=0.46, frames=2, fps=2)) == [4, 6]


@pytest.mark.parametrize("suffix", ["mkv", "avi", "mov"])
def test_other_containers(tools, tmp_path, suffix):
    path = tools.encode(tmp_path / f"clip.{suffix}", tools.numbered(40))
    assert probe(path, decode=True).frames == 40
    assert tools.read_numbers(read_clip(path, start=1.25, frames=3, fps=8)) == [20, 22, 24]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("3gp", "libx264"),
        ("flv", "libx264"),
        ("flv", "flv"),
        ("mpg", "mpeg1video"),
        ("mpeg", "mpeg2video"),
        ("ts", "libx264"),
        ("ts", "mpeg2video"),
        ("mts", "libx264"),
        ("m2ts", "libx264"),
        ("wmv", "wmv2"),
    ],
)
def test_every_kind_that_folders_list(tools, tmp_path, suffix, codec):
    assert f".{suffix}" in SUFFIXES
    path = tools.encode(tmp_path / f"clip.{suffix}", tools.numbered(40), fps=25, codec=codec)
    info, times = inspect(path)
    assert (info.frames, info.fps, info.damage) == (40, 25, None)
    assert times == pytest.approx([number / 25 for number in range(40)], abs=0.002)
    video = read_video(path)
    assert tools.read_numbers(video) == list(range(40))
    for first in range(38):
        assert torch.equal(read_clip(path, start=times[first], frames=3), video[first : first + 3])
    assert tools.read_numbers(read_clip(path, start=0.8, frames=3, fps=12.5)) == [20, 22, 24]


@pytest.fixture(params=[(b"Cafe", b"Caf\xe9"), (b"VideoHandler", b"Vid\xe9oHandler")], ids=["container", "stream"])
def tagged(tools, tmp_path, request):
    """A folder with one video, of which a tag is Latin-1."""
    path = tools.encode(tmp_path / "a.mp4", tools.numbered(9), title="Cafe")
    tag, latin = request.param
    data = path.read_bytes()
    assert data.count(tag) == 1
    path.write_bytes(data.replace(tag, latin))
    return tmp_path


def test_tags_in_other_encodings(tools, tagged):
    assert tools.read_numbers(read_video(tagged / "a.mp4")) == list(range(9))
    report = check_folder(tagged, 9, 48, 64)
    assert report.usable == 1 and report.bad == ()


@pytest.mark.skipif(not decoding.TAGS, reason="this PyAV reads every tag")
def test_a_tag_that_cannot_be_read_is_told_with_its_file(tagged, monkeypatch):
    monkeypatch.setattr(decoding, "TAGS", {})
    with pytest.raises(VideoError, match=r"a\.mp4: one of its tags is not UTF-8 text"):
        read_video(tagged / "a.mp4")


def test_too_few_frames(counted):
    with pytest.raises(VideoError, match=r"counted\.mp4: 10 frames from 1\.8 s at 30 fps are needed, 6 decode"):
        read_clip(counted, start=1.8, frames=10, fps=30)
    with pytest.raises(VideoError, match="from 9 s at its own rate are needed, 0 decode"):
        read_clip(counted, start=9, frames=1)


def test_probe(counted):
    header, decoded = probe(counted), probe(counted, decode=True)
    assert (decoded.frames, decoded.width, decoded.height, decoded.damage) == (60, 64, 48, None)
    assert decoded.fps == pytest.approx(30) and decoded.duration == pytest.approx(2)
    assert (header.frames, header.decoded, decoded.decoded) == (60, False, True)
    assert header.duration == pytest.approx(2)


def test_a_header_that_claims_more_than_decodes(tools, broken):
    assert probe(broken["front_cut"]).frames == 40  # the claim
    info = probe(broken["front_cut"], decode=True)
    assert 1 <= info.frames < 40 and info.claimed == 40
    assert info.damage == f"the header claims 40 frames, {info.frames} decode"
    assert len(read_video(broken["front_cut"])) == info.frames
    with pytest.raises(VideoError, match=f"40 frames from 0 s at its own rate are needed, {info.frames} decode"):
        read_clip(broken["front_cut"], frames=40)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("back_cut", r"without its index \(moov\)"),
        ("empty", r"empty \(0 bytes\)"),
        ("text", "not a video"),
        ("sound", r"no video stream \(only audio\)"),
        ("missing", "no such file"),
    ],
)
def test_unreadable_files_say_why(broken, name, reason):
    for read in (probe, inspect, read_video, lambda path: read_clip(path, frames=1)):
        with pytest.raises(VideoError, match=reason) as caught:
            read(broken[name])
        assert caught.value.path == broken[name] and str(broken[name]) in str(caught.value)


def test_one_frame(tools, broken):
    assert probe(broken["single"], decode=True).frames == 1
    assert tools.read_numbers(read_clip(broken["single"], frames=1)) == [0]
    with pytest.raises(VideoError, match=r"2 frames .* are needed, 1 decode"):
        read_clip(broken["single"], frames=2)


def test_odd_size(tools, tmp_path):
    path = tools.encode(tmp_path / "odd.mp4", tools.numbered(4, 49, 63), pix_fmt="yuv444p")
    assert read_video(path).shape == (4, 49, 63, 3)
    assert read_clip(path, frames=4, size=(24, 32)).shape == (4, 24, 32, 3)


def test_crop_keeps_proportions_and_stretch_does_not(tools, tmp_path):
    frames = torch.zeros(2, 48, 96, 3, dtype=torch.uint8)
    frames[:, :, 24:72] = 200  # the centred square
    path = tools.encode(tmp_path / "wide.mp4", frames)
    crop = read_clip(path, frames=2, size=(24, 24)).float()
    stretch = read_clip(path, frames=2, size=(24, 24), resize="stretch").float()
    assert crop.mean() == pytest.approx(200, abs=4)
    assert stretch.mean() == pytest.approx(100, abs=4) and stretch[:, :, :4].mean() < 8


@pytest.mark.parametrize("turn", [0, 90, -90, 180])
@pytest.mark.parametrize("pixel", [None, 2, Fraction(1, 2)])
def test_pictures_are_as_displayed(tools, tmp_path, pixel, turn):
    """A white square of 32 x 32 amid black, in files that hold it squeezed, lying, or both; a grey one in the
    corner that was filmed at the top left says which way they turn.
    """
    frames = torch.zeros(2, 64, int(96 / (pixel or 1)), 3, dtype=torch.uint8)
    frames[:, 16:48, frames.shape[2] // 3 : frames.shape[2] * 2 // 3] = 200
    frames[:, :12, : frames.shape[2] // 8] = 100
    path = tools.encode(tmp_path / "squeezed.mp4", frames, pixel=pixel, turn=turn, pix_fmt="yuv444p")
    height, width = shown = (64, 96) if turn % 180 == 0 else (96, 64)
    assert all((info.height, info.width) == shown for info in (probe(path), probe(path, decode=True)))
    whole, cut = read_clip(path, frames=2).float(), read_clip(path, frames=2, size=(48, 48)).float()
    assert whole.shape == (2, height, width, 3) and cut.shape == (2, 48, 48, 3)
    top, left = {0: (True, True), 90: (False, True), -90: (True, False), 180: (False, False)}[turn]
    corner = whole[:, :10, :] if top else whole[:, -10:, :]
    corner = corner[:, :, :10] if left else corner[:, :, -10:]
    assert corner.mean() == pytest.approx(100, abs=3)
    mean = (200 * 32 * 32 + 100 * 12 * 12) / (64 * 96)
    assert whole.mean() == pytest.approx(mean, abs=2) and cut.mean() == pytest.approx(200 / 4, abs=2)
    square = whole[:, height // 2 - 13 : height // 2 + 13, width // 2 - 13 : width // 2 + 13]
    assert square.mean() == pytest.approx(200, abs=3) and cut[:, 15:33, 15:33].mean() == pytest.approx(200, abs=3)


@pytest.mark.parametrize("matrix", [601, 709])
@pytest.mark.parametrize("full", [False, True])
def test_colours_are_those_that_the_file_says(tools, tmp_path, matrix, full):
    colours = torch.tensor([[200, 40, 30], [30, 180, 60], [40, 50, 210], [255, 255, 255]], dtype=torch.uint8)
    frames = colours.repeat_interleave(16, dim=0).expand(2, 32, 64, 3)
    path = tools.encode(tmp_path / "colours.mp4", frames, colours=(matrix, full))
    shown = read_clip(path, frames=2)[:, 8:24, 8::16].float().mean(dim=(0, 1))
    assert torch.allclose(shown, colours.float(), atol=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "frames 0 is below 1"),
        ({"frames": 1, "fps": 0}, "fps 0 is not above 0"),
        ({"frames": 1, "start": -1}, "start -1"),
        ({"frames": 1, "start": float("nan")}, "start nan"),
        ({"frames": 1, "size": (0, 4)}, r"size \(0, 4\) is not \(height, width\)"),
        ({"frames": 1, "resize": "fit"}, "resize 'fit' is unknown; choose one of crop, stretch"),
    ],
)
def test_bad_arguments(counted, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_clip(counted, **arguments)
