"""`tpdiff report`: training runs as one page."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tpdiff.cli.quiet import quiet


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders that tpdiff train made, finished or not.")],
    out: Annotated[Path, typer.Option(help="The page; replaced if it is there.")] = Path("report.html"),
    moments: Annotated[
        int, typer.Option(min=0, help="Validations of each run, evenly spread, whose samples are shown.")
    ] = 6,
) -> None:
    """Training runs as one HTML file: curves, samples through training, figures, and how the runs differ."""
    quiet()
    from tpdiff.evaluation.run_report import MOMENTS, write_run_report

    options = [] if moments == MOMENTS else ["--moments", str(moments)]
    command = shlex.join(["tpdiff", "report", *map(str, runs), "--out", str(out), *options])
    for shown in write_run_report(runs, out, command, moments):
        for lack in shown.lacks:
            print(f"{shown.run.label}: {lack}", file=sys.stderr)
    print(f"report: {out} ({out.stat().st_size / 1e6:.2f} MB)")
