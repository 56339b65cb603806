"""A network compiled for the sizes of its stages."""

import torch
from torch import nn


def compile_stages(network: nn.Module, stages: int) -> None:
    """Compile a network in place, one graph of fixed sizes a stage, when each is first seen.

    Its parameters, names and copies made before stay as they are.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, stages + 1)
    network.compile(dynamic=False)
