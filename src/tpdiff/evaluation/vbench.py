"""What VBench (arXiv 2311.17982) and VBench-2.0 (arXiv 2503.21755) ask for, and how their totals come about.

Names, counts, ranges and weights are those of github.com/Vchitect/VBench at commit 45e79ec: `vbench/__init__.py`,
`prompts/README.md`, `scripts/constant.py` and `scripts/cal_final_score.py`, and the same files of VBench-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

TOTAL = "total score"


UNJUDGED = -1


@dataclass(frozen=True)
class Suite:
    """A published benchmark.

    Attributes:
        name: what it is called.
        info: where its checkout has the prompts and what is measured on each.
        groups: dimensions by the score that they are averaged to, as it is called.
        shares: the weight of each of those scores in the total.
        videos: made of a prompt.
        more: made of a prompt for a dimension, where that is another number.
        listed: of each prompt's videos, how many the results of a dimension name, where that is another number.
        sparse: dimensions whose results leave videos out.
        choosy: dimensions that name all videos, but give `UNJUDGED` to those that have no part in their figure.
        custom: dimensions that can be measured with other prompts.
        stem: characters of a prompt that a video's name holds; None: all.
        ranges: (least, most) of dimensions, from which they are mapped to [0, 1]; (0, 1) where not given.
        weights: of dimensions in their group; 1 where not given.
    """

    name: str
    info: str
    groups: Mapping[str, tuple[str, ...]]
    shares: Mapping[str, float]
    videos: int
    more: Mapping[str, int]
    listed: Mapping[str, int]
    sparse: tuple[str, ...]
    choosy: tuple[str, ...]
    custom: tuple[str, ...]
    stem: int | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def dimensions(self) -> tuple[str, ...]:
        """All, group by group."""
        return tuple(name for group in self.groups.values() for name in group)

    def normalised(self, dimension: str, score: float) -> float:
        """A dimension's score as it enters the totals; not held to [0, 1]."""
        least, most = self.ranges.get(dimension, (0.0, 1.0))
        return (score - least) / (most - least)

    def totals(self, scores: Mapping[str, float]) -> dict[str, float]:
        """The score of every group whose dimensions are all there, and the total if all are."""
        found = {}
        for name, group in self.groups.items():
            if scores.keys() >= set(group):
                weights = [self.weights.get(dimension, 1.0) for dimension in group]
                parts = [self.normalised(d, scores[d]) * weight for d, weight in zip(group, weights, strict=True)]
                found[name] = sum(parts) / sum(weights)
        if len(found) == len(self.groups):
            found[TOTAL] = sum(found[name] * share for name, share in self.shares.items()) / sum(self.shares.values())
        return found


VBENCH = Suite(
    name="VBench",
    info="vbench/VBench_full_info.json",
    groups={
        "quality score": (
            "subject_consistency",
            "background_consistency",
            "temporal_flickering",
            "motion_smoothness",
            "aesthetic_quality",
            "imaging_quality",
            "dynamic_degree",
        ),
        "semantic score": (
            "object_class",
            "multiple_objects",
            "human_action",
            "color",
            "spatial_relationship",
            "scene",
            "appearance_style",
            "temporal_style",
            "overall_consistency",
        ),
    },
    shares={"quality score": 4, "semantic score": 1},
    videos=5,
    more={"temporal_flickering": 25},  # its filter drops those that move
    listed={"temporal_flickering": 5},
    sparse=("temporal_flickering", "color"),
    choosy=(),
    custom=(
        "subject_consistency",
        "background_consistency",
        "motion_smoothness",
        "dynamic_degree",
        "aesthetic_quality",
        "imaging_quality",
        "temporal_style",
        "overall_consistency",
    ),
    ranges={
        "subject_consistency": (0.1462, 1.0),
        "background_consistency": (0.2615, 1.0),
        "temporal_flickering": (0.6293, 1.0),
        "motion_smoothness": (0.706, 0.9975),
        "scene": (0.0, 0.8222),
        "appearance_style": (0.0009, 0.2855),
        "temporal_style": (0.0, 0.364),
        "overall_consistency": (0.0, 0.364),
    },
    weights={"dynamic_degree": 0.5},
)

VBENCH2 = Suite(
    name="VBench-2.0",
    info="vbench2/VBench2_full_info.json",
    groups={
        "creativity score": ("Composition", "Diversity"),
        "commonsense score": ("Instance_Preservation", "Motion_Rationality"),
        "controllability score": (
            "Camera_Motion",
            "Complex_Landscape",
            "Complex_Plot",
            "Dynamic_Attribute",
            "Dynamic_Spatial_Relationship",
            "Human_Interaction",
            "Motion_Order_Understanding",
        ),
        "human fidelity score": ("Human_Anatomy", "Human_Clothes", "Human_Identity"),
        "physics score": ("Material", "Mechanics", "Multi-View_Consistency", "Thermotics"),
    },
    shares={
        "creativity score": 1,
        "commonsense score": 1,
        "controllability score": 1,
        "human fidelity score": 1,
        "physics score": 1,
    },
    videos=3,
    more={"Diversity": 20},
    listed={"Diversity": 1},  # one figure for all videos of a prompt, under the first one's name
    sparse=(),
    choosy=(  # where it does not find the event, person, object or order that it would judge
        "Human_Clothes",
        "Human_Identity",
        "Material",
        "Mechanics",
        "Motion_Order_Understanding",
        "Multi-View_Consistency",
        "Thermotics",
    ),
    custom=("Human_Anatomy", "Human_Identity", "Human_Clothes", "Diversity", "Multi-View_Consistency"),
    stem=180,
)

SUITES = {suite.name: suite for suite in (VBENCH, VBENCH2)}
