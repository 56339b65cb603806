"""A run as tensors and JSON values, and back: what makes a resumed run the same run.

Random numbers are not among them: they are keyed (`tpdiff.training.randomness`); the place in the data is a number.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from tpdiff.training import checkpoint as ckpt
from tpdiff.training.autoencoder_config import AutoencoderConfig
from tpdiff.training.config import Config
from tpdiff.training.distribution import check_same_start
from tpdiff.training.load_config import build, config_difference
from tpdiff.training.setup import may_change
from tpdiff.training.shards import load_whole
from tpdiff.training.videos import check_files, check_same_videos

if TYPE_CHECKING:
    from tpdiff.training.trainer import Trainer

Run = TypeVar("Run", Config, AutoencoderConfig)


def capture(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON values) of this moment.

    The tensors: weights, averages, moments, and "losses", float64 (N, 4) of (seconds, step, stage, loss).
    """
    kept = kept_names(trainer.network)
    tensors = {f"network.{n}": t for n, t in trainer.network.state_dict().items() if n in kept}
    tensors |= {f"ema.{n}": t for n, t in trainer.ema.tensors().items() if n in kept}
    tensors |= ckpt.pack_optimizer(trainer.optimizer, trainer.network)
    tensors["losses"] = torch.tensor(trainer.losses, dtype=torch.float64).reshape(-1, 4)
    scaler = trainer.accelerator.scaler
    return tensors, {
        "step": trainer.step,
        "seconds": trainer.seconds,
        "tokens": trainer.tokens,
        "samples": trainer.samples,
        "ema_updates": trainer.ema.updates,
        "recent": trainer.recent.pack(),
        "gradient_scaler": None if scaler is None else scaler.state_dict(),
        "captions": trainer.trainee.labels,
        "captions_digest": trainer.captions_digest,
        "autoencoder": trainer.latents.identity,
        "shards": getattr(trainer.dataset, "digest", None),
        "videos": trainer.videos,
        "config": trainer.config.model_dump(mode="json"),
    }


def kept_names(network: nn.Module) -> set[str]:
    """Names in a network's state that training changes: not those of parameters that stay as they are."""
    return set(network.state_dict()) - {name for name, p in network.named_parameters() if not p.requires_grad}


def check_same_run(folder: Path, config: Run, *free: str) -> None:
    """Refuse to go on from a checkpoint of another configuration, or without its videos, before anything is decoded.

    What is trained on may lie elsewhere where the checkpoint tells what it is: shards by their digest (their videos are
    for validation), videos by their lengths.

    Args:
        folder: the checkpoint.
        config: the run.
        free: how keys begin that may change beside those that always may.

    Raises:
        ValueError: naming every key that differs, or videos that are gone.
    """
    state = ckpt.read_state(folder)
    before, videos = build(type(config), state["config"]), state.get("videos")
    if before.data.shards is not None and config.data.shards is not None:
        free += ("data.shards:", "data.path:")
    if videos is not None:
        free += ("data.path:",)
    difference = [d for d in config_difference(before, config) if not (may_change(d) or d.startswith(free))]
    if difference:
        raise ValueError(f"{folder} was trained with another configuration: {'; '.join(difference)}")
    check_files(folder, videos, config.data.path)


def restore(trainer: Trainer, folder: Path) -> None:
    """Make a new trainer the one that wrote the checkpoint `folder`.

    Raises:
        ValueError: it cannot be read, or is of other videos or captions, another autoencoder or other shards.
    """
    tensors, state = ckpt.read_checkpoint(folder)
    check_same_start(trainer.accelerator, state["step"])
    if "losses" not in tensors:
        raise ValueError(f"{folder} is not a training checkpoint that can be resumed: it holds no losses")
    path = trainer.config.data.path
    check_same_videos(folder, state.get("videos"), trainer.videos, path, trainer.dataset.bad)
    if state["captions"] != trainer.trainee.labels:
        raise ValueError(f"{folder} was trained with other captions as classes than {path} has")
    if state.get("captions_digest") not in (None, trainer.captions_digest):
        raise ValueError(
            f"{folder} was trained with other captions than the videos of {path} have now; put them as they were, or "
            "begin another run with another --out"
        )
    if state["autoencoder"] != trainer.latents.identity:
        raise ValueError(f"{folder} was trained on latents of another autoencoder; use the one it was trained with")
    if state.get("shards") != getattr(trainer.dataset, "digest", None):
        raise ValueError(f"{folder} was trained on other shards than those of {trainer.config.data.shards} now")
    kept = kept_names(trainer.network)
    for prefix, load in (("network.", partial(load_whole, trainer.network)), ("ema.", trainer.ema.load)):
        found = tensors.below(prefix)
        if found.keys() != kept:
            raise ValueError(f"{folder} holds other weights than are trained: {min(found.keys() ^ kept)}, for one")
        load(found)
    ckpt.unpack_optimizer(trainer.optimizer, trainer.network, tensors)
    trainer.step, trainer.seconds, trainer.tokens = state["step"], state["seconds"], state["tokens"]
    train = trainer.config.train
    before = trainer.step * train.accumulation * train.batch_size  # by checkpoints that do not say it
    trainer.samples = state.get("samples", before)
    trainer.ema.updates = state["ema_updates"]
    trainer.recent.unpack(state["recent"])
    trainer.losses = [(s, int(step), int(k), loss) for s, step, k, loss in tensors["losses"].tolist()]
    if trainer.accelerator.scaler is not None and state["gradient_scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(state["gradient_scaler"])
