"""The page of a study of conversion: its claim, its tables, and distance against what a clip costs."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tpdiff.evaluation.conversion import ConversionStudy, read_conversion, refuse_other_claims
from tpdiff.evaluation.conversion_run import LAST_PART, ORIGINAL
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
from tpdiff.evaluation.plots import COLORS, distance_plots
from tpdiff.evaluation.study_figures import Difference, difference, mean_replicates, seed_scatter

PLOT = "distance.png"
MARGIN, PLATEAU = 0.05, 0.02
Seeds = Sequence[Mapping[str, Any]]


def finished(study: ConversionStudy, results: Path) -> list[dict[str, Any]]:
    """The results of all seeds that are finished, in the study's order.

    Raises:
        ValueError: one was made with other settings.
    """
    found = [read_conversion(study, results, seed) for seed in study.seeds]
    return [result for result in found if result.get("done")]


def loss_bound(seeds: Seeds, name: str) -> float:
    """The upper end of the one-sided 95 % interval of a variant's distance less the original's, over the original's:
    over clips, what is sure of these seeds.

    Args:
        seeds: finished results; their bootstrap draws are averaged.
        name: the variant.
    """
    draws = mean_replicates([s["paired"][ORIGINAL][name] for s in seeds])
    return float(np.percentile(draws, 95) / np.mean([_final(s, ORIGINAL)["distance"] for s in seeds]))


def seeds_bound(seeds: Seeds, name: str) -> float:
    """The same over seeds, by Student's t: what is sure of others; infinite for one."""
    apart = [s["paired"][ORIGINAL][name]["difference"] for s in seeds]
    bound = float(np.mean(apart)) + seed_scatter(apart, 0.95)
    return bound / float(np.mean([_final(s, ORIGINAL)["distance"] for s in seeds]))


def improvement(result: Mapping[str, Any]) -> float:
    """The part of its distance that the original lost in the last fifth of its training."""
    early, last = result["early"]["final"]["distance"], _final(result, ORIGINAL)["distance"]
    return float((early - last) / early)


def write_page(study: ConversionStudy, results: Path, command: str) -> Path:
    """Write results/README.md and its plot from what is finished; returns the page.

    Raises:
        ValueError: no seed is finished, one that is lacks the arm that the claim is about, or what is kept was made
            with other settings.
    """
    seeds = finished(study, results)
    if not seeds:
        raise ValueError(f"no seed is finished in {results}")
    for s in seeds:
        refuse_other_claims(study, results, s)
    draw(seeds, results / PLOT)
    page = results / "README.md"
    page.write_text("\n".join(_lines(study, seeds, command)) + "\n", encoding="utf-8")
    return page


def _guidance(scale: float) -> str:
    return "without guidance" if scale == 1 else f"with guidance of {scale:g}"


def _shared(seeds: Seeds) -> list[str]:
    """The variants that all seeds have."""
    return [name for name in seeds[0]["variants"] if all(name in s["variants"] for s in seeds)]


