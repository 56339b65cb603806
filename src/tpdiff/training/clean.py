"""What the clean signal of a stage is (MATH 5): the latent pyramid's resized latents, the pixel pyramid's encoded
resized frames.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tpdiff.models.autoencoder import encode_video
from tpdiff.pyramid.stages import Pyramid

Clean = Tensor | Sequence[Tensor]  # (B, C, T, H, W) at full size, from which the stages follow; or each stage's own


def clean_pair(pyramid: Pyramid, clean: Clean, k: int) -> tuple[Tensor, Tensor | None]:
    """Stage k's clean latents and stage k + 1's, (B, C, T, H, W); None for the latter at the coarsest stage."""
    stages = [pyramid.down(clean, j) if isinstance(clean, Tensor) else clean[j] for j in (k, k + 1)[: len(pyramid) - k]]
    return stages[0], stages[1] if len(stages) > 1 else None


def encode_stages(vae: Any, video: Tensor, pyramid: Pyramid | None) -> list[Tensor]:
    """Latents of a video (B, 3, T, H, W) in [-1, 1]: at full size, or of each stage of a pixel pyramid."""
    if pyramid is None:
        return [encode_video(vae, video)]
    return [encode_video(vae, pyramid.down(video, k)) for k in range(len(pyramid))]
