"""Refusals of a video network: every bad argument is named before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_config(
    hidden_size: int,
    num_attention_heads: int,
    patch_size: Sequence[int],
    rope_modes: Sequence[str],
    modes: Sequence[str],
    causal_time: bool,
) -> None:
    """Refuse a network that cannot be built.

    Raises:
        ValueError: heads that do not divide the width, a head too narrow or odd, a bad patch or position mode, or
            patches of several frames on a causal time axis.
    """
    if hidden_size % num_attention_heads:
        raise ValueError(
            f"hidden_size {hidden_size} is not a multiple of num_attention_heads {num_attention_heads}; "
            f"nearest: {_nearest(hidden_size, num_attention_heads)}"
        )
    head_dim = hidden_size // num_attention_heads
    if head_dim % 2 or head_dim < 6:
        raise ValueError(
            f"head size {head_dim} (hidden_size {hidden_size} / num_attention_heads {num_attention_heads}) must be "
            f"even and at least 6: the rotated pairs are shared among T, H and W"
        )
    if len(patch_size) != 3 or any(p < 1 for p in patch_size):
        raise ValueError(f"patch_size {tuple(patch_size)} must be three positive sizes (T, H, W)")
    if causal_time and patch_size[0] > 1:
        raise ValueError(
            f"causal_time keeps 1 + n frames, which patches of {patch_size[0]} do not fill; nearest: "
            "patch_size[0] = 1, or causal_time=False"
        )
    if len(rope_modes) != 3 or any(mode not in modes for mode in rope_modes):
        raise ValueError(f"rope_modes {tuple(rope_modes)} must be three modes (T, H, W) out of {', '.join(modes)}")


def check_overlap(temporal_overlap: int, frames: int) -> None:
    """Refuse windows of which more than two would meet in a frame. Raises ValueError."""
    most = frames // 2
    if not 0 <= temporal_overlap <= most:
        raise ValueError(
            f"temporal_overlap {temporal_overlap} must be at least 0 and at most half of a patch of {frames} frames; "
            f"nearest: {min(max(temporal_overlap, 0), most)}"
        )


def check_stage_projections(stage_projections: bool, num_stages: int | None) -> None:
    """Refuse projections of stages that the network is not told. Raises ValueError."""
    if stage_projections and num_stages is None:
        raise ValueError("stage_projections needs num_stages, the number of stages that have projections of their own")


def check_video(video: Tensor, in_channels: int, patch_size: Sequence[int]) -> None:
    """Refuse a video that is not (B, ``in_channels``, T, H, W) with T, H, W multiples of the patch.

    Raises:
        ValueError: naming the axis, its value, the rule and the nearest legal values.
    """
    if video.ndim != 5:
        raise ValueError(f"hidden_states has shape {tuple(video.shape)}; expected (B, C, T, H, W)")
    if video.shape[1] != in_channels:
        raise ValueError(f"hidden_states has {video.shape[1]} channels; this network takes {in_channels}")
    for axis, value, patch in zip(("frames T", "height H", "width W"), video.shape[2:], patch_size, strict=True):
        if value < 1 or value % patch:
            raise ValueError(
                f"{axis} = {value} is not a positive multiple of the patch size {patch}; "
                f"nearest: {_nearest(value, patch)}"
            )


def check_timestep(timestep: Tensor, batch: int) -> None:
    """Refuse times that are not one float in [0, 1] for each sample.

    Raises:
        ValueError: wrong shape or dtype; outside of [0, 1] (not looked at while compiling).
    """
    if tuple(timestep.shape) != (batch,):
        raise ValueError(f"timestep has shape {tuple(timestep.shape)}; expected one time a sample, ({batch},)")
    if not timestep.is_floating_point():
        raise ValueError(f"timestep has dtype {timestep.dtype}; expected floats in [0, 1], not indices")
    if not torch.compiler.is_compiling() and not ((timestep >= -1e-3) & (timestep <= 1 + 1e-3)).all():
        raise ValueError(
            f"timestep runs from {timestep.min().item():g} to {timestep.max().item():g}; it must lie in [0, 1] "
            f"(divide an index by the number of training steps)"
        )


def check_strides(strides: Sequence[float]) -> None:
    """Refuse strides that are not three positive numbers. Raises ValueError."""
    if len(strides) != 3 or not all(stride > 0 for stride in strides):
        raise ValueError(f"strides {tuple(strides)} must be three positive numbers (T, H, W); full size is (1, 1, 1)")


def check_text(text: Tensor | None, mask: Tensor | None, batch: int, text_dim: int | None) -> None:
    """Refuse text that is not (B, L, ``text_dim``) with a bool mask (B, L), or text where none is wanted.

    Raises:
        ValueError: text missing, unwanted or of the wrong shape; a mask of the wrong shape or dtype.
    """
    if text_dim is None:
        if text is not None or mask is not None:
            raise ValueError("this network takes no text (text_dim is None), but text or its mask was given")
        return
    if text is None:
        raise ValueError(
            f"this network needs encoder_hidden_states of shape (B, L, {text_dim}); for no prompt, "
            f"pass any text with an encoder_attention_mask of False"
        )
    if text.ndim != 3 or text.shape[0] != batch or text.shape[2] != text_dim:
        raise ValueError(f"encoder_hidden_states has shape {tuple(text.shape)}; expected ({batch}, L, {text_dim})")
    if mask is not None and (mask.shape != text.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"encoder_attention_mask is {mask.dtype} of shape {tuple(mask.shape)}; expected bool of shape "
            f"{tuple(text.shape[:2])}, True where a token is attended to"
        )


def check_labels(labels: Tensor | None, batch: int, num_classes: int | None) -> None:
    """Refuse labels that are not B integers in 0 .. ``num_classes`` (the last is the null class).

    Raises:
        ValueError: labels missing, unwanted, of the wrong shape or dtype, out of range (not looked at while
            compiling).
    """
    if num_classes is None:
        if labels is not None:
            raise ValueError("this network takes no class_labels (num_classes is None), but some were given")
        return
    if labels is None:
        raise ValueError(
            f"this network needs class_labels of shape (B,), 0 .. {num_classes - 1}, or {num_classes} for no class"
        )
    if tuple(labels.shape) != (batch,) or labels.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"class_labels is {labels.dtype} of shape {tuple(labels.shape)}; expected integers of shape ({batch},)"
        )
    if not torch.compiler.is_compiling() and not ((labels >= 0) & (labels <= num_classes)).all():
        raise ValueError(
            f"class_labels run from {labels.min().item()} to {labels.max().item()}; legal: 0 .. {num_classes - 1}, "
            f"or {num_classes} for no class"
        )


def check_stage(stage: int | None, num_stages: int | None) -> None:
    """Refuse a stage outside of 0 .. ``num_stages`` - 1, where the network embeds stages. Raises ValueError."""
    if num_stages is not None and (stage is None or not 0 <= stage < num_stages):
        raise ValueError(f"stage {stage} must be one of 0 .. {num_stages - 1} (0 is the finest)")


def _nearest(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"
