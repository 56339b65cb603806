"""CogVideoX 2B, 5B and 1.5 5B.

Configurations: diffusers, scripts/convert_cogvideox_to_diffusers.py (`get_transformer_init_kwargs` and the comments
on its arguments: 30 layers and 30 heads for 2B, 42 and 48 for 5B, rotary positions for 5B), the rest are the class's
defaults, which are 2B's transformer/config.json. Text is padded to 226 tokens of width 4096. 1.5 patches frames in
pairs; its pipeline pads the latents to an even number of frames.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from tpdiff.families.models.published import Config, Published, Shape, empty, times, widen_transformer

TEXT, TEXT_DIM = 226, 4096
_CONFIG = {
    "num_attention_heads": 30,
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 512,
    "text_embed_dim": TEXT_DIM,
    "num_layers": 30,
    "sample_width": 90,
    "sample_height": 60,
    "sample_frames": 49,
    "patch_size": 2,
    "patch_size_t": None,
    "temporal_compression_ratio": 4,
    "max_text_seq_length": TEXT,
    "spatial_interpolation_scale": 1.875,
    "use_rotary_positional_embeddings": False,
    "patch_bias": True,
}
_FIVE = {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True}
_LATER = {"patch_size_t": 2, "patch_bias": False, "sample_height": 300, "sample_width": 300, "sample_frames": 81}


def _pipeline(network: Any) -> Any:
    from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

    scheduler = CogVideoXDDIMScheduler(
        snr_shift_scale=1.0 if network.config.use_rotary_positional_embeddings else 3.0,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    return CogVideoXPipeline(None, None, None, network, scheduler)


def _inputs(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    pairs = config["patch_size_t"] or 1
    frames, height, width = math.ceil(latent[0] / pairs) * pairs, *latent[1:]
    inputs: dict[str, Any] = {
        "hidden_states": empty(batch, frames, config["in_channels"], height, width, dtype=dtype),
        "timestep": times((batch,)),
        "encoder_hidden_states": empty(batch, TEXT, config["text_embed_dim"], dtype=dtype),
    }
    if config["use_rotary_positional_embeddings"]:
        side = config["patch_size"]
        table = (frames // pairs) * (height // side) * (width // side), config["attention_head_dim"]
        inputs["image_rotary_emb"] = tuple(empty(*table, dtype=torch.float32) for _ in range(2))
    return inputs


def _embeddings(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    text = empty(1, TEXT, config["text_embed_dim"], dtype=dtype)
    return {"prompt_embeds": text, "negative_prompt_embeds": -text}


def _vae() -> Any:
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(  # vae/config.json of zai-org/CogVideoX-2b; the other arguments are the defaults
        block_out_channels=(128, 256, 256, 512), latent_channels=16, layers_per_block=3, temporal_compression_ratio=4
    )


TWO = Published(
    name="cogvideox-2b",
    title="CogVideoX 2B",
    source="zai-org/CogVideoX-2b",
    network="CogVideoXTransformer3DModel",
    config=_CONFIG,
    pipeline=_pipeline,
    inputs=_inputs,
    embeddings=_embeddings,
    widen=widen_transformer,
    vae=_vae,
    latent_channels=16,
    size=(49, 480, 720),
    fps=8,
    steps=50,
    text_tokens=TEXT,
    patch=(1, 2, 2),
    together=True,
)
FIVE = replace(
    TWO,
    name="cogvideox-5b",
    title="CogVideoX 5B",
    source="zai-org/CogVideoX-5b",
    config=_CONFIG | _FIVE,
)
LATER = replace(
    TWO,
    name="cogvideox1.5-5b",
    title="CogVideoX 1.5 5B",
    source="zai-org/CogVideoX1.5-5B",
    config=_CONFIG | _FIVE | _LATER,
    size=(81, 768, 1360),
    fps=16,
    patch=(2, 2, 2),
    notes=("frames are patched in pairs: an odd number of latent frames is padded by one",),
)
MODELS = (TWO, FIVE, LATER)
