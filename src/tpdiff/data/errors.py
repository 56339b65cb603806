"""The two errors of this package. Both are `ValueError`s whose text is meant for the person at the
keyboard.
"""

from __future__ import annotations

from pathlib import Path


class DataError(ValueError):
    """A folder, its captions or a request about them cannot be used as they are."""


class VideoError(ValueError):
    """One video file cannot be read or written.

    `path` is the file, `reason` what is wrong with it; the message is "path: reason".
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str]]:
        return VideoError, (self.path, self.reason)  # so that it crosses the border of a loader's worker
