"""A comparison as one HTML file that needs nothing but itself, and as tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpdiff.evaluation.latency import Standing, standings
from tpdiff.evaluation.page import MISSING, check_video, config_rows, count, environment, gflop, number
from tpdiff.evaluation.plots import loss_panels
from tpdiff.evaluation.results import ArmResult, Comparison, ShippedClips
from tpdiff.files import write_whole


@dataclass(frozen=True)
class VideoRow:
    """One caption and its videos: paths by column, None where a column has none."""

    caption: str
    videos: list[str | None]


def write_report(comparison: Comparison, folder: str | Path, out: str | Path) -> Path:
    """Write a page with everything measured: videos embedded, plots drawn, no reference to anything outside it.

    Args:
        comparison: the results.
        folder: what the paths in it are relative to.
        out: the HTML file to write; it appears when it is complete.

    Returns:
        The path written.

    Raises:
        ValueError: a video path that leaves `folder`, or a file type browsers do not play.
        FileNotFoundError: a video that is not there.
        ModuleNotFoundError: matplotlib is not installed.
    """
    paths = _video_paths(comparison)
    for path in paths:
        check_video(Path(folder), path)
    templates = environment(Path(folder))
    templates.filters["rate"] = _rate
    html = templates.get_template("report.html").render(
        c=comparison,
        columns=(["Real"] if comparison.real else []) + [side.label for side in _sides(comparison)],
        rows=video_rows(comparison),
        panels=[(panel.title, panel.description, Markup(panel.svg)) for panel in loss_panels(comparison.arms)],
        standings=standings(comparison.latency),
        config_rows=config_rows([arm.config for arm in comparison.arms]),
    )
    out = Path(out)
    write_whole(out, html)
    return out


def video_rows(comparison: Comparison) -> list[VideoRow]:
    """Real clips and every arm's, side by side by caption; the n-th of a caption stands beside the n-th of it."""
    columns = [(comparison.real, comparison.real_captions)] if comparison.real else []
    columns += [(side.videos, side.captions) for side in _sides(comparison)]
    table: dict[tuple[str, int], list[str | None]] = {}
    for index, (videos, captions) in enumerate(columns):
        seen: dict[str, int] = {}
        for video, caption in zip(videos, captions, strict=True):
            key = (caption, seen.get(caption, 0))
            seen[caption] = key[1] + 1
            table.setdefault(key, [None] * len(columns))[index] = video
    return [VideoRow(caption, videos) for (caption, _), videos in table.items()]


def _sides(comparison: Comparison) -> list[ArmResult | ShippedClips]:
    return [*comparison.arms, *comparison.shipped]


def print_table(comparison: Comparison, console: Console | None = None) -> None:
    """Print the training and latency figures."""
    console = console or Console()
    console.print(Text(comparison.title, style="bold"))
    training = _table("Training", ("model",), ("seconds", "steps", "clips", "tokens", "steps/s"))
    for arm in comparison.arms:
        figures = (number(arm.seconds), count(arm.steps), count(arm.clips), count(arm.tokens), _rate(arm))
        training.add_row(Text(arm.label), *figures)
    console.print(training)
    if not comparison.latency:
        return
    figures_of = ("seconds", "range", "GFLOP", "ratio", "limit", "share")
    table = _table("Sampling", ("model", "steps", "decode"), figures_of)
    for standing in standings(comparison.latency):
        table.add_row(*_latency_cells(standing))
    console.print(table)


def _table(title: str, words: Sequence[str], figures: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in words:
        table.add_column(name, no_wrap=name != "model")
    for name in figures:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _latency_cells(s: Standing) -> list[str | Text]:
    row = s.row
    span = f"{number(min(row.seconds))}–{number(max(row.seconds))}"
    limit = MISSING if s.limit is None else f"{s.limit:.2f}×"
    share = MISSING if s.share is None else f"{s.share:.0%}"
    figures = [number(row.median), span, gflop(row.flops), f"{s.speedup.ratio:.2f}×", limit, share]
    return [Text(row.name), Text(row.steps), "yes" if row.decode else "no", *figures]


def _video_paths(comparison: Comparison) -> list[str]:
    paths = list(comparison.real)
    for arm in comparison.arms:
        paths += arm.videos + [view.video for view in arm.stages]
    return paths + [path for clips in comparison.shipped for path in clips.videos]


def _rate(arm: ArmResult) -> str:
    return number(arm.steps / arm.seconds) if arm.seconds > 0 else MISSING
