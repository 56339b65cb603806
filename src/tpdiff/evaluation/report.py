"""A comparison as one HTML file that needs nothing but itself, and as tables in a terminal."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tpdiff.evaluation.latency import Standing, standings
from tpdiff.evaluation.plots import loss_panels
from tpdiff.evaluation.results import ArmResult, Comparison, ShippedClips
from tpdiff.files import write_whole

_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}
_MISSING = "—"


@dataclass(frozen=True)
class VideoRow:
    """One caption and its videos: paths by column, None where a column has none."""

    caption: str
    videos: list[str | None]


@dataclass(frozen=True)
class ConfigRow:
    """One configuration key and its value in every arm, as text."""

    key: str
    values: list[str]
    differs: bool


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
        _check_video(Path(folder), path)
    page = _environment(Path(folder)).get_template("report.html")
    html = page.render(
        c=comparison,
        columns=(["Real"] if comparison.real else []) + [side.label for side in _sides(comparison)],
        rows=video_rows(comparison),
        panels=[(panel.title, panel.description, Markup(panel.svg)) for panel in loss_panels(comparison.arms)],
        standings=standings(comparison.latency),
        config_rows=config_rows(comparison.arms),
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


def config_rows(arms: Sequence[ArmResult]) -> list[ConfigRow]:
    """Every dotted key of the arms' configurations, in order of appearance."""
    flat = [_flatten(arm.config) for arm in arms]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = []
    for key in keys:
        values = [config.get(key, _MISSING) for config in flat]
        rows.append(ConfigRow(key, values, len(set(values)) > 1))
    return rows


def print_table(comparison: Comparison, console: Console | None = None) -> None:
    """Print the training and latency figures."""
    console = console or Console()
    console.print(Text(comparison.title, style="bold"))
    training = _table("Training", ("model",), ("seconds", "steps", "clips", "tokens", "steps/s"))
    for arm in comparison.arms:
        figures = (_number(arm.seconds), _count(arm.steps), _count(arm.clips), _count(arm.tokens), _rate(arm))
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
    span = f"{_number(min(row.seconds))}–{_number(max(row.seconds))}"
    limit = _MISSING if s.limit is None else f"{s.limit:.2f}×"
    share = _MISSING if s.share is None else f"{s.share:.0%}"
    figures = [_number(row.median), span, _gflop(row.flops), f"{s.speedup.ratio:.2f}×", limit, share]
    return [Text(row.name), Text(row.steps), "yes" if row.decode else "no", *figures]


def _environment(folder: Path) -> jinja2.Environment:
    templates = jinja2.FunctionLoader(
        lambda name: (files("tpdiff.evaluation") / "templates" / name).read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        loader=templates,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        video=lambda path: _data_uri(folder / path),
        digest=lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
        number=_number,
        count=_count,
        gflop=_gflop,
        rate=_rate,
        plain=_plain,
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str),
        words=lambda key: str(key).replace("_", " "),
    )
    return environment


def _video_paths(comparison: Comparison) -> list[str]:
    paths = list(comparison.real)
    for arm in comparison.arms:
        paths += arm.videos + [view.video for view in arm.stages]
    return paths + [path for clips in comparison.shipped for path in clips.videos]


def _check_video(folder: Path, path: str) -> None:
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise ValueError(f"video path {path!r} leaves the comparison's folder; make it relative, inside {folder}")
    if Path(path).suffix.lower() not in _TYPES:
        raise ValueError(f"video {path!r} is not of a kind browsers play; use {' or '.join(_TYPES)}")
    if not (folder / path).is_file():
        raise FileNotFoundError(f"video {path!r} is not in {folder}")


def _data_uri(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_TYPES[path.suffix.lower()]};base64,{content}"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings -> dotted keys and text; lists stay whole."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = _plain(value)
    return flat


def _plain(value: Any) -> str:
    """A JSON value as a reader would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (list, tuple, Mapping)) for item in value):
            return json.dumps(value, ensure_ascii=False, default=str)
        return ", ".join(map(_plain, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(item)}" for key, item in value.items()) or "none"
    return str(value)


def _number(value: float) -> str:
    """Three significant digits, never in exponent form."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.6f}" if "e" in text else text


def _count(value: int | None) -> str:
    return _MISSING if value is None else f"{value:,}"


def _gflop(flops: int) -> str:
    return _number(flops / 1e9) if flops > 0 else _MISSING


def _rate(arm: ArmResult) -> str:
    return _number(arm.steps / arm.seconds) if arm.seconds > 0 else _MISSING
