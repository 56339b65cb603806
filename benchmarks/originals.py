"""Originals for the study of conversion: pipelines of diffusers whose networks are small and random, all else real."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel

from tpdiff.models.autoencoder import load_autoencoder
from tpdiff.models.text import load_text_encoder

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


ORIGINALS: dict[str, Original] = {"wan": wan}
