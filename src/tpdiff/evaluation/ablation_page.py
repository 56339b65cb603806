"""The page of an ablation: a table of variants, their differences, and distance against operations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpdiff.evaluation.ablation import Ablation, read_variant
from tpdiff.evaluation.markdown import (
    DIFFERENCE_HEADS,
    difference_cells,
    floor_line,
    head,
    joined,
    number,
    table,
    warning_lines,
)
from tpdiff.evaluation.plots import COLORS, distance_plots, distance_strip
from tpdiff.evaluation.study_figures import difference

PLOT = "fronts.png"
CONCLUSION = "conclusion.md"  # beside results, by whoever has read them
Results = Mapping[str, Sequence[Mapping[str, Any]]]  # of each variant, one a seed


def finished(study: Ablation, results: Path) -> Results:
    """The finished results of every variant that has any, in the study's order, by seed.

    Raises:
        ValueError: one was made with other settings.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for name in study.variants:
        read = [read_variant(study, results, seed, name) for seed in study.seeds]
        if done := [result for result in read if result.get("done")]:
            found[name] = done
    return found


def write_page(study: Ablation, results: Path, command: str) -> Path:
    """Write results/README.md and its plot from what is finished, with results/conclusion.md if there is one; returns
    the page.

    Raises:
        ValueError: nothing is finished, or what is kept was made with other settings.
    """
    found = finished(study, results)
    if not found:
        raise ValueError(f"no variant is finished in {results}")
    draw(study, found, results / PLOT)
    page = results / "README.md"
    said = results / CONCLUSION
    conclusion = said.read_text(encoding="utf-8").strip() if said.is_file() else ""
    page.write_text("\n".join(_lines(study, found, command, conclusion)) + "\n", encoding="utf-8")
    return page


