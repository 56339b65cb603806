"""From an open file to frames with times: opening, searching, decoding until damage, turning upright."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.container import InputContainer
from av.sidedata.sidedata import SideDataContainer
from torch import Tensor

from .ahead import check_wanted
from .errors import VideoError
from .writing import CONVERSION

TIE = 1e-6  # seconds; between two frames equally near, the earlier one is taken
INDEXED = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")  # formats that are searched; others are decoded from their start
# Many tags are not UTF-8. From 19 on PyAV reads them so without being told.
TAGS: dict[str, Any] = {"metadata_errors": "surrogateescape"} if int(av.__version__.split(".")[0]) < 19 else {}


@contextmanager
def opened(path: str | Path) -> Iterator[InputContainer]:
    """Open a file that has a video stream; whatever the container says against it becomes a VideoError."""
    path = Path(path)
    if not path.is_file():
        raise VideoError(path, "is a folder, not a file" if path.is_dir() else "no such file")
    if path.stat().st_size == 0:
        raise VideoError(path, "the file is empty (0 bytes)")
    try:  # a playlist in disguise must not reach the network
        container = av.open(str(path.absolute()), options={"protocol_whitelist": "file"}, **TAGS)
    except UnicodeDecodeError as error:
        raise VideoError(path, f"one of its tags is not UTF-8 text ({error.reason})") from error
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, _unreadable(path, error)) from error
    with container:
        if not container.streams.video:
            kinds = ", ".join(sorted({stream.type for stream in container.streams}))
            raise VideoError(path, f"holds no video stream (only {kinds or 'an empty shell'})")
        try:
            yield container
        except av.FFmpegError as error:
            raise VideoError(path, f"cannot be read: {error.strerror}") from error


def _unreadable(path: Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return "no permission to read it"
    head = path.open("rb").read(12)
    if head[4:8] == b"ftyp":
        return "an mp4 without its index (moov), as a cut-off recording leaves it; it cannot be decoded"
    return f"not a video ({getattr(error, 'strerror', None) or error})"


def frames_from(container: InputContainer, start: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """Frames from one at or before `start` on, jumping to a key frame where the file allows it."""
    moved = False
    for margin in (0.0, 2.0):  # an index by decoding time, which is earlier, can lead too far: step back once
        if start - margin <= 0 or container.format.name not in INDEXED:
            break
        try:
            _seek(container, start - margin)
            moved = True
            frames = decoded(container)
            first = next(frames, None)
        except av.FFmpegError:
            break
        if first is not None and first[0] <= start + TIE:
            yield first
            yield from frames
            return
    if moved:
        _seek(container, 0.0)
    yield from decoded(container)


def _seek(container: InputContainer, time: float) -> None:
    stream = container.streams.video[0]
    container.seek(int(time / _base(stream)) + (stream.start_time or 0), stream=stream, backward=True)


def decoded(container: InputContainer) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds after the first frame, frame) for frames that decode whole, until damage, while they are wanted."""
    stream, frames = container.streams.video[0], _whole(container)
    base, rate = _base(stream), rate_of(stream)
    if _is_counted(container):
        yield from ((index / rate, frame) for index, frame in enumerate(frames))
    elif container.format.name in INDEXED:
        origin = stream.start_time or 0
        for index, frame in enumerate(frames):
            yield (index / rate if frame.pts is None else (frame.pts - origin) * base), frame
    else:
        yield from _going_on(frames, base, 1 / rate)


def _whole(container: InputContainer) -> Iterator[av.VideoFrame]:
    for frame in container.decode(container.streams.video[0]):
        check_wanted()
        if frame.is_corrupt:
            return
        yield frame


def _going_on(frames: Iterator[av.VideoFrame], base: float, step: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """(seconds after the first frame, frame) at increasing times, for frames read from the first on.

    Files may be several, written one after another, each with times of its own: where the time does not go on, and
    where there is none, a frame comes `step` seconds after the one before, and later times follow on from it.
    base: seconds a tick of the file's clock.
    """
    time, shift = -step, None
    for frame in frames:
        due = time + step
        if frame.pts is None:
            time = due
        else:
            told = frame.pts * base
            if shift is None or told + shift <= time + TIE:
                shift = due - told
            time = told + shift
        yield time, frame


def _is_counted(container: InputContainer) -> bool:
    """Whether the format has no presentation times: frames are then counted from the first, at an even rate."""
    return container.format.name in ("avi", "h264", "hevc", "m4v")


def _base(stream: av.VideoStream) -> float:
    return float(stream.time_base) if stream.time_base else 1 / av.time_base


def rate_of(stream: av.VideoStream) -> float:
    """Frames a second on average, as the header says; 25 where it says nothing."""
    return float(stream.average_rate or stream.guessed_rate or 25)


def pixel_of(stream: av.VideoStream) -> float:
    """Width of a pixel over its height, as the header says; 1, a square, where it says nothing."""
    return float(stream.sample_aspect_ratio or 1)


def displayed_size(frame: av.VideoFrame, pixel: float) -> tuple[int, int]:
    """(height, width) in square pixels, after the turn that the file asks for; pixel: see `pixel_of`."""
    sides = frame.height, max(1, round(frame.width * pixel))
    return sides if _turns(frame) % 2 == 0 else sides[::-1]


def picture_of(frame: av.VideoFrame) -> Tensor:
    """uint8 (1, H, W, 3), turned and mirrored as the file asks, with its pixels."""
    lying = frame.reformat(format="rgb24", interpolation=CONVERSION).to_ndarray()
    pixels = np.rot90(lying[::-1] if _is_mirrored(frame) else lying, _turns(frame))
    return torch.from_numpy(np.ascontiguousarray(pixels))[None]


def _turns(frame: av.VideoFrame) -> int:
    """Quarter turns against the clock, 0 to 3, that the file asks for; of a mirrored picture top and bottom are swapped
    before.
    """
    return round(frame.rotation / 90) % 4


def _is_mirrored(frame: av.VideoFrame) -> bool:
    """Whether the display matrix, which moves a point (p, q) to (a p + c q, b p + d q), mirrors the picture."""
    asked: Any = SideDataContainer  # not the frame's own, which would hold the frame, which would hold it
    matrix = asked(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return False
    a, b, _, c, d, *_ = struct.unpack("<9i", matrix)
    return a * d < b * c
