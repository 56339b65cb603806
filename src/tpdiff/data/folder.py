"""A folder of captioned videos: which files, which captions, which split.

Captions come from `metadata.jsonl` or `metadata.csv` in the folder (keys `file_name`, `caption` or `text`,
optional `split`; the rest is kept), or else from a `.txt` beside each video. Without metadata there, a first
subfolder called train, validation, val or test is the split. It may have metadata of its own, with paths within it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import DataError
from .metadata import rows_of, table_of, text_in
from .recipe import RECIPE

SUFFIXES = (
    *(".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".3gp", ".flv"),
    *(".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv"),
)
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
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
    """What a folder holds: usable entries in order of name, files set aside, videos the metadata leave out, and how
    many other files have which suffix, the most frequent first.
    """

    entries: tuple[Entry, ...]
    skipped: tuple[BadFile, ...] = ()
    unlisted: tuple[Path, ...] = ()
    others: dict[str, int] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The distinct splits, sorted."""
        return tuple(sorted({entry.split for entry in self.entries if entry.split is not None}))


def scan(folder: str | Path, split: str | None = None, pictures: bool = False) -> FolderScan:
    """List the videos of a folder and its subfolders; hidden files are left out. Nothing is decoded.

    Links to folders are followed, but for one that leads back to a folder around it. split: keep what is of this
    split only, files set aside included; None keeps all. pictures: list single pictures too.
    Raises DataError when the folder is missing or holds no video, when a line of the metadata is malformed
    (with file and line), or when nothing is of the split asked for.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}" if not folder.exists() else f"{folder} is a file, not a folder")
    suffixes = SUFFIXES + PICTURES if pictures else SUFFIXES
    files = sorted(_files(folder))
    videos = [path for path in files if path.suffix.lower() in suffixes]
    tables = _tables(folder)
    if not videos and not tables:
        held = f"; it holds {kinds_of(_others(files))}" if files else ""
        raise DataError(f"no video files ({', '.join(suffixes)}) in {folder}{held}")
    parts, alone = [], videos
    for table in tables:
        parts.append(_from_metadata(folder, table, [path for path in alone if path.is_relative_to(table.parent)]))
        alone = [path for path in alone if not path.is_relative_to(table.parent)]
    parts.append(_from_neighbours(folder, alone))
    used = {*videos, *tables, folder / RECIPE, *(path.with_suffix(".txt") for path in alone)}
    entries = sorted((entry for part in parts for entry in part.entries), key=lambda entry: entry.path)
    found = FolderScan(
        tuple(entry for entry in entries if _untold(entry) is None),
        (
            *(item for part in parts for item in part.skipped),
            *(BadFile(_printable(entry.path), why, entry.split) for entry in entries if (why := _untold(entry))),
        ),
        tuple(_printable(path) for part in parts for path in part.unlisted),
        _others(path for path in files if path not in used),
    )
    return found if split is None else _only(found, split, folder)


def kinds_of(others: dict[str, int]) -> str:
    """Suffixes with their counts, in words: ".gif (3), .md (1)"."""
    return _listed([f"{suffix} ({count})" for suffix, count in others.items()])


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


def _untold(entry: Entry) -> str | None:
    """Why what is written of a video, its name or its caption, cannot be written anywhere else; None if it can."""
    for what, text in (("name", str(entry.path)), ("caption", entry.caption or "")):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"its {what} is not UTF-8 text ({error.reason})"
    return None


def _printable(path: Path) -> Path:
    """A path to be shown, what is not UTF-8 in it as escapes."""
    return Path(str(path).encode("utf-8", "backslashreplace").decode())


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterator[Path]:
    """All files below a folder that are not hidden; above: the folders around it, without links."""
    place = folder.resolve()
    if place in above:
        return
    try:
        names = os.listdir(folder)
    except PermissionError:
        if not above:
            raise
        return  # another's, such as the lost+found of a disk
    for path in (folder / name for name in names if not name.startswith(".")):
        if path.is_dir():
            yield from _files(path, (*above, place))
        elif path.is_file():
            yield path


def _others(files: Iterable[Path]) -> dict[str, int]:
    """How many files have each suffix."""
    return dict(Counter(path.suffix.lower() or "no suffix" for path in files).most_common())


def _tables(folder: Path) -> list[Path]:
    """The metadata of a folder, or else those of its splits."""
    whole = table_of(folder)
    return [whole] if whole else [table for split in SPLIT_FOLDERS if (table := table_of(folder / split))]


def _only(found: FolderScan, split: str, folder: Path) -> FolderScan:
    entries = tuple(entry for entry in found.entries if entry.split == split)
    skipped = tuple(item for item in found.skipped if item.split == split)
    if not entries and not skipped:
        known = ", ".join(found.splits) or "none: neither metadata nor subfolders name one"
        raise DataError(f"split {split!r} is not in {folder}; known splits: {known}")
    return replace(found, entries=entries, skipped=skipped)


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


def _from_metadata(folder: Path, table: Path, videos: list[Path]) -> FolderScan:
    """What a table says of the videos in its own folder, the whole or that of a split."""
    entries, skipped = [], []
    listed: dict[Path, tuple[int, str | None]] = {}
    own = None if table.parent == folder else table.parent.name
    for line, row in rows_of(table):
        name = text_in(row, "file_name", table, line)
        if not name:
            raise DataError(f"{table}, line {line}: no file_name; write the video's path within the folder")
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{table}, line {line}: file_name {name!r} leads out of the folder")
        caption = text_in(row, "caption", table, line) or text_in(row, "text", table, line)
        split = text_in(row, "split", table, line) or own
        if own is not None and split != own:
            raise DataError(f"{table}, line {line}: split {split!r} of a video in the folder of {own!r}; leave it out")
        path = table.parent / name
        before, other = listed.setdefault(path, (line, split))
        if other != split:
            raise DataError(
                f"{table}, line {line}: {name!r} is of split {split!r}, in line {before} of {other!r}; what is "
                "held out must not be trained on"
            )
        if not path.is_file():
            reason = f"listed in {table.relative_to(folder)}, line {line}, but no such file"
            skipped.append(BadFile(path, reason, split))
            continue
        extra = {key: value for key, value in row.items() if key not in ("file_name", "caption", "text", "split")}
        entries.append(Entry(path, caption, split, extra))
    if not listed:
        raise DataError(f"{table} lists no videos")
    return FolderScan(tuple(entries), tuple(skipped), tuple(path for path in videos if path not in listed))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
