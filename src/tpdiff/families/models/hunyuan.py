"""HunyuanVideo and HunyuanVideo 1.5, text to video.

Configurations: diffusers, scripts/convert_hunyuan_video_to_diffusers.py (`TRANSFORMER_CONFIGS`, HYVideo-T/2-cfgdistill)
and scripts/convert_hunyuan_video1_5_to_diffusers.py (480p_t2v); the same as transformer/config.json of
hunyuanvideo-community/HunyuanVideo and HunyuanVideo-1.5-Diffusers-480p_t2v. The first is given 256 tokens of a
language model and CLIP's pooled vector; the second 1000 tokens of a language model, 256 of a byte model and 729 of a
picture (zeros, masked, where there is none), padding included.
"""

from __future__ import annotations

from typing import Any

import torch

from tpdiff.families.models.published import Config, Published, Shape, empty, times, widen_transformer

TEXT = 256
LONG_TEXT, BYTES, PICTURE = 1000, 256, 729
_SHARED = {
    "attention_head_dim": 128,
    "num_refiner_layers": 2,
    "mlp_ratio": 4.0,
    "patch_size_t": 1,
    "qk_norm": "rms_norm",
    "rope_theta": 256.0,
    "rope_axes_dim": (16, 56, 56),
}
_CONFIG = _SHARED | {
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 24,
    "num_layers": 20,
    "num_single_layers": 40,
    "patch_size": 2,
    "guidance_embeds": True,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "image_condition_type": None,
}
_CONFIG_15 = _SHARED | {
    "in_channels": 65,
    "out_channels": 32,
    "num_attention_heads": 16,
    "num_layers": 54,
    "patch_size": 1,
    "text_embed_dim": 3584,
    "text_embed_2_dim": 1472,
    "image_embed_dim": 1152,
    "target_size": 640,
    "task_type": "t2v",
    "use_meanflow": False,
}


def _pipeline(network: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)
    return HunyuanVideoPipeline(None, None, network, None, scheduler, None, None)


def _pipeline_15(network: Any) -> Any:
    from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler, HunyuanVideo15Pipeline

    with torch.device("meta"):  # the pipeline reads its configuration; it never runs
        vae = _vae_15()
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    guider = ClassifierFreeGuidance(guidance_scale=6.0)
    return HunyuanVideo15Pipeline(None, None, network, vae, scheduler, None, None, guider)


def _inputs(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "hidden_states": empty(batch, config["in_channels"], *latent, dtype=dtype),
        "timestep": times((batch,)),
        "encoder_hidden_states": empty(batch, TEXT, config["text_embed_dim"], dtype=dtype),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=dtype, device="cpu"),
        "pooled_projections": empty(batch, config["pooled_projection_dim"], dtype=dtype),
        "guidance": times((batch,)).to(dtype),
    }


def _inputs_15(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "hidden_states": empty(batch, config["in_channels"], *latent, dtype=dtype),
        "timestep": times((batch,)).to(dtype),
        "encoder_hidden_states": empty(batch, LONG_TEXT, config["text_embed_dim"], dtype=dtype),
        "encoder_attention_mask": torch.ones(batch, LONG_TEXT, dtype=dtype, device="cpu"),
        "encoder_hidden_states_2": empty(batch, BYTES, config["text_embed_2_dim"], dtype=dtype),
        "encoder_attention_mask_2": torch.ones(batch, BYTES, dtype=dtype, device="cpu"),
        "image_embeds": torch.zeros(batch, PICTURE, config["image_embed_dim"], dtype=dtype, device="cpu"),
    }


def _embeddings(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "prompt_embeds": empty(1, TEXT, config["text_embed_dim"], dtype=dtype),
        "prompt_attention_mask": torch.ones(1, TEXT, dtype=dtype),
        "pooled_prompt_embeds": empty(1, config["pooled_projection_dim"], dtype=dtype),
    }


def _embeddings_15(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    text, letters = empty(1, LONG_TEXT, config["text_embed_dim"], dtype=dtype), config["text_embed_2_dim"]
    own = {
        "prompt_embeds": text,
        "prompt_embeds_mask": torch.ones(1, LONG_TEXT, dtype=dtype),
        "prompt_embeds_2": empty(1, BYTES, letters, dtype=dtype),
        "prompt_embeds_mask_2": torch.ones(1, BYTES, dtype=dtype),
    }
    return own | {f"negative_{name}": value for name, value in own.items()}


def _widen(config: Config, layers: int | None, hidden: int | None) -> dict[str, Any]:
    changed = widen_transformer(config, layers, hidden)
    if layers is not None and "num_single_layers" in config:
        changed["num_single_layers"] = 2 * layers
    return changed


def _vae() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    return AutoencoderKLHunyuanVideo()


def _vae_15() -> Any:
    from diffusers import AutoencoderKLHunyuanVideo15

    return AutoencoderKLHunyuanVideo15()


FIRST = Published(
    name="hunyuanvideo",
    title="HunyuanVideo",
    source="hunyuanvideo-community/HunyuanVideo",
    network="HunyuanVideoTransformer3DModel",
    config=_CONFIG,
    layers=("num_layers", "num_single_layers"),
    pipeline=_pipeline,
    inputs=_inputs,
    embeddings=_embeddings,
    widen=_widen,
    vae=_vae,
    latent_channels=16,
    size=(129, 720, 1280),
    fps=24,
    steps=50,
    text_tokens=TEXT,
    patch=(1, 2, 2),
    passes=1,
    notes=("guidance is embedded in the network: one pass a step",),
)
SECOND = Published(
    name="hunyuanvideo-1.5",
    title="HunyuanVideo 1.5, 480p T2V",
    source="hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
    network="HunyuanVideo15Transformer3DModel",
    config=_CONFIG_15,
    pipeline=_pipeline_15,
    inputs=_inputs_15,
    embeddings=_embeddings_15,
    widen=_widen,
    vae=_vae_15,
    latent_channels=32,
    size=(121, 480, 848),
    fps=24,
    steps=50,
    text_tokens=LONG_TEXT + BYTES + PICTURE,
    patch=(1, 1, 1),
    notes=("diffusers builds a mask of tokens x tokens in every block, which is part of the activations",),
)
MODELS = (FIRST, SECOND)