def draw(study: Ablation, found: Results, path: Path) -> None:
    """Distance against operations of a clip, a line a variant, a dot a seed; by variant alone where all take one number
    of steps, of which there is no line."""
    if len(study.steps) == 1:
        at = study.steps[0]
        distance_strip(path, {name: [_at(s, at)["distance"] for s in seeds] for name, seeds in found.items()})
        return
    with distance_plots(path) as (plot,):
        for place, (name, seeds) in enumerate(found.items()):
            color, style = COLORS[place % len(COLORS)], ("-", "--", ":")[place // len(COLORS) % 3]
            x = np.array([[_at(s, steps)["sampling_flops"] / 1e9 for steps in study.steps] for s in seeds])
            y = np.array([[_at(s, steps)["distance"] for steps in study.steps] for s in seeds])
            plot.plot(x.mean(0), y.mean(0), style, color=color, label=name)
            plot.scatter(x, y, s=10, color=color, alpha=0.5)
        plot.set_xlabel("GFLOP a clip")
        plot.set_xscale("log")


def _lines(study: Ablation, found: Results, command: str, conclusion: str) -> list[str]:
    first = next(iter(found.values()))[0]
    last = study.steps[-1]
    begun = [seed for seed in study.seeds if any(seed in _seeds(done) for done in found.values())]
    waiting = [
        f"{name} (seed {seed})" for name in study.variants for seed in begun if seed not in _seeds(found.get(name, ()))
    ]
    waiting += [f"seed {seed}" for seed in study.seeds if seed not in begun]
    return [
        *head(study.title, command, first["made"], waiting),
        "",
        f"Every trained variant has had {study.operations:g} TFLOP of training (recipe `{study.recipe}`); those "
        f"sampled from another's weights say so. All are judged by {study.clips} samples a seed from the same noise "
        "and captions. Lower distances are better.",
        "",
        f"![distance {'by variant' if len(study.steps) == 1 else 'against operations of a clip'}]({PLOT})",
        "",
        "## Distance by sampling steps, by seed",
        "",
        *_distances(study, found),
        "",
        floor_line(_at(first, last), first["protocol"]),
        *warning_lines(_at(s, steps) for seeds in found.values() for s in seeds for steps in study.steps),
        "",
        "## The best by budget",
        "",
        *_front(study, found),
        "",
        "Each is better in the mean over the seeds than everything that takes as many operations or fewer: the "
        "schedule for a budget is the last that it pays for.",
        "",
        *(["## What follows", "", conclusion, ""] if conclusion else []),
        f"## Differences, at {last} steps",
        "",
        *_differences(study, found),
        "",
        "## What the clips show",
        "",
        *_shown(study, found),
        "",
        "## Protocol",
        "",
        *(f"- {key}: {value}" for key, value in first["protocol"].items()),
    ]


def _distances(study: Ablation, found: Results) -> list[str]:
    rows = []
    for name, seeds in found.items():
        variant, told = study.variants[name], [s["training"]["optimizer_steps"] for s in seeds if s.get("training")]
        trained = f"{' / '.join(map(str, told))} steps" if told else f"from {variant.of}"
        cells = [
            f"{joined(_at(s, n)['distance'] for s in seeds)} ({_at(seeds[0], n)['sampling_flops'] / 1e9:.3g} GFLOP)"
            for n in study.steps
        ]
        rows.append([name, trained, *cells])
    return table(["variant", "trained", *(f"{steps} steps" for steps in study.steps)], rows)


def _front(study: Ablation, found: Results) -> list[str]:
    rows: list[list[str]] = []
    least = float("inf")
    for flops, distance, name, steps in sorted(_points(study, found)):
        if distance < least:
            least = distance
            by_seed = joined(_at(s, steps)["distance"] for s in found[name])
            rows.append([f"{flops / 1e9:.3g}", name, str(steps), number(distance), by_seed])
    return table(["GFLOP a clip", "variant", "steps", "distance", "by seed"], rows)


def _points(study: Ablation, found: Results) -> list[tuple[float, float, str, int]]:
    """(operations, distance, variant, steps), means over the seeds; of variants that share the seeds of the first that
    has the most."""
    most = _seeds(max(found.values(), key=len))

    def mean(name: str, steps: int, key: str) -> float:
        return float(np.mean([_at(s, steps)[key] for s in found[name]]))

    return [
        (mean(name, n, "sampling_flops"), mean(name, n, "distance"), name, n)
        for name, seeds in found.items()
        for n in study.steps
        if _seeds(seeds) == most
    ]


def _seeds(results: Sequence[Mapping[str, Any]]) -> set[int]:
    return {result["seed"] for result in results}


def _differences(study: Ablation, found: Results) -> list[str]:
    rows = []
    for name, seeds in found.items():
        pairs = [pair for s in seeds if (pair := _at(s, study.steps[-1]).get("paired"))]
        base = study.base(name)
        if base is None or not pairs:
            continue
        rows.append([name, base, *difference_cells(difference(pairs))])
    return table(["variant", "against", *DIFFERENCE_HEADS], rows)


def _shown(study: Ablation, found: Results) -> list[str]:
    rows = []
    for variant, seeds in found.items():
        finals = [_at(s, study.steps[-1]) for s in seeds]
        cells = [
            f"{joined(f['figures'][name]['made'] for f in finals)} (real {number(figure['real'])})"
            for name, figure in finals[0]["figures"].items()
            if name in ("flicker", "motion_magnitude")
        ]
        accuracy = "; ".join(
            f"{fact} {joined(f['accuracy'][fact]['made'] for f in finals)} (real {a['real']:.2f})"
            for fact, a in finals[0]["accuracy"].items()
        )
        untold = "" if study.told(variant) else "none: it is told no caption"
        rows.append([variant, *(cells or ["", ""]), accuracy or untold])
    return table(["variant", "flicker", "motion, pixels a frame", "classifier's accuracy"], rows)


def _at(result: Mapping[str, Any], steps: int) -> Mapping[str, Any]:
    judged: Mapping[str, Any] = result["judged"][str(steps)]
    return judged
