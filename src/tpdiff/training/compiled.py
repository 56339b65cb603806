"""A network compiled for the sizes of its stages."""

import torch
from torch import nn


def compile_stages(network: nn.Module, sizes: int) -> None:
    """Compile a network in place, one graph a size, when each is first seen: a stage of a clip size. One more is for
    each where its low-rank matrices are left out, as distillation asks the network before training.

    Its parameters, names and copies made before stay as they are.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 2 * sizes + 1)
    network.compile(dynamic=False)
