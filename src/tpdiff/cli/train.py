"""`tpdiff train`: a recipe to a checkpoint."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from tpdiff.cli.quiet import quiet


def train(
    config: Annotated[Path, typer.Argument(help="A YAML recipe (configs/ has one for every experiment).")],
    overrides: Annotated[list[str] | None, typer.Argument(help="section.key=value, e.g. train.lr=1e-4")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; runs/<recipe's name> if not given.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the newest checkpoint.")] = False,
) -> None:
    """Train a model by a recipe. Ctrl-C leaves a checkpoint; --resume continues from it."""
    quiet()
    from tpdiff.training.load_config import load_config
    from tpdiff.training.progress import ProgressReport
    from tpdiff.training.trainer import Trainer

    run = out or Path("runs") / config.stem
    trainer = Trainer(load_config(config, overrides or ()), run, resume=resume)
    for bad in trainer.dataset.bad:
        print(f"skipped {bad.path}: {bad.reason}", file=sys.stderr)
    with ProgressReport(run.name) as report, _stop_on_signals(trainer):
        trainer.run(report=report)
    folder = trainer.save()
    trainer.close()
    print(f"checkpoint: {folder}")
    if trainer.stop_requested:
        print(f"stopped at step {trainer.step}; continue with: tpdiff train {config} --out {run} --resume")
        raise SystemExit(130)


class _stop_on_signals:
    """While active, the first Ctrl-C (or SIGTERM) asks the trainer to stop after its step; the second aborts."""

    def __init__(self, trainer: object):
        self.trainer = trainer

    def _handle(self, number: int, frame: object) -> None:
        if self.trainer.stop_requested:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        self.trainer.stop_requested = True  # type: ignore[attr-defined]
        print("stopping after this step; again to abort", file=sys.stderr)

    def __enter__(self) -> None:
        self.before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
