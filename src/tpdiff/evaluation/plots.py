"""Loss curves as SVG that stands inside a page and takes the page's text colour; a bench as a picture."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tpdiff.evaluation.results import ArmResult, LossPoint
from tpdiff.files import write_whole

if TYPE_CHECKING:
    from tpdiff.evaluation.bench import Bench

DASHES = ("-", "--", ":")
COLORS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#e11d48")  # readable on white and on near-black
_INK = "#010203"  # stands for the page's text colour until the SVG is written
_MOST_POINTS = 600


def style(number: int) -> tuple[str, str]:
    """(colour, dash) of a line by its number; after 15 they come again."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        x: (n,) costs.
        y: (n,) values.
        color: a CSS colour.
        faint: (n,) what `y` is the smoothed course of; None: nothing.
        dash: matplotlib's style of the line.
        dots: whether every point is marked.
    """

    x: np.ndarray
    y: np.ndarray
    color: str
    faint: np.ndarray | None = None
    dash: str = "-"
    dots: bool = False


@dataclass(frozen=True)
class LossPanel:
    """One small plot.

    Attributes:
        title: arm and stage.
        svg: the `<svg>` element.
        description: what it shows, in words.
    """

    title: str
    svg: str
    description: str


def require_matplotlib() -> None:
    """Raise ModuleNotFoundError where matplotlib is not installed, with what installs it."""
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('plots need matplotlib: pip install "tpdiff[report]"') from error


def loss_panels(arms: Sequence[ArmResult]) -> list[LossPanel]:
    """Loss against training seconds, one panel for every stage of every arm, all over the same span of time.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    span = max((point.seconds for arm in arms for point in arm.losses), default=0.0)
    panels = []
    for index, arm in enumerate(arms):
        stages = sorted({point.stage for point in arm.losses}, reverse=True)
        for stage in stages:
            points = [point for point in arm.losses if point.stage == stage]
            title = arm.label if len(stages) == 1 else f"{arm.label}, stage {stage}"
            if len(stages) > 1 and stage in (stages[0], stages[-1]):
                title += " (coarsest)" if stage == stages[0] else " (finest)"
            panels.append(_panel(title, points, span, COLORS[index % len(COLORS)]))
    return panels


def bench_picture(bench: Bench, path: Path) -> None:
    """Seconds of one sampling, plain and pyramidal, the latter by stage, and what was planned, to a PNG file.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    plain, pyramid = (row.median for row in bench.rows)
    plan = bench.plan
    figure = Figure(figsize=(7.5, 2.6), layout="constrained", dpi=150)
    axes = figure.add_subplot()
    axes.barh("plain", plain, color="#94a3b8")
    axes.text(plain, 0, f" {plain:.3g} s", va="center")
    left = 0.0
    for place, (stage, seconds) in enumerate(zip(plan.stages, bench.step_seconds, strict=True)):
        spent = seconds * stage.steps
        label = f"stage {stage.stage}: {stage.steps} steps, {stage.tokens:,} tokens"
        axes.barh("pyramid", spent, left=left, color=COLORS[place % len(COLORS)], label=label)
        left += spent
    axes.barh("pyramid", max(pyramid - left, 0), left=left, color="#cbd5e1", label="all else")
    axes.text(max(pyramid, left), 1, f" {pyramid:.3g} s, {plain / pyramid:.2f}x", va="center")
    axes.axvline(plain / plan.speedup, color="#0f172a", linestyle=":", label=f"planned, {plan.speedup:.2f}x")
    axes.set_xlim(0, max(plain, pyramid) * 1.18)
    axes.set_xlabel(f"seconds of one sampling without text encoder and VAE, {bench.device}")
    axes.set_title(f"{plan.model.title}, random weights, {'x'.join(map(str, plan.plain.size))}", loc="left", fontsize=9)
    axes.invert_yaxis()
    figure.legend(loc="outside lower left", ncols=3, fontsize=7, frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(length=0)
    file = io.BytesIO()
    FigureCanvasAgg(figure).print_png(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, file.getvalue())


@contextmanager
def distance_plots(path: Path, panels: int = 1) -> Iterator[Sequence[Any]]:
    """Matplotlib's axes to draw Fréchet distances in, side by side; written as a PNG file when all is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    figure = Figure(figsize=(max(7, 4 * panels), 4.2), layout="constrained")
    plots = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    yield plots
    for plot in plots:
        plot.set_yscale("log")
        plot.grid(alpha=0.2)
        for axis in (plot.xaxis, plot.yaxis):
            low, high = axis.get_view_interval()
            if axis.get_scale() == "log":  # plain numbers, and those between powers of ten where there are few of these
                axis.set_major_formatter("{x:g}")
                axis.set_minor_formatter("{x:g}" if 0 < high < 10 * low else NullFormatter())
    plots[0].set_ylabel("Fréchet distance")
    plots[0].legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


