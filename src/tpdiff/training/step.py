"""One optimizer step: every micro-batch through its stages, the gradient clipped, the weights moved and averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpdiff.training.clean import clean_pair
from tpdiff.training.objective import StageLoss, stage_loss
from tpdiff.training.optimizer import learning_rate, set_rate
from tpdiff.training.progress import check_finite, check_scale
from tpdiff.training.randomness import network_draws, sample_generators
from tpdiff.training.setup import known_text
from tpdiff.training.shards import whole
from tpdiff.training.trainee import Told

if TYPE_CHECKING:
    from tpdiff.training.trainer import Trainer


class MicroBatch:
    """Clips, encoded once, of which the losses of several stages are taken.

    Args:
        trainer: whose network is asked.
        batch: clips as `tpdiff.data.collate` puts them together.
        prompts: what the network is told of each.
        generators: one a clip; all that is drawn of its noise and times comes from there, in turn.
    """

    def __init__(
        self,
        trainer: Trainer,
        batch: dict[str, Any],
        prompts: Sequence[str | None],
        generators: list[torch.Generator],
    ):
        self._trainer, self._index, self._generators = trainer, batch["index"], generators
        self._latents = trainer.latents.of_batch(batch)
        told = Told(prompts, batch.get("video"), self._latents, generators, known_text(batch))
        self._denoise, self._original = trainer.trainee.denoiser(trainer.wrapped, told), trainer.trainee.original(told)
        conditioned = trainer.config.condition.kind != "none"
        self._alike = batch["caption"] if conditioned else prompts  # within it noise is aligned

    def loss(self, stage: int) -> StageLoss:
        """The loss of a stage, 0 the finest, with what it takes to go backward."""
        trainer, config = self._trainer, self._trainer.config
        draws = network_draws(config.seed, self._index, stage, trainer.device)
        with trainer.accelerator.autocast(), draws:
            clean, coarse = clean_pair(trainer.pyramid, self._latents, stage)
            return stage_loss(
                self._denoise,
                trainer.trainee.convention,
                clean,
                coarse,
                stage,
                self._alike,
                config.train,
                self._generators,
                self._original,
                trainer.accelerator,
            )


def take_step(trainer: Trainer, batches: list[dict[str, Any]]) -> tuple[list[StageLoss], Tensor]:
    """Move the weights by the mean gradient of the micro-batches: their losses, a stage each, and the gradient's norm.

    All randomness is keyed by the seed and each clip's own index, so that a step is the same whenever it is taken, and
    on however many processes; but for dropout within the network, whose key is each batch's first clip.
    """
    config, accelerator = trainer.config, trainer.accelerator
    set_rate(trainer.optimizer, learning_rate(config.train, trainer.step, trainer.fraction))
    parts: list[StageLoss] = []
    for micro, batch in enumerate(batches):
        parts += _take_batch(trainer, batch, micro, len(batches))
    limit = math.inf if config.train.max_grad_norm is None else config.train.max_grad_norm
    norm = whole(accelerator.clip_grad_norm_(trainer.wrapped.parameters(), limit))
    trainer.optimizer.step()
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.ema.update(trainer.network)
    return parts, norm


def check_values(trainer: Trainer, values: list[tuple[int, float, float]]) -> None:
    """Refuse to go on from a step of these (stage, loss, alignment gain) whose loss or gradient is not a number.

    Raises:
        ValueError: which of them, at which step.
    """
    for stage, loss, _ in values:
        check_finite(f"the loss of stage {stage}", loss, trainer.step)
    if trainer.accelerator.scaler is None:  # which leaves out a step with such a gradient
        stages = ", ".join(str(stage) for stage, *_ in values)
        check_finite(f"the gradient of stage {stages}", float(trainer.gradient_norm), trainer.step)
    else:
        check_scale(trainer.accelerator.scaler.get_scale(), trainer.step)


def _take_batch(trainer: Trainer, batch: dict[str, Any], micro: int, count: int) -> list[StageLoss]:
    """The losses and gradients of one micro-batch of `count`."""
    own = sample_generators(trainer.config.seed, batch["index"])
    encoded, parts = MicroBatch(trainer, batch, _prompts(trainer, batch["caption"], own), own), []
    stages = trainer.mix.stages(trainer.step, micro)
    for k in stages:
        with _exchange(trainer, now=micro == count - 1 and k == stages[-1]):
            part = encoded.loss(k)
        trainer.accelerator.backward(part.loss / (len(stages) * count / trainer.mix.counts(k)))
        parts.append(replace(part, loss=part.loss.detach()))
    return parts


def _prompts(trainer: Trainer, captions: list[str], generators: list[torch.Generator]) -> list[str | None]:
    """Captions, of which some are dropped to None; all of them, after the same draws, without a condition."""
    condition, drawn = trainer.config.condition, [float(torch.rand((), generator=g)) for g in generators]
    share = 1.0 if condition.kind == "none" else condition.dropout
    return [None if d < share else c for c, d in zip(captions, drawn, strict=True)]


def _exchange(trainer: Trainer, now: bool) -> Any:
    """Under DDP, where the forward pass decides, gradients are exchanged with a step's last backward pass only.
    FSDP2 reduces those of every pass: whole until the last, they would take the memory of an unsharded network.
    """
    return torch.enable_grad() if now else trainer.accelerator.no_sync(trainer.wrapped)
