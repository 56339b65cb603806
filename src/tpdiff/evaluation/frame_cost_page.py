"""The page of what a model takes by its frames: tables of tokens, seconds and memory, and their curves."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tpdiff.evaluation.frame_cost import FrameTable
from tpdiff.evaluation.latency import Speedup, speedup
from tpdiff.evaluation.markdown import head, number, table
from tpdiff.evaluation.plots import COLORS
from tpdiff.training.dry_run import ALLOCATED

PLOT = "frames.png"
Row = Mapping[str, Any]  # a number of frames, a method


@dataclass(frozen=True)
class FrameCost:
    """A number of frames.

    Attributes:
        plain, pyramid: what was measured of each method.
    """

    plain: Row
    pyramid: Row

    @property
    def plan(self) -> Mapping[str, Any]:
        """Stages, coarsest first, and the plain schedule, as planned."""
        planned: Mapping[str, Any] = self.pyramid["plan"]
        return planned

    @property
    def frames(self) -> int:
        return int(self.plan["size"][0])

    def mean(self, figure: str) -> float:
        """Of tokens or TFLOPs of a network call, over the pyramid's sampling steps."""
        stages = self.plan["stages"]
        return sum(s[figure] * s["steps"] for s in stages) / sum(s["steps"] for s in stages)

    def limit(self, work: str) -> float:
        """Counted operations of "sampling" or "training", plain over pyramid.

        A training step counts by its forward pass: the backward one is twice that, whatever the size.
        """
        if work == "sampling":
            return float(self.plan["speedup"])
        shares = {stage["stage"]: stage["share"] for stage in self.pyramid["turns"][0]["stages"]}
        drawn = sum(shares[stage["stage"]] * stage["tflops_per_step"] for stage in self.plan["stages"])
        return float(self.plan["plain"]["tflops_per_step"] / drawn)

    def speedup(self, work: str) -> Speedup:
        """Seconds of "sampling" or "training", plain over pyramid."""
        return speedup(*([turn[f"{work}_seconds"] for turn in row["turns"]] for row in (self.plain, self.pyramid)))


def middle(row: Row, figure: str) -> float:
    """Of a figure in every turn; not a number where the system does not tell it."""
    seen = [turn[figure] for turn in row["turns"]]
    return float("nan") if None in seen else median(seen)


def write_page(asked: FrameTable, costs: Sequence[FrameCost], results: Path, command: str) -> Path:
    """Write results/README.md and its plot; returns the page.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    draw(costs, results / PLOT)
    page = results / "README.md"
    page.write_text("\n".join(_lines(asked, costs, command)) + "\n", encoding="utf-8")
    return page


def draw(costs: Sequence[FrameCost], path: Path) -> None:
    """Tokens, seconds and memory against frames, a line a method."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('plots need matplotlib: pip install "tpdiff[report]"') from error

    figure = Figure(figsize=(10, 5), layout="constrained", dpi=120)
    frames = [cost.frames for cost in costs]
    tokens = [[cost.plan["plain"]["tokens"] for cost in costs], [cost.mean("tokens") for cost in costs]]
    panels = {"tokens of a network call, mean": tokens}
    for work in ("sampling", "training"):
        name = "a sampling" if work == "sampling" else "a training step"
        panels[f"seconds of {name}"] = _both(costs, f"{work}_seconds", 1)
        panels[f"GiB, {work}"] = _both(costs, f"{work}_bytes", 2**30)
    places = list(figure.subplots(2, 3).flat)
    for place, (title, lines) in zip(places, panels.items(), strict=False):
        for line, name, color in zip(lines, ("plain", "pyramid"), COLORS, strict=False):
            place.plot(frames, line, "o-", color=color, label=name, markersize=3)
        place.set_title(title, fontsize=9)
        place.set_xlabel("frames")
        place.set_xticks(frames)
        place.set_ylim(bottom=0)
        place.grid(alpha=0.2)
    places[-1].axis("off")
    places[-1].legend(*places[0].get_legend_handles_labels(), frameon=False, loc="center")
    FigureCanvasAgg(figure).print_png(str(path))


def _both(costs: Sequence[FrameCost], figure: str, unit: float) -> list[list[float]]:
    return [
        [middle(row, figure) / unit for row in rows] for rows in ([c.plain for c in costs], [c.pyramid for c in costs])
    ]


