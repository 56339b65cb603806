"""Decoded frames on disk: written as they come, and the same file as ever."""

import io
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

from tpdiff.data import VideoError, read_video, write_video
from tpdiff.data.store import load_frames, store_array, store_frames
from tpdiff.data.video import read_frames


@pytest.fixture
def video(tools, tmp_path):
    return tools.encode(tmp_path / "a.mp4", tools.numbered(30))


def contents(values):
    """A .npy file of all values, and their CRC-32 behind it."""
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue() + zlib.crc32(values.tobytes()).to_bytes(4, "big")


@pytest.mark.parametrize("fps", [None, 10, 60])
def test_frames_that_come_one_by_one_make_the_file_of_all(video, tmp_path, fps):
    whole = read_video(video, fps=fps, size=(20, 36)).numpy()
    store_frames(tmp_path / "store" / "a.npy", (20, 36), read_frames(video, fps=fps, size=(20, 36)))
    store_array(tmp_path / "store" / "b.npy", whole)
    assert (tmp_path / "store" / "a.npy").read_bytes() == contents(whole)
    assert (tmp_path / "store" / "b.npy").read_bytes() == contents(whole)
    assert np.array_equal(load_frames(tmp_path / "store" / "a.npy", (20, 36)), whole)
    assert len(list((tmp_path / "store").iterdir())) == 2


@pytest.mark.parametrize("count", [1, 9, 10, 1000])
def test_every_number_of_frames_fits_the_header(tmp_path, count):
    frames = torch.randint(0, 256, (count, 2, 3, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    store_frames(tmp_path / "a.npy", (2, 3), frames.split(1))
    assert (tmp_path / "a.npy").read_bytes() == contents(frames.numpy())


def test_nothing_is_left_of_a_video_that_cannot_be_read(broken, tmp_path):
    with pytest.raises(VideoError, match="moov"):
        store_frames(tmp_path / "a.npy", (20, 36), read_frames(broken["back_cut"], size=(20, 36)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [lambda data: data + b"x", lambda data: data[:-1], lambda data: data[:-5] + data[-4:]]
)
def test_a_file_that_is_longer_or_shorter_counts_as_absent(tmp_path, change):
    place = tmp_path / "a.npy"
    store_frames(place, (2, 3), torch.zeros(4, 2, 3, 3, dtype=torch.uint8).split(1))
    assert load_frames(place, (2, 3)) is not None
    place.write_bytes(change(place.read_bytes()))
    assert load_frames(place, (2, 3)) is None


PEAK = """
import sys
from tpdiff.data import ClipDataset
from tpdiff.models.memory import peak_bytes

short, long, kept = sys.argv[1:]
options = {"frames": 4, "height": 480, "width": 640, "require_captions": False, "cache": "disk", "cache_dir": kept}
ClipDataset(short, **options)  # what it takes to read anything
before = peak_bytes()
for _ in range(2):  # written, then checked
    dataset = ClipDataset(long, **options)
print(dataset.decoded_bytes, peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_a_video_on_its_way_to_the_disk_is_not_held(tools, tmp_path):
    for name, count in (("short", 8), ("long", 200)):
        (tmp_path / name).mkdir()
        for number in range(2):
            write_video(tmp_path / name / f"{number}.mp4", tools.numbered(count), 16, preset="ultrafast")
    places = [str(tmp_path / name) for name in ("short", "long", "kept")]
    done = subprocess.run([sys.executable, "-c", PEAK, *places], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    decoded, grown = map(int, done.stdout.split())
    assert decoded == 400 * 480 * 640 * 3
    assert grown < decoded / 8
