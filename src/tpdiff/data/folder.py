"""A folder of captioned videos: which files, which captions, which split.

Captions come from `metadata.jsonl` or `metadata.csv` in the folder (keys `file_name`, `caption` or `text`,
optional `split`; the rest is kept), or else from a `.txt` beside each video. Without metadata, a first
subfolder called train, validation, val or test is the split.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import DataError

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
METADATA = ("metadata.jsonl", "metadata.csv")
HELD_OUT = ("validation", "val", "test")
SPLIT_FOLDERS = ("train", *HELD_OUT)
SHOWN = 5  # names listed in a message


@dataclass(frozen=True)
class Entry:
    """One video with its caption, its split, and whatever else the metadata say of it."""

    path: Path
    caption: str | None = None
    split: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be used, and why; its split where that is known."""

    path: Path
    reason: str
    split: str | None = None


@dataclass(frozen=True)
class FolderScan:
    """What a folder holds: usable entries in order of name, files set aside, and videos the metadata leave
    out.
    """

    entries: tuple[Entry, ...]
    skipped: tuple[BadFile, ...] = ()
    unlisted: tuple[Path, ...] = ()

    @property
    def splits(self) -> tuple[str, ...]:
        """The distinct splits, sorted."""
        return tuple(sorted({entry.split for entry in self.entries if entry.split is not None}))


