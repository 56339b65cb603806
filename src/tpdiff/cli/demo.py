"""`tpdiff demo`: the main job, on a newcomer's own machine, in a quarter of an hour."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from tpdiff.cli.quiet import quiet
from tpdiff.cli.stop import stop_on_signals


def demo(
    minutes: Annotated[float, typer.Option(help="How long it may take.")] = 15.0,
    out: Annotated[Path, typer.Option(help="Where everything goes; continued where it was left.")] = Path("demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over: remove what a demo made there before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value of configs/demo.yaml")] = None,
) -> None:
    """Record a game, train a vanilla and a pyramidal twin for equal time, compare them in one report."""
    quiet()
    from rich.console import Console
    from rich.progress import Progress as Bar

    from tpdiff.evaluation.demo import (
        COMPARISON,
        DATA,
        PAGE,
        arm_configs,
        begin,
        build_arms,
        finish,
        record,
        training_seconds,
    )
    from tpdiff.evaluation.plots import require_matplotlib
    from tpdiff.evaluation.report import print_table, write_report
    from tpdiff.training.progress import ProgressReport

    seconds = training_seconds(minutes)
    arm_configs(out, out / DATA, seconds, overrides or ())  # whatever is wrong with them is said first
    require_matplotlib()
    begin(out, fresh)
    console = Console(file=sys.stderr)
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task("recording VizDoom gameplay")
        data = record(out, lambda done, total: bar.update(task, completed=done, total=total))
    console.print("encoding the clips")
    arms = build_arms(out, data, seconds, overrides or ())
    console.print(
        f"{len(arms.dataset)} clips of {len(arms.dataset.captions)} captions; "
        f"training two models, {seconds:.0f} s each, in turns"
    )
    command = shlex.join(["tpdiff", "demo", "--minutes", f"{minutes:g}", "--out", str(out), *(overrides or ())])
    with ProgressReport("vanilla / pyramid") as report, stop_on_signals(arms.request_stop):
        arms.run(report=lambda name, status: report(status, name))
    if arms.stop_requested:
        print(f"stopped; continue with: {command}")
        raise SystemExit(130)
    comparison = finish(out, arms, command, console.print)
    comparison.save(out / COMPARISON)
    page = write_report(comparison, out, out / PAGE)
    if as_json:
        print((out / COMPARISON).read_text(encoding="utf-8"))
    else:
        print_table(comparison, Console())
    print(f"report: {page or out / PAGE}", file=sys.stderr)
