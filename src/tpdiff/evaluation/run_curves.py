"""Losses and distances of training runs against what they cost, drawn where they may be compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tpdiff.evaluation.plots import COLORS, DASHES, Curve, curves_svg, smooth, style
from tpdiff.evaluation.run_record import RunRecord
from tpdiff.training.config import Config

MOST_RUNS = len(COLORS) * len(DASHES)
AXES = ("steps", "seconds", "operations")
_MOST_POINTS = 240
_CLIPS = ("path", "frames", "height", "width", "fps", "resize")  # keys of data that say which clips and how
_UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (0.0, "GFLOP"))


@dataclass(frozen=True)
class Costed:
    """A run with what it has cost.

    Attributes:
        run: the run.
        operations: by each of its losses, (N,); None: not known.
        reason: why not.
    """

    run: RunRecord
    operations: np.ndarray | None
    reason: str

    def costs(self, steps: np.ndarray, seconds: np.ndarray) -> dict[str, np.ndarray]:
        """Steps, seconds and operations (NaN where not known) by the ends of some steps, each (n,)."""
        spent, known = np.full(len(steps), np.nan), self.run.losses[:, 1]
        if self.operations is not None and len(known):
            last = np.searchsorted(known, steps, side="right") - 1
            there = (steps <= known[-1]) & (last >= 0)
            spent[there] = self.operations[last[there]]
        return {"steps": steps, "seconds": seconds, "operations": spent}


@dataclass(frozen=True)
class Row:
    """One quantity of the runs for which it is the same one, against each of `AXES`.

    Attributes:
        title: what it is.
        labels: whose.
        description: all of it in words.
        svgs: an `<svg>` element an axis; None where no run has that cost.
    """

    title: str
    labels: list[str]
    description: str
    svgs: list[str | None]


@dataclass(frozen=True)
class _Line:
    """A run's values (n,) at some steps and seconds.

    Attributes:
        raw: (n,) what `values` is the smoothed course of; None: they are as measured.
        floor: (n,) what they cannot well fall below; None: not known.
    """

    number: int
    steps: np.ndarray
    seconds: np.ndarray
    values: np.ndarray
    raw: np.ndarray | None = None
    floor: np.ndarray | None = None


class Curves:
    """The plots of some runs, over the same spans of cost; a run has its colour and dash in all of them.

    Attributes:
        unit: of operations: how many it is, and its name.

    Args:
        runs: at most `MOST_RUNS`.
    """

    def __init__(self, runs: Sequence[Costed]):
        self.runs = runs
        most = {axis: 0.0 for axis in AXES}
        for one in runs:
            (step, seconds), spent = one.run.reached, one.operations
            ends = (step, seconds, 0.0 if spent is None or not len(spent) else spent[-1])
            most = {axis: max(most[axis], end) for axis, end in zip(AXES, ends, strict=True)}
        hours = most["seconds"] > 7200
        size, unit = next((size or 1e9, unit) for size, unit in _UNITS if most["operations"] >= size)
        self.unit = (size, unit)
        self._per = {"steps": 1.0, "seconds": 3600.0 if hours else 1.0, "operations": size}
        self._names = {
            "steps": "optimizer steps",
            "seconds": f"training {'hours' if hours else 'seconds'}",
            "operations": f"training operations, {unit}",
        }
        self._spans = {axis: 1.02 * most[axis] / self._per[axis] for axis in AXES}  # room for the last dot

    def losses(self) -> list[Row]:
        """Training loss of every stage, coarsest first."""
        rows = []
        for key, numbers in self._alike(training_objective):
            for stage in reversed(range(self.runs[numbers[0]].run.stages)):
                lines = [line for number in numbers if (line := self._loss(number, stage))]
                rows += self._row(f"{key} stage {stage}", self._stage(numbers[0], stage), "loss", lines)
        return rows

    def held_out(self) -> list[Row]:
        """Validation loss of every stage, coarsest first."""
        rows = []
        for key, numbers in self._alike(validation_objective):
            for stage in reversed(range(self.runs[numbers[0]].run.stages)):
                lines = [line for n in numbers if (line := self._validated(n, lambda r: r["loss"].get(str(stage))))]  # noqa: B023
                rows += self._row(f"{key} held out {stage}", self._stage(numbers[0], stage), "held-out loss", lines)
        return rows

    def distances(self) -> list[Row]:
        """Distances, of every kind and count of clips."""
        rows = []
        for key, numbers in self._alike(real_clips):
            records = [record for number in numbers for record in self.runs[number].run.validations]
            for kind in dict.fromkeys(k for record in records if (k := _kind(record))):
                name, clips, real = kind
                lines = []
                for number in numbers:
                    line = self._validated(
                        number,
                        lambda r: r["distance"]["value"] if _kind(r) == kind else None,  # noqa: B023
                        lambda r: r["distance"]["floor"],
                    )
                    lines += [line] if line else []
                title = f"{name}, {clips:,} samples against {real:,} real clips"
                rows += self._row(f"{key} distance {kind}", title, "distance", lines)
        return rows

    # Inside

    def _alike(self, objective: Callable[[Config], dict[str, Any]]) -> Iterable[tuple[str, list[int]]]:
        """Runs by what they are asked, so that heights of those together compare."""
        groups: dict[str, list[int]] = {}
        for number, one in enumerate(self.runs):
            groups.setdefault(json.dumps(objective(one.run.config), sort_keys=True, default=str), []).append(number)
        return groups.items()

    def _stage(self, number: int, stage: int) -> str:
        stages = self.runs[number].run.stages
        if stages == 1:
            return "One stage"
        return f"Stage {stage}" + {0: " (finest)", stages - 1: " (coarsest)"}.get(stage, "")

    def _loss(self, number: int, stage: int) -> _Line | None:
        points = self.runs[number].run.losses
        points = points[points[:, 2] == stage]
        if not len(points):
            return None
        seconds, steps, _, raw = points.T
        return _Line(number, steps, seconds, smooth(raw, max(3, len(raw) // 25)), raw)

    def _validated(
        self, number: int, value: Callable[[Any], float | None], floor: Callable[[Any], float] | None = None
    ) -> _Line | None:
        found = [r for r in self.runs[number].run.validations if value(r) is not None]
        if not found:
            return None
        steps, seconds = (np.array([r[name] for r in found], dtype=np.float64) for name in ("step", "seconds"))
        floors = None if floor is None else np.array([floor(r) for r in found], dtype=np.float64)
        return _Line(number, steps, seconds, np.array([value(r) for r in found], dtype=np.float64), None, floors)

    def _row(self, key: str, title: str, ylabel: str, lines: Sequence[_Line]) -> list[Row]:
        """One row, or none of no lines."""
        if not lines:
            return []
        labels = [self.runs[line.number].run.label for line in lines]
        words = "; ".join(
            f"{label} from {line.values[0]:.4g} to {line.values[-1]:.4g} at step {line.steps[-1]:.0f}"
            for label, line in zip(labels, lines, strict=True)
        )
        svgs: list[str | None] = []
        for axis in AXES:
            curves = [curve for line in lines for curve in self._curves(line, axis)]
            names = (self._names[axis], ylabel)
            svgs.append(curves_svg(f"{key} {axis}", curves, self._spans[axis], *names) if curves else None)
        return [Row(title, labels, f"{title}, {ylabel}: {words}", svgs)]

    def _curves(self, line: _Line, axis: str) -> list[Curve]:
        """A line against a cost where that is known, thinned out, its floor below it."""
        (color, dash), bins = style(line.number), _bins(len(line.values), _MOST_POINTS)
        costs = self.runs[line.number].costs(line.steps, line.seconds)[axis]
        x = _thinned(costs, bins, np.mean) / self._per[axis]
        known = np.isfinite(x)
        if not known.any():
            return []

        def thinned(values: np.ndarray, middle: Callable[[np.ndarray], Any] = np.mean) -> np.ndarray:
            return _thinned(values, bins, middle)[known]

        curves = [] if line.floor is None else [Curve(x[known], thinned(line.floor), color, dash=":")]
        faint = None if line.raw is None else thinned(line.raw, np.median)
        dots = line.raw is None or len(bins) == 1
        return [*curves, Curve(x[known], thinned(line.values), color, faint, dash, dots)]


def validation_objective(config: Config) -> dict[str, Any]:
    """What decides which quantity a held-out loss is."""
    whole = config.model_dump(mode="json")
    train, checked = whole["train"], whole["validation"]
    return {
        "data": {k: whole["data"][k] for k in (*_CLIPS, "stages")},
        "latents": [whole["model"][k] for k in ("autoencoder", "latent_scale")],
        "network": config.pretrained and config.pretrained.path,
        "diffusion": whole["diffusion"],
        "stages": None if config.train.method == "vanilla" else whole["pyramid"],
        "target": [train["target"], train["loss_space"], train["loss_space"] and train["loss_floor"]],
        "held out": [checked[k] for k in ("split", "clips", "quantiles", "seed")] if config.validation.on else None,
    }


def training_objective(config: Config) -> dict[str, Any]:
    """What decides which quantity a training loss is: alignment, the density of times and the clips of shards, too.
    Shards with a `data.path` beside them are of its videos.
    """
    data, train = config.data, config.train.model_dump(mode="json")
    drawn = ("alignment", "align_within_condition", "knn_candidates", "timestep_density", "distillation")
    return {
        **validation_objective(config),
        "held out": None,
        "shards": None if data.path else data.shards,
        "buckets": data.buckets,
        "drawn": [train[name] for name in drawn],
    }


def real_clips(config: Config) -> dict[str, Any]:
    """What decides to which real clips a distance is."""
    data, checked = (section.model_dump(mode="json") for section in (config.data, config.validation))
    return {"data": [data[k] for k in _CLIPS], "split": checked["split"], "seed": checked["seed"]}


def _kind(record: Any) -> tuple[str, int, int] | None:
    found = record.get("distance")
    return (found["name"], found["clips"], found["real"]) if found else None


def _bins(count: int, most: int) -> list[slice]:
    """At most so many slices, of equally many points."""
    edges = np.linspace(0, count, min(count, most) + 1).round().astype(int)
    return [slice(a, b) for a, b in pairwise(edges.tolist())]


def _thinned(values: np.ndarray, bins: Sequence[slice], middle: Callable[[np.ndarray], Any]) -> np.ndarray:
    return np.array([middle(values[one]) for one in bins])