def distance_strip(path: Path, distances: Mapping[str, Sequence[float]]) -> None:
    """A PNG file of Fréchet distances by name: a dot a seed, a bar at their mean, in the order given."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.26 * len(distances)), layout="constrained")
    plot = figure.subplots()
    for row, seeds in enumerate(distances.values()):
        plot.scatter(seeds, [row] * len(seeds), s=14, color=COLORS[0], alpha=0.6)
        plot.scatter([np.mean(seeds)], [row], s=90, marker="|", color=COLORS[1])
    plot.set_yticks(range(len(distances)), list(distances), fontsize=8)
    plot.invert_yaxis()
    plot.grid(alpha=0.2)
    plot.set_xlabel("Fréchet distance: a dot a seed, a bar at the mean")
    FigureCanvasAgg(figure).print_png(str(path))


def smooth(values: Sequence[float] | np.ndarray, window: int) -> np.ndarray:
    """Centred running mean of (n,) values over `window` of them, over fewer at both ends."""
    y = np.asarray(values, dtype=np.float64)
    total = np.concatenate(([0.0], np.cumsum(y)))
    index = np.arange(len(y))
    low = np.maximum(index - window // 2, 0)
    high = np.minimum(index + window // 2 + 1, len(y))
    return (total[high] - total[low]) / (high - low)


def _panel(title: str, points: Sequence[LossPoint], span: float, color: str) -> LossPanel:
    x = np.array([point.seconds for point in points])
    raw = np.array([point.loss for point in points])
    mean = smooth(raw, max(3, len(raw) // 25))
    description = f"{title}: smoothed loss from {mean[0]:.4g} to {mean[-1]:.4g} over {len(points)} recorded steps"
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).round().astype(int))
    return LossPanel(title, curves_svg(title, [Curve(x[keep], mean[keep], color, raw[keep])], span), description)


def curves_svg(
    name: str, curves: Sequence[Curve], span: float, xlabel: str = "training seconds", ylabel: str = "loss"
) -> str:
    """Lines in one plot, as an `<svg>` element for HTML.

    Args:
        name: of the plot; plots of one name and content are the same to the byte.
        curves: at least one, each of at least one point.
        span: where the horizontal axis, which begins at 0, ends.
        xlabel: what is along it.
        ylabel: what is along the other.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    require_matplotlib()
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "font.family": "sans-serif"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(2.9, 2.3), layout="constrained")
        axes = figure.add_subplot()
        for curve in curves:
            if curve.faint is not None:
                axes.plot(curve.x, curve.faint, color=curve.color, alpha=0.3, linewidth=0.7)
        for curve in curves:
            marker = "o" if curve.dots else None
            axes.plot(
                curve.x, curve.y, color=curve.color, linewidth=1.8, linestyle=curve.dash, marker=marker, markersize=3
            )
        axes.set_xlim(0, span or 1)
        axes.locator_params(axis="x", nbins=5)
        axes.set_ylim(*_limits(curves))
        axes.set_xlabel(xlabel, color=_INK)
        axes.set_ylabel(ylabel, color=_INK)
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        axes.tick_params(colors=_INK, length=0, pad=4)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.patch.set_visible(False)
        figure.patch.set_visible(False)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=nothing)
    return _inline(file.getvalue())


def _limits(curves: Sequence[Curve]) -> tuple[float, float]:
    """Room for the smoothed lines after their first fall and for nearly all of the faint ones, not for lone spikes."""
    raw = np.concatenate([curve.y if curve.faint is None else curve.faint for curve in curves])
    settled = np.concatenate([curve.y[len(curve.y) // 50 :] for curve in curves])
    raw, settled = raw[np.isfinite(raw)], settled[np.isfinite(settled)]
    if not len(raw) or not len(settled):
        return 0.0, 1.0
    low = min(np.percentile(raw, 1), settled.min())
    high = max(np.percentile(raw, 97), settled.max())
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return max(low - margin, 0.0) if low >= 0 else low - margin, high + margin


def _inline(svg: str) -> str:
    """A standalone SVG file -> an element for HTML: no prologue, no fixed size, no namespaces."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # the same in every figure, and nothing refers to them
    head, body = svg.split(">", 1)
    head = re.sub(r'\s(?:xmlns(?::xlink)?|width|height|version)="[^"]*"', "", head)
    return f'{head} aria-hidden="true">{body}'.replace(_INK, "currentColor").replace("xlink:href", "href").strip()
