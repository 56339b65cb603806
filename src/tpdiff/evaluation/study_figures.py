"""What a finished study says: plateaus, times to reach them, differences with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

IN_A_ROW = 3
AXES = ("seconds", "steps", "flops")
KEEPS, SURE = 0.8, 0.8
Evaluations = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Reached:
    """Where an arm first stayed at or below a level, and how much sooner than the base that was.

    Attributes:
        seconds, steps, flops: of the first of three evaluations in a row.
        ratios: the base's cost at the first of its last three evaluations over the arm's, by axis.
    """

    seconds: float
    steps: int
    flops: float
    ratios: dict[str, float]


def plateau(evaluations: Evaluations) -> float:
    """Mean distance of the last three evaluations.

    Raises:
        ValueError: fewer than three.
    """
    if len(evaluations) < IN_A_ROW:
        raise ValueError(f"a plateau needs {IN_A_ROW} evaluations, got {len(evaluations)}")
    return float(np.mean([e["distance"] for e in evaluations[-IN_A_ROW:]]))


def reached(evaluations: Evaluations, base: Evaluations) -> Reached | None:
    """When an arm reached the plateau of the base: three evaluations in a row at or below it. None: never.

    The base counts as there from the first of the three evaluations that define its plateau, which favours it.
    """
    level = plateau(base)
    for i in range(evaluations[0]["seconds"] == 0, len(evaluations) - IN_A_ROW + 1):  # untrained, none is there
        if all(e["distance"] <= level for e in evaluations[i : i + IN_A_ROW]):
            first, of_base = evaluations[i], base[-IN_A_ROW]
            ratios = {axis: of_base[axis] / first[axis] for axis in AXES}
            return Reached(first["seconds"], first["steps"], first["flops"], ratios)
    return None


def sooner(curves: Sequence[Evaluations], bases: Sequence[Evaluations]) -> dict[float, float | None]:
    """How much sooner an arm stands where the base stands, by the base's seconds at every second evaluation.

    Curves are means over seeds, of distance and of seconds; the arm's moment lies on the line between the evaluation
    that first is at or below the base's distance and the one before it. None: not within its time.

    Args:
        curves, bases: evaluations of the arm and of the base by seed, the first of the untrained network.
    """
    seconds, distances = _mean_curve(curves)
    moments, levels = _mean_curve(bases)
    ratios: dict[float, float | None] = {}
    for moment, level in list(zip(moments, levels, strict=True))[2::2]:
        below = np.flatnonzero(distances[1:] <= level) + 1  # the untrained network stands nowhere
        ratios[float(moment)] = float(moment / _crossing(seconds, distances, level, below[0])) if len(below) else None
    return ratios


def to_final(arm: Mapping[str, Any]) -> list[dict[str, Any]]:
    """An arm's evaluations, of few samples each, times what brings the last of them to its final distance."""
    scale = arm["final"]["distance"] / arm["evaluations"][-1]["distance"]
    return [{**one, "distance": scale * one["distance"]} for one in arm["evaluations"]]


def _crossing(seconds: np.ndarray, distances: np.ndarray, level: float, first: int) -> float:
    """When a curve came down to a level, by a straight line to the `first` evaluation at or below it."""
    if distances[first - 1] <= level:
        return float(seconds[first])
    pair = slice(first - 1, first + 1)
    return float(np.interp(-level, -distances[pair], seconds[pair]))


def _mean_curve(curves: Sequence[Evaluations]) -> tuple[np.ndarray, np.ndarray]:
    seconds, distances = (np.array([[e[key] for e in curve] for curve in curves]) for key in ("seconds", "distance"))
    return seconds.mean(0), distances.mean(0)


@dataclass(frozen=True)
class Difference:
    """An arm's distance less the base's, mean over seeds; below 0 the arm is better.

    Attributes:
        mean: over seeds.
        low, high: 95 % interval over resampled clips: what is sure of these seeds.
        seeds: of each seed.
    """

    mean: float
    low: float
    high: float
    seeds: list[float]

    @property
    def over_seeds(self) -> tuple[float, float]:
        """95 % interval of what other seeds would give, by Student's t; from one seed nothing is known of others."""
        reach = seed_scatter(self.seeds, 0.975)
        return self.mean - reach, self.mean + reach

    @property
    def verdict(self) -> str:
        """ "better", "worse" or "undecided" of these seeds; with "in these seeds" where of others it is not sure, or
        "in the mean of these seeds" where not even these agree.
        """
        if not (self.low > 0 or self.high < 0):
            return "undecided"
        low, high = self.over_seeds
        word = "better" if self.mean < 0 else "worse"
        if low > 0 or high < 0:
            return word
        agree = all((seed < 0) == (self.mean < 0) for seed in self.seeds)
        return f"{word} in {'the mean of ' * (not agree)}{'these seeds' if len(self.seeds) > 1 else 'this seed'}"


def seed_scatter(values: Sequence[float], quantile: float) -> float:
    """How far the mean over seeds may lie from that over all, by Student's t at a quantile; infinite for one seed."""
    if len(values) < 2:
        return float("inf")
    return float(stats.t.ppf(quantile, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))


def difference(paired: Sequence[Mapping[str, Any]]) -> Difference:
    """Join the paired bootstraps of several seeds.

    Args:
        paired: of each seed, "difference", "replicates" and "shared", see `mean_replicates`.
    """
    low, high = np.percentile(mean_replicates(paired), [2.5, 97.5])
    seeds = [float(p["difference"]) for p in paired]
    return Difference(float(np.mean(seeds)), float(low), float(high), seeds)


def mean_replicates(paired: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Bootstrap draws (rounds,) of the mean over seeds. All seeds are measured against the same real clips: the r-th
    replicates of all are of the same draw of these, and are averaged. Results from before that ("shared" is absent) are
    averaged from the least to the greatest, as if seeds depended on one another wholly: the widest interval.

    Args:
        paired: of each seed, "replicates" (equally many) and "shared".
    """
    rounds = np.array([p["replicates"] for p in paired], dtype=np.float64)
    if not all(p.get("shared") for p in paired):
        rounds.sort(axis=1)
    return rounds.mean(axis=0)


def learnt(arm: Mapping[str, Any]) -> dict[str, bool]:
    """Whether an arm has learnt at all: what must be true before its distance says anything.

    distance: below a quarter of the untrained network's. classifier: finds at least 80 % in real clips, or its word on
    made ones is worth nothing. accuracy: it keeps at least 80 % of that. motion: 0.5 to 2 times that of real clips.
    """
    final, untrained = arm["final"], arm["evaluations"][0]["distance"]
    answers = {"distance": final["distance"] < untrained / 4}
    for name, found in final.get("accuracy", {}).items():
        answers[f"classifier of {name}"] = found["real"] >= SURE
        answers[f"accuracy of {name}"] = found["made"] >= KEEPS * found["real"]
    motion = final["figures"]["motion_magnitude"]
    return answers | {"motion": 0.5 <= motion["made"] / motion["real"] <= 2}