def draw(seeds: Seeds, path: Path) -> None:
    """Distance against operations of a clip: a dot a seed, a ring for their mean."""
    with distance_plots(path) as (plot,):
        for place, name in enumerate(_shared(seeds)):
            color, marker = COLORS[place % len(COLORS)], "os^Dv"[place // len(COLORS)]
            x = [s["variants"][name]["sampling_flops"] / 1e9 for s in seeds]
            y = [_final(s, name)["distance"] for s in seeds]
            plot.scatter(x, y, s=14, color=color, marker=marker, alpha=0.5)
            label = f"{name} ({_steps(seeds[0]['variants'][name]['steps'])})"
            plot.scatter(np.mean(x), np.mean(y), s=70, facecolors="none", edgecolors=color, marker=marker, label=label)
        plot.set_xlabel("GFLOP a clip")


def _lines(study: ConversionStudy, seeds: Seeds, command: str) -> list[str]:
    claimed = next(iter(study.arms))
    waiting = [f"{arm} (seed {s['seed']})" for arm in study.arms for s in seeds if arm not in s["variants"]]
    waiting += [f"seed {s}" for s in study.seeds if s not in {r["seed"] for r in seeds}]
    return [
        *head(study.title, command, seeds[0]["made"], waiting),
        "",
        f"An original is trained without stages and sampled at {study.steps} steps. Each arm trains on from it by at "
        f"most {study.budget:.0%} of the operations of its training; arms with stages are sampled at "
        f"{_steps(study.staged_steps)} steps, coarsest first. All are judged by {study.clips} samples from the same "
        f"noise and captions, {_guidance(study.guidance_scale)}. Lower distances are better.",
        "",
        f"![distance against operations of a clip]({PLOT})",
        "",
        "## The claim",
        "",
        *_claim(seeds, claimed),
        "",
        "## Every variant",
        "",
        *_variants(study, seeds),
        "",
        floor_line(_final(seeds[0], ORIGINAL), seeds[0]["protocol"]),
        *warning_lines(_final(s, name) for s in seeds for name in _shared(seeds)),
        "",
        f"## {claimed} against the others",
        "",
        *_against(seeds, claimed),
        "",
        "## Had the original learnt all it could?",
        "",
        *_plateau(seeds),
        "",
        "## What the clips show",
        "",
        *_shown(seeds),
        "",
        "## Protocol",
        "",
        *(f"- {key}: {value}" for key, value in seeds[0]["protocol"].items()),
    ]


def _claim(seeds: Seeds, claimed: str) -> list[str]:
    bound = loss_bound(seeds, claimed)
    cheaper = [_cost(s, ORIGINAL) / _cost(s, claimed) for s in seeds]
    faster = [s["seconds"]["ratio"] for s in seeds]
    found = difference([s["paired"][ORIGINAL][claimed] for s in seeds])
    further = seeds_bound(seeds, claimed)
    held = "does not hold" if bound > MARGIN else "holds" if further <= MARGIN else "holds in these seeds only"
    return [
        f"With one-sided 95 % confidence, {claimed} loses at most {MARGIN:.0%} of the original's distance: **{held}**. "
        f"The bound is {bound:+.1%} over clips and {_percent(further)} over seeds (difference {number(found.mean)}, by "
        f"seed {joined(found.seeds)}). "
        f"A clip takes {joined(cheaper)} times fewer operations and {joined(faster)} times less time "
        f"({seeds[0]['seconds']['clips']} clips at once, medians of {len(seeds[0]['seconds']['rounds'][ORIGINAL])} "
        "rounds in turns)."
    ]


def _variants(study: ConversionStudy, seeds: Seeds) -> list[str]:
    rows = []
    for name in _shared(seeds):
        spent = [_training(s, name) for s in seeds]
        shares = [t["flops"] / _training(s, ORIGINAL)["flops"] for t, s in zip(spent, seeds, strict=True) if t]
        bound = "" if name == ORIGINAL else f"{loss_bound(seeds, name):+.1%}"
        rows.append(
            [
                name,
                _steps(seeds[0]["variants"][name]["steps"]),
                joined(_cost(s, name) / 1e9 for s in seeds[:1]),
                joined(t["optimizer_steps"] for t in spent if t),
                "" if name == ORIGINAL or not shares else f"{max(shares):.1%}",
                joined(_final(s, name)["distance"] for s in seeds),
                bound,
                joined(_final(s, name)["kernel"] for s in seeds),
            ]
        )
    heads = ["variant", "sampling steps", "GFLOP a clip", "training steps", "of the original's operations"]
    return table([*heads, "distance by seed", "loses at most (one-sided 95 %)", "kernel distance"], rows)


def _against(seeds: Seeds, claimed: str) -> list[str]:
    rows = []
    for name in _shared(seeds):
        if name == claimed:
            continue
        found = difference([s["paired"][claimed][name] for s in seeds])  # the other's less the claimed one's
        turned = Difference(-found.mean, -found.high, -found.low, [-value for value in found.seeds])
        rows.append([name, *difference_cells(turned)])
    return table(["against", *DIFFERENCE_HEADS], rows)


def _plateau(seeds: Seeds) -> list[str]:
    rows = []
    for s in seeds:
        early, last = s["early"], _final(s, ORIGINAL)
        steps = f"{early['steps']} of {_training(s, ORIGINAL)['optimizer_steps']}"
        cells = [number(early["final"]["distance"]), number(last["distance"]), f"{improvement(s):.1%}"]
        rows.append([str(s["seed"]), steps, *cells, "yes" if improvement(s) < PLATEAU else "no"])
    heads = ["seed", f"steps at {LAST_PART:.0%}", "distance there", "at the end", "improvement"]
    return table([*heads, f"below {PLATEAU:.0%}"], rows)


def _shown(seeds: Seeds) -> list[str]:
    rows = []
    for name in _shared(seeds):
        for s in seeds:
            final = _final(s, name)
            motion = final["figures"].get("motion_magnitude")
            accuracy = "; ".join(
                f"{fact} {a['made']:.2f} (real {a['real']:.2f})" for fact, a in final.get("accuracy", {}).items()
            )
            moved = f"{motion['made']:.2f} (real {motion['real']:.2f})" if motion else ""
            rows.append([name, str(s["seed"]), accuracy, moved])
    return table(["variant", "seed", "classifier's accuracy", "motion, pixels a frame"], rows)


def _final(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    final: Mapping[str, Any] = result["variants"][name]["final"]
    return final


def _training(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    return result["variants"][name].get("training", {})


def _cost(result: Mapping[str, Any], name: str) -> float:
    return float(result["variants"][name]["sampling_flops"])


def _percent(share: float) -> str:
    return "unknown" if math.isinf(share) else f"{share:+.1%}"


def _steps(steps: int | Sequence[int]) -> str:
    return str(steps) if isinstance(steps, int) else "-".join(map(str, steps))
