"""Rows of figures, one a clip, kept on disk in parts as they are worked out.

Each part is a file of `tpdiff.data.store`. It appears under its name when it is whole, so a call that was
interrupted goes on where it stopped; a part that is cut short or altered is worked out again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tpdiff.data.store import load_array, store_array

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
            store_array(path, rows)
        yield rows
        if progress is not None:
            progress(last, total)
