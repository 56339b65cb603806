"""`tpdiff train`: a recipe to a checkpoint."""

import os
import shlex
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from tpdiff.cli.quiet import quiet
from tpdiff.cli.stop import stop_on_signals


def train(
    config: Annotated[Path, typer.Argument(help="A YAML recipe (configs/ has one for every experiment).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, e.g. train.lr=1e-4")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/<recipe's name> if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
) -> None:
    """Train a diffusion model or a video autoencoder, by its recipe. Ctrl-C leaves a checkpoint; --resume continues."""
    from tpdiff.training.autoencoder_config import AutoencoderConfig, load_recipe

    recipe = load_recipe(config, overrides or ())
    quiet()
    from tpdiff.training.autoencoder import AutoencoderTrainer
    from tpdiff.training.progress import ProgressReport
    from tpdiff.training.trainer import Trainer

    run, processes = out or Path("runs") / config.stem, int(os.environ.get("WORLD_SIZE", 1))
    trainer: Trainer | AutoencoderTrainer
    if isinstance(recipe, AutoencoderConfig):
        if processes > 1:
            raise ValueError(f"an autoencoder trains in one process, not {processes}; nearest: without a launcher")
        trainer = AutoencoderTrainer(recipe, run, resume=resume)
        main = True
    else:
        trainer = Trainer(recipe, run, resume=resume)
        main = trainer.accelerator.is_main_process
    for bad in trainer.dataset.bad if main else []:
        print(f"skipped {bad.path}: {bad.reason}", file=sys.stderr)
    progress = ProgressReport(run.name) if main else nullcontext()
    with progress as report, stop_on_signals(trainer.request_stop, launched=processes > 1):
        trainer.run(report=report)
    folder = trainer.save()
    trainer.close()
    if main:
        print(f"checkpoint: {folder}")
    if isinstance(trainer, AutoencoderTrainer) and trainer.done and (quality := trainer.quality()):
        print(quality.line())
    if trainer.stop_requested:
        again = ["tpdiff", "train", str(config), *(overrides or ()), "--out", str(run), "--resume"]
        if main:
            print(f"stopped at step {trainer.step}; continue with: {shlex.join(again)}")
        raise SystemExit(130)
