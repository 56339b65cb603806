"""Exponential moving average of weights: float32, every step, unbiased from the first."""

import copy

import torch
from torch import Tensor, nn


class EMA:
    """A float32 copy of a network that follows it.

    After n updates the average is Σ β^(n-i) w_i / Σ β^(n-i): the initial weights never enter, so that short runs
    are not held back by them (the correction that Adam applies to its moments).

    Args:
        network: followed; its copy keeps the device.
        decay: β in [0, 1); 0 keeps the last weights.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(network).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights."""
        self.updates += 1
        weight = (1 - self.decay) / (1 - self.decay**self.updates)
        averages: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averages, [p.detach().float() for p in network.parameters()], weight)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
