"""ModelScope text to video: a convolutional network over time and space; every frame has latents of its own."""

from collections.abc import Mapping
from typing import Any

from tpdiff.families.base import Family, Size, register_family


def _vae_ratio(pipe: Any) -> Size:
    return 1, pipe.vae_scale_factor, pipe.vae_scale_factor


def _patch(pipe: Any) -> Size:
    halvings = 2 ** (len(pipe.unet.config.block_out_channels) - 1)
    return 1, halvings, halvings


def _defaults(pipe: Any) -> Mapping[str, int]:
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    return {"height": side, "width": side}


MODELSCOPE = register_family(
    Family(
        name="modelscope",
        pipelines=("TextToVideoSDPipeline",),
        vae_ratio=_vae_ratio,
        patch=_patch,
        causal_vae=False,
        defaults=_defaults,
        positions="none",
    )
)
