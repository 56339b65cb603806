"""The figures of a study: the same real clips, captions and seeds for every arm."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from tpdiff.data.clips import Geometry
from tpdiff.evaluation.quality import too_few
from tpdiff.evaluation.samples import Sampling, sampled_clips
from tpdiff.metrics.attributes import Labels, labels_of
from tpdiff.metrics.classifier import Classifier
from tpdiff.metrics.clips import Clip, find_sources, load_clips
from tpdiff.metrics.distance import frechet_distance, frechet_interval, kernel_distance, paired_draws
from tpdiff.metrics.motion import Motion, join_motion, measure_motion
from tpdiff.metrics.reference import Reference
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.training.config import Config

ROUNDS = 1000
PART = 32


@dataclass(frozen=True)
class Judge:
    """What clips are judged against.

    Attributes:
        reference: real clips of the test split and the projection of features.
        classifier: tells captioned facts from clips; trained on the training split.
    """

    reference: Reference
    classifier: Classifier

    def captions(self, count: int) -> list[str]:
        """Captions of so many samples: those of the real clips in their order, repeated where there are more."""
        return [clip.source.entry.caption or "" for clip in self._asked(count)]

    def protocol(self, sampling: Sampling) -> dict[str, Any]:
        """What every figure must be quoted with."""
        return {**self.reference.protocol, "sampling": asdict(sampling), "bootstrap_rounds": ROUNDS}

    def distance(self, pipeline: PyramidPipeline, count: int, sampling: Sampling, seed: int) -> float:
        """The Fréchet distance of so many samples."""
        batches = sampled_clips(pipeline, self.captions(count), sampling, seed)
        return frechet_distance(self.reference.real, np.concatenate([self.reference.project(b) for b in batches]))

    def verdict(
        self, pipeline: PyramidPipeline, count: int, sampling: Sampling, seed: int, keep: Path
    ) -> dict[str, Any]:
        """Everything about so many samples; their features go to `keep` (.npy) for paired comparisons."""
        features, motion, told = [], [], []
        for batch in sampled_clips(pipeline, self.captions(count), sampling, seed):
            features.append(self.reference.project(batch))
            motion.append(measure_motion(batch))
            told.append(self.classifier.predict(batch))
        made = np.concatenate(features)
        keep.parent.mkdir(parents=True, exist_ok=True)
        np.save(keep, made)
        interval = frechet_interval(self.reference.real, made, ROUNDS, seed)
        return {
            "clips": count,
            "distance": interval.value,
            "interval": [interval.low, interval.high],
            "floor": self.reference.floor_at(count),
            "kernel": kernel_distance(self.reference.real, made),
            "motion": {"made": _means(join_motion(motion)), "real": self.real_motion(count)},
            "accuracy": self._accuracy(told, count),
            "warning": too_few(count),
        }

    def real_motion(self, count: int) -> dict[str, float]:
        """Motion of the real clips whose captions are asked of the models."""
        clips = self.reference.clips[:count]
        parts = (clips[i : i + PART] for i in range(0, len(clips), PART))
        return _means(join_motion(measure_motion(load_clips(p, self.reference.geometry)) for p in parts))

    def paired(self, base: Path, arm: Path, seed: int) -> dict[str, Any]:
        """The arm's distance less the base's, and its bootstrap draws about it; below 0 the arm is better."""
        real, a, b = self.reference.real, np.load(arm), np.load(base)
        value = frechet_distance(real, a) - frechet_distance(real, b)
        drawn = paired_draws(real, a, b, ROUNDS, seed)
        centred = value + drawn - drawn.mean()
        return {"difference": value, "replicates": [round(float(d), 4) for d in centred]}

    def _accuracy(self, told: Sequence[Labels], count: int) -> dict[str, dict[str, float]]:
        """Share of samples that show what their caption says, beside that of the real clips."""
        clips = self._asked(count)
        asked = labels_of([clip.source.entry for clip in clips], self.classifier.values)
        real: list[Labels] = []
        for i in range(0, min(count, len(self.reference.clips)), PART):
            real.append(self.classifier.predict(load_clips(clips[i : min(i + PART, count)], self.reference.geometry)))
        return {
            name: {"made": _share(told, name, values), "real": _share(real, name, values)}
            for name, values in asked.items()
        }

    def _asked(self, count: int) -> list[Clip]:
        return list(islice(cycle(self.reference.clips), count))


def open_judge(config: Config, cache: Path, seed: int = 0) -> Judge:
    """The judge of a study's set, its features and classifier kept in `cache`."""
    data = config.data
    geometry = Geometry(data.frames, data.height, data.width, data.fps, data.resize)
    reference = Reference.fit(data.path, **geometry._asdict(), seed=seed, cache_dir=cache)
    sources = find_sources(data.path, geometry, "train")
    return Judge(reference, Classifier.fit(sources, geometry, seed=seed, cache_dir=cache))


def _share(told: Sequence[Labels], name: str, asked: Sequence[str]) -> float:
    named = [value for part in told for value in part[name]]
    return float(np.mean([a == b for a, b in zip(named, asked[: len(named)], strict=True)]))


def _means(motion: Motion) -> dict[str, float]:
    return {f.name: float(getattr(motion, f.name).mean()) for f in fields(motion)}
