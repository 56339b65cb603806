"""Exponential moving average of weights: float32, every step, fitting runs of any length."""

import copy

import torch
from torch import Tensor, nn

POWER = 8  # of (1 - 1/n): about the last eighth of the steps so far


class EMA:
    """A float32 copy of a network that follows it.

    Update n keeps min(β, (1 - 1/n)^8) of the average. Until the decay takes over, this is the power-function average of
    arXiv 2312.02696 (section 3.1): it spans the same share of a run however long the run is, and the initial weights
    never enter.

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
        weight = 1 - min(self.decay, (1 - 1 / self.updates) ** POWER)
        averages: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averages, [p.detach().float() for p in network.parameters()], weight)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)
