"""What a run diffuses: pixels, or the latents of an autoencoder."""

from typing import Any

import torch
from torch import Tensor

from tpdiff.data import to_float
from tpdiff.models.autoencoder import compression, encode_video, load_autoencoder
from tpdiff.training.config import Config
from tpdiff.training.setup import check_sizes


class Latents:
    """Clips to what the network sees.

    Attributes:
        autoencoder: None for pixels.
        ratio: its (T, H, W) compression, all ones for pixels.
        shape: (C, t, h, w) of a clip's latents.

    Args:
        config: the run.
        coarsest: (T, H, W) stride of the coarsest stage.
        device: where the autoencoder works.

    Raises:
        ValueError: no autoencoder there, or a clip size that it, the patches or some stage cannot hold.
    """

    def __init__(self, config: Config, coarsest: tuple[int, int, int], device: torch.device):
        data, channels = config.data, 3
        self.autoencoder: Any = None
        self.ratio = (1, 1, 1)
        self.scale, self.device = config.model.latent_scale, device
        if config.model.autoencoder is not None:
            self.autoencoder = load_autoencoder(config.model.autoencoder).to(device)
            channels, self.ratio = compression(self.autoencoder)
        check_sizes(config, coarsest, self.ratio)
        t, h, w = self.ratio
        frames = 1 + (data.frames - 1) // t if t > 1 else data.frames
        self.shape = (channels, frames, data.height // h, data.width // w)

    def __call__(self, video: Tensor) -> Tensor:
        """uint8 clips (B, 3, T, H, W) -> float32 latents (B, C, t, h, w)."""
        pixels = to_float(video.to(self.device))
        return self.scale * (pixels if self.autoencoder is None else encode_video(self.autoencoder, pixels))
