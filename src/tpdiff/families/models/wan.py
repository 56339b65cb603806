"""Wan 2.1 and 2.2.

Configurations: diffusers, scripts/convert_wan_to_diffusers.py (`get_transformer_config`, and the pipelines' arguments
at its end), the same as transformer/config.json of the repositories Wan-AI/*-Diffusers. Text is padded to 512 tokens
of width 4096 (`WanPipeline.__call__`, max_sequence_length). Sizes and steps: the pipelines' documentation and
Wan-Video/Wan2.2's configurations.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from tpdiff.families.models.published import Config, Published, Shape, empty, heads_of, times

TEXT = 512
PICTURE = 257, 1280  # CLIP ViT-H tokens and their width


def _config(heads: int, layers: int, ffn: int, channels: int = 16, **more: Any) -> dict[str, Any]:
    shared = {
        "patch_size": (1, 2, 2),
        "attention_head_dim": 128,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
    }
    return {
        **shared,
        "num_attention_heads": heads,
        "num_layers": layers,
        "ffn_dim": ffn,
        "in_channels": channels,
        **more,
    }


def _scheduler(shift: float) -> Any:
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )


def _pipeline(network: Any) -> Any:
    from diffusers import WanPipeline

    return WanPipeline(None, None, None, _scheduler(3.0), network)


def _two_experts(network: Any) -> Any:
    """The same random weights stand for both."""
    from diffusers import WanPipeline

    return WanPipeline(None, None, None, _scheduler(12.0), network, network, boundary_ratio=0.875)


def _time_a_token(network: Any) -> Any:
    from diffusers import WanPipeline
    from diffusers.video_processor import VideoProcessor

    pipe: Any = WanPipeline(None, None, None, _scheduler(5.0), network, expand_timesteps=True)
    pipe.vae_scale_factor_spatial = 16  # its autoencoder's, which is not there
    pipe.video_processor = VideoProcessor(vae_scale_factor=16)
    return pipe


def _from_picture(network: Any) -> Any:
    from diffusers import WanImageToVideoPipeline

    return WanImageToVideoPipeline(None, None, None, _scheduler(3.0), transformer=network)


def _inputs(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "hidden_states": empty(batch, config["in_channels"], *latent, dtype=dtype),
        "timestep": times((batch,)),
        "encoder_hidden_states": empty(batch, TEXT, config["text_dim"], dtype=dtype),
    }


def _inputs_time_a_token(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    _, h, w = config["patch_size"]
    tokens = latent[0] * (latent[1] // h) * (latent[2] // w)
    return _inputs(config, latent, batch, dtype) | {"timestep": times((batch, tokens))}


def _inputs_from_picture(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    picture = empty(batch, *PICTURE, dtype=dtype)
    return _inputs(config, latent, batch, dtype) | {"encoder_hidden_states_image": picture}


def _embeddings(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    text = empty(1, TEXT, config["text_dim"], dtype=dtype)
    return {"prompt_embeds": text, "negative_prompt_embeds": -text}


def _widen(config: Config, layers: int | None, hidden: int | None) -> dict[str, Any]:
    head_dim, published = config["attention_head_dim"], config["num_attention_heads"]
    heads = heads_of(hidden, head_dim, published)
    ffn = config["ffn_dim"] * heads // published
    picture = {"added_kv_proj_dim": heads * head_dim} if config.get("added_kv_proj_dim") else {}
    return {
        **config,
        **picture,
        "num_layers": layers or config["num_layers"],
        "num_attention_heads": heads,
        "ffn_dim": ffn,
    }


def _vae() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan()  # the defaults are Wan 2.1's


def _vae_16() -> Any:
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(  # `vae22_diffusers_config` of the same script
        base_dim=160,
        decoder_base_dim=256,
        z_dim=48,
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
        scale_factor_temporal=4,
    )


SMALL = Published(
    name="wan2.1-1.3b",
    title="Wan 2.1 T2V 1.3B",
    source="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    network="WanTransformer3DModel",
    config=_config(heads=12, layers=30, ffn=8960),
    pipeline=_pipeline,
    inputs=_inputs,
    embeddings=_embeddings,
    widen=_widen,
    vae=_vae,
    latent_channels=16,
    size=(81, 480, 832),
    fps=16,
    steps=50,
    text_tokens=TEXT,
    patch=(1, 2, 2),
)
LARGE = replace(
    SMALL,
    name="wan2.1-14b",
    title="Wan 2.1 T2V 14B",
    source="Wan-AI/Wan2.1-T2V-14B-Diffusers",
    config=_config(heads=40, layers=40, ffn=13824),
    size=(81, 720, 1280),
)
FROM_PICTURE = replace(
    LARGE,
    name="wan2.1-i2v-14b",
    title="Wan 2.1 I2V 14B",
    source="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    config=_config(heads=40, layers=40, ffn=13824, channels=36, image_dim=1280, added_kv_proj_dim=5120),
    pipeline=_from_picture,
    inputs=_inputs_from_picture,
    embeddings=None,
    size=(81, 480, 832),
    notes=("the picture is encoded by the autoencoder once a stage, which is not counted",),
)
FIVE = replace(
    SMALL,
    name="wan2.2-5b",
    title="Wan 2.2 TI2V 5B",
    source="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    config=_config(heads=24, layers=30, ffn=14336, channels=48, out_channels=48),
    pipeline=_time_a_token,
    inputs=_inputs_time_a_token,
    vae=_vae_16,
    latent_channels=48,
    size=(121, 704, 1280),
    fps=24,
    notes=("every token carries a time of its own, so that the time embedding is counted for every token",),
)
TWO_EXPERTS = replace(
    LARGE,
    name="wan2.2-14b",
    title="Wan 2.2 T2V A14B",
    source="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
    pipeline=_two_experts,
    steps=40,
    experts=2,
    notes=("two experts of 14B: a step runs one of them, so that their FLOPs are those of one network",),
)
MODELS = (SMALL, LARGE, FROM_PICTURE, FIVE, TWO_EXPERTS)
