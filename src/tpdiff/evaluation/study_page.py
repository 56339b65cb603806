"""A study's page: Markdown with its tables, and one plot of distance against seconds, steps and operations."""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

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
from tpdiff.evaluation.plots import distance_plots, style
from tpdiff.evaluation.study import Study, read_seed, read_trial
from tpdiff.evaluation.study_figures import AXES, IN_A_ROW, difference, learnt, plateau, reached, sooner, to_final
from tpdiff.training.load_config import flatten

PLOT = "distance.png"
SECONDS = {"wall": "seconds", "cpu": "seconds of processor time"}
AXIS_NAMES = {"seconds": "training seconds", "steps": "optimizer steps", "flops": "training operations"}


def finished_seeds(study: Study, results: Path) -> list[dict[str, Any]]:
    """The results of all seeds that are finished, in the study's order.

    Raises:
        ValueError: one was made with other settings.
    """
    found = [read_seed(study, results, seed) for seed in study.seeds]
    return [result for result in found if result.get("done")]


def write_page(study: Study, results: Path, command: str) -> Path:
    """Write results/README.md and its plot from what is finished; returns the page.

    Raises:
        ValueError: no seed is finished, or what is kept was made with other settings.
    """
    seeds = finished_seeds(study, results)
    if not seeds:
        raise ValueError(f"no seed is finished in {results}")
    draw(study, seeds, results / PLOT)
    page = results / "README.md"
    page.write_text("\n".join(_lines(study, seeds, results, command)) + "\n", encoding="utf-8")
    return page


