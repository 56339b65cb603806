"""Originals for the study of conversion: pipelines of diffusers whose networks are small and random, all else real."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UNetMotionModel,
    WanPipeline,
    WanTransformer3DModel,
)

from tpdiff.models.autoencoder import load_autoencoder
from tpdiff.models.text import load_text_encoder

LONGEST_CAPTION = 16  # tokens

Network = Mapping[str, Any]
Original = Callable[[Network, str, int], Any]


def wan(network: Network, autoencoder: str, seed: int) -> WanPipeline:
    """Wan's architecture, told its captions by a small sentence encoder.

    Args:
        network: arguments of its transformer; channels and text width are the autoencoder's and the encoder's.
        autoencoder: the folder of a trained `VideoAutoencoder`.
        seed: of the random weights.
    """
    encoder: Any
    encoder, tokenizer = load_text_encoder("minilm")
    vae: Any = load_autoencoder(autoencoder)
    channels, config = vae.config.z_dim, encoder.config
    torch.manual_seed(seed)
    transformer = WanTransformer3DModel(
        **network, in_channels=channels, out_channels=channels, text_dim=config.hidden_size
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return WanPipeline(tokenizer, encoder, vae, scheduler, transformer)


def animatediff(network: Network, autoencoder: str, seed: int) -> AnimateDiffPipeline:
    """AnimateDiff's U-Net with motion modules, on DDIM's schedule, told its captions by a small sentence encoder.

    Args:
        network: arguments of its U-Net; channels and text width are the autoencoder's and the encoder's.
        autoencoder: the folder of a trained `VideoAutoencoder` that leaves every frame to itself.
        seed: of the random weights.
    """
    encoder: Any
    encoder, tokenizer = load_text_encoder("minilm")
    tokenizer.model_max_length = LONGEST_CAPTION
    vae: Any = load_autoencoder(autoencoder)
    vae.fold_statistics()
    channels, config = vae.config.z_dim, encoder.config
    torch.manual_seed(seed)
    unet = UNetMotionModel(
        **network, in_channels=channels, out_channels=channels, cross_attention_dim=config.hidden_size
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    return AnimateDiffPipeline(vae, encoder, tokenizer, unet, None, scheduler)


ORIGINALS: dict[str, Original] = {"animatediff": animatediff, "wan": wan}
