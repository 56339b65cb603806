"""Checkpoints: complete or absent, safetensors and JSON only.

A checkpoint is a folder that `PyramidPipeline.from_pretrained` loads (the averaged weights), with the training
state beside it. It is written under another name, flushed to disk, and renamed when whole. Processes that hold the rows
of tensors among them write a file each, training_state-00001-of-00002.safetensors: the rows of all files one after
another are the tensor, so any number of processes can read them.
"""

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tpdiff.training.distribution import all_or_none
from tpdiff.training.eight_bit import put_together, take_apart
from tpdiff.training.shards import own_rows, part_of, place_among

WINDOWS = os.name == "nt"
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
    """Put back what `pack_optimizer` took, each moment on its parameter's device and sharded as it is (the count of
    steps on the device only for those algorithms that keep it there).
    """
    together = {p for group in optimizer.param_groups for p in group["params"] if _counts_on_device(group)}
    moments: dict[str, dict[str, str]] = defaultdict(dict)
    for name in tensors:
        kind, _, rest = name.partition(".")
        if kind == "optimizer":
            parameter, _, moment = rest.rpartition(".")
            moments[parameter][moment] = name
    for name, p in network.named_parameters():
        optimizer.state[p] = put_together(
            {
                m: tensors[full] if m == "step" and p not in together else part_of(tensors[full].to(p.device), p)
                for m, full in moments[name].items()
            }
        )


def write_checkpoint(
    folder: Path,
    pipeline: Any,
    tensors: Mapping[str, Tensor],
    state: Mapping[str, Any],
    accelerator: Accelerator | None = None,
) -> None:
    """Write a whole checkpoint or none. Collective: every process calls it.

    Args:
        folder: its final place.
        pipeline: a PyramidPipeline over the averaged weights, on the main process.
        tensors: weights and moments to resume from; of sharded ones every process writes its rows.
        state: JSON values: counters and the like.
        accelerator: the processes; None for one alone.

    Raises:
        OSError: it could not be written (full disk, say); nothing is left behind.
    """
    main, place = accelerator is None or accelerator.is_main_process, place_among(tensors)
    with _whole_folder(folder, "checkpoint", accelerator) as aside:
        if main:
            pipeline.save_pretrained(str(aside), safe_serialization=True)
        own = {n: own_rows(t).detach() for n, t in tensors.items() if main or isinstance(t, DTensor)}
        if own and place is not None:
            part, parts = place
            path = aside / (TENSORS if parts == 1 else _part_name(part, parts))
            save_file({n: t.cpu().contiguous() for n, t in own.items()}, str(path))
            if not main:
                _flush(path)
        if main:
            (aside / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")


def write_pipeline(folder: Path, pipeline: Any) -> None:
    """Write a whole pipeline or none.

    Raises:
        OSError: it could not be written; what was there before stays.
    """
    with _whole_folder(folder, "pipeline") as aside:
        pipeline.save_pretrained(str(aside), safe_serialization=True)


class Parts(Mapping[str, Tensor]):
    """The tensors of some safetensors files by name, read when asked for; rows from several files are put together."""

    def __init__(self, files: Iterable[Path] = ()):
        self._rows: dict[str, list[tuple[Any, str]]] = defaultdict(list)
        for path in files:
            file = safe_open(str(path), framework="pt")
            for name in file.keys():  # noqa: SIM118  (it is not a mapping)
                self._rows[name].append((file, name))

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._rows:
            raise KeyError(name)
        rows = [file.get_tensor(full) for file, full in self._rows[name]]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def below(self, prefix: str) -> "Parts":
        """Those whose names begin so, without it."""
        chosen = Parts()
        chosen._rows |= {n.removeprefix(prefix): rows for n, rows in self._rows.items() if n.startswith(prefix)}
        return chosen


def read_checkpoint(folder: Path) -> tuple[Parts, dict[str, Any]]:
    """(tensors, state) of a checkpoint.

    Raises:
        ValueError: it holds no training state, or cannot be read.
    """
    state = read_state(folder)
    try:
        return Parts(_part_files(folder)), state
    except Exception as error:
        raise ValueError(f"{folder} is not a training checkpoint that can be resumed: {error}") from error


def read_state(folder: Path) -> dict[str, Any]:
    """The JSON values of a checkpoint.

    Raises:
        ValueError: as `read_checkpoint`.
    """
    try:
        return json.loads((folder / STATE).read_text(encoding="utf-8"))
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
def _whole_folder(folder: Path, what: str, accelerator: Accelerator | None = None) -> Iterator[Path]:
    """A folder beside `folder` to fill, which takes its place, and its name, when all processes have filled it and it
    is on the disk.
    """
    main = accelerator is None or accelerator.is_main_process
    aside = folder.with_name(f".{folder.name}.partial")
    before = folder.with_name(f".{folder.name}.before")
    try:
        with all_or_none(accelerator):
            if main:
                _make_room(folder, aside, before)
        with all_or_none(accelerator):
            yield aside
        with all_or_none(accelerator):
            if main:
                _take_place(folder, aside, before)
    except Exception as error:
        if main:
            shutil.rmtree(aside, ignore_errors=True)
            if before.exists() and not folder.exists():
                os.replace(before, folder)
        raise OSError(f"{what} {folder} could not be written: {error}") from error


def _make_room(folder: Path, aside: Path, before: Path) -> None:
    if before.exists() and not folder.exists():
        os.replace(before, folder)
    for leftover in (aside, before):
        shutil.rmtree(leftover, ignore_errors=True)
    aside.mkdir(parents=True)


def _take_place(folder: Path, aside: Path, before: Path) -> None:
    for path in [*aside.rglob("*"), aside]:
        _flush(path)
    if folder.exists():
        os.replace(folder, before)
    os.replace(aside, folder)
    shutil.rmtree(before, ignore_errors=True)
    for parent in (folder.parent, folder.parent.parent):
        _flush(parent)


def _part_name(part: int, parts: int) -> str:
    stem, dot, suffix = TENSORS.partition(".")
    return f"{stem}-{part + 1:05d}-of-{parts:05d}{dot}{suffix}"


def _part_files(folder: Path) -> list[Path]:
    """The files of a training state, in the order of their rows."""
    stem, dot, suffix = TENSORS.partition(".")
    first = next(folder.glob(f"{stem}-00001-of-*{dot}{suffix}"), None)
    if first is None:
        return [folder / TENSORS]
    parts = int(first.stem.rpartition("-")[2])
    return [folder / _part_name(part, parts) for part in range(parts)]


def _flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk. Windows opens no folders, and flushes files that are open for
    writing alone.
    """
    if WINDOWS and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if WINDOWS else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _counts_on_device(group: Mapping[str, Any]) -> bool:
    return bool(group.get("fused") or group.get("capturable"))
