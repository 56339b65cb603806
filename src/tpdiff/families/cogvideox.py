"""CogVideoX 2b, 5b and 1.5: latents are (B, T, C, H, W), frames may be patched in pairs."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tpdiff.families.base import Family, Shape, Size, register_family
from tpdiff.pyramid.operators import Ratio
from tpdiff.pyramid.stages import Pyramid


def _vae_ratio(pipe: Any) -> Size:
    side = pipe.vae_scale_factor_spatial
    return pipe.vae_scale_factor_temporal, side, side


def _patch(pipe: Any) -> Size:
    config = pipe.transformer.config
    return config.patch_size_t or 1, config.patch_size, config.patch_size


def _defaults(pipe: Any) -> Mapping[str, int]:
    config, side = pipe.transformer.config, pipe.vae_scale_factor_spatial
    height, width = config.sample_height * side, config.sample_width * side
    return {"num_frames": config.sample_frames, "height": height, "width": width}


def _limits(pipe: Any) -> Mapping[str, tuple[int, int]]:
    config, own = pipe.transformer.config, _defaults(pipe)
    sides = {name: own[name] for name in ("height", "width")}
    if config.use_learned_positional_embeddings:
        return {name: (side, side) for name, side in sides.items()}
    if config.patch_size_t is not None:  # its rotary table ends where the network's own size does
        return {name: (1, side) for name, side in sides.items()}
    return {}


def _frames_second(pipe: Any, latents: Tensor, shape: Shape) -> Tensor:
    return latents.transpose(1, 2)


def _dynamic_guidance(pipe: Any, factors: Ratio, options: Mapping[str, Any]) -> dict[str, Any]:
    """It follows from the number of steps, in every stage from that of the whole call."""
    whole = {"num_inference_steps": options["num_inference_steps"]}
    return whole if options.get("use_dynamic_cfg") else {}


def _check(pipe: Any, pyramid: Pyramid) -> None:
    if not pipe.transformer.config.use_learned_positional_embeddings:
        return
    if any(factors[1:] != (1, 1) for factors in pyramid.factors):
        raise ValueError(
            "this CogVideoX has a learned position for every place of its own height and width, so that no stage can "
            "be smaller: use a pyramid over time alone, factors (T, 1, 1)"
        )


COGVIDEOX = register_family(
    Family(
        name="cogvideox",
        pipelines=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"),
        vae_ratio=_vae_ratio,
        patch=_patch,
        first_frame=("CogVideoXImageToVideoPipeline",),
        defaults=_defaults,
        limits=_limits,
        unpack=_frames_second,
        pack=_frames_second,
        stage_options=_dynamic_guidance,
        shared=("ofs",),
        check=_check,
        positions="sums of sines (2b) or rotary (5b, 1.5) at every stage's own size; learned ones (5b from a picture) "
        "at the network's own number of frames, and sums of sines in their place at any other, as in stock",
    )
)