def scan(folder: str | Path, split: str | None = None, pictures: bool = False) -> FolderScan:
    """List the videos of a folder and its subfolders; hidden files are left out. Nothing is decoded.

    split: keep what is of this split only, files set aside included; None keeps all. pictures: list single
    pictures too.
    Raises DataError when the folder is missing or holds no video, when a line of the metadata is malformed
    (with file and line), or when nothing is of the split asked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}" if not folder.exists() else f"{folder} is a file, not a folder")
    suffixes = SUFFIXES + PICTURES if pictures else SUFFIXES
    videos = sorted(path for path in folder.rglob("*") if _is_video(path, folder, suffixes))
    metadata = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(metadata) > 1:
        raise DataError(f"{folder} holds both {' and '.join(METADATA)}; keep one of them")
    if not videos and not metadata:
        raise DataError(f"no video files ({', '.join(suffixes)}) in {folder}")
    found = _from_metadata(folder, metadata[0], videos) if metadata else _from_neighbours(folder, videos)
    if not found.entries and not found.skipped:
        raise DataError(f"{metadata[0]} lists no videos")
    return found if split is None else _only(found, split, folder)


def require_captions(entries: tuple[Entry, ...], folder: str | Path) -> None:
    """Raise DataError, naming the first few, when an entry has no caption."""
    bare = [entry.path for entry in entries if entry.caption is None]
    if bare:
        names = _listed([str(path.relative_to(folder)) for path in bare])
        first = bare[0].relative_to(folder)
        raise DataError(
            f"{len(bare)} of {len(entries)} videos in {folder} have no caption: {names}. Write each caption in a "
            f"text file beside the video ({first.with_suffix('.txt')}), or one line a video in metadata.jsonl: "
            f'{{"file_name": "{first.as_posix()}", "caption": "..."}}'
        )


def check_share(scan: FolderScan, max_bad_share: float) -> None:
    """Raise DataError, with the reasons, when more than this share (0 ... 1) of the files is bad, or all are.

    Also raises ValueError for a share outside 0 ... 1.
    """
    if not 0 <= max_bad_share <= 1:
        nearest = min(max(max_bad_share, 0), 1)
        raise ValueError(f"max_bad_share {max_bad_share} is outside 0 ... 1; nearest: {nearest}")
    bad, total = len(scan.skipped), len(scan.skipped) + len(scan.entries)
    if bad and (bad > max_bad_share * total or not scan.entries):
        reasons = "".join(f"\n  {item.path}: {item.reason}" for item in scan.skipped[:SHOWN])
        more = f"\n  ... and {bad - SHOWN} more" if bad > SHOWN else ""
        raise DataError(
            f"{bad} of {total} videos cannot be used, more than max_bad_share {max_bad_share:g} allows:{reasons}{more}"
        )


def _is_video(path: Path, folder: Path, suffixes: tuple[str, ...]) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in suffixes and not hidden and path.is_file()


def _only(found: FolderScan, split: str, folder: Path) -> FolderScan:
    entries = tuple(entry for entry in found.entries if entry.split == split)
    skipped = tuple(item for item in found.skipped if item.split == split)
    if not entries and not skipped:
        known = ", ".join(found.splits) or "none: neither metadata nor subfolders name one"
        raise DataError(f"split {split!r} is not in {folder}; known splits: {known}")
    return FolderScan(entries, skipped, found.unlisted)


def _from_neighbours(folder: Path, videos: list[Path]) -> FolderScan:
    entries, skipped = [], []
    for path in videos:
        beside, top = path.with_suffix(".txt"), path.relative_to(folder).parts[0]
        split = top if top in SPLIT_FOLDERS else None
        try:
            caption = beside.read_text(encoding="utf-8-sig").strip() if beside.is_file() else ""
        except UnicodeDecodeError:
            skipped.append(BadFile(path, f"its caption {beside.name} is not UTF-8 text", split))
            continue
        entries.append(Entry(path, caption or None, split))
    return FolderScan(tuple(entries), tuple(skipped))


def _from_metadata(folder: Path, metadata: Path, videos: list[Path]) -> FolderScan:
    rows = _jsonl(metadata) if metadata.suffix == ".jsonl" else _csv(metadata)
    entries, skipped = [], []
    listed: dict[Path, tuple[int, str | None]] = {}
    for line, row in rows:
        name = _text(row, "file_name", metadata, line)
        if not name:
            raise DataError(f"{metadata}, line {line}: no file_name; write the video's path within the folder")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{metadata}, line {line}: file_name {name!r} leads out of the folder")
        caption = _text(row, "caption", metadata, line) or _text(row, "text", metadata, line)
        split = _text(row, "split", metadata, line)
        path = folder / name
        before, other = listed.setdefault(path, (line, split))
        if other != split:
            raise DataError(
                f"{metadata}, line {line}: {name!r} is of split {split!r}, in line {before} of {other!r}; what is "
                "held out must not be trained on"
            )
        if not path.is_file():
            skipped.append(BadFile(path, f"listed in {metadata.name}, line {line}, but no such file", split))
            continue
        extra = {key: value for key, value in row.items() if key not in ("file_name", "caption", "text", "split")}
        entries.append(Entry(path, caption, split, extra))
    entries.sort(key=lambda entry: entry.path)
    return FolderScan(tuple(entries), tuple(skipped), tuple(path for path in videos if path not in listed))


def _text(row: dict[str, Any], key: str, metadata: Path, line: int) -> str | None:
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{metadata}, line {line}: {key} must be text, got {value!r}")
    return (value or "").strip() or None


def _jsonl(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(_lines(metadata), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{metadata}, line {line}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{metadata}, line {line}: not a JSON object: {text[:60]!r}")
        yield line, row


def _csv(metadata: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_lines(metadata))
    if "file_name" not in (reader.fieldnames or []):
        raise DataError(f"{metadata}, line 1: no column file_name among {reader.fieldnames or []}")
    for row in reader:
        if None in row or None in row.values():
            columns = len(reader.fieldnames or [])
            raise DataError(f"{metadata}, line {reader.line_num}: not the {columns} columns of line 1")
        yield reader.line_num, row


def _lines(metadata: Path) -> list[str]:
    try:
        text = metadata.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{metadata}: not UTF-8 text ({error})") from error
    return [f"{line}\n" for line in text.removesuffix("\n").split("\n")]  # other line ends may stand in captions


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
