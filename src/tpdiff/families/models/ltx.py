"""LTX-Video 0.9.

Configuration: diffusers, scripts/convert_ltx_to_diffusers.py (`get_transformer_config`, versions before 0.9.7), the
same as transformer/config.json of Lightricks/LTX-Video. Latents are 128 channels at 8 x 32 x 32, one token each.
Text is padded to 128 tokens of width 4096. Size and steps: `LTXPipeline.__call__`.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from tpdiff.families.models.published import Config, Published, Shape, empty, times, widen_transformer

TEXT, FPS = 128, 25
_CONFIG = {
    "in_channels": 128,
    "out_channels": 128,
    "patch_size": 1,
    "patch_size_t": 1,
    "num_attention_heads": 32,
    "attention_head_dim": 64,
    "cross_attention_dim": 2048,
    "num_layers": 28,
    "activation_fn": "gelu-approximate",
    "qk_norm": "rms_norm_across_heads",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-6,
    "caption_channels": 4096,
    "attention_bias": True,
    "attention_out_bias": True,
}


def _pipeline(network: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline

    scheduler = FlowMatchEulerDiscreteScheduler(  # scheduler/scheduler_config.json of Lightricks/LTX-Video
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )
    return LTXPipeline(scheduler, None, None, None, network)


def _inputs(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    frames, height, width = latent
    return {
        "hidden_states": empty(batch, math.prod(latent), config["in_channels"], dtype=dtype),
        "encoder_hidden_states": empty(batch, TEXT, config["caption_channels"], dtype=dtype),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=dtype, device="cpu"),
        "timestep": times((batch,)),
        "num_frames": frames,
        "height": height,
        "width": width,
        "rope_interpolation_scale": (8 / FPS, 32, 32),
    }


def _embeddings(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    text, mask = empty(1, TEXT, config["caption_channels"], dtype=dtype), torch.ones(1, TEXT)
    return {
        "prompt_embeds": text,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": -text,
        "negative_prompt_attention_mask": mask,
    }


def _widen(config: Config, layers: int | None, hidden: int | None) -> dict[str, Any]:
    changed = widen_transformer(config, layers, hidden)
    return changed | {"cross_attention_dim": changed["num_attention_heads"] * changed["attention_head_dim"]}


def _vae() -> Any:
    from diffusers import AutoencoderKLLTXVideo

    return AutoencoderKLLTXVideo()  # the defaults are version 0.9's


FIRST = Published(
    name="ltx",
    title="LTX-Video 0.9",
    source="Lightricks/LTX-Video",
    network="LTXVideoTransformer3DModel",
    config=_CONFIG,
    pipeline=_pipeline,
    inputs=_inputs,
    embeddings=_embeddings,
    widen=_widen,
    vae=_vae,
    latent_channels=128,
    size=(161, 512, 704),
    fps=25,
    steps=50,
    text_tokens=TEXT,
    patch=(1, 1, 1),
    together=True,
)
MODELS = (FIRST,)
