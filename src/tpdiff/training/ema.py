"""Exponential moving average of weights: float32, every step, fitting runs of any length."""

import copy

import torch
from torch import nn

POWER = 8  # of (1 - 1/n): about the last eighth of the steps so far


class EMA:
    """A float32 copy of a network that follows it.

    Update n keeps min(β, (1 - 1/n)^8) of the average. Until the decay takes over, this is the power-function average of
    arXiv 2312.02696 (section 3.1): it spans the same share of a run however long the run is, and the initial weights
    never enter.

    Parameters that do not ask for gradients are not copied: both networks share them.

    Args:
        network: followed; its copy keeps the device.
        decay: β in [0, 1); 0 keeps the last weights.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay = decay
        self.updates = 0
        shared = {id(p): p for p in network.parameters() if not p.requires_grad}
        self.network = copy.deepcopy(network, shared).eval()
        for p in trained(self.network).values():
            p.data = p.data.float()
        self.network.requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 - 1 / self.updates) ** POWER)
        followed, averages = trained(network), dict(self.network.named_parameters())
        values = [p.detach().float() for p in followed.values()]
        torch._foreach_lerp_([averages[name] for name in followed], values, weight)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that ask for gradients, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}
