"""Mochi 1 preview.

Configuration: the class's defaults, with which diffusers' scripts/convert_mochi_to_diffusers.py builds it; the same as
transformer/config.json of genmo/mochi-1-preview. Text is padded to 256 tokens of width 4096. Size: the model card's
163 frames of 480 x 848; steps: `MochiPipeline.__call__`.
"""

from __future__ import annotations

from typing import Any

import torch

from tpdiff.families.models.published import Config, Published, Shape, empty, times, widen_transformer

TEXT = 256
_CONFIG = {
    "patch_size": 2,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 48,
    "pooled_projection_dim": 1536,
    "in_channels": 12,
    "out_channels": None,
    "qk_norm": "rms_norm",
    "text_embed_dim": 4096,
    "time_embed_dim": 256,
    "activation_fn": "swiglu",
    "max_sequence_length": TEXT,
}


def _pipeline(network: Any) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, MochiPipeline

    return MochiPipeline(FlowMatchEulerDiscreteScheduler(invert_sigmas=True), None, None, None, network)


def _inputs(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "hidden_states": empty(batch, config["in_channels"], *latent, dtype=dtype),
        "encoder_hidden_states": empty(batch, TEXT, config["text_embed_dim"], dtype=dtype),
        "timestep": times((batch,)),
        "encoder_attention_mask": torch.ones(batch, TEXT, dtype=torch.bool, device="cpu"),
    }


def _embeddings(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    text, mask = empty(1, TEXT, config["text_embed_dim"], dtype=dtype), torch.ones(1, TEXT, dtype=torch.bool)
    return {
        "prompt_embeds": text,
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": -text,
        "negative_prompt_attention_mask": mask,
    }


def _vae() -> Any:
    from diffusers import AutoencoderKLMochi

    return AutoencoderKLMochi(latent_channels=12, out_channels=3)


PREVIEW = Published(
    name="mochi",
    title="Mochi 1 preview",
    source="genmo/mochi-1-preview",
    network="MochiTransformer3DModel",
    config=_CONFIG,
    pipeline=_pipeline,
    inputs=_inputs,
    embeddings=_embeddings,
    widen=widen_transformer,
    vae=_vae,
    latent_channels=12,
    size=(163, 480, 848),
    fps=30,
    steps=64,
    text_tokens=TEXT,
    patch=(1, 2, 2),
    together=True,
    notes=("padding of the text is skipped in attention; here all 256 tokens count",),
)
MODELS = (PREVIEW,)
