"""LTX: latents travel as packed tokens, and positions are seconds and pixels, so a stage is told its own frame rate."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tpdiff.families.base import Family, Shape, Size, register_family
from tpdiff.pyramid.operators import Ratio


def _vae_ratio(pipe: Any) -> Size:
    side = pipe.vae_spatial_compression_ratio
    return pipe.vae_temporal_compression_ratio, side, side


def _patch(pipe: Any) -> Size:
    side = pipe.transformer_spatial_patch_size
    return pipe.transformer_temporal_patch_size, side, side


def _unpack(pipe: Any, latents: Tensor, shape: Shape) -> Tensor:
    t, side, _ = _patch(pipe)
    return pipe._unpack_latents(latents, *shape, side, t)


def _pack(pipe: Any, latents: Tensor, shape: Shape) -> Tensor:
    t, side, _ = _patch(pipe)
    return pipe._pack_latents(latents, side, t)


def _slower(pipe: Any, factors: Ratio, options: Mapping[str, Any]) -> dict[str, Any]:
    """A stage with every second frame shows half as many a second."""
    return {"frame_rate": options["frame_rate"] / factors[0]}


def _after_the_picture(pipe: Any, made: Any, latents: Tensor) -> Any:
    """The stage's own encoding of the given picture, then our latents; tokens of the first frame come first."""
    if not isinstance(made, tuple):
        return latents
    tokens, mask = made
    return latents.where(mask.unsqueeze(-1) == 0, tokens), mask


def _original_layer(layer: str) -> str:
    """Named alike in the blocks, and otherwise around them, which diffusers' converter does not know."""
    if not layer.startswith("transformer_blocks."):
        raise ValueError(f"diffusers' converter does not rename the layer {layer}, which is named otherwise there")
    return layer


LTX = register_family(
    Family(
        name="ltx",
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline"),
        vae_ratio=_vae_ratio,
        patch=_patch,
        first_frame=("LTXImageToVideoPipeline",),
        unpack=_unpack,
        pack=_pack,
        stage_options=_slower,
        given_latents=_after_the_picture,
        picture_kept=lambda pipe: True,
        original_layer=_original_layer,
        positions="seconds and pixels: coarse frames lie further apart, coarse pixels do not",
    )
)
