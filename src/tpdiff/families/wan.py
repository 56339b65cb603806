"""Wan 2.1 and 2.2: text or picture to video, two experts, and the small model whose tokens carry their own time."""

from typing import Any

from tpdiff.families.base import Family, Size, Span, register_family


def _vae_ratio(pipe: Any) -> Size:
    side = pipe.vae_scale_factor_spatial
    return pipe.vae_scale_factor_temporal, side, side


def _patch(pipe: Any) -> Size:
    network = pipe.transformer if pipe.transformer is not None else pipe.transformer_2
    t, h, w = network.config.patch_size
    return t, h, w


def _networks(pipe: Any) -> dict[str, Span]:
    boundary = pipe.config.boundary_ratio
    if boundary is None:
        return {"transformer": (0.0, 1.0)}
    return {"transformer": (boundary, 1.0), "transformer_2": (0.0, boundary)}


WAN = register_family(
    Family(
        name="wan",
        pipelines=("WanPipeline", "WanImageToVideoPipeline"),
        vae_ratio=_vae_ratio,
        patch=_patch,
        first_frame=("WanImageToVideoPipeline",),
        networks=_networks,
        picture_kept=lambda pipe: pipe.config.expand_timesteps,
    )
)
