"""Where the random numbers of training come from.

Each has a key: the stage of a micro-batch has its number in the run, and the noise, the times and the dropped caption
of a sample have the sample's index in the data stream. Nothing is carried from one step to the next, so there is
nothing to restore, and what a sample meets does not depend on how the stream is cut into batches or processes.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from tpdiff.data.stream import generator_for


def micro_batch_generator(seed: int, step: int, micro: int, accumulation: int) -> torch.Generator:
    """For what all samples of a micro-batch share, on every process: the stage."""
    return generator_for(seed, "stage", step * accumulation + micro)


def sample_generators(seed: int, indices: Iterable[int], purpose: str = "sample") -> list[torch.Generator]:
    """One generator a sample, by its index in the stream."""
    return [generator_for(seed, purpose, int(index)) for index in indices]


@contextmanager
def network_draws(seed: int, indices: Sequence[int], stage: int, device: torch.device) -> Iterator[None]:
    """What a network itself draws within (dropout) has for its key the first of its samples and the stage; PyTorch's
    generators stay as they were.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(generator_for(seed, f"network, stage {stage}", int(indices[0])).initial_seed())
        yield
