"""What the folder of a training run holds, finished or not, read without touching it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tpdiff.training.checkpoint import checkpoints, read_checkpoint
from tpdiff.training.config import Config
from tpdiff.training.load_config import build_config, read_values
from tpdiff.training.optimizer import spent
from tpdiff.training.validation import RECORDS, read_records

CONFIG = "config.yaml"


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Attributes:
        folder: where it lies.
        label: its name among those it was read with.
        config: resolved.
        checkpoint: the newest complete one; None before the first.
        state: what that says of itself: step, seconds, tokens, samples; {} before the first.
        losses: float64 (N, 4): training seconds, step, stage k and loss, of every micro-batch up to that checkpoint.
        validations: lines of `validation.jsonl`, oldest first; later ones than the checkpoint's among them.
        lacks: what the folder does not hold, a sentence each.
    """

    folder: Path
    label: str
    config: Config
    checkpoint: Path | None
    state: dict[str, Any]
    losses: np.ndarray
    validations: list[dict[str, Any]]
    lacks: list[str]

    @property
    def stages(self) -> int:
        """How many it trains."""
        return 1 if self.config.train.method == "vanilla" else len(self.config.pyramid.factors)

    @property
    def reached(self) -> tuple[int, float]:
        """(step, training seconds) of the last thing that was written down."""
        known = [self.state, *self.validations[-1:]]
        return max(((one["step"], one["seconds"]) for one in known if one), default=(0, 0.0))

    @property
    def fraction(self) -> float:
        """Share of the budget that is done by then."""
        return spent(self.config.train, *self.reached)


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Runs, labelled by the shortest ends of their paths that tell them apart.

    Raises:
        ValueError: none, a folder given twice, one that is no run of a diffusion model, or a checkpoint that cannot be
            read.
    """
    if not folders:
        raise ValueError("no run is given; type: tpdiff report runs/NAME")
    for folder in folders:
        _check_run(folder)
    return [_read(folder, label) for folder, label in zip(folders, _labels(folders), strict=True)]


def _read(folder: Path, label: str) -> RunRecord:
    try:
        config = build_config(read_values(folder / CONFIG))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is not a run's configuration: {error}") from error
    checkpoint = next(iter(checkpoints(folder)[::-1]), None)
    state: dict[str, Any] = {}
    losses = np.empty((0, 4))
    if checkpoint is not None:
        tensors, state = read_checkpoint(checkpoint)
        if "losses" not in tensors:
            raise ValueError(f"{checkpoint} holds no losses of a training")
        losses = tensors["losses"].double().numpy()
    validations = read_records(folder / RECORDS)
    return RunRecord(
        folder, label, config, checkpoint, state, losses, validations, _lacks(config, state, losses, validations)
    )


def _lacks(
    config: Config, state: dict[str, Any], losses: np.ndarray, validations: Sequence[dict[str, Any]]
) -> list[str]:
    lacks, wanted = [], config.validation
    if not state:
        lacks.append("No complete checkpoint yet; training losses are written with checkpoints.")
    elif not len(losses):
        lacks.append("No training loss: its checkpoint was written before the first step.")
    if not wanted.on and not validations:
        lacks.append("No validation: neither validation.every_steps nor validation.every_seconds is set.")
    elif not validations:
        lacks.append(f"No validation yet: {RECORDS} has no line.")
    else:
        if not any(record.get("samples") for record in validations):
            lacks.append("No sample videos: validation.samples is 0.")
        if not any(record.get("distance") for record in validations):
            lacks.append("No distance: validation.distance_clips is 0.")
        if state and validations[-1]["step"] > state["step"]:
            lacks.append(
                f"No training loss after step {state['step']:,}, that of its newest checkpoint; "
                f"validations reach step {validations[-1]['step']:,}."
            )
    return lacks


def _check_run(folder: Path) -> None:
    """Refuse what is no run, with what to type instead."""
    if not (folder / CONFIG).is_file():
        why = "holds no config.yaml" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        above = [place for place in folder.absolute().parents[:3] if (place / CONFIG).is_file()]
        below = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{CONFIG}"))
        near = [str(place) for place in above[:1] or below[:5]]
        hint = (
            f"type: tpdiff report {shlex.join(near)}"
            if near
            else "a run is what `tpdiff train RECIPE --out runs/NAME` leaves; type: tpdiff report runs/NAME"
        )
        raise ValueError(f"{folder} is no training run: it {why}; {hint}")
    if "autoencoder" in read_values(folder / CONFIG):
        raise ValueError(
            f"{folder} is a run of an autoencoder, which has no stages; nearest: a run of a diffusion model"
        )


def _labels(folders: Sequence[Path]) -> list[str]:
    ends = [folder.resolve().parts for folder in folders]
    twice = next((folder for folder, end in zip(folders, ends, strict=True) if ends.count(end) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is given twice; name every run once")
    length = next(n for n in range(1, max(map(len, ends)) + 1) if len({end[-n:] for end in ends}) == len(ends))
    return ["/".join(end[-length:]) for end in ends]


def captions(folder: Path) -> dict[str, str | None]:
    """File names and captions that a `metadata.jsonl` tells; {} where there is none."""
    path = folder / "metadata.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
    return {line["file_name"]: line.get("caption") for line in lines}
