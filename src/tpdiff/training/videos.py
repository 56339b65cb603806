"""Which videos a run is trained on: kept in its checkpoints, so that it goes on with these, called the same, and no
others.

Data order and first frames depend on how many videos there are, in which order, and on their lengths. Where the folder
lies is no part of it.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

from tpdiff.data import BadFile, ClipDataset, ShardDataset

SHOWN = 3  # names in a message


def videos_of(dataset: ClipDataset | ShardDataset, folder: str) -> list[str] | None:
    """A line for every video of a run: "train/kite-1.mp4 (48213 bytes, 64 frames)", its path within the folder and
    frames at the clips' rate. None of shards, which have a digest.

    Raises:
        OSError: a file that was there is gone.
    """
    if isinstance(dataset, ShardDataset):
        return None
    return [_line(_name(v.entry.path, folder), v.entry.path, f"{v.length} frames") for v in dataset.videos]


def captions_digest(dataset: ClipDataset | ShardDataset, folder: str) -> str | None:
    """A digest of every video's caption, whatever their order. None of shards, whose own digest knows theirs."""
    if isinstance(dataset, ShardDataset):
        return None
    told = sorted(f"{_name(v.entry.path, folder)}\0{v.entry.caption or ''}" for v in dataset.videos)
    return blake2b("\0\0".join(told).encode(), digest_size=16).hexdigest()


def check_files(checkpoint: Path, before: Sequence[str] | None, folder: str) -> None:
    """Refuse to go on without the files that a run was trained on, before anything is decoded.

    Args:
        checkpoint: what the run goes on from.
        before: the lines that it holds; None of older ones, which hold none.
        folder: where the videos are now.

    Raises:
        ValueError: some are gone or have other lengths, with up to three of their names.
    """
    if before is None or not Path(folder).is_dir():  # a folder that is not there is told as such by whoever lists it
        return
    now = []
    for line in before:
        name, _, told = line.removesuffix(")").rpartition(" (")
        if (path := Path(folder, name)).is_file():
            now.append(_line(name, path, told.partition(", ")[2]))
    check_same_videos(checkpoint, before, now, folder)


def check_same_videos(
    checkpoint: Path, before: Sequence[str] | None, now: Sequence[str] | None, folder: str, bad: Iterable[BadFile] = ()
) -> None:
    """Refuse to go on with other videos than a run was trained on.

    Args:
        checkpoint: what the run goes on from.
        before: the lines that it holds; None of older ones, which hold none.
        now: those of the videos that there are.
        folder: where these are.
        bad: files that cannot be used, whose reasons are told.

    Raises:
        ValueError: with what came and what went, up to three names of each.
    """
    if before is None:
        return
    known, found = Counter(before), Counter(now or ())
    gone, new = sorted((known - found).elements()), sorted((found - known).elements())
    if gone or new:
        reasons = {_name(file.path, folder): file.reason for file in bad}
        gone = [line + (f": {why}" if (why := reasons.get(line.rpartition(" (")[0])) else "") for line in gone]
        changes = [f"{what}: {_listed(lines)}" for what, lines in (("gone or unusable", gone), ("new", new)) if lines]
        raise ValueError(
            f"{checkpoint} was trained on other videos than those of {folder or 'the run'} now ({'; '.join(changes)}); "
            "put them as they were, or begin another run with another --out"
        )


def _name(path: Path, folder: str) -> str:
    return Path(os.path.relpath(path, folder or os.curdir)).as_posix()


def _line(name: str, path: Path, frames: str) -> str:
    return f"{name} ({path.stat().st_size} bytes, {frames})"


def _listed(lines: Sequence[str]) -> str:
    return ", ".join(lines[:SHOWN]) + (f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else "")
