"""AnimateDiff: Stable Diffusion 1.5 with motion modules.

Configuration: unet/config.json of stable-diffusion-v1-5/stable-diffusion-v1-5 and the motion adapter's config.json of
guoyww/animatediff-motion-adapter-v1-5-2, put together as `UNetMotionModel.from_unet2d` does. Text is padded to 77
tokens of width 768, and repeated for every frame.
"""

from __future__ import annotations

from typing import Any

import torch

from tpdiff.families.models.published import Config, Published, Shape, empty, frame_autoencoder, times, widen_unet

TEXT = 77
_CONFIG = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlockMotion",) * 3 + ("DownBlockMotion",),
    "up_block_types": ("UpBlockMotion",) + ("CrossAttnUpBlockMotion",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "cross_attention_dim": 768,
    "num_attention_heads": 8,
    "motion_max_seq_length": 32,
    "motion_num_attention_heads": 8,
    "use_motion_mid_block": True,
}


def _pipeline(network: Any) -> Any:
    from diffusers import AnimateDiffPipeline, DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="linspace",
    )
    return AnimateDiffPipeline(None, None, None, network, None, scheduler)


def _inputs(config: Config, latent: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "sample": empty(batch, config["in_channels"], *latent, dtype=dtype),
        "timestep": times(()),
        "encoder_hidden_states": empty(batch * latent[0], TEXT, config["cross_attention_dim"], dtype=dtype),
    }


def _embeddings(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    text = empty(1, TEXT, config["cross_attention_dim"], dtype=dtype)
    return {"prompt_embeds": text, "negative_prompt_embeds": -text}


ADAPTER = Published(
    name="animatediff",
    title="AnimateDiff v2 on Stable Diffusion 1.5",
    source="guoyww/animatediff-motion-adapter-v1-5-2 on stable-diffusion-v1-5/stable-diffusion-v1-5",
    network="UNetMotionModel",
    config=_CONFIG,
    layers=(),
    pipeline=_pipeline,
    inputs=_inputs,
    embeddings=_embeddings,
    widen=widen_unet,
    vae=frame_autoencoder,
    latent_channels=4,
    frame_vae=True,
    size=(16, 512, 512),
    fps=8,
    steps=50,
    text_tokens=TEXT,
    patch=(1, 1, 1),
    together=True,
    notes=("tokens are latent elements: the network is convolutional, without patches",),
)
MODELS = (ADAPTER,)
