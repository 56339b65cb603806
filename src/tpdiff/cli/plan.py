"""`tpdiff plan`: what a pyramid would save, before a weight is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpdiff.cli.bars import progress_bar
from tpdiff.cli.device import as_device
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
    budget_tflops: Annotated[float | None, typer.Option(help="Suggest steps within it, if these are not.")] = None,
    budget_seconds: Annotated[float | None, typer.Option(help="The same; needs --tflops-per-second.")] = None,
    tflops_per_second: Annotated[float | None, typer.Option(help="What your device sustains with the model.")] = None,
    spectrum: Annotated[
        Path | None, typer.Option(help="Stages without training: videos to measure --vae on, or what that wrote.")
    ] = None,
    vae: Annotated[
        str | None, typer.Option(help="The model's autoencoder: a folder that save_pretrained wrote.")
    ] = None,
    spectrum_out: Annotated[Path, typer.Option(help="Where a measured spectrum goes.")] = Path("spectrum.json"),
    clips: Annotated[int, typer.Option(min=1, help="Videos to measure it on, at most.")] = 64,
    fps: Annotated[
        float | None, typer.Option(help="Frames a second to measure it at; the model's own if not given.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="To measure it on: cpu or cuda; cuda if there is one.")] = None,
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
    if spectrum is not None and spectrum.is_dir() and vae is None:
        raise ValueError("--spectrum of a folder of videos needs --vae, the autoencoder whose latents are measured")
    place = as_device(device)
    counts = None if steps is None else _steps(steps)
    quiet()
    from dataclasses import replace

    from tpdiff.evaluation import planning, spectra
    from tpdiff.families.models import find_published
    from tpdiff.files import check_writable

    if spectrum is not None and spectrum.is_dir():
        check_writable(spectrum_out)
    made = planning.plan(find_published(model), (frames, height, width), axes, stages, counts, plain_steps, guidance)
    figures = made.as_dict()
    suggested = None
    passes = made.passes if guidance else 1
    if budget_tflops is not None:
        figures["within_budget"] = made.total_tflops * passes <= budget_tflops
        figures["suggestion"] = None
    if budget_tflops is not None and not figures["within_budget"]:
        wanted = planning.suggest(made, budget_tflops, guidance)
        parts = zip(made.stages, wanted, strict=True)
        suggested = replace(made, stages=tuple(replace(stage, steps=n) for stage, n in parts))
        figures["suggestion"] = {
            "budget_tflops": budget_tflops,
            "guidance": guidance,
            "steps": wanted,
            "tflops": suggested.total_tflops * passes,
            "speedup": suggested.speedup,
        }
    if tflops_per_second is not None:
        figures["seconds"] = made.total_tflops * passes / tflops_per_second
        figures["plain_seconds"] = made.plain.tflops * passes / tflops_per_second
    if spectrum is not None:
        if spectrum.is_dir():
            rate = made.model.fps if fps is None else fps
            with progress_bar("measuring", hidden=as_json) as bar:
                options: dict[str, Any] = {"clips": clips, "fps": rate, "device": place, "progress": bar}
                found = spectra.measure_folder(spectrum, str(vae), made.plain.size, **options)
            spectra.save_spectrum(found, spectrum_out)
            spectrum = spectrum_out
        figures["spectrum"] = _spectrum(made, planning.stage_factors(axes, stages), spectrum)
    if as_json:
        print(json.dumps(figures, indent=2))
        return
    _show(made, budget_tflops, suggested, guidance, tflops_per_second)
    if spectrum is not None:
        _show_spectrum(figures["spectrum"])


def _spectrum(made: Plan, factors: list[tuple[int, int, int]], source: Path) -> dict[str, Any]:
    """What stages would cost the model's published weights, from a spectrum."""
    import torch

    from tpdiff.evaluation import spectra
    from tpdiff.schedulers import schedule_of

    scheduler = made.model.pipeline(made.model.build("meta", torch.bfloat16)).scheduler
    return {"file": str(source), **spectra.advise(spectra.load_spectrum(source), schedule_of(scheduler), factors)}


def _show_spectrum(figures: dict[str, Any]) -> None:
    print(f"without training, by the latents' spectrum ({figures['file']}), dct:")
    for found in figures["training_free"]:
        if "refused" in found:
            said = found["refused"]
        else:
            said = ", ".join(f"stage {s['stage']} from t = {s['start']:.3f} to {s['end']:.3f}" for s in found["stages"])
        print(f"  tolerance {found['tolerance']:g}: {said}")
    lost = ", ".join(f"{jump['power_lost']:.1%}" for jump in reversed(figures["uniform"]))
    print(f"  uniform ends would lose {lost} of the strongest missing band's power at the jumps, in turn")


def _show(made: Plan, budget: float | None, suggested: Plan | None, guidance: bool, rate: float | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from tpdiff.evaluation.planning import NOT_INCLUDED

    console = Console()
    console.width = max(console.width, 100)
    title = f"{made.model.title}: {_size(made.plain.size)}, frames x height x width"
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("stage", "size", "latent", "tokens", "TFLOPs a step", "steps", "TFLOPs", "share", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in made.stages:
        table.add_row(str(stage.stage), *_cells(stage), f"{stage.tflops / made.total_tflops:.1%}", _memory(stage))
    table.add_section()
    table.add_row("plain", *_cells(made.plain), "", _memory(made.plain))
    print(title)
    console.print(table)
    _line(made, guidance, rate)
    if suggested is not None:
        print("within the budget:")
        _line(suggested, guidance, rate)
    elif budget is not None:
        print(f"  within the budget of {_number(budget)} TFLOPs")
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
