"""One shard from its videos, in which nothing is encoded that an earlier version of it holds."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tpdiff.data import VideoError
from tpdiff.data.buckets import Bucket, Buckets
from tpdiff.data.shard_files import (
    FACTS,
    LATENTS,
    TEXT,
    ShardWriter,
    digest_of,
    digest_of_file,
    pack,
    receipt_name,
    unpack,
)
from tpdiff.data.stream import legal_starts
from tpdiff.data.video import grid_length, inspect, read_clip
from tpdiff.files import write_whole
from tpdiff.training.clip_encoder import ClipEncoder
from tpdiff.training.data_config import DataConfig

Tick = Callable[[int, int], None]  # (files done, clips encoded) since the last


@dataclass(frozen=True)
class Source:
    """A video: its path within the folder, with slashes, the file, and its caption."""

    path: str
    file: Path
    caption: str | None


class _Unreadable(Exception):
    """A video that the file system does not give; another time it may."""


@contextmanager
def _reading() -> Iterator[None]:
    """Tell an error of the file system that holds the videos from one of that which holds the shards."""
    try:
        yield
    except OSError as error:
        raise _Unreadable(f"cannot be read: {error.strerror or error}") from error


class ShardMaker:
    """Makes shards in a folder.

    Args:
        data: the videos.
        encoder: opens the models, or gives those that it has opened; not called before there is something to encode.
        buckets: the clip sizes.
        out: the folder.
        tick: told of progress.
    """

    def __init__(self, data: DataConfig, encoder: Callable[[], ClipEncoder], buckets: Buckets, out: Path, tick: Tick):
        self.data, self.encoder, self.buckets, self.out, self.tick = data, encoder, buckets, out, tick

    def make(self, name: str, sources: Sequence[Source]) -> int:
        """Bring a shard up to date with its videos; returns how many clips were encoded for it.

        The shard and then its receipt appear whole; a shard that its receipt does not fit counts as absent.

        Raises:
            OSError: the shard could not be written. A video that cannot be read is recorded, and tried again the next
                time.
        """
        before = read_receipt(self.out, name)
        if before is not None and _is_of(before, sources):
            self.tick(len(sources), 0)
            return 0
        known = {file["path"]: file for file in before["files"]} if before else {}
        files, encoded = [], 0
        with ShardWriter(self.out / name) as shard:
            for source in sources:
                record, count = self._add(source, known.get(source.path), shard)
                files.append(record)
                encoded += count
                self.tick(1, 0)
        receipt = {"name": name, "bytes": shard.size, "digest": shard.digest, "files": files}
        write_whole(self.out / receipt_name(name), json.dumps(receipt, indent=1, ensure_ascii=False) + "\n")
        return encoded

    def _add(self, source: Source, before: dict[str, Any] | None, shard: ShardWriter) -> tuple[dict[str, Any], int]:
        """The record of a video whose clips were added, and how many of them had to be encoded."""
        record = _seen(source)
        if before is not None and before["digest"] is None:
            before = None  # of a video that could not be read nothing is known
        try:
            same = before is not None and all(before[key] == record[key] for key in ("bytes", "mtime_ns"))
            with _reading():
                record["digest"] = before["digest"] if before and same else digest_of_file(source.file)
            if before is None or before["digest"] != record["digest"]:
                return self._encode(source, record, shard)
        except VideoError as error:
            return record | {"reason": error.reason}, 0
        except _Unreadable as error:
            return record | {"digest": None, "reason": str(error)}, 0
        if "reason" in before:
            return record | {"reason": before["reason"]}, 0
        return record | {"fps": before["fps"], "clips": list(self._copy(source, before, shard))}, 0

    def _encode(self, source: Source, record: dict[str, Any], shard: ShardWriter) -> tuple[dict[str, Any], int]:
        with _reading():
            info, times = inspect(source.file)
        length = grid_length(times, info.claimed_fps, self.data.fps)
        bucket = self.buckets.of(length, info.height, info.width)
        if bucket is None:
            damage = f" ({info.damage})" if info.damage else ""
            raise VideoError(
                source.file, f"has {length} frames of {info.height}x{info.width}, too few or too small{damage}"
            )
        fps = self.data.fps or info.fps
        clips: list[dict[str, Any]] = []
        states = self.encoder().states(source.caption or "")
        for start in _starts(length, bucket, self.data.starts):
            seconds = times[start] if self.data.fps is None else start / self.data.fps
            try:
                with _reading():
                    video = self._read(source.file, seconds, bucket)
            except VideoError as error:
                if not clips:
                    raise
                record = record | {"damage": error.reason}
                break
            latents = self.encoder().latents(video)
            facts = {
                **dict(zip(("frames", "height", "width"), bucket, strict=True)),
                "fps": fps,
                "start": start,
                "caption": source.caption,
                "source": {key: record[key] for key in ("path", "bytes", "digest")},
                "latents": digest_of(latents),
            }
            place = shard.add(_sample(facts, latents, states))
            clips.append({"start": start, "bucket": str(bucket), **place._asdict()})
            self.tick(0, 1)
        return record | {"fps": fps, "clips": clips}, len(clips)

    def _read(self, file: Path, seconds: float, bucket: Bucket) -> Tensor:
        """uint8 (3, T, H, W) from a time on."""
        frames, *size = bucket
        options: dict[str, Any] = {"fps": self.data.fps, "resize": self.data.resize}
        return read_clip(file, start=seconds, frames=frames, size=(size[0], size[1]), **options).permute(3, 0, 1, 2)

    def _copy(self, source: Source, before: dict[str, Any], shard: ShardWriter) -> Iterator[dict[str, Any]]:
        """The records of clips taken over from the shard as it was, with the caption as it is now."""
        states = self.encoder().states(source.caption or "") if source.caption != before["caption"] else None
        with (self.out / shard.path.name).open("rb") as old:
            for clip in before["clips"]:
                old.seek(clip["offset"])
                sample = old.read(clip["size"])
                if source.caption != before["caption"]:
                    members = unpack(sample)[1]
                    facts = json.loads(members[FACTS]) | {"caption": source.caption}
                    sample = _sample(facts, members[LATENTS], states)
                yield {"start": clip["start"], "bucket": clip["bucket"], **shard.add(sample)._asdict()}


def read_receipt(out: Path, name: str) -> dict[str, Any] | None:
    """What is known of a shard; None where it is absent, or not as it was written."""
    try:
        receipt = json.loads((out / receipt_name(name)).read_text(encoding="utf-8"))
        return receipt if digest_of_file(out / name) == receipt["digest"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seen(source: Source) -> dict[str, Any]:
    """A video as it is found; its time tells whether to look closer."""
    try:
        stat = source.file.stat()
        size, time = stat.st_size, stat.st_mtime_ns
    except OSError:
        size, time = 0, 0
    return {"path": source.path, "bytes": size, "mtime_ns": time, "caption": source.caption}


def _is_of(receipt: dict[str, Any], sources: Sequence[Source]) -> bool:
    """Whether a shard was made from exactly these videos as they are; of one that could not be read nobody knows."""
    known = [{key: file[key] for key in ("path", "bytes", "mtime_ns", "caption")} for file in receipt["files"]]
    return known == [_seen(source) for source in sources] and all(file["digest"] for file in receipt["files"])


def _starts(length: int, bucket: Bucket, most: int | None) -> Sequence[int]:
    """First frames of a video's clips: `most`, evenly spread; None: one after another, without overlap, but one picture
    alone.
    """
    last = length - bucket.frames
    if most is None:
        return range(0, last + 1, bucket.frames if bucket.frames > 1 else length)
    return legal_starts(last + 1, most)


def _sample(facts: dict[str, Any], latents: bytes, states: bytes | None) -> bytes:
    key = f"{digest_of(facts['source']['path'].encode())[:16]}-{facts['start']:06d}"
    members = {LATENTS: latents} | ({} if states is None else {TEXT: states})
    return pack(key, members | {FACTS: json.dumps(facts, sort_keys=True, ensure_ascii=False).encode()})
