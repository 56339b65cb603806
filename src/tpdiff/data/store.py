"""Decoded videos kept for the next epoch: in one block of memory, or in files mapped into memory.

Frames are uint8 (T, H, W, 3) at the size and frame rate wanted. Beside those in a file lies what decoding found.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zlib
from collections.abc import Callable, Iterable
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tpdiff.files import write_whole

from .video import VideoInfo

CHECKSUM_BYTES = 4


def fill_memory(counts: list[int], size: tuple[int, int], videos: Iterable[tuple[int, Tensor]]) -> Tensor:
    """Put videos one after another into one flat block, uint8 (sum of counts, height, width, 3).

    counts: frames of each video. size: (height, width). videos: (number of the video, its frames) in any
    order. The block is an ordinary CPU tensor: forked workers see the same pages, spawned ones get it through
    torch's shared memory, so it exists once.
    """
    block = torch.empty((sum(counts), *size, 3), dtype=torch.uint8)
    parts = block.split(counts)
    for number, frames in videos:
        parts[number].copy_(frames)
    return block


def cache_path(folder: Path, video: Path, geometry: str) -> Path:
    """Where the decoded frames of a video go: named after its path, its time, its length and the geometry."""
    stat = video.stat()
    key = f"{video.resolve()}|{stat.st_mtime_ns}|{stat.st_size}|{geometry}"
    return folder / f"{blake2b(key.encode(), digest_size=16).hexdigest()}.npy"


def load_frames(path: Path, size: tuple[int, int]) -> np.ndarray | None:
    """Map stored frames, uint8 (T, height, width, 3); None when the file is absent, cut short or altered."""
    frames = load_array(path)
    good = frames is not None and frames.dtype == np.uint8 and frames.shape[1:] == (*size, 3)
    return frames if good else None


def store_frames(path: Path, decode: Callable[[], Tensor]) -> None:
    """Decode and store frames with their checksum. The name appears when the contents are safely on the
    disk.
    """
    store_array(path, decode().numpy())


def load_info(path: Path, video: Path) -> VideoInfo | None:
    """What `store_info` kept of a video beside its frames in `path`; None when that is absent or not whole."""
    try:
        return VideoInfo(video, **json.loads(path.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def store_info(path: Path, info: VideoInfo) -> None:
    """Keep what decoding found beside the frames in `path`."""
    facts = {key: value for key, value in asdict(info).items() if key != "path"}
    write_whole(path.with_suffix(".json"), json.dumps(facts))


def load_array(path: Path) -> np.ndarray | None:
    """Map what `store_array` wrote; None when the file is absent, cut short or altered."""
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    with path.open("rb") as file:
        file.seek(-CHECKSUM_BYTES, os.SEEK_END)
        expected = file.read()
    whole = path.stat().st_size == values.offset + values.nbytes + CHECKSUM_BYTES
    return values if whole and _checksum(values) == expected else None


def store_array(path: Path, values: np.ndarray) -> None:
    """Store an array with its checksum. The name appears when the contents are safely on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
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
