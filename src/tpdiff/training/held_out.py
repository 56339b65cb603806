"""The loss on clips that are not trained on, per stage and per timestep quantile, always at the same noise.

Nothing here depends on the step, on the training seed or on what was measured before, so figures can be compared over
a run and between runs that share a validation seed, and the same weights give the same figures.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpdiff.pyramid.noise import randn
from tpdiff.training.clean import Clean, clean_pair
from tpdiff.training.config import Config
from tpdiff.training.data_config import DataConfig
from tpdiff.training.objective import sample_errors
from tpdiff.training.randomness import sample_generators
from tpdiff.training.setup import look_at_videos, open_clips, said_of
from tpdiff.training.trainee import Told, Trainee


@dataclass(frozen=True)
class HeldOut:
    """Clips, uint8 (N, 3, T, H, W), with their captions."""

    video: Tensor
    captions: list[str]

    @property
    def prompts(self) -> list[str]:
        """The distinct captions, in order of appearance."""
        return list(dict.fromkeys(self.captions))


def look_at_held_out(config: Config) -> None:
    """Refuse clips to validate on that cannot be, before anything is decoded.

    Raises:
        ValueError: they are not apart from those trained on, or there are none, or one lacks a caption.
    """
    _check_apart(config)
    with _said_of_split(config):
        look_at_videos(_videos(config), captions=config.condition.kind != "none")


def open_held_out(config: Config) -> HeldOut:
    """The clips that a run is validated on: of each held-out video one, at a start drawn by the validation seed.

    Raises:
        ValueError: there are none, or one lacks a caption.
    """
    validation = config.validation
    with _said_of_split(config):
        dataset = open_clips(_videos(config), validation.seed, require_captions=config.condition.kind != "none")
    items = [dataset[i] for i in range(min(validation.clips, len(dataset)))]
    return HeldOut(torch.stack([item["video"] for item in items]), [item["caption"] for item in items])


def midpoints(count: int) -> list[float]:
    """Where in each stage the loss is taken, u in (0, 1): the middles of `count` equal parts; 0 is the clean end."""
    return [(j + 0.5) / count for j in range(count)]


@torch.no_grad()
def quantile_losses(
    trainee: Trainee,
    network: nn.Module,
    held_out: HeldOut,
    encode: Callable[[Tensor], Clean],
    config: Config,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]],
    stop: Callable[[], bool] = lambda: False,
) -> dict[int, list[float]] | None:
    """Mean loss over the clips at every quantile of every stage at whose times the network is asked, without alignment
    and with every caption told.

    Args:
        trainee: what is trained.
        network: its averaged weights, in inference mode.
        held_out: the clips.
        encode: uint8 clips (B, 3, T, H, W) to latents, at full size or of each stage.
        config: the run; its section `validation` says how many quantiles and which seed.
        device: where the network is.
        autocast: precision of the forward pass.
        stop: asked before every batch whether to give up.

    Returns:
        stage -> one loss a quantile, or None where it was given up.
    """
    pyramid = trainee.convention.pyramid
    validation, quantiles = config.validation, midpoints(config.validation.quantiles)
    totals = {k: [0.0] * len(quantiles) for k in trainee.stages}
    for first in range(0, len(held_out.video), config.validated_at_once):
        if stop():
            return None
        numbers = range(first, min(first + config.validated_at_once, len(held_out.video)))
        latents = encode(held_out.video[numbers.start : numbers.stop])
        prompts = [_told(held_out.captions[i], config) for i in numbers]
        video, drawing = held_out.video[numbers.start : numbers.stop], sample_generators(validation.seed, numbers)
        denoise = trainee.denoiser(network, Told(prompts, video, latents, drawing))
        for k in totals:
            clean, coarse = clean_pair(pyramid, latents, k)
            generators = sample_generators(validation.seed, numbers, f"held-out stage {k}")
            for j, u in enumerate(quantiles):
                with autocast():
                    errors = sample_errors(
                        denoise,
                        trainee.convention,
                        clean,
                        coarse,
                        k,
                        randn(clean.shape, generators, device),
                        torch.full((len(clean),), u, dtype=torch.float64),
                        config.train,
                    )
                totals[k][j] += float(errors.double().sum())
    return {k: [total / len(held_out.video) for total in row] for k, row in totals.items()}


def _videos(config: Config) -> DataConfig:
    cache = "disk" if config.data.cache == "disk" else "none"
    return config.data.model_copy(update={"split": config.validation.split, "cache": cache})


def _said_of_split(config: Config) -> AbstractContextManager[None]:
    return said_of(f"validation.split {config.validation.split!r}")


def _check_apart(config: Config) -> None:
    """Refuse to validate on what is trained on."""
    data, validation = config.data, config.validation
    if data.split in (None, validation.split):
        raise ValueError(
            f"validation.split {validation.split!r} is not apart from data.split {data.split!r}: validation needs "
            'clips that are not trained on, such as data.split=train and validation.split=test, "split" of each '
            "video in metadata.jsonl, or subfolders train and test"
        )


def _told(caption: str, config: Config) -> str | None:
    return None if config.condition.kind == "none" else caption
