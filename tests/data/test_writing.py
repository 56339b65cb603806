"""Writing: what comes back, what a browser needs, and nothing half-written."""

import resource
from contextlib import contextmanager

import av
import pytest
import torch

from tpdiff.data import VideoError, probe, read_video, write_video


@contextmanager
def largest_file(size):
    """Any file that grows beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def smooth(count=6, height=48, width=64):
    """A colour gradient that moves: what 4:2:0 can hold."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    t = torch.linspace(0, 1, count)[:, None, None]
    channels = [x + 0 * t, y + 0 * t, (x + y) / 2 * (1 - t)]
    return (torch.stack(channels, dim=-1) * 255).round().to(torch.uint8)


def test_pixels_and_colours_come_back(tmp_path):
    frames = smooth()
    back = read_video(write_video(tmp_path / "a.mp4", frames, 12.5, crf=1))
    difference = back.float() - frames.float()
    assert difference.abs().mean() < 1 and difference.mean(dim=(0, 1, 2)).abs().max() < 0.15  # no drift of colour
    assert probe(tmp_path / "a.mp4").fps == pytest.approx(12.5)


def test_browsers_can_play_it(tmp_path):
    path = write_video(tmp_path / "a.mp4", smooth(), 16)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.colorspace == 1  # BT.709, said and not guessed
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (47, 63), (1, 1)])
def test_odd_sizes_keep_every_pixel(tmp_path, height, width):
    frames = smooth(3, height + 8, width + 8)[:, :height, :width]
    back = read_video(write_video(tmp_path / "a.mp4", frames, 8, crf=1))
    assert back.shape == (3, height + height % 2, width + width % 2, 3)
    assert (back[:, :height, :width].float() - frames.float()).abs().mean() < 1.5
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"


@pytest.mark.parametrize("limit", [0, 100, 4_000, 30_000, 60_000])
def test_a_full_disk_leaves_nothing(tmp_path, limit):
    noise = torch.randint(0, 256, (20, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    path = tmp_path / "a.mp4"
    with largest_file(limit), pytest.raises(VideoError, match=r"a\.mp4: cannot be written: .*large"):
        write_video(path, noise, 8, crf=1)
    assert list(tmp_path.iterdir()) == []
    assert len(read_video(write_video(path, noise, 8, crf=1))) == 20
    assert path.stat().st_size > 60_000


def test_a_name_that_cannot_be_taken(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tpdiff.data.writing.os.replace", refuse)
    with pytest.raises(VideoError, match="cannot be written: Permission denied"):
        write_video(tmp_path / "a.mp4", smooth(), 8)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_old_file(tmp_path):
    path = write_video(tmp_path / "a.mp4", smooth(), 8)
    before = path.read_bytes()
    with largest_file(500), pytest.raises(VideoError):
        write_video(path, smooth(20), 8)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (torch.zeros(2, 8, 8, 3), {}, r"uint8 \(T, H, W, 3\), got torch.float32 \(2, 8, 8, 3\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), {}, r"got torch.uint8 \(2, 3, 8, 8\)"),
        (torch.zeros(0, 8, 8, 3, dtype=torch.uint8), {}, r"\(0, 8, 8, 3\)"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), {"fps": 0}, "fps 0 is not above 0"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), {"crf": 60}, "nearest: 51"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), {"codec": "aac"}, "'aac' is not a video codec"),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), {"codec": "h999"}, "h999"),
    ],
)
def test_bad_arguments(tmp_path, frames, options, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, **({"fps": 8} | options))
    assert list(tmp_path.iterdir()) == []


def test_unknown_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"a\.xyz has none of the suffixes of videos: \.mp4"):
        write_video(tmp_path / "a.xyz", smooth(), 8)
