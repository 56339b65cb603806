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

    Parameters that do not ask for gradients are not copied: both networks share them.

    Args:
        network: followed, not sharded yet.
        decay: β in [0, 1); 0 keeps the last weights.
        device: where the averages are kept; None: where the network is.
        sharded: the network will be sharded; `follow` says when it is. Every process then keeps the averages of its
            own rows.

    Attributes:
        network: the averaged network. A sharded one has its weights within `whole` only, on the main process.
    """

    def __init__(
        self, network: nn.Module, decay: float, device: torch.device | str | None = None, sharded: bool = False
    ):
        self.decay = decay
        self.updates = 0
        self.device = device
        shared = {id(p): p for p in network.parameters() if not p.requires_grad}
        if sharded:
            shared = {id(p): _without_weights(p) for p in network.parameters()}
        self.network = copy.deepcopy(network, shared).eval()
        averages = trained(self.network)
        for p in averages.values():
            p.data = p.data.to(None if sharded else device, torch.float32)
        self.network.requires_grad_(False)
        self._averages: dict[str, Tensor] = dict(averages)
        self._sharded: nn.Module | None = None

    def follow(self, network: nn.Module) -> None:
        """Begin the averages of a network that was sharded, with its present weights; buffers go where its own went."""
        self._sharded = network
        for name, p in trained(network).items():
            self._averages[name] = p.detach().to(self.device or p.device, torch.float32, copy=True)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            torch.utils.swap_tensors(average, buffer.detach().clone())

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Take in the network's present weights."""
        self.updates += 1
        weight = 1 - min(self.decay, (1 - 1 / self.updates) ** POWER)
        followed = trained(network)
        averages = [own_rows(self._averages[name]) for name in followed]
        weights = [own_rows(p.detach()) for p in followed.values()]
        values = [w.to(average.device).float() for w, average in zip(weights, averages, strict=True)]
        torch._foreach_lerp_(averages, values, weight)
        for average, buffer in zip(self.network.buffers(), network.buffers(), strict=True):
            average.copy_(buffer)

    def tensors(self) -> dict[str, Tensor]:
        """The averaged network's state by name; of what is sharded, this process's rows."""
        return {**self.network.state_dict(), **self._averages}

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave of averages and buffers, each whole."""
        buffers = {name: tensors[name] for name in tensors if name not in self._averages}
        self.network.load_state_dict(buffers, strict=False)
        for name, average in self._averages.items():
            own_rows(average).copy_(own_rows(part_of(tensors[name], average)))

    @contextmanager
    def whole(self, main: bool, device: torch.device | str | None = None) -> Iterator[None]:
        """While active, `network` has all its weights. Collective where they are sharded.

        Args:
            main: whether this process needs them: a sharded network is put together there.
            device: where they are wanted; None: wherever they are kept, those of a sharded network on the CPU.
        """
        before = self.network.state_dict()
        lent: set[str] = set()
        for name, tensor in self._elsewhere(device):
            if main:
                self.network.load_state_dict({name: tensor}, strict=False, assign=True)
                lent.add(name)
        try:
            yield
        finally:
            self.network.load_state_dict({name: before[name] for name in lent}, strict=False, assign=True)

    def _elsewhere(self, device: torch.device | str | None) -> Iterator[tuple[str, Tensor]]:
        """What `network` does not have on a device: all weights of a sharded network, averages kept apart."""
        if self._sharded is not None:
            for name, p in self._sharded.named_parameters():
                yield name, whole(_on_mesh(self._averages.get(name, p.detach()))).to(device or "cpu")
        elif self.device is not None and device is not None:
            yield from ((name, average.to(device)) for name, average in self._averages.items())


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that ask for gradients, by name."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


def _without_weights(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=p.requires_grad)


def _on_mesh(tensor: Tensor) -> Tensor:
    """A sharded tensor on the device over which its rows can be gathered."""
    if not isinstance(tensor, DTensor):
        return tensor
    return sharded_as(own_rows(tensor).to(tensor.device_mesh.device_type), tensor)
