"""Exponential moving average of weights: float32, every step, fitting runs of any length."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from tpdiff.training.shards import own_rows, part_of, sharded_as, whole

POWER = 8  # of (1 - 1/n): about the last eighth of the steps so far


class EMA:
    """A float32 copy of a network that follows it.

    Update n keeps min(β, (1 - 1/n)^8) of the average. Until the decay takes over, this is the power-function average of
    arXiv 2312.02696 (section 3.1): it spans the same share of a run however long the run is, and the initial weights
    never enter.

    Args:
        network: followed, not sharded yet.
        decay: β in [0, 1); 0 keeps the last weights.
        device: where the average is kept; None: where the network is.
        sharded: the network will be sharded; `follow` says when it is. Every process then keeps the average of its
            own rows.

    Attributes:
        network: the averaged network. A sharded average has its weights within `whole` only, on the main process.
    """

    def __init__(
        self, network: nn.Module, decay: float, device: torch.device | str | None = None, sharded: bool = False
    ):
        self.decay = decay
        self.updates = 0
        self.device = device
        shared = {id(p): _no_weights(p) for p in network.parameters()} if sharded else {}
        self.network = copy.deepcopy(network, shared).float().eval().requires_grad_(False)
        if not sharded and device is not None:
            self.network.to(device)
        self._rows: dict[str, DTensor] = {}

    def follow(self, network: nn.Module) -> None:
        """Begin the average of a sharded network with its present weights."""
        for name, p in network.named_parameters():
            assert isinstance(p, DTensor)
            rows = own_rows(p.detach()).to(self.device or p.device, torch.float32, copy=True)
            self._rows[name] = sharded_as(rows, p)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 - 1 / self.updates) ** POWER)
        averages = [own_rows(t) for t in (self._rows.values() or self.network.parameters())]
        present = [
            own_rows(p.detach()).to(a.device).float() for a, p in zip(averages, network.parameters(), strict=True)
        ]
        torch._foreach_lerp_(averages, present, weight)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)

    def tensors(self) -> dict[str, Tensor]:
        """The average by name, each process's own rows of what is sharded."""
        return {**self.network.state_dict(), **self._rows}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave, whole."""
        held = {name: tensors[name] for name in tensors if name not in self._rows}
        self.network.load_state_dict(held, strict=not self._rows)
        for name, average in self._rows.items():
            own_rows(average).copy_(own_rows(part_of(tensors[name], average)))

    @contextmanager
    def whole(self, main: bool = True, device: torch.device | str | None = None) -> Iterator[None]:
        """While active, `network` has all its weights, on `device`. Collective where they are sharded.

        Args:
            main: whether this process needs them: a sharded average is put together there.
            device: None: where the average is kept, and of a sharded one the processor's memory.
        """
        if self._rows:
            absent = self.network.state_dict()
            for name, average in self._rows.items():
                full = whole(sharded_as(own_rows(average).to(average.device_mesh.device_type), average))
                if main:
                    self.network.load_state_dict({name: full.to(device or "cpu")}, strict=False, assign=True)
        elif device is not None:
            self.network.to(device)
        try:
            yield
        finally:
            if self._rows:
                self.network.load_state_dict(absent, assign=True)
            elif device is not None and self.device is not None:
                self.network.to(self.device)


def _no_weights(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
