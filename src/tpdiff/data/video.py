"""Read video files: what really decodes, and the frames at given times.

A container's header is a claim. Everything here that counts, counts frames that decode: the stretch from the
first frame to the first damage. Time 0 is the presentation time of the first frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import torch
from av.container import InputContainer
from torch import Tensor

from .decoding import TIE, decoded, displayed_size, frames_from, opened, picture_of, pixel_of, rate_of
from .errors import VideoError
from .frames import check_mode, check_rate, check_size, resize_frames
from .writing import write_video

__all__ = [
    "VideoError",
    "VideoInfo",
    "grid_length",
    "inspect",
    "probe",
    "read_clip",
    "read_frames",
    "read_video",
    "write_video",
]

SAME = 0.01  # of a header's rate; that of the frames is rounded in some formats, the header's then more exact


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    `frames` is the header's claim (0 when it makes none), or the count of frames that decode when `decoded`.
    `fps` is the average rate: the header's claim, or that of the frames when `decoded`, unless the two are within 1 %.
    `width` and `height` are in square pixels as displayed, `duration` is in seconds.
    `claimed` and `claimed_fps` are always the header's claims, the latter 0 in what was kept when it was not noted;
    `damage` says what went wrong after the last good frame, if anything.
    """

    path: Path
    frames: int
    fps: float
    width: int
    height: int
    duration: float
    claimed: int = 0
    decoded: bool = False
    damage: str | None = None
    claimed_fps: float = 0.0


def probe(path: str | Path, decode: bool = False) -> VideoInfo:
    """Describe a video; with `decode=True` by decoding all of it, which can be trusted.

    Raises VideoError when the file is missing, empty, not a video, without a video stream, without its index
    (a recording that was cut off), or (with `decode`) when not one frame decodes.
    """
    if decode:
        return inspect(path)[0]
    with opened(path) as container:
        stream = container.streams.video[0]
        fps = rate_of(stream)
        duration = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
        duration = duration or (container.duration or 0) / av.time_base
        claimed = stream.frames
        height, width = _first_size(container)
    if min(width, height) < 1:
        raise VideoError(path, "its header gives the picture no size")
    return VideoInfo(Path(path), claimed, fps, width, height, duration, claimed, claimed_fps=fps)


def _first_size(container: InputContainer) -> tuple[int, int]:
    """(height, width) of the first frame, which knows its turn; the header's where it does not decode."""
    stream = container.streams.video[0]
    pixel, header = pixel_of(stream), stream.codec_context
    try:
        first = next(decoded(container), None)
    except av.FFmpegError:
        first = None
    return (header.height, round(header.width * pixel)) if first is None else displayed_size(first[1], pixel)


def inspect(path: str | Path) -> tuple[VideoInfo, list[float]]:
    """Decode a whole video. Returns its description and the presentation time (s) of each frame that decodes.

    Raises VideoError as `probe(path, decode=True)` does.
    """
    times: list[float] = []
    damage: str | None = None
    size = (0, 0)
    with opened(path) as container:
        stream = container.streams.video[0]
        claimed_fps, claimed, pixel = rate_of(stream), stream.frames, pixel_of(stream)
        try:
            for time, frame in decoded(container):
                if not times:
                    size = displayed_size(frame, pixel)
                times.append(time)
        except av.FFmpegError as error:
            damage = f"decoding stops with {error.strerror!r}"
    if not times:
        raise VideoError(path, "not one of its frames decodes" + (f" ({damage})" if damage else ""))
    if claimed > len(times):
        damage = f"the header claims {claimed} frames, {len(times)} decode"
    fps = _rate_of_frames(times, claimed_fps)
    duration = times[-1] + 1 / fps
    info = VideoInfo(Path(path), len(times), fps, size[1], size[0], duration, claimed, True, damage, claimed_fps)
    return info, times


def _rate_of_frames(times: list[float], claimed: float) -> float:
    """Frames a second on average; `claimed` where that is within 1 % of it, and of one frame, which has no rate."""
    span = times[-1] - times[0]
    if span <= 0 or abs((len(times) - 1) / span - claimed) <= SAME * claimed:
        return claimed
    return (len(times) - 1) / span


def grid_length(times: list[float], claimed_fps: float, fps: float | None) -> int:
    """Number of frames that a video with these frame times (s) has when it is read at `fps` (None: its
    own).

    claimed_fps: frames a second as the header says (`VideoInfo.claimed_fps`), which say how long the last one lasts.
    """
    if fps is None:
        return len(times)
    return math.floor((times[-1] + 0.5 / claimed_fps + TIE) * fps) + 1


