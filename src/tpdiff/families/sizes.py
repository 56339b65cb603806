"""The sizes of a call's stages, checked before any work."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from tpdiff.families.base import Family, Size
from tpdiff.pyramid.geometry import AXIS_NAMES, Geometry, check_video_size
from tpdiff.pyramid.noise import Generators, check_generators
from tpdiff.pyramid.stages import Pyramid


def full_size(pipe: Any, family: Family, options: Mapping[str, Any]) -> Size:
    """(num_frames, height, width) in pixels that a call with these arguments asks for."""
    usual = family.defaults(pipe)
    wanted = [options.get(name) or usual.get(name) for name in AXIS_NAMES]
    frames, height, width = (int(value) for value in wanted)  # type: ignore[arg-type]
    return frames, height, width


def stage_sizes(pipe: Any, family: Family, pyramid: Pyramid, size: Size) -> list[Size]:
    """(num_frames, height, width) in pixels of every stage, finest first, from the full size.

    Raises:
        ValueError: a size that the autoencoder, the patches or some stage cannot hold, with the nearest legal one.
    """
    check_limits(pipe, family, pyramid, size)
    check_whole(pipe, family, pyramid, size, (0, 1, 2))
    full = (1, 1, *family.latent_size(pipe, size))
    shapes = (pyramid.stage_shape(full, k)[2:] for k in range(len(pyramid)))
    return [family.pixel_size(pipe, (t, h, w)) for t, h, w in shapes]


def check_whole(pipe: Any, family: Family, pyramid: Pyramid, size: Size, axes: Collection[int]) -> None:
    """Refuse a size that some stage cannot hold, along some axes."""
    *factors, causal, causal_vae = geometry(pipe, family, pyramid)
    multiples, patch, ratio = ([v if i in axes else 1 for i, v in enumerate(values)] for values in factors)
    check_video_size(size, multiples, patch, ratio, causal, causal_vae)


def geometry(pipe: Any, family: Family, pyramid: Pyramid) -> Geometry:
    """What decides which sizes all stages can hold."""
    causal, patch = pyramid.causal_time, family.patch(pipe)
    if pyramid.multiples[0] == 1:  # over space alone: as stock, which fills patches of several frames
        causal, patch = causal or family.causal_vae, (1, *patch[1:])
    return pyramid.multiples, patch, family.vae_ratio(pipe), causal, family.causal_vae


def check_limits(pipe: Any, family: Family, pyramid: Pyramid, size: Size) -> None:
    """Refuse a size that the network has no positions for."""
    limits = family.limits(pipe)
    for axis, (name, value) in enumerate(zip(AXIS_NAMES, size, strict=True)):
        least, greatest = limits.get(name, (value, value))
        if least <= value <= greatest:
            continue
        for nearest in range(least, greatest + 1) if value < least else range(greatest, least - 1, -1):
            try:
                check_whole(pipe, family, pyramid, (nearest, nearest, nearest), [axis])
                break
            except ValueError:
                continue
        else:
            raise ValueError(f"{name}: no value from {least} to {greatest}, this network's own, suits this pyramid")
        raise ValueError(
            f"{name} {value} is out of this network's positions' reach, {least} to {greatest}; nearest: {nearest}"
        )


def check_latents(pipe: Any, family: Family, size: Size, latents: Tensor | None, generator: Generators = None) -> None:
    """Refuse latents that are not of the coarsest stage's size, or not as many as the generators that jumps draw from.

    Raises:
        ValueError: naming both sizes, or both numbers.
    """
    if latents is None:
        return
    if isinstance(generator, list | tuple):
        check_generators(generator, len(latents))
    t, h, w = family.latent_size(pipe, size)
    t += family.filling(pipe, size)
    channels, left = divmod(latents.numel(), len(latents) * t * h * w)
    whole = torch.empty(len(latents), channels, t, h, w, device="meta")
    if left or family.pack(pipe, whole, (t, h, w)).shape != latents.shape:
        raise ValueError(
            f"latents of shape {tuple(latents.shape)} are not noise of the coarsest stage's size, "
            f"{t} x {h} x {w} (frames, height, width)"
        )
