"""`tpdiff train`: a recipe to a checkpoint."""

from __future__ import annotations

import json
import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tpdiff.cli.bars import passing_bar
from tpdiff.cli.quiet import quiet
from tpdiff.cli.stop import stop_on_signals

if TYPE_CHECKING:
    from tpdiff.training.dry_run import DryRun


def train(
    config: Annotated[Path, typer.Argument(help="A YAML recipe, or the name of a shipped one (demo).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, e.g. train.lr=1e-4")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/<recipe's name> if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
    dry: Annotated[
        bool, typer.Option("--dry-run", help="Measure memory and seconds a step of every stage; write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures of --dry-run as JSON.")] = False,
) -> None:
    """Train a diffusion model or a video autoencoder, by its recipe. Ctrl-C leaves a checkpoint; --resume continues."""
    if resume and dry:
        raise ValueError("--dry-run measures a run from its beginning; leave out --resume")
    if as_json and not dry:
        raise ValueError("--json prints the figures of --dry-run; give both, or neither")
    from tpdiff.training.autoencoder_config import AutoencoderConfig, load_recipe

    recipe = load_recipe(config, overrides or ())
    run = out or Path("runs") / config.stem
    quiet()
    from tpdiff.data import ClipDataset
    from tpdiff.data.filled import filled_lines
    from tpdiff.files import holding
    from tpdiff.training.autoencoder import AutoencoderTrainer
    from tpdiff.training.progress import ProgressReport
    from tpdiff.training.trainer import Trainer

    processes = int(os.environ.get("WORLD_SIZE", 1))
    trainer: Trainer | AutoencoderTrainer
    with passing_bar("reading videos", hidden=int(os.environ.get("RANK", 0)) > 0) as reading:
        if isinstance(recipe, AutoencoderConfig):
            if dry:
                raise ValueError(f"{config} is the recipe of an autoencoder, which has no stages; leave out --dry-run")
            if processes > 1:
                raise ValueError(f"an autoencoder trains in one process, not {processes}; nearest: without a launcher")
            trainer = AutoencoderTrainer(recipe, run, resume=resume, progress=reading)
            main = True
        elif dry:
            from tpdiff.training.dry_run import dry_run

            _show(dry_run(recipe, run, progress=reading), as_json)
            return
        else:
            trainer = Trainer(recipe, run, resume=resume, progress=reading)
            main = trainer.accelerator.is_main_process
    for bad in trainer.dataset.bad if main else []:
        print(f"skipped {bad.path}: {bad.reason}", file=sys.stderr)
    if main and isinstance(trainer.dataset, ClipDataset):
        for line in filled_lines(trainer.dataset.videos, trainer.dataset.geometry):
            print(line, file=sys.stderr)
    progress = ProgressReport(run.name) if main else nullcontext()
    alone = holding(run) if main else nullcontext()
    with alone, progress as report, stop_on_signals(trainer.request_stop, launched=processes > 1):
        trainer.run(report=report)
        stopped = trainer.stop_requested  # a signal while it saves asks for nothing more
        folder = trainer.save()
    if main:
        print(f"checkpoint: {folder}")
    if isinstance(trainer, AutoencoderTrainer) and trainer.done and (quality := trainer.quality()):
        print(quality.line())
    trainer.close()
    if stopped:
        again = ["tpdiff", "train", str(config), *(overrides or ()), "--out", str(run), "--resume"]
        if main:
            how = "continue with" if processes == 1 else "continue under the same launcher with"
            print(f"stopped at step {trainer.step}; {how}: {shlex.join(again)}")
        raise SystemExit(130)


def _show(made: DryRun, as_json: bool) -> None:
    """Print what was measured, once."""
    from accelerate import PartialState

    if not PartialState().is_main_process:
        return
    if as_json:
        print(json.dumps(made.as_dict(), indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console, table = Console(), Table(box=box.SIMPLE_HEAD)
    console.width = max(console.width, 100)
    for name in ("stage", "latents", "tokens", "clips a step", "share", "s/step", "waiting", "clips/s", "memory"):
        table.add_column(name, justify="right", no_wrap=True)
    for stage in made.stages:
        size, memory = "x".join(map(str, stage.size)), "?" if stage.memory is None else _bytes(stage.memory)
        counts = [str(stage.stage), size, f"{stage.tokens:,}", str(stage.clips), f"{stage.share:.1%}"]
        table.add_row(*counts, f"{stage.seconds:.3g}", f"{stage.waiting:.2g}", f"{stage.clips_per_second:.3g}", memory)
    console.print(table)
    print(f"memory: {made.memory}")
    print(
        f"{1 / made.step_seconds:.3g} steps/s: {made.steps:,.0f} steps take {_time(made.seconds)}, without validation"
    )
    print(
        f"{made.checkpoints} checkpoints of {_bytes(made.checkpoint_bytes)}: {_bytes(made.free_bytes)} free"
        + ("" if made.fits else ", too little")
    )


def _bytes(count: int) -> str:
    return f"{count / 1024**3:.2f} GiB" if count >= 1024**3 else f"{count / 1024**2:.1f} MiB"


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
