"""Clips of one geometry from a folder of captioned videos, as an endless stream that any index can enter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .ahead import in_threads
from .errors import DataError, VideoError
from .folder import BadFile, Entry, FolderScan, check_share, require_captions, scan
from .frames import check_mode, check_rate, check_size, to_float, to_uint8
from .store import cache_path, fill_memory, load_frames, load_info, store_frames, store_info
from .stream import StreamSampler, draw_start, epoch_order, legal_starts, stream_indices
from .video import VideoInfo, grid_length, inspect, probe, read_clip, read_frames, read_video

__all__ = [
    "ClipDataset",
    "Geometry",
    "StreamSampler",
    "Video",
    "collate",
    "stream_indices",
    "to_float",
    "to_uint8",
    "verify",
]

CACHES = ("auto", "memory", "disk", "none")
Progress = Callable[[int, int], None]  # (videos done, videos in all)


class Geometry(NamedTuple):
    """The clips wanted: `frames` of `height` × `width` pixels at `fps` (None: each file's own), cropped or
    stretched.
    """

    frames: int
    height: int
    width: int
    fps: float | None = None
    resize: str = "crop"

    def check(self) -> None:
        """Raise ValueError for a number that no clip can have."""
        if self.frames < 1:
            raise ValueError(f"frames {self.frames} is below 1")
        if self.fps is not None:
            check_rate(self.fps)
        check_size((self.height, self.width))
        check_mode(self.resize)


@dataclass(frozen=True)
class Video:
    """One usable video: its entry and its length in frames of the clips' rate.

    `info` is what decoding found. `times` (s) are those of its own frames; they are kept where the clips have the
    file's own rate and are decoded when asked for.
    """

    entry: Entry
    length: int
    info: VideoInfo
    times: tuple[float, ...] = ()

    @property
    def damage(self) -> str | None:
        """What is wrong after the last good frame, if anything."""
        return self.info.damage


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips from the videos of a folder.

    `dataset[i]` is defined for every i ≥ 0 and depends on (seed, i) only: videos come in a new random order
    each epoch (i // len), each clip starts at a random frame. It is a dict of
        video    uint8 (3, T, H, W), RGB in [0, 255]; `to_float` brings it to [-1, 1]
        caption  str ("" where there is none)
        index    i
        path     str
        start    int, the clip's first frame among those of the video
    `len(dataset)` is the number of usable videos, which is the length of an epoch. Iterate with a
    `StreamSampler`.

    folder: see `tpdiff.data.folder`. frames, height, width, fps: the clips; fps None takes each file's own
    frames. starts: clips of one video, evenly spread over it; None lets one start at any frame. cache keeps
    decoded videos: "memory" (refused when they do not fit `memory_budget` bytes), "disk" (files under
    `cache_dir`, checked before they are trusted), "none" decodes each clip when asked, "auto" is memory where
    it fits, else none. progress: called with (videos done, videos in all), when they are checked and once more
    when they are kept in memory.

    Every file is decoded once beforehand. Unusable ones are set aside in `bad`, with reasons; those that only
    break off after enough frames are used and named in `damaged`.
    Raises ValueError for a bad argument; DataError when no video is usable, when more than `max_bad_share` of
    them are not, when a caption is missing (`require_captions`), or for whatever `scan` refuses.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        frames: int,
        height: int,
        width: int,
        fps: float | None = None,
        starts: int | None = None,
        seed: int = 0,
        split: str | None = None,
        cache: str = "auto",
        cache_dir: str | Path | None = None,
        require_captions: bool = True,
        max_bad_share: float = 0.1,
        memory_budget: int = 2 * 1024**3,
        resize: str = "crop",
        progress: Progress | None = None,
    ) -> None:
        self.geometry = Geometry(frames, height, width, fps, resize)
        self.geometry.check()
        if cache not in CACHES:
            raise ValueError(f"cache {cache!r} is unknown; choose one of {', '.join(CACHES)}")
        if cache == "disk" and cache_dir is None:
            raise ValueError("cache 'disk' needs cache_dir, the folder to keep decoded videos in")
        if starts is not None and starts < 1:
            raise ValueError(f"starts {starts} is below 1; nearest: 1, or None for every frame")
        self.seed, self.starts = seed, starts
        self._stored: list[Path] | None = None
        self._block: Tensor | None = None
        found = scan(folder, split)
        if require_captions:
            _require(found, folder)
        stores = _store_paths(found, Path(cache_dir), self.geometry) if cache == "disk" and cache_dir else {}
        videos, bad = verify(found, self.geometry, stores, progress)
        check_share(FolderScan(tuple(video.entry for video in videos), bad), max_bad_share)
        self.videos, self.bad = videos, bad
        self.damaged = tuple(BadFile(v.entry.path, v.damage) for v in videos if v.damage)
        self._offsets = [0, *accumulate(video.length for video in videos)]
        if cache == "disk":
            self._stored = [stores[video.entry.path] for video in videos]
        elif cache == "memory" or (cache == "auto" and self.decoded_bytes <= memory_budget):
            if self.decoded_bytes > memory_budget:
                needed, allowed = self.decoded_bytes / 1024**3, memory_budget / 1024**3
                raise DataError(
                    f"the decoded videos take {needed:.3g} GiB, more than the memory allowed, {allowed:.3g} GiB; "
                    "nearest: data.cache=disk with data.cache_dir, or data.cache=none (decoded clip by clip)"
                )
            self._block = _decode_all(videos, self.geometry, progress)

    @property
    def captions(self) -> list[str]:
        """The distinct captions, sorted."""
        return sorted({video.entry.caption for video in self.videos if video.entry.caption is not None})

    @property
    def decoded_bytes(self) -> int:
        """Bytes that all usable videos take when decoded to the geometry of the clips."""
        return self._offsets[-1] * self.geometry.height * self.geometry.width * 3

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        told = self.told(index)
        return {"video": self.clip(told.pop("number"), told["start"]), **told}

    def told(self, index: int) -> dict[str, Any]:
        """All of a sample but its video, which is not decoded: "number" in `videos` is that of its own."""
        if index < 0:
            raise IndexError(f"sample index {index} is below 0")
        epoch, place = divmod(index, len(self.videos))
        number = epoch_order(self.seed, epoch, len(self.videos))[place]
        video = self.videos[number]
        starts = self.starts_of(video)
        start = starts[draw_start(self.seed, index, len(starts))]
        told = {"caption": video.entry.caption or "", "index": index, "path": str(video.entry.path), "start": start}
        return told | {"number": number}

    def clip(self, number: int, start: int) -> Tensor:
        """The clip of `videos[number]` from frame `start` on: uint8 (3, T, H, W), RGB in [0, 255]."""
        return self._frames(number, start).permute(3, 0, 1, 2).contiguous()

    def starts_of(self, video: Video) -> Sequence[int]:
        """The frames at which clips of one of these videos start."""
        return legal_starts(video.length - self.geometry.frames + 1, self.starts)

    def _frames(self, number: int, start: int) -> Tensor:
        """uint8 (T, H, W, 3), from wherever it is kept."""
        frames, height, width, fps, resize = self.geometry
        if self._block is not None:
            first = self._offsets[number] + start
            return self._block[first : first + frames]
        if self._stored is not None:
            mapped = np.load(self._stored[number], mmap_mode="r", allow_pickle=False)
            return torch.from_numpy(np.array(mapped[start : start + frames]))
        video = self.videos[number]
        seconds = video.times[start] if fps is None else start / fps
        return read_clip(video.entry.path, start=seconds, frames=frames, fps=fps, size=(height, width), resize=resize)


def verify(
    found: FolderScan,
    geometry: Geometry,
    stores: dict[Path, Path] | None = None,
    progress: Progress | None = None,
) -> tuple[tuple[Video, ...], tuple[BadFile, ...]]:
    """Decode every video of a scan; return those that give a clip of this geometry, and all the others.

    stores: where the decoded frames of each file are kept, with what decoding found; what is missing there is
    written, and a file of which both are there is not decoded again. progress: called with (videos checked, videos
    in all).
    """
    videos, bad = [], list(found.skipped)

    def look(entry: Entry) -> Video | BadFile:
        try:
            store = (stores or {}).get(entry.path)
            return _measured(entry, geometry) if store is None else _kept(entry, geometry, store)
        except VideoError as error:
            return BadFile(entry.path, error.reason)

    with closing(in_threads(look, found.entries)) as results:
        for done, result in enumerate(results, 1):
            if isinstance(result, Video) and result.length < geometry.frames:
                rate = "" if geometry.fps is None else f" at {geometry.fps:g} fps"
                why = f"has {result.length} frames{rate}, {geometry.frames} are needed"
                result = BadFile(result.entry.path, why + (f" ({result.damage})" if result.damage else ""))
            if isinstance(result, Video):
                videos.append(result)
            else:
                bad.append(result)
            if progress is not None:
                progress(done, len(found.entries))
    return tuple(videos), tuple(bad)


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Samples -> a batch: tensors stacked (video uint8 (B, 3, T, H, W)), index int64 (B,), everything else in lists,
    with None where a sample has no such thing."""
    keys = {key: None for sample in samples for key in sample}
    batch: dict[str, Any] = {key: [sample.get(key) for sample in samples] for key in keys}
    for key, values in batch.items():
        if all(isinstance(value, Tensor) for value in values):
            batch[key] = torch.stack(values)
    return batch | {"index": torch.tensor(batch["index"])}


def _require(found: FolderScan, folder: str | Path) -> None:
    require_captions(found.entries, folder)


def _measured(entry: Entry, geometry: Geometry) -> Video:
    info, times = inspect(entry.path)
    length = grid_length(times, info.claimed_fps, geometry.fps)
    return Video(entry, length, info, tuple(times) if geometry.fps is None else ())


def _kept(entry: Entry, geometry: Geometry, store: Path) -> Video:
    size = geometry.height, geometry.width
    info, frames = load_info(store, entry.path), load_frames(store, size)
    if info is None:
        info = probe(entry.path, decode=True)
        store_info(store, info)
    if frames is None:
        store_frames(store, size, read_frames(entry.path, fps=geometry.fps, size=size, resize=geometry.resize))
        frames = load_frames(store, size)
        if frames is None:
            raise DataError(f"{store} does not read back what was just written; is the disk sound?")
    return Video(entry, len(frames), info)


def _store_paths(found: FolderScan, folder: Path, geometry: Geometry) -> dict[Path, Path]:
    key = f"{geometry.height}x{geometry.width}|{geometry.fps}|{geometry.resize}"
    return {entry.path: cache_path(folder, entry.path, key) for entry in found.entries}


def _decode_all(videos: tuple[Video, ...], geometry: Geometry, progress: Progress | None) -> Tensor:
    """One block of the frames of all videos, one after another."""
    size = geometry.height, geometry.width

    def decode(video: Video) -> Tensor:
        return read_video(video.entry.path, fps=geometry.fps, size=size, resize=geometry.resize)

    def told(results: Iterable[Tensor]) -> Iterator[tuple[int, Tensor]]:
        for number, frames in enumerate(results):
            yield number, frames
            if progress is not None:
                progress(number + 1, len(videos))

    with closing(in_threads(decode, videos)) as results:
        return fill_memory([video.length for video in videos], size, told(results))
