"""Tensors of which every process holds some rows (FSDP2), from whole ones and back."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


def own_rows(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, unless it is sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All rows of a tensor. Collective where it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_as(rows: Tensor, like: DTensor) -> DTensor:
    """This process's rows of a tensor that is sharded as `like` is, wherever the rows lie."""
    mesh, placements = like.device_mesh, like.placements
    return DTensor.from_local(rows, mesh, placements, run_check=False, shape=like.shape, stride=like.stride())


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on every process, on the device of `like` and sharded as it is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_whole(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a network that may be sharded, by name; what has none stays."""
    own = network.state_dict()
    network.load_state_dict({name: part_of(tensors[name], own[name]) for name in tensors}, strict=False)


def place_among(tensors: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(i, n): this process holds the i-th of n parts of the rows; None where another process holds the same ones.

    Raises:
        ValueError: sharded other than by rows along one axis of the mesh.
    """
    sharded = next((t for t in tensors.values() if isinstance(t, DTensor)), None)
    if sharded is None:
        return 0, 1
    mesh, axes = sharded.device_mesh, [i for i, p in enumerate(sharded.placements) if not isinstance(p, Replicate)]
    if len(axes) != 1 or sharded.placements[axes[0]] != Shard(0):
        raise ValueError(f"weights sharded as {sharded.placements} cannot be saved; nearest: FSDP2 or HSDP alone")
    copies = [mesh.get_local_rank(axis) for axis in range(mesh.ndim) if axis != axes[0]]
    return None if any(copies) else (mesh.get_local_rank(axes[0]), mesh.size(axes[0]))
