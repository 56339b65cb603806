"""Rows of figures, one a clip, kept on disk in parts as they are worked out.

Each part is a .npy file with a checksum behind it. It appears under its name when it is whole, so a call that was
interrupted goes on where it stopped; a part that is cut short or altered is worked out again.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

CHECKSUM_BYTES = 4
Progress = Callable[[int, int], None]  # (clips done, clips in all)


def stored_rows(
    folder: Path,
    total: int,
    part: int,
    make: Callable[[int, int], np.ndarray],
    progress: Progress | None = None,
) -> Iterator[np.ndarray]:
    """Rows 0 ... total - 1 in parts of `part` rows: read where they are stored, made and stored where not.

    make: (first, last) -> array (last - first, width) for the rows first ... last - 1. Everything that the rows
    depend on must be in the folder's name. progress: called with (rows done, rows in all).
    """
    for first in range(0, total, part):
        last = min(first + part, total)
        path = folder / f"{first:06d}-{last:06d}.npy"
        rows = load_array(path)
        if rows is None or len(rows) != last - first:
            rows = make(first, last)
            save_array(path, rows)
        yield rows
        if progress is not None:
            progress(last, total)


def load_array(path: Path) -> np.ndarray | None:
    """What `save_array` wrote; None when it is absent, cut short or altered."""
    try:
        with path.open("rb") as file:
            values = np.load(file, allow_pickle=False)
            check = file.read()
    except (OSError, ValueError, EOFError):
        return None
    return values if check == _checksum(values) else None


def save_array(path: Path, values: np.ndarray) -> None:
    """Store an array with its checksum, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.ascontiguousarray(values)
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:
            np.save(file, values, allow_pickle=False)
            file.write(_checksum(values))
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()


def _checksum(values: np.ndarray) -> bytes:
    return zlib.crc32(np.ascontiguousarray(values).data).to_bytes(CHECKSUM_BYTES, "big")
