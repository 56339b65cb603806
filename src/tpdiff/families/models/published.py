"""What planning and benchmarks must know of a published model: its configuration, its sizes, what its network is given.

Nothing here holds weights. A network is built from its configuration wherever the caller wants it: on the meta device
to count, on a real one, with random weights, to measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

Size = tuple[int, int, int]
Shape = tuple[int, int, int]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Published:
    """One published model.

    Attributes:
        name: how a user asks for it.
        title: its full name.
        source: where its configuration is published.
        network: name of the network's class in diffusers.
        config: that class's arguments.
        layers: the arguments that count repetitions of equal blocks; empty where no two blocks are equal.
        pipeline: network -> the stock pipeline around it, without text encoder and autoencoder.
        inputs: (configuration, (t, h, w) of the latents, batch, dtype) -> the arguments that the pipeline calls the
            network with, on the default device; masks and pictures, whose values networks look at, on the CPU.
        embeddings: (configuration, dtype) -> what a call of the pipeline takes in place of a prompt, on the default
            device; None: the pipeline cannot be called without its autoencoder.
        size: (num_frames, height, width) in pixels that it is made for.
        fps: frames a second that its videos are shown at.
        steps: its usual number of steps.
        text_tokens: tokens of text that the network is given, padding included.
        patch: latent elements (T, H, W) that make one token; (1, 1, 1) for a convolutional network.
        passes: network passes of one step with guidance: 2 with classifier-free guidance, 1 where it is embedded.
        together: both passes are one batch of two.
        experts: networks of this configuration, of which a step uses one.
        widen: (configuration, layers, hidden size) -> that of a smaller or larger network of the same shape.
        vae: -> its autoencoder with random weights, on the default device.
        latent_channels: of what the autoencoder decodes.
        frame_vae: the autoencoder decodes frames, not videos.
        notes: what a reader of its figures should know.
    """

    name: str
    title: str
    source: str
    network: str
    config: Config
    pipeline: Callable[[Any], Any]
    inputs: Callable[[Config, Shape, int, torch.dtype], dict[str, Any]]
    size: Size
    fps: float
    steps: int
    text_tokens: int
    patch: Size
    embeddings: Callable[[Config, torch.dtype], dict[str, Any]] | None
    widen: Callable[[Config, int | None, int | None], dict[str, Any]]
    vae: Callable[[], Any]
    latent_channels: int
    layers: tuple[str, ...] = ("num_layers",)
    passes: int = 2
    together: bool = False
    experts: int = 1
    frame_vae: bool = False
    notes: tuple[str, ...] = field(default=())

    def build(self, device: torch.device | str, dtype: torch.dtype, **changes: Any) -> nn.Module:
        """The network of diffusers' own class, random weights, for inference.

        Args:
            device: where; "meta" for shapes alone.
            dtype: of the weights; those that the class keeps in float32 stay so, as `from_pretrained` leaves them.
            changes: arguments other than published.
        """
        import diffusers

        kind = getattr(diffusers, self.network)
        with torch.device(device):
            network = kind(**{**self.config, **changes})
        kept = getattr(network, "_keep_in_fp32_modules", None) or ()
        for name, parameter in network.named_parameters():
            if not any(part in name.split(".") for part in kept):
                parameter.data = parameter.data.to(dtype)
        for name, buffer in network.named_buffers():
            if buffer.is_floating_point() and buffer.dtype == torch.float32 and name in network.state_dict():
                buffer.data = buffer.data.to(dtype)
        return network.eval().requires_grad_(False)

    def tokens(self, latent: Shape) -> int:
        """Tokens of latents (t, h, w); a network that pairs frames is given an even number of them."""
        return math.prod(math.ceil(n / p) for n, p in zip(latent, self.patch, strict=True))

    def resized(self, layers: int | None, hidden: int | None) -> Published:
        """A model of the same shape with other layers or another hidden size.

        Raises:
            ValueError: a hidden size that its heads do not divide, with the nearest that they do.
        """
        if layers is None and hidden is None:
            return self
        if layers is not None and layers < 1:
            raise ValueError(f"{layers} layers; nearest: 1")
        changes = [] if layers is None else [f"{layers} layers"]
        changes += [] if hidden is None else [f"{hidden} wide"]
        title = f"{self.title} ({', '.join(changes)})"
        return replace(self, title=title, config=self.widen(self.config, layers, hidden))


def heads_of(hidden: int | None, head_dim: int, published: int) -> int:
    """Attention heads of a hidden size.

    Raises:
        ValueError: it is not a multiple of the head's size.
    """
    if hidden is None:
        return published
    if hidden < head_dim or hidden % head_dim:
        below = max(hidden // head_dim, 1) * head_dim
        nearest = f"{below} or {below + head_dim}" if hidden > head_dim else f"{head_dim}"
        raise ValueError(f"hidden size {hidden} is not a multiple of {head_dim}; nearest: {nearest}")
    return hidden // head_dim


def widen_transformer(config: Config, layers: int | None, hidden: int | None) -> dict[str, Any]:
    """Other depth and width of a transformer whose feed-forward size follows from its hidden size."""
    heads = heads_of(hidden, config["attention_head_dim"], config["num_attention_heads"])
    return {**config, "num_layers": layers or config["num_layers"], "num_attention_heads": heads}


def widen_unet(config: Config, layers: int | None, hidden: int | None) -> dict[str, Any]:
    """Other depth and width of a U-Net; its hidden size is that of the widest level."""
    channels = config["block_out_channels"]
    unit = 4 * max(config["norm_num_groups"], config.get("attention_head_dim", 1))
    if hidden is not None:
        heads_of(hidden, unit, 1)
    scaled = channels if hidden is None else tuple(hidden * c // max(channels) for c in channels)
    return {**config, "layers_per_block": layers or config["layers_per_block"], "block_out_channels": scaled}


def times(shape: tuple[int, ...] = (1,)) -> torch.Tensor:
    """The middle of the schedule, as networks are told it: float32, on the default device."""
    return torch.full(shape, 500.0)


def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    """Normal noise on the default device (a shape alone on the meta device)."""
    return torch.randn(*shape, dtype=dtype)


def frame_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(  # vae/config.json of Stable Diffusion 1.5
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )
