"""Which clips of a folder stand for its videos: chosen by content and seed, whatever the files are called."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tpdiff.data import BadFile, DataError, Entry, FolderScan, check_share, read_clip, scan
from tpdiff.data.clips import Geometry, Video, verify
from tpdiff.data.stream import epoch_order, generator_for

MOST = 2048  # clips that are taken where no number is asked for
RULE = (
    "videos in an order drawn by seed from their contents; each cut from a drawn first frame into windows that do not "
    "overlap; one window of every video in turn"
)


@dataclass(frozen=True)
class Source:
    """A usable video and the SHA-256 of its file."""

    video: Video
    digest: str

    @property
    def entry(self) -> Entry:
        """Its path, caption, split and further metadata."""
        return self.video.entry


@dataclass(frozen=True)
class Clip:
    """A window of a video: `start` is its first frame, counted at the clips' rate."""

    source: Source
    start: int

    @property
    def identity(self) -> str:
        """What file contents and which window of them."""
        return f"{self.source.digest}@{self.start}"


def find_sources(
    folder: str | Path,
    geometry: Geometry,
    split: str | None = None,
    max_bad_share: float = 0.1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Source, ...]:
    """The videos of a folder (of one split) that give a clip of this geometry, sorted by content.

    Raises:
        DataError: as `tpdiff.data.scan`, or more than `max_bad_share` of the files cannot be used (with reasons).
    """
    geometry.check()
    videos, bad = verify(scan(folder, split), geometry, progress=progress)
    check_share(FolderScan(tuple(video.entry for video in videos), bad), max_bad_share)
    sources = [Source(video, file_digest(video.entry.path)) for video in videos]
    return tuple(sorted(sources, key=lambda source: (source.digest, source.entry.path)))


def shuffled(sources: Sequence[Source], seed: int) -> tuple[Source, ...]:
    """In an order that depends on the seed and the contents alone."""
    return tuple(sources[number] for number in epoch_order(seed, 0, len(sources)))


def count_windows(sources: Sequence[Source], frames: int) -> int:
    """Clips of so many frames that do not overlap."""
    return sum(source.video.length // frames for source in sources)


def choose_clips(sources: Sequence[Source], geometry: Geometry, count: int | None, seed: int) -> tuple[Clip, ...]:
    """`count` clips by `RULE`; None: all windows, at most 2048. `sources` are taken in the order given.

    Raises:
        ValueError: more clips than there are windows, or fewer than one.
    """
    windows = count_windows(sources, geometry.frames)
    if count is None:
        count = min(windows, MOST)
    if count < 1:
        raise ValueError(f"clips {count} is below 1")
    if count > windows:
        raise ValueError(
            f"{count} clips were asked for; {len(sources)} videos hold {windows} windows of {geometry.frames} frames "
            f"that do not overlap; nearest: {windows}"
        )
    starts = [_starts(source, geometry.frames, seed) for source in sources]
    chosen: list[Clip] = []
    turn = 0
    while len(chosen) < count:
        chosen += [Clip(s, own[turn]) for s, own in zip(sources, starts, strict=True) if turn < len(own)]
        turn += 1
    return tuple(chosen[:count])


def load_clips(clips: Sequence[Clip], geometry: Geometry) -> Tensor:
    """uint8 (B, 3, T, H, W)."""
    return torch.stack([_load(clip, geometry) for clip in clips])


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def clips_digest(clips: Sequence[Clip]) -> str:
    """SHA-256 over the contents and windows of clips, in their order."""
    return hashlib.sha256("\n".join(clip.identity for clip in clips).encode()).hexdigest()


def exact_sources(folder: str | Path, geometry: Geometry) -> tuple[Source, ...]:
    """Videos that are clips already: every file must decode to exactly this geometry.

    Raises:
        DataError: naming the files that cannot be read, or have another size, number of frames or rate.
    """
    found = scan(folder)
    videos, bad = verify(found, geometry._replace(frames=1))
    wrong: list[BadFile] = list(bad)
    for video in videos:
        reason = _difference(video, geometry)
        if reason:
            wrong.append(BadFile(video.entry.path, reason))
    if wrong:
        named = "".join(f"\n  {item.path}: {item.reason}" for item in sorted(wrong, key=lambda item: item.path)[:5])
        more = f"\n  ... and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        total = len(videos) + len(bad)
        raise DataError(f"{len(wrong)} of {total} videos in {folder} cannot be evaluated:{named}{more}")
    sources = [Source(video, file_digest(video.entry.path)) for video in videos]
    return tuple(sorted(sources, key=lambda source: (source.digest, source.entry.path)))


def _difference(video: Video, geometry: Geometry) -> str | None:
    info = video.info
    even = geometry.height + geometry.height % 2, geometry.width + geometry.width % 2  # as files store odd sides
    if (info.height, info.width) not in ((geometry.height, geometry.width), even):
        return f"is {info.height}x{info.width}, clips of {geometry.height}x{geometry.width} are compared"
    if video.damage:
        return video.damage
    if video.length != geometry.frames:
        rate = "" if geometry.fps is None else f" at {geometry.fps:g} fps"
        return f"has {video.length} frames{rate}, clips of {geometry.frames} are compared"
    return None


def _starts(source: Source, frames: int, seed: int) -> list[int]:
    count = source.video.length // frames
    generator = generator_for(seed, f"windows/{source.digest}", frames)
    offset = int(torch.randint(source.video.length - count * frames + 1, (), generator=generator))
    order = torch.randperm(count, generator=generator).tolist()
    return [offset + number * frames for number in order]


def _load(clip: Clip, geometry: Geometry) -> Tensor:
    """uint8 (3, T, H, W)."""
    video = clip.source.video
    frames, height, width, fps, resize = geometry
    seconds = video.times[clip.start] if fps is None else clip.start / fps
    path = video.entry.path
    clip_frames = read_clip(path, start=seconds, frames=frames, fps=fps, size=(height, width), resize=resize)
    return clip_frames.permute(3, 0, 1, 2).contiguous()
