"""Wan 2.1 and 2.2: text or picture to video, two experts, and the small model whose tokens carry their own time."""

import re
from typing import Any

from tpdiff.families.base import Family, Size, Span, register_family

_IN_A_BLOCK = {
    **{
        f"{ours}.{one}": f"{theirs}.{name}"
        for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
        for one, name in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))
    },
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}
_AROUND = {
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head",
}


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


def _packages(pipeline: str) -> tuple[str, ...]:
    """From a picture, prompts are cleaned by a package that from text alone is used only where it is installed."""
    return ("ftfy",) if pipeline == "WanImageToVideoPipeline" else ()


def _original_layer(layer: str) -> str:
    in_a_block = re.fullmatch(r"(blocks\.\d+)\.(.+)", layer)
    try:
        return f"{in_a_block[1]}.{_IN_A_BLOCK[in_a_block[2]]}" if in_a_block else _AROUND[layer]
    except KeyError:
        raise ValueError(f"diffusers' converter does not read the layer {layer}") from None


WAN = register_family(
    Family(
        name="wan",
        pipelines=("WanPipeline", "WanImageToVideoPipeline"),
        vae_ratio=_vae_ratio,
        patch=_patch,
        first_frame=("WanImageToVideoPipeline",),
        networks=_networks,
        picture_kept=lambda pipe: pipe.config.expand_timesteps,
        original_layer=_original_layer,
        packages=_packages,
    )
)
