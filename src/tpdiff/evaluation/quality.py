"""How good made clips are: distances to real clips with their floor, and what single clips show, beside the same of
real ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

from tpdiff import __version__
from tpdiff.evaluation.gauges import Gauges, facts_of
from tpdiff.evaluation.made import Made
from tpdiff.metrics import Interval, Reference, frechet_interval, kernel_distance
from tpdiff.metrics.captions import CaptionSimilarity
from tpdiff.metrics.classifier import Classifier
from tpdiff.metrics.clips import clips_digest, load_clips
from tpdiff.metrics.rows import Progress, stored_rows

INTERVAL = "bootstrap over videos of real clips and over made clips, centred percentiles, 95 %"
ROUNDS = 1000
FEWEST_DEMO, FEWEST_CLAIM = 256, 2048
REAL_PART = 16  # real clips in memory at a time


@dataclass(frozen=True)
class Quality:
    """An evaluation.

    Attributes:
        distance_name, kernel_name: what the two distances are called over the features; see `FeatureSet`.
        distance: with its 95 % bootstrap interval.
        floor: the same distance of so many real clips of the training split (`Reference.floor_at`).
        floor_clips: how many these were: fewer than made clips where the training split has no more.
        kernel_distance: unbiased; may be below 0.
        kernel_floor: of the same clips as `floor`.
        clips: made clips; `real_clips` real ones.
        figures: name -> {"real": mean, "made": mean} of what single clips show; see `metrics.motion`.
        accuracy: attribute -> {"real", "made", "guess"}: how often a classifier trained on real training clips finds in
            a clip what its caption says, and how often always naming the most frequent value would.
        warning: what the number of clips does not allow; None: nothing.
        protocol: what the figures must be quoted with.
    """

    distance_name: str
    kernel_name: str
    distance: Interval
    floor: float
    floor_clips: int
    kernel_distance: float
    kernel_floor: float
    clips: int
    real_clips: int
    figures: dict[str, dict[str, float]] = field(default_factory=dict)
    accuracy: dict[str, dict[str, float]] = field(default_factory=dict)
    warning: str | None = None
    protocol: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON values; the distances stand under their names."""
        values = asdict(self)
        distance, kernel = values.pop("distance_name"), values.pop("kernel_name")
        return {distance: values.pop("distance"), kernel: values.pop("kernel_distance")} | values


def evaluate(
    reference: Reference,
    made: Made,
    cache_dir: str | Path,
    *,
    classifier: Classifier | None = None,
    similarity: CaptionSimilarity | None = None,
    rounds: int = ROUNDS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Quality:
    """Measure made clips against real ones. Memory does not grow with their number.

    The figures of each batch are kept in `cache_dir` as they come, so that an evaluation that was interrupted goes on
    and one that is repeated samples nothing anew.

    Args:
        reference: the real clips.
        made: the made ones.
        cache_dir: where figures are kept.
        classifier: trained on `reference.training`; None: accuracy is not measured.
        similarity: compares clips with their captions; None: they are not compared.
        rounds: of the bootstrap.
        seed: of the bootstrap.
        progress: called with (clips done, clips in all).

    Raises:
        ValueError: fewer than two made clips, clips of another geometry than the real ones, or captions that are to be
            compared with and are not there.
    """
    if made.count < 2:
        raise ValueError(f"{made.count} clip was made; a distance needs at least 2")
    gauges = Gauges(reference.geometry, classifier, similarity)
    real_facts = facts_of(reference.clips)
    said, real_said = ([fact.get("caption") or "" for fact in facts] for facts in (made.facts, real_facts))
    if similarity is not None:
        check_captions("made", said)
        check_captions("real", real_said)

    def measure_made(first: int, last: int) -> np.ndarray:
        videos = made.load(first, last)
        return np.concatenate([reference.project(videos), gauges(videos, said[first:last])], axis=1)

    def measure_real(first: int, last: int) -> np.ndarray:
        return gauges(load_clips(reference.clips[first:last], reference.geometry), real_said[first:last])

    place = Path(cache_dir)
    made_key = _key("made", reference, made.source, gauges, said)
    made_rows = _gather(place / made_key, made.count, made.part, measure_made, progress)
    features, shown = np.split(made_rows, [reference.real.shape[1]], axis=1)
    real_key = _key("real", reference, {"clips": clips_digest(reference.clips)}, gauges, real_said)
    real_shown = _gather(place / real_key, len(reference.clips), REAL_PART, measure_real, None)
    floor_clips = min(made.count, len(reference.held))
    return Quality(
        distance_name=reference.features.distance,
        kernel_name=reference.features.kernel,
        distance=frechet_interval(reference.real, features, rounds, seed, reference.videos),
        floor=reference.floor_at(made.count),
        floor_clips=floor_clips,
        kernel_distance=kernel_distance(reference.real, features),
        kernel_floor=kernel_distance(reference.real, reference.held[:floor_clips]),
        clips=made.count,
        real_clips=len(reference.real),
        figures=gauges.figures(real_shown, shown),
        accuracy=gauges.accuracy(real_shown, real_facts, shown, made.facts, reference.training),
        warning=too_few(min(made.count, len(reference.real))),
        protocol=reference.protocol
        | {
            "made": made.source | {"clips": made.count},
            "classifier": None if classifier is None else classifier.key,
            "captions": None if similarity is None else similarity.identity(),
            "interval": {"method": INTERVAL, "rounds": rounds},
            "software": software(),
        },
    )


def check_captions(kind: str, captions: Sequence[str | None]) -> None:
    """Raise ValueError for "made" or "real" clips without a caption that they could be compared with."""
    if absent := sum(not caption for caption in captions):
        raise ValueError(f"{absent} of {len(captions)} {kind} clips have no caption to compare them with")


def software() -> dict[str, str]:
    """Versions of what samples come from."""
    return {"tpdiff": __version__, "torch": torch.__version__, "diffusers": diffusers.__version__}


def too_few(clips: int) -> str | None:
    """What so many clips do not allow, in words."""
    if clips < FEWEST_DEMO:
        return (
            f"{clips} clips are too few even for the demo ({FEWEST_DEMO} are the least): the figures show little more "
            "than chance"
        )
    if clips < FEWEST_CLAIM:
        return f"{clips} clips are too few for a claim ({FEWEST_CLAIM} are the least)"
    return None


def _gather(
    folder: Path, count: int, part: int, measure: Callable[[int, int], np.ndarray], progress: Progress | None
) -> np.ndarray:
    parts = list(stored_rows(folder, count, part, measure, progress))
    return np.concatenate(parts).astype(np.float64)


def _key(kind: str, reference: Reference, source: dict[str, Any], gauges: Gauges, said: list[str]) -> str:
    """A name made of everything that rows depend on."""
    values = {
        "source": source,
        "geometry": reference.geometry._asdict(),
        "features": reference.protocol["features"],
        "fit": reference.protocol["fit"],
        "gauges": gauges.identity(),
    }
    if gauges.similarity is not None:
        values["captions"] = said
    if source.get("kind") == "samples":
        values["software"] = software()
    return f"{kind}-{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]}"
