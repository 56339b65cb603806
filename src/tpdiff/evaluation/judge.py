"""The figures of a study: the same real clips, captions and seeds for every arm."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from tpdiff.data.clips import Geometry
from tpdiff.data.store import load_array
from tpdiff.evaluation.gauges import Gauges, facts_of
from tpdiff.evaluation.quality import software, too_few
from tpdiff.evaluation.samples import AnyPipeline, Sampling, sample_batch, sampled_clips
from tpdiff.metrics.classifier import Classifier
from tpdiff.metrics.clips import Clip, load_clips
from tpdiff.metrics.distance import frechet_distance, frechet_interval, kernel_distance, paired_draws
from tpdiff.metrics.reference import Reference
from tpdiff.metrics.rows import Progress, stored_rows
from tpdiff.training.config import Config

ROUNDS = 1000
PART = 32


@dataclass(frozen=True)
class Judge:
    """What clips are judged against.

    Attributes:
        reference: real clips of the test split and the projection of features.
        classifier: tells captioned facts from clips; trained on the training split.
        heed: called before every batch of clips; what it raises ends the call, and `verdict` goes on from there.
        kept: the folder in which what the gauges say of the real clips stays; None: nowhere.
    """

    reference: Reference
    classifier: Classifier
    heed: Callable[[], None] = lambda: None
    kept: Path | None = None

    @cached_property
    def key(self) -> str:
        """A name made of all that figures of samples depend on beside the samples: the reference, what measures single
        clips, and the software.
        """
        values = [self.reference.protocol, self.gauges.identity(), software()]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]

    def captions(self, count: int, told: bool = True) -> list[str | None]:
        """Captions of so many samples: those of the real clips in their order, repeated where there are more; None
        for each where the model is not told any.
        """
        return [clip.source.entry.caption or "" if told else None for clip in self._asked(count)]

    def protocol(self, sampling: Sampling) -> dict[str, Any]:
        """What every figure must be quoted with."""
        return {**self.reference.protocol, "sampling": asdict(sampling), "bootstrap_rounds": ROUNDS}

    def distance(self, pipeline: AnyPipeline, count: int, sampling: Sampling, seed: int) -> float:
        """The Fréchet distance of so many samples."""
        projected = []
        for batch in sampled_clips(pipeline, self.captions(count), sampling, seed):
            self.heed()
            projected.append(self.reference.project(batch))
        return frechet_distance(self.reference.real, np.concatenate(projected))

    def verdict(
        self, pipeline: AnyPipeline, count: int, sampling: Sampling, seed: int, keep: Path, told: bool = True
    ) -> dict[str, Any]:
        """Everything about so many samples; of a model that is not told captions, no accuracy. Their figures stay in
        the folder `keep`, under this judge's key: from there a call that was interrupted goes on, and `paired` reads.
        """
        captions, gauges = self.captions(count, told), self.gauges

        def measure(first: int, last: int) -> np.ndarray:
            self.heed()
            clips = sample_batch(pipeline, captions[first:last], sampling, seed + first)
            return np.concatenate([self.reference.project(clips), gauges(clips)], axis=1)

        rows = np.concatenate(list(stored_rows(keep / self.key, count, sampling.batch, measure))).astype(np.float64)
        made, shown = np.split(rows, [self.reference.real.shape[1]], axis=1)
        real, clips = self._real_shown, self.reference.clips
        interval = frechet_interval(self.reference.real, made, ROUNDS, seed, self.reference.videos)
        return {
            "judge": self.key,
            "clips": count,
            "distance": interval.value,
            "interval": [interval.low, interval.high],
            "floor": self.reference.floor_at(count),
            "kernel": kernel_distance(self.reference.real, made),
            "figures": gauges.figures(real, shown),
            "accuracy": gauges.accuracy(
                real, facts_of(clips), shown, facts_of(self._asked(count)), self.reference.training
            )
            if told
            else {},
            "warning": too_few(min(count, len(clips))),
        }

    def holds(self, verdict: Mapping[str, Any], keep: Path) -> bool:
        """Whether a verdict is this judge's and the figures behind it are still in the folder `keep`."""
        return verdict.get("judge") == self.key and (keep / self.key).is_dir()

    def paired(self, base: Path, arm: Path, seed: int) -> dict[str, Any]:
        """Of what `verdict` kept in two folders: the arm's distance less the base's, and its bootstrap draws about
        it; below 0 the arm is better. "shared": the r-th draw is of the same real clips for every seed.

        Raises:
            ValueError: figures of this judge are not there, or damaged.
        """
        real, (a, b) = self.reference.real, (self._features(folder) for folder in (arm, base))
        value = frechet_distance(real, a) - frechet_distance(real, b)
        drawn = paired_draws(real, a, b, ROUNDS, seed, self.reference.videos)
        centred = value + drawn - drawn.mean()
        return {"difference": value, "replicates": [round(float(d), 4) for d in centred], "shared": True}

    @property
    def gauges(self) -> Gauges:
        """What measures single clips."""
        return Gauges(self.reference.geometry, self.classifier)

    @cached_property
    def _real_shown(self) -> np.ndarray:
        """What the gauges say of the real clips."""
        clips, gauges = self.reference.clips, self.gauges

        def measure(first: int, last: int) -> np.ndarray:
            self.heed()
            return gauges(load_clips(clips[first:last], self.reference.geometry))

        if self.kept is not None:
            return np.concatenate(list(stored_rows(self.kept / f"shown-{self.key}", len(clips), PART, measure)))
        return np.concatenate([measure(i, min(i + PART, len(clips))) for i in range(0, len(clips), PART)])

    def _features(self, keep: Path) -> np.ndarray:
        parts = [load_array(path) for path in sorted((keep / self.key).glob("*.npy"))]
        whole = [part for part in parts if part is not None]
        if not whole or len(whole) < len(parts):
            lack = "damaged" if parts else "not there"
            raise ValueError(f"figures in {keep / self.key} are {lack}; remove {keep} and run the same command again")
        rows = np.concatenate(whole)
        return rows[:, : self.reference.real.shape[1]].astype(np.float64)

    def _asked(self, count: int) -> list[Clip]:
        return list(islice(cycle(self.reference.clips), count))


def open_judge(
    config: Config,
    cache: Path,
    seed: int = 0,
    heed: Callable[[], None] = lambda: None,
    bar: Callable[[str], Progress] | None = None,
) -> Judge:
    """The judge of a study's set; what it knows of the real clips, and its classifier, are kept in `cache`.

    Args:
        config: of a run of the study; its data section says which clips.
        cache: a folder.
        seed: of the choice of clips and of the classifier.
        heed: as `Judge` calls it, and after every batch of real clips and every step of the classifier.
        bar: makes what is told of (done, in all) of something with a name.
    """
    data = config.data
    geometry = Geometry(data.frames, data.height, data.width, data.fps, data.resize)

    def progress(name: str) -> Progress:
        tell = bar(name) if bar else None

        def told(done: int, total: int) -> None:
            if tell is not None:
                tell(done, total)
            heed()

        return told

    reference = Reference.fit(
        data.path, **geometry._asdict(), seed=seed, cache_dir=cache, progress=progress("real clips")
    )
    classifier = Classifier.fit(
        reference.training, geometry, seed=seed, cache_dir=cache, progress=progress("classifier")
    )
    return Judge(reference, classifier, heed, cache)
