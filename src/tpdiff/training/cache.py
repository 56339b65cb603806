"""`tpdiff cache`: a folder of captioned videos to shards of latents, by several processes that may be killed any time.

Which shard a video belongs to is decided by a hash of its path within the folder. So a process can make any shard
without knowing of the others, the result does not depend on how many there are, and a video that comes, changes or goes
touches one shard alone, in which the clips of the other videos are copied. The number of shards is fixed when a cache
is begun, and each clip and caption is encoded by itself on one thread, so that the same videos give the same bytes.

A shard appears when it is whole, its receipt after it, and `cache.json` says `complete` when nothing is missing.
Whatever a killed run left is judged by digests.
"""

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import median
from typing import Any

import diffusers
import torch

from tpdiff.data import BadFile, DataError, Entry, FolderScan, check_share, scan
from tpdiff.data.folder import require_captions
from tpdiff.data.shard_files import EMPTY_PROMPT, LISTING, digest_of_file, receipt_name, shard_name
from tpdiff.data.shards import read_listing
from tpdiff.files import holding, write_whole
from tpdiff.training.cache_settings import cache_settings, difference, open_buckets
from tpdiff.training.cache_workers import make_shards
from tpdiff.training.config import Config
from tpdiff.training.pipeline_encoder import open_encoder
from tpdiff.training.progress import clock
from tpdiff.training.setup import warn_of_held_out
from tpdiff.training.shard_maker import Source

FILES_A_SHARD = 64


@dataclass(frozen=True)
class CacheStatus:
    """A cache in the making: files done and in all, clips encoded by this call, seconds."""

    files: int
    total: int
    encoded: int
    seconds: float

    @property
    def fraction(self) -> float:
        """Share of the files done, in [0, 1]."""
        return self.files / self.total if self.total else 1.0

    def line(self) -> str:
        """The status in one line of text."""
        left = self.seconds * (1 - self.fraction) / self.fraction if self.fraction else math.inf
        rate = self.encoded / self.seconds if self.seconds else 0.0
        return (
            f"{self.files} of {self.total} files  {self.encoded} clips encoded, {rate:.2f} clips/s  "
            f"{clock(self.seconds)} done, {clock(left)} left"
        )


@dataclass(frozen=True)
class Cache:
    """A finished cache, or one whose making was stopped: how many clips it has of each size, how many were encoded by
    this call, and the files that gave none.
    """

    folder: Path
    complete: bool
    shards: int
    files: int
    buckets: dict[str, int]
    encoded: int
    bad: tuple[BadFile, ...]
    seconds: float


def make_cache(
    config: Config,
    out: str | Path,
    *,
    workers: int = 1,
    shards: int | None = None,
    prune: bool = False,
    report: Callable[[CacheStatus], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Cache:
    """Encode the videos of `config.data` into shards, or bring the shards up to date with them.

    Args:
        config: the recipe that is to be trained, or one of the same data, autoencoder, condition and stages.
        out: the folder: new, empty, or a cache of the same settings.
        workers: processes that encode; with CUDA devices they share them.
        shards: how many shards to begin a cache with; None: one for 64 files.
        prune: drop the clips of videos that are gone, however many; else no more than `data.max_bad_share` of them, as
            a folder that is not the one that was encoded would cost the whole cache.
        report: told of progress.
        stop: asked again and again whether to stop; shards under way are finished first.

    Raises:
        ValueError: what the recipe, the sizes or the folders make impossible, before anything is encoded or removed;
            and more than `data.max_bad_share` bad files, as soon as there are.
    """
    started, out, data = time.monotonic(), Path(out), config.data
    if workers < 1:
        raise ValueError(f"workers {workers} is below 1; nearest: 1")
    if not data.path:
        raise ValueError("data.path is required, the folder of videos to encode")
    _listed(out)
    # what is wrong with either is said before models are fetched
    _refuse_repeated(scan(data.path, data.split, pictures=True).entries)
    encoder = open_encoder(config, None)
    buckets = open_buckets(config, encoder)
    found = scan(data.path, data.split, pictures=buckets.pictures)
    if config.condition.kind != "none":
        require_captions(found.entries, data.path)
    check_share(found, data.max_bad_share)
    warn_of_held_out(data.split, found.entries)
    if config.condition.kind != "none":
        encoder.warn_of_cut(entry.caption for entry in found.entries)
    settings = cache_settings(config, encoder)
    del encoder
    bad = [BadFile(_within(file.path, data.path), file.reason) for file in found.skipped]
    done, files, encoded, clips = 0, 0, 0, {}
    with _begun(out, settings, shards, len(found.entries)) as head:
        plan = _plan(found.entries, data.path, head["count"])
        if not prune:
            _refuse_losses(out, plan, config)
        empty = settings["condition.encoder"] is not None and not _empty_prompt_kept(out)
        _write(out, head)
        _clear(out, plan)
        with closing(make_shards(config, buckets, out, plan, workers, stop, empty)) as updates:
            for update in updates:
                done, files, encoded = done + len(update.shards), files + update.files, encoded + update.encoded
                fresh = [file for shard in update.shards for file in _bad(out, shard)]
                if fresh:
                    bad += fresh
                    _check_bad(found, bad, config)
                if report is not None and (update.files or update.encoded):
                    report(CacheStatus(files, len(found.entries), encoded, time.monotonic() - started))
        if done == len(plan):
            clips = _finish(out, plan, config, head, bad)
    seconds = time.monotonic() - started
    bad.sort(key=lambda file: file.path)
    return Cache(out, done == len(plan), len(plan), len(found.entries), clips, encoded, tuple(bad), seconds)


def shard_of(path: str, count: int) -> str:
    """The shard, of so many, of the video with this path within its folder."""
    return shard_name(int.from_bytes(blake2b(path.encode(), digest_size=8).digest(), "big") % count)


def _plan(entries: Sequence[Entry], folder: str, count: int) -> dict[str, list[Source]]:
    """The videos of every shard, in order of their paths."""
    plan: dict[str, list[Source]] = {}
    for entry in entries:
        path = _within(entry.path, folder).as_posix()
        plan.setdefault(shard_of(path, count), []).append(Source(path, entry.path, entry.caption))
    return {name: sorted(plan[name], key=lambda source: source.path) for name in sorted(plan)}


@contextmanager
def _begun(out: Path, settings: Mapping[str, Any], shards: int | None, files: int) -> Iterator[dict[str, Any]]:
    """Hold the folder, for one process alone; what its cache has for a head while it is not complete."""
    if shards is not None and shards < 1:
        raise ValueError(f"shards {shards} is below 1; nearest: 1")
    before = _listed(out)
    if before is not None:
        differs = difference(before["settings"], settings, "asked")
        if shards not in (None, before["count"]):
            differs.append(f"shards: cache {before['count']}, asked {shards}")
        if differs:
            raise DataError(f"{out} holds another cache ({'; '.join(differs)}); give a new folder or remove this one")
    with holding(out):
        count = before["count"] if before else shards or max(1, math.ceil(files / FILES_A_SHARD))
        yield {"complete": False, "settings": settings, "count": count}


def _listed(out: Path) -> dict[str, Any] | None:
    """What the cache in a folder says of itself; None for a folder that is new or empty."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; give a folder that is new or empty")
    listing = read_listing(str(out)) if out.is_dir() else None
    if listing is None and out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
        raise DataError(f"{out} is not empty and no cache of tpdiff; give a folder that is new or empty")
    return listing


def _empty_prompt_kept(out: Path) -> bool:
    """Whether the empty caption is there as a finished cache had it; what a killed run left of it is encoded anew."""
    listing, path = _listed(out), out / EMPTY_PROMPT
    wanted = None if listing is None else listing.get("empty_prompt")
    return wanted is not None and path.is_file() and digest_of_file(path) == wanted


def _refuse_losses(out: Path, plan: Mapping[str, Sequence[Source]], config: Config) -> None:
    """Refuse to drop more of what is encoded than may be bad: the folder is then hardly the one that was meant."""
    known: set[str] = set()
    for path in out.glob("shard-*.json"):
        with suppress(ValueError, KeyError):  # a receipt that is damaged is made again
            known |= {file["path"] for file in json.loads(path.read_text(encoding="utf-8"))["files"]}
    gone = sorted(known - {source.path for sources in plan.values() for source in sources})
    if len(gone) > config.data.max_bad_share * len(known):
        raise DataError(
            f"{len(gone)} of the {len(known)} videos in {out} are not among those of {config.data.path} any more, such "
            f"as {gone[0]}; give another folder as --out, or --prune to drop their clips"
        )


def _refuse_repeated(entries: Sequence[Entry]) -> None:
    """Refuse a video that the metadata list twice, whose clips would have the same keys."""
    for path, count in Counter(entry.path for entry in entries).items():
        if count > 1:
            raise DataError(f"{path} is listed {count} times; shards hold a video once, with one caption")


def _clear(out: Path, plan: Mapping[str, Any]) -> None:
    """Remove shards whose videos are all gone, and pieces of what a killed process was writing."""
    kept = {*plan, *map(receipt_name, plan)}
    gone = [path for pattern in ("shard-*.tar", "shard-*.json") for path in out.glob(pattern) if path.name not in kept]
    for path in [*gone, *out.glob(".*.part")]:
        path.unlink(missing_ok=True)


def _check_bad(found: FolderScan, bad: Sequence[BadFile], config: Config) -> None:
    names = {file.path for file in bad}
    good = tuple(entry for entry in found.entries if _within(entry.path, config.data.path) not in names)
    check_share(FolderScan(good, tuple(bad)), config.data.max_bad_share)


def _within(path: Path, folder: str) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else path


def _receipt(out: Path, shard: str) -> dict[str, Any]:
    return json.loads((out / receipt_name(shard)).read_text(encoding="utf-8"))


def _bad(out: Path, shard: str) -> list[BadFile]:
    files = _receipt(out, shard)["files"]
    return [BadFile(Path(file["path"]), file["reason"]) for file in files if "reason" in file]


def _finish(
    out: Path,
    plan: Mapping[str, Any],
    config: Config,
    head: Mapping[str, Any],
    bad: Sequence[BadFile],
) -> dict[str, int]:
    """Write what is known of a complete cache; returns the number of clips of each size."""
    shards, rates = [], []
    total: Counter[str] = Counter()
    for name in plan:
        receipt = _receipt(out, name)
        good = [file for file in receipt["files"] if "clips" in file]
        clips = Counter(clip["bucket"] for file in good for clip in file["clips"])
        rates += [file["fps"] for file in good if not file["clips"][0]["bucket"].startswith("1x")]
        total += clips
        facts = {"name": name, "bytes": receipt["bytes"], "digest": receipt["digest"]}
        facts |= {"receipt": digest_of_file(out / receipt_name(name)), "clips": dict(sorted(clips.items()))}
        shards.append(facts)
    captioned = head["settings"]["condition.encoder"] is not None
    rest = {
        "complete": True,
        "config": config.model_dump(mode="json"),
        "made_with": {"torch": torch.__version__, "diffusers": diffusers.__version__},
        "fps": config.data.fps or (median(rates) if rates else 8.0),
        "buckets": dict(sorted(total.items())),
        "empty_prompt": digest_of_file(out / EMPTY_PROMPT) if captioned else None,
        "bad": [{"path": str(file.path), "reason": file.reason} for file in sorted(bad, key=lambda file: file.path)],
        "shards": shards,
    }
    _write(out, {**head, **rest})
    return dict(sorted(total.items()))


def _write(out: Path, listing: Mapping[str, Any]) -> None:
    write_whole(out / LISTING, json.dumps(listing, indent=1, ensure_ascii=False) + "\n")
