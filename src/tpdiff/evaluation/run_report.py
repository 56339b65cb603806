"""Training runs as one HTML file that needs nothing but itself."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from tpdiff.evaluation.page import check_video, config_rows, environment
from tpdiff.evaluation.plots import style
from tpdiff.evaluation.run_curves import MOST_RUNS, Costed, Curves, Row
from tpdiff.evaluation.run_operations import operations
from tpdiff.evaluation.run_record import RunRecord, captions, read_runs
from tpdiff.files import write_whole

MOMENTS = 6
LAST = 0.1  # share of a stage's losses whose mean stands in the table
_LINES = {"-": "solid", "--": "dashed", ":": "dotted"}


@dataclass(frozen=True)
class Samples:
    """Videos of one caption through training, oldest first; None where one is not there."""

    caption: str
    videos: list[Path | None]


@dataclass(frozen=True)
class Shown:
    """A run as its page shows it.

    Attributes:
        run: the run.
        operations: in all; None: not known.
        reason: why not.
        color, line: of its curves, in CSS.
        losses: mean training loss of the last of each stage, finest first; None without any.
        validation: the last record; None without any.
        moments: records whose samples are shown, oldest first.
        samples: those, caption by caption.
        lacks: what the folder does not hold, a sentence each.
    """

    run: RunRecord
    operations: float | None
    reason: str
    color: str
    line: str
    losses: list[float | None]
    validation: dict[str, Any] | None
    moments: list[dict[str, Any]]
    samples: list[Samples]
    lacks: list[str]


def write_run_report(
    folders: Sequence[str | Path], out: str | Path, command: str = "", moments: int = MOMENTS
) -> list[Shown]:
    """Write a page of training runs, finished or not: curves, samples, figures, and how they differ.

    Args:
        folders: what `tpdiff train` left; nothing is written into them.
        out: the HTML file to write; it appears when it is complete.
        command: what made it, for its reader.
        moments: validations of each run, evenly spread, whose samples are shown; 0: none.

    Returns:
        What is on it, a run each.

    Raises:
        ValueError: a folder that is no run, more runs than can be told apart, or a page that would lie in one of them.
        ModuleNotFoundError: matplotlib is not installed.
    """
    out, places = Path(out), [Path(folder) for folder in folders]
    if out.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"the page is HTML; {out} ends in {out.suffix!r}, nearest: {out.with_suffix('.html')}")
    if moments < 0:
        raise ValueError(f"moments={moments} must be 0 (no samples) or more")
    if len(places) > MOST_RUNS:
        raise ValueError(f"{len(places)} runs cannot be told apart on one page; at most {MOST_RUNS}")
    runs = read_runs(places)
    inside = next((run.folder for run in runs if out.resolve().is_relative_to(run.folder.resolve())), None)
    if inside is not None:
        raise ValueError(f"{out} lies in the run {inside}, which is left as it is; choose another --out")
    costed = [Costed(run, *operations(run)) for run in runs]
    shown = [_shown(number, one, moments) for number, one in enumerate(costed)]
    curves = Curves(costed)
    most = max(run.stages for run in runs)
    configs = [run.config.model_dump(mode="json") for run in runs]
    html = (
        environment(Path())
        .get_template("runs.html")
        .render(
            runs=shown,
            losses=_drawn(curves.losses()),
            held_out=_drawn(curves.held_out()),
            distances=_drawn(curves.distances()),
            stages=list(range(most)),
            unit=curves.unit,
            last=LAST,
            labels=[run.label for run in runs],
            configs=configs,
            config_rows=config_rows(configs),
            created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            command=command,
        )
    )
    write_whole(out, html)
    return shown


def _drawn(rows: Sequence[Row]) -> list[Row]:
    """The same, their plots marked as markup."""
    return [replace(row, svgs=[None if svg is None else Markup(svg) for svg in row.svgs]) for row in rows]


def _shown(number: int, one: Costed, moments: int) -> Shown:
    run, (color, dash) = one.run, style(number)
    chosen = _spread([record for record in run.validations if record.get("samples")], moments)
    samples = _samples(run, chosen)
    absent = sum(video is None for row in samples for video in row.videos)
    lacks = [*run.lacks, *([f"No file for {absent} of the sample videos that it recorded."] if absent else [])]
    if one.operations is None:
        lacks.append(f"No operations: {one.reason}.")
    return Shown(
        run=run,
        operations=float(one.operations[-1]) if one.operations is not None and len(one.operations) else None,
        reason=one.reason,
        color=color,
        line=_LINES[dash],
        losses=[_last(run.losses[run.losses[:, 2] == stage, 3]) for stage in range(run.stages)],
        validation=run.validations[-1] if run.validations else None,
        moments=chosen,
        samples=samples,
        lacks=lacks,
    )


def _last(losses: np.ndarray) -> float | None:
    return float(losses[-max(1, round(LAST * len(losses))) :].mean()) if len(losses) else None


def _spread(records: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most so many, evenly spread, the last always among them."""
    if most == 0 or len(records) <= most:
        return records if most else []
    numbers = np.linspace(len(records) - 1, 0, most).round().astype(int)
    return [records[n] for n in sorted(set(numbers.tolist()))]


def _samples(run: RunRecord, records: Sequence[dict[str, Any]]) -> list[Samples]:
    """Samples by their number and caption; a video that is not there leaves a gap."""
    rows: list[Samples] = []
    for number in range(max((len(record["samples"]) for record in records), default=0)):
        videos, caption = [], ""
        for record in records:
            name = record["samples"][number] if number < len(record["samples"]) else None
            if name is not None and (run.folder / name).is_file():
                check_video(run.folder, name)
                path = run.folder / name
                caption = captions(path.parent).get(path.name) or caption
                videos.append(path)
            else:
                videos.append(None)
        rows.append(Samples(caption, videos))
    return rows
