"""Shards: tar files of samples as WebDataset reads them, the same bytes whoever writes them.

A sample is a few neighbouring members that share the name before the first dot. It is handled as the piece of the
file that holds them, which has a place and a digest, so that one sample is read, checked or copied without the rest.
Beside `shard-00007.tar` lies `shard-00007.json`: what it was made from and where its samples are. In `cache.json`
stands what all shards share, and their digests; it says `complete` when they are all there.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

LISTING = "cache.json"
EMPTY_PROMPT = "empty-prompt.safetensors"
TEXT, LATENTS, FACTS = "text.safetensors", "latents.safetensors", "json"  # the members of a sample
_BLOCK = 512
_READ = 1 << 20


class Place(NamedTuple):
    """Where a sample lies in its shard, in bytes, and its digest."""

    offset: int
    size: int
    digest: str


def shard_name(number: int) -> str:
    """7 -> "shard-00007.tar"."""
    return f"shard-{number:05d}.tar"


def receipt_name(shard: str) -> str:
    """ "shard-00007.tar" -> "shard-00007.json"."""
    return shard.removesuffix(".tar") + ".json"


def digest_of(content: bytes) -> str:
    """32 characters that tell contents apart."""
    return blake2b(content, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """`digest_of` a file's contents, a piece at a time."""
    digest = blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(_READ):
            digest.update(piece)
    return digest.hexdigest()


def pack(key: str, members: Mapping[str, bytes]) -> bytes:
    """A sample as tar members `key`.`ending`, in the order given, without times, owners or permissions of their own."""
    parts = []
    for ending, content in members.items():
        header = tarfile.TarInfo(f"{key}.{ending}")
        header.size = len(content)
        parts += [header.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % _BLOCK)]
    return b"".join(parts)


def unpack(sample: bytes) -> tuple[str, dict[str, bytes]]:
    """The key and the members, by ending, of what `pack` made."""
    members, key = {}, ""
    with tarfile.open(fileobj=io.BytesIO(sample)) as archive:
        for header in archive:
            file = archive.extractfile(header)
            key, _, ending = header.name.partition(".")
            members[ending] = b"" if file is None else file.read()
    return key, members


class ShardWriter:
    """Writes samples into a shard that appears under its name when it is whole, and not at all on an error.

    Attributes, once it has left its `with`:
        size: bytes.
        digest: of the whole file.
    """

    def __init__(self, path: Path):
        self.path = path
        self.size, self.digest = 0, ""
        self._aside = path.with_name(f".{path.name}.{os.getpid()}.part")
        self._hash = blake2b(digest_size=16)

    def __enter__(self) -> ShardWriter:
        self._file = self._aside.open("wb")
        return self

    def add(self, sample: bytes) -> Place:
        """Append what `pack` made."""
        place = Place(self.size, len(sample), digest_of(sample))
        self._write(sample)
        return place

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            with self._file:
                if error is None:
                    self._write(bytes(2 * _BLOCK))
                    self._file.flush()
                    os.fsync(self._file.fileno())
            if error is None:
                self.digest = self._hash.hexdigest()
                os.replace(self._aside, self.path)
        finally:
            with suppress(FileNotFoundError):
                self._aside.unlink()

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self.size += len(content)
