"""HunyuanVideo and HunyuanVideo 1.5."""

from collections.abc import Mapping
from typing import Any

from tpdiff.families.base import Family, Size, register_family


def _vae_ratio(pipe: Any) -> Size:
    side = pipe.vae_scale_factor_spatial
    return pipe.vae_scale_factor_temporal, side, side


def _patch(pipe: Any) -> Size:
    config = pipe.transformer.config
    return config.patch_size_t, config.patch_size, config.patch_size


def _widescreen(pipe: Any) -> Mapping[str, int]:
    if not hasattr(pipe, "target_size"):
        return {}
    ratio = reversed(pipe.default_aspect_ratio)
    height, width = pipe.video_processor.calculate_default_height_width(*ratio, pipe.target_size)
    return {"height": height, "width": width}


def _original_layer(layer: str) -> str:
    raise ValueError(
        "its own implementation holds a layer's queries, keys and values in one, and diffusers' converter does not "
        "read those of the text refiner back"
    )


HUNYUAN = register_family(
    Family(
        name="hunyuan",
        pipelines=("HunyuanVideoPipeline", "HunyuanVideo15Pipeline"),
        vae_ratio=_vae_ratio,
        patch=_patch,
        defaults=_widescreen,
        original_layer=_original_layer,
    )
)