def _lines(asked: FrameTable, costs: Sequence[FrameCost], command: str) -> list[str]:
    first = costs[-1].pyramid
    size, turns = first["asked"], len(first["turns"])
    memory = (
        "the most that PyTorch allocated on the GPU"
        if first["device"] == "cuda"
        else "the most that was resident, less what the process held before its network was built"
    )
    network = f"{first['plan']['title']}, {size['height']}x{size['width']}, {first['dtype']}"
    return [
        *head(asked.title, command, first),
        "",
        f"{network}, random weights on noise; {asked.stages} temporal stages that halve the frames against the plain "
        f"method. Medians of {turns} turns of each, in turns, every one in a process of its own. The limit is the "
        "ratio of counted operations.",
        "",
        f"![tokens, seconds and memory against frames]({PLOT})",
        "",
        "## A network call",
        "",
        "The pyramid's are means over its sampling steps.",
        "",
        *_calls(costs),
        "",
        f"## A sampling of {asked.steps} steps",
        "",
        "Whole calls of diffusers' pipeline, from noise to latents, without guidance.",
        "",
        *_seconds(costs, "sampling"),
        "",
        "## A training step",
        "",
        f"Of {size['batch']} encoded clip{'s' * (size['batch'] > 1)}: the trainer's own, as `tpdiff train --dry-run` "
        "takes them; the pyramid's is the mean over its stages, as they are drawn.",
        "",
        *_seconds(costs, "training"),
        "",
        "## Memory",
        "",
        f"GiB: {memory}. Weights are in it, of training also gradients, moments and averages. The finest stage is as "
        "large as the plain method's clips, so that peaks are equal where nothing else differs; what a step of a "
        "coarser stage needs less is seen by stage, finest first "
        f"({ALLOCATED if first['device'] == 'cuda' else 'what a step adds to what stays between steps'}).",
        "",
        *_memory(costs),
    ]


def _calls(costs: Sequence[FrameCost]) -> list[str]:
    heads = ["frames", "latents", "tokens, plain", "pyramid", "TFLOP, plain", "pyramid", "plain / pyramid"]
    rows = []
    for cost in costs:
        plain = cost.plan["plain"]
        latents = " → ".join("x".join(map(str, s["latent"])) for s in cost.plan["stages"])
        tflops = plain["tflops_per_step"], cost.mean("tflops_per_step")
        tokens = [str(plain["tokens"]), f"{cost.mean('tokens'):.0f}"]
        rows.append([str(cost.frames), latents, *tokens, *map(number, tflops), f"{tflops[0] / tflops[1]:.2f}"])
    return table(heads, rows)


def _seconds(costs: Sequence[FrameCost], work: str) -> list[str]:
    rows = []
    for cost in costs:
        faster, limit = cost.speedup(work), cost.limit(work)
        by_turn = " / ".join(f"{ratio:.2f}" for ratio in faster.paired)
        times = [number(middle(row, f"{work}_seconds")) for row in (cost.plain, cost.pyramid)]
        reached = f"{faster.share(limit):.1%}"
        rows.append([str(cost.frames), *times, f"{faster.ratio:.2f} ({by_turn})", f"{limit:.2f}", reached])
    return table(["frames", "plain, s", "pyramid, s", "plain / pyramid (by turn)", "limit", "reached"], rows)


def _memory(costs: Sequence[FrameCost]) -> list[str]:
    rows = []
    for cost in costs:
        cells = []
        for work in ("sampling", "training"):
            plain, pyramid = (middle(row, f"{work}_bytes") / 2**30 for row in (cost.plain, cost.pyramid))
            ratio = plain / pyramid
            cells += [number(plain), number(pyramid), number(ratio) if math.isnan(ratio) else f"{ratio:.2f}"]
        by_stage = zip(*(turn["stages"] for turn in cost.pyramid["turns"]), strict=True)
        steps = (middle({"turns": stage}, "memory") / 2**30 for stage in by_stage)
        rows.append([str(cost.frames), *cells, " / ".join(map(number, steps))])
    heads = ["plain", "pyramid", "plain / pyramid"]
    sides = [f"{work}, {head}" if head == "plain" else head for work in ("sampling", "training") for head in heads]
    return table(["frames", *sides, "a training step, by stage"], rows)
