"""Which network this is, in 32 characters."""

from hashlib import blake2b

import torch
from torch import nn


def weights_digest(network: nn.Module, *told: str) -> str:
    """A digest of a network's class, of what else is told of it, and of every weight."""
    digest = blake2b(digest_size=16)
    for part in (type(network).__name__, *told):
        digest.update(f"{part}|".encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
