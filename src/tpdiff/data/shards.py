"""Clips from shards that `tpdiff cache` wrote, in a local folder or behind any URL that fsspec reads."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from fsspec.core import url_to_fs
from safetensors.torch import load
from torch import Tensor
from torch.utils.data import Dataset

from .buckets import Bucket
from .errors import DataError
from .folder import BadFile
from .shard_files import EMPTY_PROMPT, FACTS, LATENTS, LISTING, TEXT, digest_of, receipt_name, unpack
from .shard_order import bucket_of, place_of

AGAIN = "run tpdiff cache again"
ASKED_AT_ONCE = 16  # lengths of files


class ShardDataset(Dataset[dict[str, Any]]):
    """Encoded clips.

    `dataset[i]` is defined for every i ≥ 0 and depends on (seed, batch, window, i) only (`tpdiff.data.shard_order`).
    It is a dict of
        stage0, stage1, ...  float32 (C, t, h, w), latents as encoded; stage0 alone where the stages are resized latents
        caption              str ("" where there is none)
        index                i
        path                 str, within the folder of videos
        start                int, the clip's first frame among those of the video
        text                 {name: Tensor}, where captions were encoded: what is stored of this one
    The samples b · batch ... (b + 1) · batch - 1 are of one bucket. `len(dataset)` is the number of clips, which is the
    length of an epoch.

    Attributes:
        settings: what decided the contents, by dotted name.
        buckets: clips of each clip size.
        digest: of the whole.
        fps: frames a second of the clips (the median over the files).
        bad: files that gave no clip.
        empty_prompt: the empty text, encoded; None without encoded captions.

    Args:
        url: a folder, or a URL such as s3://bucket/clips or https://host/clips.
        seed: of the order.
        window: clips of the shuffle buffer.
        batch: clips of a batch, of all processes together.

    Raises:
        DataError: no cache there, an unfinished one, or shards that are missing or of another length; a URL whose
            package is not installed. Reading a damaged sample raises one too, with the name of the shard, and so does a
            server that cannot send a part of a file.
    """

    def __init__(self, url: str, *, seed: int = 0, window: int = 4096, batch: int = 1):
        if window < 1:
            raise ValueError(f"window {window} is below 1; nearest: 1, no shuffling among neighbours")
        self.url, self.seed, self.window, self.batch = url, seed, window, batch
        listing = read_listing(url)
        if listing is None:
            raise DataError(f"no cache in {url}: it holds no {LISTING}; make one with tpdiff cache")
        if not listing["complete"]:
            raise DataError(f"the cache in {url} is unfinished; {AGAIN} to finish it")
        self.settings: dict[str, Any] = listing["settings"]
        self.config: dict[str, Any] = listing["config"]
        self.fps: float = listing["fps"]
        self.digest = digest_of(json.dumps(listing["shards"]).encode())
        self.bad = tuple(BadFile(item["path"], item["reason"]) for item in listing["bad"])
        self._shards: list[dict[str, Any]] = listing["shards"]
        self._check_lengths()
        names = listing["buckets"]
        self.buckets = {Bucket(*map(int, name.split("x"))): count for name, count in names.items()}
        self._counts = {name: tuple(shard["clips"].get(name, 0) for shard in self._shards) for name in names}
        self.empty_prompt: dict[str, Tensor] | None = None
        if listing["empty_prompt"] is not None:
            content = _read(url, EMPTY_PROMPT)
            if digest_of(content) != listing["empty_prompt"]:
                raise DataError(f"{url}: {EMPTY_PROMPT} is damaged; {AGAIN}")
            self.empty_prompt = load(content)

    def __len__(self) -> int:
        return sum(self.buckets.values())

    def grouped(self, batch: int) -> ShardDataset:
        """The same clips for batches of so many, all processes together."""
        other = copy.copy(self)
        other.batch = batch
        return other

    @property
    def captions(self) -> list[str]:
        """The distinct captions, sorted."""
        found = {file["caption"] for shard in self._shards for file in self._receipt(shard)["files"] if "clips" in file}
        return sorted(caption for caption in found if caption is not None)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            raise IndexError(f"sample index {index} is below 0")
        number, within = divmod(index, self.batch)
        names = list(self._counts)
        bucket, before = bucket_of(self.seed, tuple(self.buckets.values()), self.batch, number)
        name = names[bucket]
        place = place_of(self.seed, name, self._counts[name], self.window, before * self.batch + within)
        return self._sample(self._shards[place[0]], name, place[1]) | {"index": index}

    def _sample(self, shard: dict[str, Any], bucket: str, number: int) -> dict[str, Any]:
        clips = (clip for file in self._receipt(shard)["files"] for clip in file.get("clips", ()))
        clip = [clip for clip in clips if clip["bucket"] == bucket][number]
        content = _read(self.url, shard["name"], clip["offset"], clip["offset"] + clip["size"])
        if digest_of(content) != clip["digest"]:
            raise DataError(f"{self.url}: {shard['name']} is damaged (sample at byte {clip['offset']}); {AGAIN}")
        _, members = unpack(content)
        facts = json.loads(members[FACTS])
        sample: dict[str, Any] = dict(load(members[LATENTS]))
        if TEXT in members:
            sample["text"] = load(members[TEXT])
        return sample | {"caption": facts["caption"] or "", "path": facts["source"]["path"], "start": facts["start"]}

    def _receipt(self, shard: Mapping[str, Any]) -> dict[str, Any]:
        return _receipt(self.url, shard["name"], shard["receipt"])

    def _check_lengths(self) -> None:
        wanted = {shard["name"]: shard["bytes"] for shard in self._shards}
        found = _lengths(self.url, [*wanted, *map(receipt_name, wanted)])
        for name, size in wanted.items():
            if found[name] not in (size, None):
                raise DataError(f"{self.url}: {name} is damaged: {found[name]} bytes of {size}; {AGAIN}")


def read_listing(url: str) -> dict[str, Any] | None:
    """What `cache.json` says; None where there is none.

    Raises:
        DataError: it is not what `tpdiff cache` writes.
    """
    try:
        content = _read(url, LISTING)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        listing = json.loads(content)
        if isinstance(listing, dict) and isinstance(listing["complete"], bool):
            return listing
    except (ValueError, KeyError):
        pass
    raise DataError(f"{url}: {LISTING} is damaged, or not of a cache that tpdiff wrote")


@lru_cache(maxsize=256)
def _receipt(url: str, shard: str, digest: str) -> dict[str, Any]:
    content = _read(url, receipt_name(shard))
    if digest_of(content) != digest:
        raise DataError(f"{url}: {receipt_name(shard)} is damaged, or of another cache; {AGAIN}")
    return json.loads(content)


def _lengths(url: str, names: Sequence[str]) -> dict[str, int | None]:
    """Bytes of the files of these names, None where nobody tells: by the folder's listing, or one by one where that has
    none, as a web server's.

    Raises:
        DataError: one is missing.
    """
    files, root = _opened(url)
    entries = [] if "http" in files.protocol else files.ls(root, detail=True)
    listed = {entry["name"].rsplit("/", 1)[-1]: entry["size"] for entry in entries}

    def length(name: str) -> int | None:
        try:
            return listed.get(name) or files.info(f"{root.rstrip('/')}/{name}")["size"]
        except FileNotFoundError:
            raise DataError(f"{url}: {name} is missing; {AGAIN}") from None

    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        return dict(zip(names, pool.map(length, names), strict=True))


def _read(url: str, name: str, start: int | None = None, end: int | None = None) -> bytes:
    files, root = _opened(url)
    content = files.cat_file(f"{root.rstrip('/')}/{name}", start=start, end=end)
    if start is not None and end is not None and len(content) > end - start:
        raise DataError(
            f"{url}: the server sends all of {name} where a part is asked for; serve it with one that answers ranged "
            "requests, or copy it into a folder"
        )
    return content


def _opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, kept by fsspec, one a process, so that it may be forked; and the path in it."""
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise DataError(f"{url} cannot be opened: {error}") from error
