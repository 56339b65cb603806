"""Latents of clips that were encoded once, kept in memory or on disk.

A frozen autoencoder gives a clip the same latents every time. What is kept is float32, as encoded, so that a run
sees the same numbers with and without. A clip is a video and the frame it starts at; `data.starts` says how many
starts a video has, and so how many clips there are to keep (and how many a model without a cache sees, too).
"""

import math
import shutil
import warnings
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tpdiff.data import ClipDataset
from tpdiff.data.store import load_array, store_array
from tpdiff.training.data_config import DataConfig

MEMORY_BUDGET = 2 * 1024**3  # bytes of one process
BLOCK = 4096  # bytes; what a small file takes at the least


class LatentCache(Protocol):
    """Where latents are kept."""

    def get(self, path: str, start: int) -> Tensor | None:
        """Latents (C, t, h, w) of the clip of `path` from frame `start` on, float32; None: not there, or damaged."""

    def put(self, path: str, start: int, latents: Tensor) -> None:
        """Keep the latents of a clip."""


def open_latent_cache(
    data: DataConfig, dataset: ClipDataset, identity: str, shape: Sequence[int]
) -> LatentCache | None:
    """The cache that `data.latents` asks for; None for "none".

    Args:
        identity: digest of the autoencoder (`tpdiff.models.autoencoder.fingerprint`).
        shape: (C, t, h, w) of a clip's latents.

    Raises:
        ValueError: the latents of all clips fit neither the memory allowed nor the disk, with what would.
    """
    if data.latents == "none":
        return None
    clips, size = sum(len(dataset.starts_of(video)) for video in dataset.videos), 4 * math.prod(shape)
    if data.latents == "memory":
        _check_fits(clips, size, MEMORY_BUDGET, "memory allowed", dataset, "data.latents=disk")
        return MemoryCache()
    cache = DiskCache(Path(str(data.cache_dir)) / "latents", dataset, identity, shape)
    cache.folder.mkdir(parents=True, exist_ok=True)
    free, block = shutil.disk_usage(cache.folder).free, math.ceil((size + 132) / BLOCK) * BLOCK
    if clips * block > free:
        free += block * sum(
            cache.place(str(v.entry.path), s).exists() for v in dataset.videos for s in dataset.starts_of(v)
        )
    _check_fits(clips, block, free, f"disk of {cache.folder}", dataset, "data.latents=none")
    return cache


class MemoryCache:
    """Latents in this process's memory; gone when it ends."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Tensor] = {}

    def get(self, path: str, start: int) -> Tensor | None:
        return self._kept.get((path, start))

    def put(self, path: str, start: int, latents: Tensor) -> None:
        self._kept[path, start] = latents.clone()


class DiskCache:
    """Latents in files, one a clip, shared by all runs and processes that encode the same clips the same way.

    A file is named after the autoencoder, the video (path, time, length), the clips' geometry and the start; it
    carries a checksum and appears when it is whole. A damaged file counts as absent, and is written anew.
    """

    def __init__(self, folder: Path, dataset: ClipDataset, identity: str, shape: Sequence[int]):
        self.folder, self.shape = folder, tuple(shape)
        self._keys = {}
        for video in dataset.videos:
            path = video.entry.path
            stat = path.stat()
            key = f"{identity}|{path.resolve()}|{stat.st_mtime_ns}|{stat.st_size}|{tuple(dataset.geometry)}"
            self._keys[str(path)] = key
        self._full = False

    def place(self, path: str, start: int) -> Path:
        """The file of a clip."""
        name = blake2b(f"{self._keys[path]}|{start}".encode(), digest_size=16).hexdigest()
        return self.folder / name[:2] / f"{name}.npy"

    def get(self, path: str, start: int) -> Tensor | None:
        values = load_array(self.place(path, start))
        if values is None or values.dtype != np.float32 or values.shape != self.shape:
            return None
        return torch.from_numpy(np.array(values))

    def put(self, path: str, start: int, latents: Tensor) -> None:
        if self._full:
            return
        try:
            store_array(self.place(path, start), latents.numpy())
        except OSError as error:  # a run does not end for want of a cache
            self._full = True
            warnings.warn(f"latents are no longer kept: {error}", stacklevel=2)


def _check_fits(clips: int, size: int, room: int, where: str, dataset: ClipDataset, otherwise: str) -> None:
    if clips * size <= room:
        return
    most = room // (size * len(dataset.videos))
    nearest = f"data.starts={most} (clips a video), or {otherwise}" if most else otherwise
    needed, allowed = clips * size / 1024**3, room / 1024**3
    raise ValueError(
        f"the latents of {clips} clips take {needed:.3g} GiB, more than the {where}, {allowed:.3g} GiB; "
        f"nearest: {nearest}"
    )
