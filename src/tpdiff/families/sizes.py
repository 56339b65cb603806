"""The sizes of a call's stages, checked before any work."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tpdiff.families.base import Family, Size
from tpdiff.pyramid.geometry import check_video_size
from tpdiff.pyramid.stages import Pyramid


def full_size(pipe: Any, family: Family, options: Mapping[str, Any]) -> Size:
    """(num_frames, height, width) in pixels that a call with these arguments asks for."""
    usual = family.defaults(pipe)
    wanted = [options.get(name) or usual.get(name) for name in ("num_frames", "height", "width")]
    frames, height, width = (int(value) for value in wanted)  # type: ignore[arg-type]
    return frames, height, width


def stage_sizes(pipe: Any, family: Family, pyramid: Pyramid, size: Size) -> list[Size]:
    """(num_frames, height, width) in pixels of every stage, finest first, from the full size.

    Raises:
        ValueError: a size that the autoencoder, the patches or some stage cannot hold, with the nearest legal one.
    """
    ratio, patch = family.vae_ratio(pipe), family.patch(pipe)
    check_video_size(size, pyramid.multiples, patch, ratio, pyramid.causal_time, family.causal_vae)
    full = (1, 1, *family.latent_size(pipe, size))
    shapes = (pyramid.stage_shape(full, k)[2:] for k in range(len(pyramid)))
    return [family.pixel_size(pipe, (t, h, w)) for t, h, w in shapes]


def check_latents(pipe: Any, family: Family, size: Size, latents: Tensor | None) -> None:
    """Refuse latents that are not of the coarsest stage's size.

    Raises:
        ValueError: naming both sizes.
    """
    if latents is None:
        return
    t, h, w = family.latent_size(pipe, size)
    t += family.filling(pipe, size)
    channels, left = divmod(latents.numel(), len(latents) * t * h * w)
    whole = torch.empty(len(latents), channels, t, h, w, device="meta")
    if left or family.pack(pipe, whole, (t, h, w)).shape != latents.shape:
        raise ValueError(
            f"latents of shape {tuple(latents.shape)} are not noise of the coarsest stage's size, "
            f"{t} x {h} x {w} (frames, height, width)"
        )