def draw(study: Study, seeds: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Distance against each kind of cost: a thin line a seed, a thick one for their mean."""
    with distance_plots(path, len(AXES)) as plots:
        for plot, axis in zip(plots, AXES, strict=True):
            for place, arm in enumerate(study.arms):
                color, dash = style(place)
                runs = [s["arms"][arm]["evaluations"][1:] for s in seeds]
                x = np.array([[e[axis] for e in run] for run in runs], dtype=float)
                y = np.array([[e["distance"] for e in run] for run in runs])
                for costs, distances in zip(x, y, strict=True):
                    plot.plot(costs, distances, color=color, linestyle=dash, alpha=0.35, linewidth=0.8)
                plot.plot(x.mean(0), y.mean(0), color=color, linestyle=dash, linewidth=2, label=arm)
            plot.set_xlabel(AXIS_NAMES[axis])
        plots[0].set_title(f"{study.clips} samples", loc="left", fontsize=9)


def _lines(study: Study, seeds: Sequence[Mapping[str, Any]], results: Path, command: str) -> list[str]:
    base = next(iter(study.arms))
    waiting = [f"seed {s}" for s in study.seeds if s not in {r["seed"] for r in seeds}]
    return [
        *head(study.title, command, seeds[0]["made"], waiting),
        "",
        f"Arms share data, seed and {SECONDS[study.clock]} ({study.seconds:g} each), and take turns of "
        f"{study.slice_seconds:g} s on one machine; evaluations, checkpoints and warm-up do not count. "
        "Lower distances are better. In all else than this they are alike:",
        "",
        *_settings_table(study, seeds[0]),
        "",
        f"![distance against training cost]({PLOT})",
        "",
        f"## After {study.seconds:g} s",
        "",
        *_final_table(study, seeds),
        "",
        f"## Against {base}",
        "",
        *_difference_table(study, seeds, base),
        "",
        f"Reached: the first of {IN_A_ROW} evaluations in a row at or below the mean of the last {IN_A_ROW} of {base}; "
        f"how much sooner is counted from the first of those {IN_A_ROW} of {base}.",
        "",
        *_sooner_table(study, seeds, base),
        "",
        f"How many times sooner an arm stands where {base} stands after so many seconds, by straight lines between "
        f"evaluations: of the seeds' mean curves and, in brackets, of each seed's. Evaluations are of {study.clips} "
        f"samples; the last lie {_apart(study, seeds)} from the {study.final_clips} samples above. Scaled: every curve "
        "times what brings its end there.",
        "",
        "## Have they learnt?",
        "",
        *_learnt_table(study, seeds),
        "",
        "## Learning rates",
        "",
        *_trial_table(study, results),
        "",
        "## Protocol",
        "",
        *(f"- {key}: {value}" for key, value in seeds[0]["protocol"].items()),
    ]


def _settings_table(study: Study, result: Mapping[str, Any]) -> list[str]:
    """What differs between the arms' configurations, learning rates apart."""
    flat = [dict(flatten(result["arms"][arm]["config"])) for arm in study.arms]
    keys = sorted({key for one in flat for key in one} - {"train.lr"})
    apart = [key for key in keys if any(one.get(key) != flat[0].get(key) for one in flat)]
    rows = [
        [arm, *(json.dumps(one.get(key)).strip('"') for key in apart)]
        for arm, one in zip(study.arms, flat, strict=True)
    ]
    return table(["arm", *apart], rows)


def _apart(study: Study, seeds: Sequence[Mapping[str, Any]]) -> str:
    """How far the arms' last evaluations lie from their final distances, least to most."""
    arms = [seed["arms"][arm] for seed in seeds for arm in study.arms]
    shares = [100 * (arm["evaluations"][-1]["distance"] / arm["final"]["distance"] - 1) for arm in arms]
    return f"{min(shares):+.0f} to {max(shares):+.0f} %"


def _final_table(study: Study, seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for arm in study.arms:
        finals = [s["arms"][arm]["final"] for s in seeds]
        last = [s["arms"][arm]["evaluations"][-1] for s in seeds]
        rows.append(
            [
                arm,
                joined(s["arms"][arm]["lr"] for s in seeds[:1]),
                joined(f["distance"] for f in finals),
                joined(f["kernel"] for f in finals),
                joined(plateau(s["arms"][arm]["evaluations"]) for s in seeds),
                joined(e["steps"] for e in last),
                joined(e["flops"] / 1e15 for e in last),
            ]
        )
    final = seeds[0]["arms"][next(iter(study.arms))]["final"]
    heads = ["arm", "lr", f"distance, {study.final_clips} samples, by seed", "kernel distance", "plateau by seed"]
    return [
        *table([*heads, "steps", "PFLOP"], rows),
        "",
        floor_line(final, seeds[0]["protocol"]),
        *warning_lines(s["arms"][arm]["final"] for s in seeds for arm in study.arms),
    ]


def _difference_table(study: Study, seeds: Sequence[Mapping[str, Any]], base: str) -> list[str]:
    rows = []
    for arm in list(study.arms)[1:]:
        found = difference([s["paired"][arm] for s in seeds])
        sooner = [reached(s["arms"][arm]["evaluations"], s["arms"][base]["evaluations"]) for s in seeds]
        cells = [joined(r.ratios[axis] if r else None for r in sooner) for axis in AXES]
        rows.append([arm, *difference_cells(found), *cells])
    heads = ["arm", *DIFFERENCE_HEADS]
    return table([*heads, "sooner in seconds, by seed", "in steps", "in operations"], rows)


def _sooner_table(study: Study, seeds: Sequence[Mapping[str, Any]], base: str) -> list[str]:
    curves = {arm: [s["arms"][arm]["evaluations"] for s in seeds] for arm in study.arms}
    scaled = {arm: [to_final(s["arms"][arm]) for s in seeds] for arm in study.arms}
    moments = [f"{e['seconds']:.0f} s" for e in curves[base][0][2::2]]
    rows = []
    for arm, (kind, by_arm) in itertools.product(list(study.arms)[1:], (("", curves), (", scaled", scaled))):
        mean = sooner(by_arm[arm], by_arm[base]).values()
        single = [sooner([one], [of]).values() for one, of in zip(by_arm[arm], by_arm[base], strict=True)]
        by_moment = zip(mean, *single, strict=True)
        rows.append([arm + kind, *(f"{joined([ratio])} ({joined(of_seeds)})" for ratio, *of_seeds in by_moment)])
    return table(["sooner than " + base, *moments], rows)


def _learnt_table(study: Study, seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    cuts = all("cuts" in one["final"]["figures"] for result in seeds for one in result["arms"].values())
    for arm in study.arms:
        for result in seeds:
            one = result["arms"][arm]
            final, figures = one["final"], one["final"]["figures"]
            motion = [figures[name] for name in ("motion_magnitude", "motion_acceleration")]
            accuracy = "; ".join(
                f"{name} {a['made']:.2f} (real {a['real']:.2f})" for name, a in final.get("accuracy", {}).items()
            )
            fails = [name for name, fine in learnt(one).items() if not fine]
            rows.append(
                [
                    arm,
                    str(result["seed"]),
                    f"{number(final['distance'])} of {number(one['evaluations'][0]['distance'])}",
                    accuracy,
                    *(f"{one['made']:.2f} (real {one['real']:.2f})" for one in motion),
                    f"{figures['flicker']['made']:.4f} (real {figures['flicker']['real']:.4f})",
                    *([f"{figures['cuts']['made']:.0%} (real {figures['cuts']['real']:.0%})"] if cuts else []),
                    f"no: {', '.join(fails)}" if fails else "yes",
                ]
            )
    heads = ["arm", "seed", "distance, of the untrained", "classifier's accuracy", "motion, pixels a frame"]
    return table([*heads, "its acceleration", "flicker", *(["clips with a cut"] if cuts else []), "learnt"], rows)


def _trial_table(study: Study, results: Path) -> list[str]:
    trials = [read_trial(study, results, lr) for lr in study.learning_rates]
    done = [t for t in trials if t.get("done")]
    rows = [[arm, *(number(t["arms"][arm]["distance"]) for t in done)] for arm in study.arms]
    made = table(["arm", *(f"{t['lr']:g}" for t in done)], rows)
    return [f"Distance after {study.sweep_seconds:g} s, seed {study.sweep_seed}; each arm keeps its best.", "", *made]
