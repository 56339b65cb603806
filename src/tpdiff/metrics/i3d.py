"""I3D (arXiv 1705.07750), Inception grown over time: the network behind FVD. Its parts bear the names of the public
PyTorch weights for RGB clips and the 400 classes of Kinetics, which load as they are.
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 400
FEWEST = 9  # frames; fewer leave the last pooling, over two places in time, only one
Axes = tuple[int, int, int]  # T, H, W


class Unit(nn.Module):
    """A convolution to ceil(size / stride), and but for the last of the network normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, last: bool = False):
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=last)
        self.bn = None if last else nn.BatchNorm3d(outputs, eps=1e-3)
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', ceil(T / stride), ceil(H / stride), ceil(W / stride))."""
        x = self.conv3d(_padded(x, self.kernel, self.stride))
        return x if self.bn is None else functional.relu(self.bn(x), inplace=True)


class Pool(nn.Module):
    """The greatest of each window, to ceil(size / stride). Zeros stand beyond the edges; nothing here is below."""

    def __init__(self, kernel: Axes, stride: Axes):
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C, ceil(T / stride), ceil(H / stride), ceil(W / stride))."""
        return functional.max_pool3d(_padded(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Four branches side by side, of `widths` channels: point; point, cube; point, cube; pool, point."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]):
        super().__init__()
        one, narrow, two, thin, three, four = widths
        self.b0 = Unit(inputs, one, 1)
        self.b1a, self.b1b = Unit(inputs, narrow, 1), Unit(narrow, two, 3)
        self.b2a, self.b2b = Unit(inputs, thin, 1), Unit(thin, three, 3)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(inputs, four, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, C', T, H, W)."""
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)


class I3D(nn.Sequential):
    """Clips to class scores before softmax, averaged over the time that is left (T / 8 - 1 places)."""

    def __init__(self) -> None:
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit(3, 64, 7, 2),
            "MaxPool3d_2a_3x3": Pool((1, 3, 3), (1, 2, 2)),
            "Conv3d_2b_1x1": Unit(64, 64, 1),
            "Conv3d_2c_3x3": Unit(64, 192, 3),
            "MaxPool3d_3a_3x3": Pool((1, 3, 3), (1, 2, 2)),
            "Mixed_3b": Mixed(192, (64, 96, 128, 16, 32, 32)),
            "Mixed_3c": Mixed(256, (128, 128, 192, 32, 96, 64)),
            "MaxPool3d_4a_3x3": Pool((3, 3, 3), (2, 2, 2)),
            "Mixed_4b": Mixed(480, (192, 96, 208, 16, 48, 64)),
            "Mixed_4c": Mixed(512, (160, 112, 224, 24, 64, 64)),
            "Mixed_4d": Mixed(512, (128, 128, 256, 24, 64, 64)),
            "Mixed_4e": Mixed(512, (112, 144, 288, 32, 64, 64)),
            "Mixed_4f": Mixed(528, (256, 160, 320, 32, 128, 128)),
            "MaxPool3d_5a_2x2": Pool((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": Mixed(832, (256, 160, 320, 32, 128, 128)),
            "Mixed_5c": Mixed(832, (384, 192, 384, 48, 128, 128)),
            "avg_pool": nn.AvgPool3d((2, 7, 7), stride=1),
            "logits": Unit(1024, CLASSES, 1, last=True),
        }
        super().__init__(OrderedDict(layers))

    def forward(self, x: Tensor) -> Tensor:
        """float32 (B, 3, T, 224, 224) in [-1, 1], T at least 9 -> (B, 400)."""
        return super().forward(x).mean(dim=(2, 3, 4))


def load_i3d(path: Path) -> I3D:
    """The network with the weights of a safetensors file, or of a state dict that torch.save wrote; ready for
    inference. Only tensors are read, never code.

    Raises:
        ValueError: not such a file, or other weights than I3D's, with what differs.
    """
    stored = _read(path)
    with torch.device("meta"):
        network = I3D()
    wanted, found = (
        {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
        for tensors in (network.state_dict(), stored)
    )
    reshaped = [name for name in wanted if found.get(name, wanted[name]) != wanted[name]]
    for kind, names in (("absent", wanted.keys() - found), ("unknown", found.keys() - wanted), ("reshaped", reshaped)):
        if names:
            name = min(names)
            shapes = f": {found[name]}, not {wanted[name]}" if kind == "reshaped" else ""
            raise ValueError(f"{path} does not hold I3D's weights: {len(names)} {kind}, such as {name}{shapes}")
    network.load_state_dict({name: stored[name].float() for name in wanted}, assign=True)
    return network.eval().requires_grad_(False)


def _read(path: Path) -> dict[str, Tensor]:
    safe = path.suffix == ".safetensors"
    try:
        stored: Any = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file of something else fails in any way
        kind = "not a safetensors file" if safe else "neither TorchScript nor a state dict of tensors"
        raise ValueError(f"{path} is {kind}: {(str(error).splitlines() or ['?'])[0]}") from error
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        raise ValueError(f"{path} does not hold I3D's weights: it is no state dict, a tensor for each name")
    return stored


def _padded(x: Tensor, kernel: Axes, stride: Axes) -> Tensor:
    """Zeros around T, H and W so that ceil(size / stride) windows fit; an odd one goes behind, below, to the right."""
    sizes = zip(x.shape[2:], kernel, stride, strict=True)
    over = [max(0, (-(-size // step) - 1) * step + reach - size) for size, reach, step in sizes]
    return functional.pad(x, [side for extra in reversed(over) for side in (extra // 2, extra - extra // 2)])
