"""Real files: numbered videos, rendered digits, and the ways in which files are broken."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from tpdiff.data import render_digits, write_video

BITS = 8
WEIGHTS = {601: (0.299, 0.114), 709: (0.2126, 0.0722)}  # of red and of blue
SPACES = {601: 6, 709: 1}  # as H.264 numbers them


def numbered(count, height=48, width=64):
    """uint8 (T, H, W, 3): frame n shows n in eight black or white columns, most significant bit first."""
    bits = (torch.arange(count)[:, None] >> torch.arange(BITS - 1, -1, -1)) & 1
    column = torch.arange(width) * BITS // width
    return (bits[:, column] * 255).to(torch.uint8)[:, None, :, None].expand(count, height, width, 3).contiguous()


def read_numbers(frames):
    """The numbers that frames (T, H, W, 3) of `numbered` show."""
    columns = frames.float().mean(dim=(1, 3)).tensor_split(BITS, dim=1)
    bits = torch.stack([part.mean(dim=1) > 127 for part in columns], dim=1).long()
    return (bits << torch.arange(BITS - 1, -1, -1)).sum(dim=1).tolist()


def ycbcr(frames, matrix, full):
    """RGB (T, H, W, 3) -> uint8 (T, 3, H, W) by the formulas of BT.601 or BT.709, in full or in narrow range."""
    (of_red, of_blue), (red, green, blue) = WEIGHTS[matrix], frames.double().unbind(-1)
    y = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    planes = torch.stack([y, (blue - y) / (2 - 2 * of_blue), (red - y) / (2 - 2 * of_red)], dim=1)
    scale, least = ([255, 255, 255], 0) if full else ([219, 224, 224], 16)
    planes = planes / 255 * torch.tensor(scale)[:, None, None] + torch.tensor([least, 128, 128])[:, None, None]
    return planes.round().clamp(0, 255).to(torch.uint8)


def encode(
    path,
    frames,
    times=None,
    fps=16,
    front=False,
    key_every=8,
    pix_fmt="yuv420p",
    pixel=None,
    turn=0,
    colours=None,
    codec="libx264",
    title=None,
):
    """Encode without the code under test; times are presentation times in milliseconds, pixel is the width of a pixel
    over its height, turn the angle in degrees, against the clock, by which players turn the picture, colours (matrix,
    full), which the file then says, at full resolution.
    """
    options = {"movflags": "+faststart"} if front else {}
    with av.open(str(path), "w", options=options) as container:
        if title is not None:
            container.metadata["title"] = title
        quality = {"crf": "10"} if codec == "libx264" else {"b": "2000000"}
        stream = container.add_stream(codec, rate=Fraction(fps), options={"g": str(key_every), **quality})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pix_fmt
        if pixel is not None:
            stream.codec_context.sample_aspect_ratio = pixel
        if turn:
            stream.set_display_rotation(turn)
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        given = "rgb24"
        if colours is not None:
            matrix, full = colours
            stream.codec_context.colorspace, stream.codec_context.color_range = SPACES[matrix], 2 if full else 1
            frames, stream.pix_fmt, given = ycbcr(frames, matrix, full), "yuv444p", "yuv444p"
        for index, picture in enumerate(frames.numpy()):
            frame = av.VideoFrame.from_ndarray(picture, format=given)
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, fps) if times is None else Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def tools():
    class Tools:
        pass

    Tools.numbered, Tools.read_numbers, Tools.encode = map(staticmethod, (numbered, read_numbers, encode))
    return Tools


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """24 rendered digits of 16 frames, 6 of them for testing."""
    return render_digits(tmp_path_factory.mktemp("digits") / "set", clips=24, test_share=0.25, seed=3)


@pytest.fixture(scope="session")
def rows(digits):
    return [json.loads(line) for line in (digits.folder / "metadata.jsonl").read_text().splitlines()]


@pytest.fixture
def mixed(tmp_path):
    """A folder of numbered videos with captions: 30, 40 and 50 frames at 16 frames a second."""
    for count in (30, 40, 50):
        write_video(tmp_path / f"v{count}.mp4", numbered(count), 16, crf=8)
        (tmp_path / f"v{count}.txt").write_text(f"it counts to {count}\n")
    return tmp_path


@pytest.fixture(scope="session")
def broken(tmp_path_factory):
    """Files that are wrong in one way each, by name."""
    folder = tmp_path_factory.mktemp("broken")
    noise = torch.randint(0, 256, (40, 48, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    whole = {"front": encode(folder / "front.mp4", noise, front=True), "back": encode(folder / "back.mp4", noise)}
    files = {}
    for name, path in whole.items():
        data = path.read_bytes()
        files[f"{name}_cut"] = folder / f"{name}_cut.mp4"
        files[f"{name}_cut"].write_bytes(data[: len(data) // 2])
    files["empty"] = folder / "empty.mp4"
    files["empty"].write_bytes(b"")
    files["text"] = folder / "text.mp4"
    files["text"].write_text("this is a text, not a video\n" * 40)
    files["sound"] = folder / "sound.mp4"
    with av.open(str(files["sound"]), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    files["single"] = write_video(folder / "single.mp4", numbered(1), 16)
    files["missing"] = folder / "missing.mp4"
    return files
