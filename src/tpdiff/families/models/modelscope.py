"""ModelScope text to video, 1.7B.

Configuration: the class's defaults, with which diffusers' scripts/convert_ms_text_to_video_to_diffusers.py builds it,
and sample_size 32 as in unet/config.json of ali-vilab/text-to-video-ms-1.7b. Text is padded to 77 tokens of width
1024.
"""

from __future__ import annotations

from typing import Any

import torch

from tpdiff.families.models.published import Config, Published, Shape, empty, frame_autoencoder, times, widen_unet

TEXT = 77
_CONFIG = {
    "sample_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock3D",) * 3 + ("DownBlock3D",),
    "up_block_types": ("UpBlock3D",) + ("CrossAttnUpBlock3D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
}


def _pipeline(network: Any) -> Any:
    from diffusers import DDIMScheduler, TextToVideoSDPipeline

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return TextToVideoSDPipeline(None, None, None, network, scheduler)


def _inputs(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "sample": empty(batch, config["in_channels"], *latent, dtype=dtype),
        "timestep": times(()),
        "encoder_hidden_states": empty(batch, TEXT, config["cross_attention_dim"], dtype=dtype),
    }


def _embeddings(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    text = empty(1, TEXT, config["cross_attention_dim"], dtype=dtype)
    return {"prompt_embeds": text, "negative_prompt_embeds": -text}


FIRST = Published(
    name="modelscope",
    title="ModelScope text to video 1.7B",
    source="ali-vilab/text-to-video-ms-1.7b",
    network="UNet3DConditionModel",
    config=_CONFIG,
    layers=(),
    pipeline=_pipeline,
    inputs=_inputs,
    embeddings=_embeddings,
    widen=widen_unet,
    vae=frame_autoencoder,
    latent_channels=4,
    frame_vae=True,
    size=(16, 256, 256),
    fps=8,
    steps=50,
    text_tokens=TEXT,
    patch=(1, 1, 1),
    together=True,
    notes=("tokens are latent elements: the network is convolutional, without patches",),
)
MODELS = (FIRST,)
