"""What pipelines around a U-Net tell alike: every frame has latents of its own, halved a few times inside."""

from collections.abc import Mapping
from typing import Any

from tpdiff.families.base import Size, Span


def vae_ratio(pipe: Any) -> Size:
    """The picture autoencoder's compression."""
    return 1, pipe.vae_scale_factor, pipe.vae_scale_factor


def patch(pipe: Any) -> Size:
    """What latents must be multiples of, so that every halving comes out whole."""
    halvings = 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    return 1, halvings, halvings


def defaults(pipe: Any) -> Mapping[str, int]:
    """The height and width of training."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return {"height": side, "width": side}


def networks(pipe: Any) -> Mapping[str, Span]:
    """One, at all times."""
    return {"unet": (0.0, 1.0)}
