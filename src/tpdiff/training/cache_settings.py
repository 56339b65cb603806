"""What decides the contents of a cache, and whether a run may train on it."""

from collections.abc import Mapping
from typing import Any

from tpdiff.data import ClipDataset, DataError, ShardDataset
from tpdiff.data.buckets import Bucket, Buckets
from tpdiff.data.clips import Progress
from tpdiff.pyramid.stages import Pyramid
from tpdiff.training.clip_encoder import ClipEncoder
from tpdiff.training.config import Config
from tpdiff.training.data_config import DataConfig
from tpdiff.training.pipeline_encoder import open_encoder
from tpdiff.training.setup import open_dataset

KINDS = ("none", "label", "text")  # of conditions; a cache for a later one serves the earlier
TEXT = ("condition.encoder", "condition.max_length")
STAGES = ("pyramid.factors", "pyramid.resize", "pyramid.causal_time")


def cache_settings(config: Config, encoder: ClipEncoder) -> dict[str, Any]:
    """Everything that decides what the shards of some videos hold, by dotted name, in JSON values."""
    data = config.data
    pixel, auto = data.stages == "pixel", data.buckets == "auto"
    factors = [list(stage) for stage in encoder.pyramid.factors]
    return {
        "data.buckets": [str(bucket) for bucket in explicit_buckets(data)] or f"auto, within {_most(data)}",
        "data.fps": data.fps,
        "data.resize": data.resize,
        "data.starts": data.starts,
        "data.split": data.split,
        "data.stages": data.stages,
        "condition.kind": config.condition.kind,
        **encoder.settings,
        "pyramid.factors": factors if pixel else None,
        "pyramid.resize": config.pyramid.resize if pixel else None,
        "pyramid.causal_time": encoder.pyramid.causal_time if pixel else None,
        "legal sizes": encoder.size_rules if auto else None,
    }


def difference(cache: Mapping[str, Any], other: Mapping[str, Any], who: str) -> list[str]:
    """One line for every setting that differs: "data.fps: cache 8, run 16"."""
    return [f"{key}: cache {cache.get(key)}, {who} {value}" for key, value in other.items() if cache.get(key) != value]


def open_source(
    config: Config, shards: ShardDataset | None = None, progress: Progress | None = None
) -> ClipDataset | ShardDataset:
    """The clips of a run: from its shards, or else from its folder.

    Args:
        config: the run.
        shards: its own, where they are open already.
        progress: told of the videos that are read.

    Raises:
        ValueError: what the datasets refuse, or shards of something else than the run's, with what differs.
    """
    data = config.data
    if data.shards is None:
        return open_dataset(config, progress=progress)
    dataset = ShardDataset(data.shards, seed=config.seed, window=data.shuffle) if shards is None else shards
    differs = difference(dataset.settings, _wanted(config, dataset.settings), "run")
    if differs:
        raise DataError(f"the cache in {data.shards} was made for other runs: {'; '.join(differs)}")
    return dataset


def open_buckets(config: Config, encoder: ClipEncoder) -> Buckets:
    """How clip sizes are chosen.

    Raises:
        ValueError: a size that the autoencoder, the patches or some stage cannot hold.
    """
    choices = explicit_buckets(config.data)
    encoder.check(choices)
    return Buckets(choices or None, _most(config.data), encoder.largest)


def explicit_buckets(data: DataConfig) -> tuple[Bucket, ...]:
    """The clip sizes that a configuration names; () where they follow from the files."""
    if data.buckets == "auto":
        return ()
    return tuple(Bucket(*size) for size in data.buckets or [_most(data)])


def _wanted(config: Config, cache: Mapping[str, Any]) -> dict[str, Any]:
    """What a cache's settings must be for a run: the run's own, where they matter to it."""
    encoder = open_encoder(config, None)
    wanted = cache_settings(config, encoder)
    del wanted["legal sizes"]
    if config.data.split is None:  # all that was encoded
        del wanted["data.split"]
    if cache.get("condition.kind") in KINDS[KINDS.index(config.condition.kind) :]:
        del wanted["condition.kind"]
    if config.condition.kind != "text" and config.pretrained is None:
        wanted = {key: value for key, value in wanted.items() if key not in TEXT}
    if _begins_like(cache, wanted, encoder.pyramid):
        wanted = {key: value for key, value in wanted.items() if key not in STAGES}
    return wanted


def _begins_like(cache: Mapping[str, Any], wanted: Mapping[str, Any], pyramid: Pyramid) -> bool:
    """Whether a run of fewer stages finds its own among a pixel pyramid's; one stage is only encoded, not resized."""
    factors = wanted["pyramid.factors"]
    if factors is None or (cache.get("pyramid.factors") or [])[: len(factors)] != factors:
        return False
    return len(pyramid) == 1 or all(cache[key] == wanted[key] for key in STAGES[1:])


def _most(data: DataConfig) -> Bucket:
    return Bucket(data.frames, data.height, data.width)
