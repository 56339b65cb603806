"""`tpdiff bench`: what a pyramid saves, measured side by side on random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpdiff.cli.device import DTYPES, as_device, as_dtype
from tpdiff.cli.quiet import quiet
from tpdiff.cli.sample import _steps

if TYPE_CHECKING:
    from tpdiff.evaluation.bench import Bench

TINY = {"layers": 2, "hidden": 768, "frames": 33, "side": 256}


def bench(
    model: Annotated[str, typer.Argument(help="A published model; a wrong name lists them all.")],
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}; bfloat16 on cuda, else float32.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="A small network of the model's shape, for a CPU.")] = False,
    layers: Annotated[int | None, typer.Option(help="Layers; as published if not given.")] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden size; as published if not given.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; the model's own if not given.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; the model's own if not given.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames; the model's own if not given.")] = None,
    axes: Annotated[str, typer.Option(help="What grows from stage to stage: T, HW or THW.")] = "T",
    stages: Annotated[int, typer.Option(help="Stages; each has twice the last one's size along its axes.")] = 3,
    steps: Annotated[str | None, typer.Option(help="A total (50) or one count a stage, coarsest first.")] = None,
    plain_steps: Annotated[int | None, typer.Option(help="Of the plain schedule; as many in all if not given.")] = None,
    guidance: Annotated[bool, typer.Option(help="Sample with guidance.")] = True,
    vae: Annotated[bool, typer.Option("--vae", help="Time decoding with the model's VAE, too.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds; both take a turn in each.")] = 3,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before them.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="Write a picture of the times to this .png file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Time the stock pipeline, plain and pyramidal, side by side on random weights, against what is planned."""
    counts = None if steps is None else _steps(steps)
    if plot is not None and plot.suffix.lower() != ".png":
        raise ValueError(f"pictures are written as .png; {plot} ends in {plot.suffix!r}")
    place, kind = as_device(device), None if dtype is None else as_dtype(dtype)
    quiet()
    from dataclasses import replace

    from tpdiff.evaluation.bench import bench as measure
    from tpdiff.evaluation.plots import bench_picture, require_matplotlib
    from tpdiff.families.models import find_published
    from tpdiff.files import check_writable
    from tpdiff.models.memory import keep_freed_memory

    if plot is not None:
        require_matplotlib()
        check_writable(plot)
    chosen = find_published(model)
    if tiny:
        layers, hidden = layers or TINY["layers"], hidden or TINY["hidden"]
        chosen = replace(chosen, size=(min(TINY["frames"], chosen.size[0]), TINY["side"], TINY["side"]))
    keep_freed_memory()
    measured = measure(
        chosen.resized(layers, hidden),
        (frames, height, width),
        axes,
        stages,
        counts,
        plain_steps,
        device=place,
        dtype=kind,
        guidance=guidance,
        rounds=rounds,
        warmup=warmup,
        decode=vae,
        progress=None if as_json else _report,
    )
    if as_json:
        print(json.dumps(measured.as_dict(), indent=2), flush=True)
    else:
        _show(measured)
    if plot is not None:
        bench_picture(measured, plot)


def _report(done: int, total: int, name: str, seconds: float) -> None:
    print(f"  {done}/{total} {name} {seconds:.2f} s", file=sys.stderr, flush=True)


def _show(measured: Bench) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tpdiff.evaluation import machine
    from tpdiff.evaluation.bench import SHORT_STEP

    figures = measured.as_dict()
    console = Console()
    console.width = max(console.width, 100)
    size, plan = "x".join(map(str, figures["size"])), measured.plan
    guidance = "with" if measured.guidance else "without"
    title = (
        f"{plan.model.title}, random weights: {size}, frames x height x width, {measured.dtype}, {guidance} guidance"
    )
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("stage", "tokens", "steps", "seconds a step", "TFLOPs a second"):
        table.add_column(name, justify="right", no_wrap=True)
    passes = plan.passes if measured.guidance else 1
    rows = [(str(s.stage), s, seconds) for s, seconds in zip(plan.stages, measured.step_seconds, strict=True)]
    for name, stage, seconds in [*rows, ("plain", plan.plain, measured.plain_step_seconds)]:
        rate = stage.tflops_per_step * passes / seconds
        table.add_row(name, f"{stage.tokens:,}", str(stage.steps), f"{seconds:.4g}", f"{rate:.4g}")
    print(title)
    console.print(table)
    for row in figures["rows"]:
        memory = "" if row["peak_bytes"] is None else f", peak memory {row['peak_bytes'] / 2**30:.2f} GiB"
        print(
            f"{row['name']:8} {row['steps']:9} {row['median']:9.3f} s{memory}, "
            f"{row['scheduler_share']:.2%} of it in scheduler and jumps"
        )
    low, high = min(figures["speedup_by_round"]), max(figures["speedup_by_round"])
    print(
        f"speed-up measured {figures['speedup']:.2f}x (by round {low:.2f} to {high:.2f}), "
        f"planned {figures['planned_speedup']:.2f}x: {figures['reached']:.1%} of it reached"
    )
    if measured.decode_seconds is not None:
        print(f"VAE decoding, once, at full size, the same for both: {measured.decode_seconds:.3f} s, in none of these")
    if figures["step_is_short"]:
        print(f"note: a full-size step takes less than {SHORT_STEP} s: what is not the network weighs in")
    for note in plan.notes:
        print(f"note: {note}")
    print(machine.one_line(figures["machine"]))
