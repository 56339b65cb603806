"""What single clips show, a row of numbers a clip: how they move, what a classifier takes them for, and how like their
captions they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tpdiff.data.clips import Geometry
from tpdiff.metrics.attributes import caption_labels
from tpdiff.metrics.captions import CaptionSimilarity
from tpdiff.metrics.classifier import Classifier
from tpdiff.metrics.clips import Clip, Source
from tpdiff.metrics.motion import LEAST_FRAMES, LEAST_SIDE, measure_motion

VERSION = 1
MOTION = ("flicker", "magnitude", "acceleration", "warping_error", "cut")
MOTION_LABELS = ("flicker", "motion_magnitude", "motion_acceleration", "warping_error", "cuts")


@dataclass(frozen=True)
class Gauges:
    """Measures clips of one geometry. Clips too short or too small for optical flow get no motion figures.

    Attributes:
        geometry: of the clips.
        classifier: None: nothing is recognized.
        similarity: None: clips are not compared with captions.
    """

    geometry: Geometry
    classifier: Classifier | None = None
    similarity: CaptionSimilarity | None = None

    @property
    def moves(self) -> bool:
        """Whether motion is measured."""
        frames, height, width = self.geometry[:3]
        return frames >= LEAST_FRAMES and min(height, width) >= LEAST_SIDE

    def identity(self) -> dict[str, Any]:
        """All that rows depend on beside the clips."""
        return {
            "version": VERSION,
            "motion": list(MOTION) if self.moves else [],
            "classifier": None if self.classifier is None else self.classifier.key,
        } | ({} if self.similarity is None else {"similarity": self.similarity.name})

    def __call__(self, videos: Tensor, captions: Sequence[str] = ()) -> np.ndarray:
        """uint8 (B, 3, T, H, W) -> float64 (B, columns): motion, then the number of the value that the classifier
        names for each attribute, then the likeness to its caption, of which there are B if it is asked for.
        """
        columns: list[np.ndarray] = []
        if self.moves:
            per_clip = measure_motion(videos).per_clip()
            columns += [per_clip[name].numpy() for name in MOTION]
        if self.classifier is not None:
            named = self.classifier.predict(videos)
            for name, values in self.classifier.values.items():
                columns.append(np.array([values.index(value) for value in named[name]], dtype=np.float64))
        if self.similarity is not None:
            columns.append(self.similarity(videos, captions))
        return np.stack(columns, axis=1) if columns else np.zeros((len(videos), 0))

    def figures(self, real: np.ndarray, made: np.ndarray) -> dict[str, dict[str, float]]:
        """Means over the rows of real and made clips, by name."""
        columns = dict(enumerate(MOTION_LABELS)) if self.moves else {}
        if self.similarity is not None:
            columns[real.shape[1] - 1] = self.similarity.name
        return {
            name: {"real": float(real[:, i].mean()), "made": float(made[:, i].mean())} for i, name in columns.items()
        }

    def accuracy(
        self,
        real: np.ndarray,
        real_facts: Sequence[dict[str, Any]],
        made: np.ndarray,
        made_facts: Sequence[dict[str, Any]],
        training: Sequence[Source],
    ) -> dict[str, dict[str, float]]:
        """Share of clips in which the classifier finds what their metadata or captions say, by attribute.

        Attributes that some made or real clip says nothing of are left out.

        Args:
            real, made: rows.
            real_facts, made_facts: caption and metadata of each clip.
            training: captioned videos that tell what a caption stands for.
        """
        if self.classifier is None:
            return {}
        offset = len(MOTION) if self.moves else 0
        known = caption_labels([source.entry for source in training], self.classifier.values)
        found = {}
        for column, (name, values) in enumerate(self.classifier.values.items(), offset):
            wanted = [_labels(name, values, facts, known) for facts in (real_facts, made_facts)]
            if any(label is None for labels in wanted for label in labels):
                continue
            hits = [
                float((rows[:, column] == labels).mean()) for rows, labels in zip((real, made), wanted, strict=True)
            ]
            guess = max(wanted[1].count(label) for label in wanted[1]) / len(wanted[1])
            found[name] = {"real": hits[0], "made": hits[1], "guess": guess}
        return found


def facts_of(clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """What the caption and the metadata of each clip say."""
    return [{"caption": clip.source.entry.caption, **clip.source.entry.extra} for clip in clips]


def _labels(
    name: str, values: Sequence[str], facts: Sequence[dict[str, Any]], known: dict[str, dict[str, str]]
) -> list[int | None]:
    """The number of the value that each clip should have; None where nothing, or nothing known, is said."""
    said = [str(fact.get(name, known.get(fact.get("caption") or "", {}).get(name))) for fact in facts]
    return [values.index(value) if value in values else None for value in said]