def read_clip(
    path: str | Path,
    *,
    start: float = 0.0,
    frames: int,
    fps: float | None = None,
    size: tuple[int, int] | None = None,
    resize: str = "crop",
) -> Tensor:
    """Read one clip: the frames nearest in presentation time to start + i / fps, for i = 0 ... frames - 1.

    start: seconds after the first frame. fps: frames a second of the clip; None takes the file's own frames
    one after another, whatever their spacing. size: (height, width) in pixels, None: as displayed. resize:
    "crop" (cover and cut the centre) or "stretch". A frame stands for half a frame time on both sides, so a
    clip may ask for more frames a second than the file has.
    Returns uint8 (T, H, W, 3), RGB, T = frames.
    Raises VideoError when the file cannot be read or fewer than `frames` frames decode, ValueError for a bad
    argument.
    """
    if frames < 1:
        raise ValueError(f"frames {frames} is below 1")
    if not (math.isfinite(start) and start >= 0):
        raise ValueError(f"start {start} is not a time in seconds of at least 0")
    picked = list(_pictures(path, start, frames, fps, size, resize))
    if len(picked) < frames:
        rate = "its own rate" if fps is None else f"{fps:g} fps"
        raise VideoError(path, f"{frames} frames from {start:g} s at {rate} are needed, {len(picked)} decode")
    return _stack(path, picked)


def read_video(
    path: str | Path, *, fps: float | None = None, size: tuple[int, int] | None = None, resize: str = "crop"
) -> Tensor:
    """Read a whole video, as `read_clip` does a part: uint8 (T, H, W, 3), with every frame that decodes.

    `read_video(path, fps=fps)[s : s + n]` equals `read_clip(path, start=s / fps, frames=n, fps=fps)`.
    Raises VideoError when the file cannot be read, ValueError for a bad argument.
    """
    return _stack(path, list(read_frames(path, fps=fps, size=size, resize=resize)))


def read_frames(
    path: str | Path, *, fps: float | None = None, size: tuple[int, int] | None = None, resize: str = "crop"
) -> Iterator[Tensor]:
    """The frames of `read_video` one at a time, as they decode: uint8 (1, H, W, 3) each.

    Raises VideoError and ValueError as `read_video` does, when the first is asked for.
    """
    picture = None
    for picture in _pictures(path, 0.0, None, fps, size, resize):
        yield picture
    if picture is None:
        raise VideoError(path, "not one of its frames decodes")


def _pictures(
    path: str | Path,
    start: float,
    count: int | None,
    fps: float | None,
    size: tuple[int, int] | None,
    mode: str,
) -> Iterator[Tensor]:
    if fps is not None:
        check_rate(fps)
    if size is not None:
        check_size(size)
    check_mode(mode)
    with opened(path) as container:
        stream = container.streams.video[0]
        half, pixel = 0.5 / rate_of(stream), pixel_of(stream)
        for frame, times in _chosen(frames_from(container, start), start, count, fps, half):
            picture, shown = picture_of(frame), displayed_size(frame, pixel)
            fitted = resize_frames(picture, size, mode, shown) if size else resize_frames(picture, shown, "stretch")
            yield from [fitted] * times


def _chosen(
    timed: Iterator[tuple[float, av.VideoFrame]],
    start: float,
    count: int | None,
    fps: float | None,
    half: float,
) -> Iterator[tuple[av.VideoFrame, int]]:
    """Yield the wanted frames, each with how many times in a row it is wanted."""
    taken = 0

    def wanted_until(limit: float) -> int:
        if fps is None:  # from the frame nearest to `start` on, each once
            number = 1 if taken or start <= limit + TIE else 0
        else:
            number = math.floor((limit - start + TIE) * fps) + 1 - taken
        return max(0, number if count is None else min(number, count - taken))

    held: tuple[float, av.VideoFrame] | None = None
    try:
        for time, frame in timed:
            if held is not None and (number := wanted_until((held[0] + time) / 2)):
                yield held[1], number
                taken += number
                if taken == count:
                    return
            held = time, frame
    except av.FFmpegError:
        pass  # damage ends the video; the caller sees how many frames there were
    if held is not None and (number := wanted_until(held[0] + half)):
        yield held[1], number


def _stack(path: str | Path, pictures: list[Tensor]) -> Tensor:
    sizes = {(picture.shape[1], picture.shape[2]) for picture in pictures}
    if len(sizes) > 1:
        raise VideoError(path, f"its frames change size ({sorted(sizes)}); ask for one size")
    return torch.cat(pictures)
