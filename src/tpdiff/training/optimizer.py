"""The optimizer, its rate and the budget that the rate follows."""

import math

import torch
from torch import nn

from tpdiff.training.autoencoder_config import AutoencoderTrainConfig
from tpdiff.training.config import TrainConfig
from tpdiff.training.eight_bit import adamw_8bit, check_torchao


def check_optimizer(train: TrainConfig) -> None:
    """Refuse, before any work, an optimizer whose package is not installed.

    Raises:
        ValueError: naming it.
    """
    if train.optimizer == "adamw8bit":
        check_torchao()


def build_optimizer(
    network: nn.Module, train: TrainConfig | AutoencoderTrainConfig, sharded: bool = False
) -> torch.optim.Optimizer:
    """AdamW over all parameters that ask for gradients, in one fused pass, or with moments of 8 bits.

    Raises:
        ValueError: `train.optimizer` names one whose package is not installed, or that sharded weights cannot have.
    """
    asking = [p for p in network.parameters() if p.requires_grad]
    if isinstance(train, TrainConfig) and train.optimizer == "adamw8bit":
        if sharded:
            raise ValueError("train.optimizer=adamw8bit keeps whole moments, FSDP2 shards them; nearest: adamw")
        return adamw_8bit(asking, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay)
    return torch.optim.AdamW(asking, lr=train.lr, betas=train.betas, weight_decay=train.weight_decay, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Have the next step made at this rate."""
    for group in optimizer.param_groups:
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], torch.Tensor) else rate


def spent(train: TrainConfig | AutoencoderTrainConfig, step: int, seconds: float) -> float:
    """Share of the budget (steps or seconds, whichever is nearer its end) that is done, at most 1."""
    shares = [step / train.steps] if train.steps else []
    shares += [seconds / train.seconds] if train.seconds else []
    return min(1.0, max(shares))


def learning_rate(train: TrainConfig | AutoencoderTrainConfig, step: int, fraction: float) -> float:
    """The rate of the step after `step`: linear warm-up, then constant, or falling with the `fraction` of the budget
    that is spent, so that a budget in seconds is followed as one in steps is.
    """
    rate = train.lr * min(1.0, (step + 1) / max(1, train.warmup_steps))
    if train.lr_schedule == "linear":
        rate *= 1 - fraction
    elif train.lr_schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * fraction))
    return rate
