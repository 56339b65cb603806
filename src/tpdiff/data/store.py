"""Decoded videos kept for the next epoch: in one block of memory, or in files mapped into memory.

Frames are uint8 (T, H, W, 3) at the size and frame rate wanted. Beside those in a file lies what decoding found.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from tpdiff.files import write_whole

from .ahead import check_wanted
from .video import VideoInfo

CHECKSUM_BYTES = 4
BLOCK = 1024**2  # bytes that are read at once to check a file


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


def store_frames(path: Path, size: tuple[int, int], frames: Iterable[Tensor]) -> None:
    """Store frames with their checksum as they come, as `store_array` would store them all.

    size: (height, width). frames: uint8 (1, height, width, 3) each; one is held at a time.
    """
    count = checksum = 0
    with _whole(path) as file:
        _write_header(file, count, size)
        for frame in frames:
            pixels = np.ascontiguousarray(frame.numpy()).data
            file.write(pixels)
            count, checksum = count + len(frame), zlib.crc32(pixels, checksum)
        file.write(_as_bytes(checksum))
        file.seek(0)
        _write_header(file, count, size)  # of the same length: numpy leaves room for the first axis to grow


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
    checksum, left = 0, values.nbytes
    with path.open("rb") as file:  # not through the map, of which every page would then be in memory
        file.seek(values.offset)
        while block := file.read(min(left, BLOCK)):
            check_wanted()
            checksum, left = zlib.crc32(block, checksum), left - len(block)
        end = file.read(CHECKSUM_BYTES + 1)
    return values if left == 0 and end == _as_bytes(checksum) else None


def store_array(path: Path, values: np.ndarray) -> None:
    """Store an array with its checksum. The name appears when the contents are safely on the disk."""
    values = np.ascontiguousarray(values)
    with _whole(path) as file:
        np.save(file, values, allow_pickle=False)
        file.write(_as_bytes(zlib.crc32(values.data)))


@contextmanager
def _whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it gets its name when it is complete and safely on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _write_header(file: BinaryIO, count: int, size: tuple[int, int]) -> None:
    """The beginning of a .npy file of so many frames."""
    shape = {"descr": "|u1", "fortran_order": False, "shape": (count, *size, 3)}
    np.lib.format.write_array_header_1_0(file, shape)


def _as_bytes(checksum: int) -> bytes:
    return checksum.to_bytes(CHECKSUM_BYTES, "big")
