"""`tpdiff plan`: what a pyramid would save, before a weight is loaded."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from tpdiff.cli.quiet import quiet
from tpdiff.cli.sample import _steps

if TYPE_CHECKING:
    from tpdiff.evaluation.planning import Plan, StageCost


def plan(
    model: Annotated[str, typer.Argument(help="A published model; a wrong name lists them all.")],
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own if not given.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the model's own if not given.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames; the model's own if not given.")] = None,
    axes: Annotated[str, typer.Option(help="What grows from stage to stage: T, HW or THW.")] = "T",
    stages: Annotated[int, typer.Option(help="Stages; each has twice the last one's size along its axes.")] = 3,
    steps: Annotated[str | None, typer.Option(help="A total (50) or one count a stage, coarsest first.")] = None,
    plain_steps: Annotated[int | None, typer.Option(help="Of the plain schedule; as many in all if not given.")] = None,
    guidance: Annotated[bool, typer.Option(help="Count what guidance takes.")] = True,
    budget_tflops: Annotated[float | None, typer.Option(help="Suggest steps that take at most so many.")] = None,
    budget_seconds: Annotated[float | None, typer.Option(help="The same; needs --tflops-per-second.")] = None,
    tflops_per_second: Annotated[float | None, typer.Option(help="What your device sustains with the model.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Tokens, FLOPs and activation memory of every stage and of whole schedules, against the plain schedule."""
    for name, value in (("budget-tflops", budget_tflops), ("tflops-per-second", tflops_per_second)):
        if value is not None and value <= 0:
            raise ValueError(f"--{name} {value:g} must be above 0")
    if budget_seconds is not None:
        if tflops_per_second is None:
            raise ValueError("--budget-seconds needs --tflops-per-second: what your device sustains with the model")
        if budget_seconds <= 0 or budget_tflops is not None:
            raise ValueError(f"give --budget-seconds {budget_seconds:g} above 0, and no --budget-tflops beside it")
        budget_tflops = budget_seconds * tflops_per_second
    counts = None if steps is None else _steps(steps)
    quiet()
    from dataclasses import replace

    from tpdiff.evaluation import planning
    from tpdiff.families.models import find_published

    made = planning.plan(find_published(model), (frames, height, width), axes, stages, counts, plain_steps, guidance)
    figures = made.as_dict()
    suggested = None
    if budget_tflops is not None:
        wanted = planning.suggest(made, budget_tflops, guidance)
        parts = zip(made.stages, wanted, strict=True)
        suggested = replace(made, stages=tuple(replace(stage, steps=n) for stage, n in parts))
        passes = made.passes if guidance else 1
        figures["suggestion"] = {
            "budget_tflops": budget_tflops,
            "guidance": guidance,
            "steps": wanted,
            "tflops": suggested.total_tflops * passes,
            "speedup": suggested.speedup,
        }
    if tflops_per_second is not None:
        passes = made.passes if guidance else 1
        figures["seconds"] = made.total_tflops * passes / tflops_per_second
        figures["plain_seconds"] = made.plain.tflops * passes / tflops_per_second
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        _show(made, suggested, guidance, tflops_per_second)


def _show(made: Plan, suggested: Plan | None, guidance: bool, rate: float | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tpdiff.evaluation.planning import NOT_INCLUDED

    console = Console()
    console.width = max(console.width, 100)
    title = f"{made.model.title}: {_size(made.plain.size)}, frames x height x width"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("stage", "size", "latent", "tokens", "TFLOPs a step", "steps", "TFLOPs", "share", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in made.stages:
        table.add_row(str(stage.stage), *_cells(stage), f"{stage.tflops / made.total_tflops:.1%}", _memory(stage))
    table.add_section()
    table.add_row("plain", *_cells(made.plain), "", _memory(made.plain))
    console.print(table)
    _line(made, guidance, rate)
    if suggested is not None:
        print("within the budget:")
        _line(suggested, guidance, rate)
    print(f"memory: {made.weights_gib:.1f} GiB of weights in bf16; by stage, in GiB, an estimate of the activations")
    print(f"  of one call of the network (batch {made.batch}): the peak of the live ones, eager, attention fused,")
    print("  without the kernels' workspaces and what an allocator wastes")
    for note in (*made.notes, NOT_INCLUDED):
        print(f"note: {note}")


def _line(made: Plan, guidance: bool, rate: float | None) -> None:
    name, total, plain = "-".join(map(str, made.steps)), made.total_tflops, made.plain.tflops
    print(f"{name}: {_number(total)} TFLOPs; plain, {made.plain.steps} steps: {_number(plain)}")
    print(f"  planned speed-up {made.speedup:.2f}x; {made.limit:.2f}x if all stages but the finest were free")
    passes = made.passes if guidance else 1
    if guidance:
        what = "two network passes a step" if passes == 2 else "in the same network pass"
        print(f"  with guidance, {what}: {_number(total * passes)} TFLOPs; plain: {_number(plain * passes)}")
    if rate is not None:
        seconds, plain_seconds = _number(total * passes / rate), _number(plain * passes / rate)
        print(f"  at {rate:g} TFLOPs a second: {seconds} s; plain: {plain_seconds} s")


def _cells(stage: StageCost) -> list[str]:
    costs = [_number(stage.tflops_per_step), str(stage.steps), _number(stage.tflops)]
    return [_size(stage.size), _size(stage.latent), f"{stage.tokens:,}", *costs]


def _size(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _memory(stage: StageCost) -> str:
    return f"{stage.activation_gib:.2f}"
