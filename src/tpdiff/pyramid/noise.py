"""Gaussian draws that depend on a generator alone."""

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def randn(
    shape: Sequence[int],
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal values of the given shape (B, ...).

    With one generator a sample, each sample's values depend on its own generator only, so a video is the same
    whatever batch it is made in. Values are drawn on the generator's device and then moved.

    Raises:
        ValueError: as many generators as samples were expected.
    """
    if isinstance(generator, Sequence):
        check_generators(generator, shape[0])
        return torch.cat([randn((1, *shape[1:]), one, device, dtype) for one in generator])
    source = device if generator is None else generator.device
    return torch.randn(tuple(shape), generator=generator, device=source, dtype=dtype).to(device or "cpu")


def check_generators(generators: Sequence[torch.Generator], batch: int) -> None:
    """Raise ValueError unless there is a generator for each sample."""
    if len(generators) != batch:
        raise ValueError(f"{len(generators)} generators for a batch of {batch}; give one, or one a sample")
