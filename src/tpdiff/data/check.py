"""What a folder of videos holds and how much of it gives clips of a geometry."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .clips import Geometry, Video, verify
from .filled import filled_lines
from .folder import BadFile, scan


@dataclass(frozen=True)
class FolderReport:
    """Figures of a folder.

    `usable` videos are those that give a clip of the geometry; `clips` counts the different starts they
    offer, `apart` those one after another without overlap, as `tpdiff cache` takes them. `bare` videos have no
    caption. `sizes` and `rates` count videos as "HxW" and frames a second; `duration` is (least, median, most)
    and `total_duration` the sum, in seconds, of what decodes. `damaged` files break off early but are long
    enough. `filled` tells of clips whose frames are repeated or enlarged. `others` counts files that are no videos,
    captions or metadata, by suffix.
    """

    folder: Path
    geometry: Geometry
    videos: int
    usable: int
    clips: int
    apart: int
    captioned: int
    captions: tuple[str, ...]
    splits: dict[str, int]
    sizes: dict[str, int]
    rates: dict[str, int]
    duration: tuple[float, float, float] | None
    total_duration: float
    bad: tuple[BadFile, ...]
    damaged: tuple[BadFile, ...]
    filled: tuple[str, ...]
    unlisted: tuple[Path, ...]
    bare: tuple[Path, ...]
    others: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """The same in numbers, strings, lists and dicts, ready for JSON."""
        figures = asdict(self)
        figures["folder"] = str(self.folder)
        figures["geometry"] = self.geometry._asdict()
        figures["captions"], figures["filled"] = list(self.captions), list(self.filled)
        figures["duration"] = (
            dict(zip(("least", "median", "most"), self.duration, strict=True)) if self.duration else None
        )
        figures["bad"] = [{"path": str(item.path), "reason": item.reason} for item in self.bad]
        figures["damaged"] = [{"path": str(item.path), "reason": item.reason} for item in self.damaged]
        figures["unlisted"] = [str(path) for path in self.unlisted]
        figures["bare"] = [str(path) for path in self.bare]
        return figures


def check_folder(
    folder: str | Path,
    frames: int = 1,
    height: int = 64,
    width: int = 64,
    fps: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FolderReport:
    """Decode every video of a folder and report. Bad files are listed, not raised.

    frames, height, width, fps: the clips wanted, as for `ClipDataset`. progress: called with (videos checked,
    in all).
    Raises ValueError for a bad geometry, DataError for what `scan` refuses (no folder, no videos, bad
    metadata).
    """
    geometry = Geometry(frames, height, width, fps)
    geometry.check()
    found = scan(folder)
    videos, bad = verify(found, geometry, progress=progress)
    durations = [video.info.duration for video in videos]
    entries = found.entries
    return FolderReport(
        folder=Path(folder),
        geometry=geometry,
        videos=len(entries) + len(found.skipped),
        usable=len(videos),
        clips=sum(video.length - frames + 1 for video in videos),
        apart=sum(video.length // frames for video in videos),
        captioned=sum(entry.caption is not None for entry in entries),
        captions=tuple(sorted({entry.caption for entry in entries if entry.caption is not None})),
        splits=dict(Counter(entry.split for entry in entries if entry.split is not None)),
        sizes=_counted(videos, lambda info: f"{info.height}x{info.width}"),
        rates=_counted(videos, lambda info: f"{info.fps:g}"),
        duration=(min(durations), statistics.median(durations), max(durations)) if durations else None,
        total_duration=sum(durations),
        bad=bad,
        damaged=tuple(BadFile(video.entry.path, video.damage) for video in videos if video.damage),
        filled=tuple(filled_lines(videos, geometry)),
        unlisted=found.unlisted,
        bare=tuple(entry.path for entry in entries if entry.caption is None),
        others=found.others,
    )


def _counted(videos: tuple[Video, ...], name: Callable[[Any], str]) -> dict[str, int]:
    return dict(Counter(name(video.info) for video in videos).most_common())
