"""Wan 2.1, Wan 2.2 with two experts, and the small Wan 2.2 whose tokens carry their own time."""

import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

from diffusers import (
    AutoencoderKLWan,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.wan import pipeline_wan_i2v

from tiny.encoders import WIDTH, clip_vision, seeded, tokenizer, umt5

if find_spec("ftfy") is None:  # of the extra "pipelines"; text without faults comes out of it as it went in
    ftfy = ModuleType("ftfy")
    ftfy.fix_text, ftfy.__spec__ = str, ModuleSpec("ftfy", None)
    sys.modules["ftfy"] = pipeline_wan_i2v.ftfy = ftfy


def _vae() -> AutoencoderKLWan:
    return AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    ).eval()


def _small_vae() -> AutoencoderKLWan:
    """The 16 × 16 × 4 autoencoder: pixels in patches of two, then three halvings."""
    return AutoencoderKLWan(
        base_dim=3,
        decoder_base_dim=3,
        z_dim=12,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1] * 6,
        latents_std=[1.5, 0.5] * 6,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_temporal=4,
        scale_factor_spatial=16,
    ).eval()


def _network(channels: int = 16, out: int = 16, **options) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=1,
        attention_head_dim=12,
        in_channels=channels,
        out_channels=out,
        text_dim=WIDTH,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
        **options,
    ).eval()


def _scheduler(shift: float) -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def _parts(shift: float) -> dict:
    return {"tokenizer": tokenizer(), "text_encoder": umt5(), "scheduler": _scheduler(shift)}


def wan() -> WanPipeline:
    """Wan 2.1 from text."""
    seeded()
    return WanPipeline(**_parts(3.0), vae=_vae(), transformer=_network())


def wan_picture() -> WanImageToVideoPipeline:
    """Wan 2.1 from a picture: the mask and the picture's latents in further channels, and CLIP's view of it."""
    seeded()
    encoder, processor = clip_vision()
    network = _network(36, image_dim=WIDTH, added_kv_proj_dim=12)
    return WanImageToVideoPipeline(
        **_parts(3.0), vae=_vae(), transformer=network, image_encoder=encoder, image_processor=processor
    )


def wan_experts() -> WanPipeline:
    """Wan 2.2 from text: one network for noisy latents, one for cleaner ones."""
    seeded()
    return WanPipeline(
        **_parts(3.0), vae=_vae(), transformer=_network(), transformer_2=_network(), boundary_ratio=0.875
    )


def wan_experts_picture() -> WanImageToVideoPipeline:
    """Wan 2.2 from a picture, with two experts and no picture encoder."""
    seeded()
    experts = {"transformer": _network(36), "transformer_2": _network(36)}
    return WanImageToVideoPipeline(**_parts(5.0), vae=_vae(), **experts, boundary_ratio=0.9)


def wan_small() -> WanPipeline:
    """Wan 2.2 5B from text: every token carries its own time."""
    seeded()
    return WanPipeline(**_parts(5.0), vae=_small_vae(), transformer=_network(12, 12), expand_timesteps=True)


def wan_small_picture() -> WanImageToVideoPipeline:
    """Wan 2.2 5B from a picture: the first latent frame is the picture, at time 0."""
    seeded()
    network = _network(12, 12)
    return WanImageToVideoPipeline(**_parts(5.0), vae=_small_vae(), transformer=network, expand_timesteps=True)
