"""Pictures as displayed: the eight ways in which a file can ask players to turn and mirror them."""

import gc
import struct

import av
import numpy as np
import pytest
import torch

from tpdiff.data import probe, read_clip, read_video

QUADRANTS = {"white": (235, 235, 235), "red": (220, 0, 0), "green": (0, 220, 0), "blue": (0, 0, 220)}
# Name: (a, b, c, d), by which players move a point (p, q) to (a p + c q, b p + d q), and the same done to an array.
ASKED = {
    "as it is": ((1, 0, 0, 1), lambda x: x),
    "quarter turn left": ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
    "half turn": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "quarter turn right": ((0, 1, -1, 0), lambda x: np.rot90(x, 3)),
    "left and right swapped": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    "top and bottom swapped": ((1, 0, 0, -1), lambda x: x[::-1]),
    "rows and columns swapped": ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    "rows and columns swapped and a half turn": ((0, -1, -1, 0), lambda x: np.rot90(x.swapaxes(0, 1), 2)),
}


@pytest.fixture
def lying():
    """uint8 (48, 80, 3), as filmed: white and red above green and blue."""
    white, red, green, blue = (np.full((24, 40, 3), colour, np.uint8) for colour in QUADRANTS.values())
    return np.block([[[white], [red]], [[green], [blue]]])


def ask(path, matrix):
    """Put a matrix (a, b, c, d) into the track header of an mp4, with the shift that brings the picture into view."""
    data = path.read_bytes()
    place = data.index(b"tkhd") + 44  # of a header of version 0, which has 40 bytes before it
    assert data[place - 40] == 0 and data[place : place + 36] == packed((1, 0, 0, 1), 0, 0)
    a, b, c, d = matrix
    height, width = 48, 80
    shift = -min(0, a * width) - min(0, c * height), -min(0, b * width) - min(0, d * height)
    path.write_bytes(data[:place] + packed(matrix, *shift) + data[place + 36 :])


def packed(matrix, x, y):
    a, b, c, d = (value << 16 for value in matrix)
    return struct.pack(">9i", a, b, 0, c, d, 0, x << 16, y << 16, 1 << 30)


@pytest.mark.parametrize("pixel", [None, 2])
@pytest.mark.parametrize("name", ASKED)
def test_pictures_are_turned_and_mirrored_as_the_file_asks(tools, tmp_path, lying, name, pixel):
    matrix, done = ASKED[name]
    frames = torch.from_numpy(lying).expand(2, -1, -1, -1)
    path = tools.encode(tmp_path / "asked.mp4", frames, pixel=pixel, pix_fmt="yuv444p")
    ask(path, matrix)
    wanted = done(np.repeat(lying, pixel or 1, axis=1))
    height, width = wanted.shape[:2]
    for decode in (False, True):
        assert (probe(path, decode).height, probe(path, decode).width) == (height, width)
    inner = np.s_[:, 4 : height // 2 - 4, 4 : width // 2 - 4]
    for shown in (read_video(path).numpy(), read_clip(path, frames=2, size=(height, width)).numpy()):
        assert shown.shape == (2, height, width, 3)
        for flip in (np.s_[:], np.s_[:, ::-1], np.s_[:, :, ::-1], np.s_[:, ::-1, ::-1]):  # each quadrant in turn
            assert np.allclose(shown[flip][inner], wanted[None][flip][inner].astype(float), atol=8)


def test_frames_are_let_go_without_a_collection(tools, tmp_path, lying):
    """A forked loader that collects frames of its parent waits for their threads, which it does not have."""
    path = tools.encode(tmp_path / "asked.mp4", torch.from_numpy(lying).expand(6, -1, -1, -1), pix_fmt="yuv444p")
    ask(path, ASKED["half turn"][0])
    gc.collect()
    gc.disable()
    try:
        read_video(path)
        probe(path, decode=True)
        assert [thing for thing in gc.get_objects() if isinstance(thing, av.VideoFrame)] == []
    finally:
        gc.enable()
