"""Checkpoints: complete or absent, safetensors and JSON only.

A checkpoint is a folder that `PyramidPipeline.from_pretrained` loads (the averaged weights), with the training
state beside it. It is written under another name, flushed to disk, and renamed when whole.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tpdiff.training.eight_bit import put_together, take_apart

TENSORS = "training_state.safetensors"
STATE = "training_state.json"


def pack_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors, "optimizer.<parameter>.<moment>"."""
    names: dict[Tensor, str] = {p: name for name, p in network.named_parameters()}
    return {
        f"optimizer.{names[p]}.{part}": tensor.contiguous()
        for p, state in optimizer.state.items()
        for moment, value in state.items()
        for part, tensor in take_apart(moment, torch.as_tensor(value)).items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `pack_optimizer` took, each moment on its parameter's device (the count of steps only for those
    algorithms that keep it there).
    """
    together = {p for group in optimizer.param_groups for p in group["params"] if _counts_on_device(group)}
    for name, p in network.named_parameters():
        prefix = f"optimizer.{name}."
        moments = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        optimizer.state[p] = put_together(
            {m: v if m == "step" and p not in together else v.to(p.device) for m, v in moments.items() if "." not in m}
        )


def write_checkpoint(folder: Path, pipeline: Any, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a whole checkpoint or none.

    Args:
        folder: its final place.
        pipeline: a PyramidPipeline over the averaged weights.
        tensors: weights and moments to resume from.
        state: JSON values: counters and the like.

    Raises:
        OSError: it could not be written (full disk, say); nothing is left behind.
    """
    with _whole_folder(folder, "checkpoint") as aside:
        pipeline.save_pretrained(str(aside), safe_serialization=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(aside / TENSORS))
        (aside / STATE).write_text(json.dumps(state, indent=1))


def write_pipeline(folder: Path, pipeline: Any) -> None:
    """Write a whole pipeline or none.

    Raises:
        OSError: it could not be written; what was there before stays.
    """
    with _whole_folder(folder, "pipeline") as aside:
        pipeline.save_pretrained(str(aside), safe_serialization=True)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, state) of a checkpoint.

    Raises:
        ValueError: it holds no training state, or cannot be read.
    """
    state = read_state(folder)
    try:
        return load_file(str(folder / TENSORS)), state
    except Exception as error:
        raise ValueError(f"{folder} is not a training checkpoint that can be resumed: {error}") from error


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint.

    Raises:
        ValueError: as `read_checkpoint`.
    """
    try:
        return json.loads((folder / STATE).read_text())
    except Exception as error:
        raise ValueError(f"{folder} is not a training checkpoint that can be resumed: {error}") from error


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return sorted(p for p in (run / "checkpoints").glob("step-*") if (p / STATE).is_file())


def drop_old_checkpoints(run: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; a name goes before what it holds."""
    for folder in checkpoints(run)[:-keep]:
        dropped = folder.with_name(f".{folder.name}.dropped")
        os.replace(folder, dropped)
        shutil.rmtree(dropped, ignore_errors=True)


def mend(run: Path) -> None:
    """Clear away what a killed process left: a checkpoint about to be replaced gets its name back, pieces go."""
    hidden = list((run / "checkpoints").glob(".step-*"))
    for before in (p for p in hidden if p.suffix == ".before"):
        folder = before.with_name(before.name.removeprefix(".").removesuffix(".before"))
        with suppress(OSError):  # another process of this run was faster
            if not folder.exists():
                os.replace(before, folder)
    for piece in (p for p in hidden if p.suffix in (".partial", ".before", ".dropped")):
        shutil.rmtree(piece, ignore_errors=True)


@contextmanager
def _whole_folder(folder: Path, what: str) -> Iterator[Path]:
    """A folder beside `folder` to fill, which takes its place, and its name, when it is filled and on the disk."""
    aside = folder.with_name(f".{folder.name}.partial")
    before = folder.with_name(f".{folder.name}.before")
    if before.exists() and not folder.exists():
        os.replace(before, folder)
    for leftover in (aside, before):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        for path in [*aside.rglob("*"), aside]:
            _flush(path)
        if folder.exists():
            os.replace(folder, before)
        os.replace(aside, folder)
        shutil.rmtree(before, ignore_errors=True)
        for parent in (folder.parent, folder.parent.parent):
            _flush(parent)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        raise OSError(f"{what} {folder} could not be written: {error}") from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _counts_on_device(group: Mapping[str, Any]) -> bool:
    return bool(group.get("fused") or group.get("capturable"))
