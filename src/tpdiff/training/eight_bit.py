"""AdamW with moments of 8 bits: a quarter of the memory, by torchao."""

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

PARTS = ("codes", "scale", "qmap")  # of 8-bit moments: the values, a factor for each block of them, what codes mean


def check_torchao() -> None:
    """Raise ValueError where torchao is not installed."""
    if find_spec("torchao") is None:
        raise ValueError("train.optimizer=adamw8bit needs torchao: pip install 'tpdiff[quantize]'")


def adamw_8bit(parameters: Iterable[nn.Parameter], **options: Any) -> torch.optim.Optimizer:
    """torchao's; moments of small or odd-sized parameters stay as they are.

    Raises:
        ValueError: torchao is not installed.
    """
    check_torchao()
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameters, **options)


def take_apart(name: str, moment: Tensor) -> dict[str, Tensor]:
    """A moment as plain tensors by name: itself, or "<name>/codes" and so on."""
    if not hasattr(moment, "codes"):
        return {name: moment}
    return {f"{name}/{part}": getattr(moment, part) for part in PARTS}


def put_together(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `take_apart` took, by name."""
    found = {name: tensor for name, tensor in tensors.items() if "/" not in name}
    for name in {name.partition("/")[0] for name in tensors.keys() - found.keys()}:
        from torchao.optim.subclass_8bit import OptimState8bit

        codes, scale, qmap = (tensors[f"{name}/{part}"] for part in PARTS)
        found[name] = OptimState8bit(codes, scale, qmap, bool(qmap.min() < 0), torch.float32)
    return found
