"""VideoDiT: the reference denoiser, a diffusion transformer over video patches of any stage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from tpdiff.models import checks
from tpdiff.models.blocks import DiTBlock
from tpdiff.models.embeddings import (
    StageLinear,
    TextEmbedding,
    blended,
    overlapping,
    patchify,
    timestep_embedding,
    unpatchify,
)
from tpdiff.models.fused import modulated_norm
from tpdiff.models.rotary import Rotary, angle_features
from tpdiff.pyramid.positions import MODES

TIME_CHANNELS = 256
SILENT = ("modulation", "final_projection", "cross_attention.to_out")  # layers that start at zero


class VideoDiT(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """A video denoiser: AdaLN-zero transformer, full spatio-temporal attention, one position axis for all stages.

    A stage's stride against full size enters the rotary positions alone (MATH 7): coarse and fine tokens that
    cover the same frames stand at the same place. An untrained network returns zeros.

    Args:
        in_channels: C of the input video or latents.
        out_channels: C of the output; ``None`` means ``in_channels``.
        patch_size: (T, H, W) elements of one token.
        hidden_size: width D of the tokens.
        num_layers: number of blocks.
        num_attention_heads: heads; ``hidden_size / num_attention_heads`` must be even and at least 6.
        mlp_ratio: width of the feed-forward layer over ``hidden_size``.
        text_dim: channels of the text embeddings; ``None`` for a network without text.
        num_classes: number of class labels; label ``num_classes`` is the null class. ``None`` for no labels.
        num_stages: number of stages told apart by a learned embedding (MATH 7); ``None`` for none.
        stage_projections: whether the layers into and out of tokens are each stage's own; needs ``num_stages``.
        rope_modes: position mode of T, H, W, see :func:`tpdiff.pyramid.positions.positions`.
        rope_theta: ratio of the longest rotary wavelength to the shortest (the latter is 2 pi elements).
        causal_time: whether the first frame of every stage is a single full-rate frame (causal video VAEs).
        absolute_positions: whether a token is told where it stands, by a linear map of its rotary cosines and sines.
            Attention alone sees how far apart tokens are; a floor and a ceiling differ in where they are.
        temporal_overlap: frames before and after its own that a token sees and says; where two tokens say a frame, they
            are cross-faded. At most half of the patch.
        qk_norm_eps: epsilon of the RMS norm of queries and keys.

    Raises:
        ValueError: a configuration that cannot be built, with the rule it breaks.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["DiTBlock"]  # type: ignore[assignment]  # noqa: RUF012
    _repeated_blocks = ["DiTBlock"]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int | None = None,
        patch_size: tuple[int, int, int] = (1, 8, 8),
        hidden_size: int = 256,
        num_layers: int = 8,
        num_attention_heads: int = 4,
        mlp_ratio: float = 4.0,
        text_dim: int | None = None,
        num_classes: int | None = None,
        num_stages: int | None = None,
        stage_projections: bool = False,
        rope_modes: tuple[str, str, str] = ("interpolate", "interpolate", "interpolate"),
        rope_theta: float = 1000.0,
        causal_time: bool = False,
        absolute_positions: bool = False,
        temporal_overlap: int = 0,
        qk_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        checks.check_config(hidden_size, num_attention_heads, patch_size, rope_modes, MODES, causal_time)
        checks.check_stage_projections(stage_projections, num_stages)
        checks.check_overlap(temporal_overlap, patch_size[0])
        self.gradient_checkpointing = False
        self.in_channels, self.text_dim = in_channels, text_dim
        self.num_classes, self.num_stages, self.stage_projections = num_classes, num_stages, stage_projections
        self.patch_size = tuple(patch_size)
        self.rope = Rotary(hidden_size // num_attention_heads, tuple(rope_modes), rope_theta, causal_time)
        self.temporal_overlap = temporal_overlap
        self.window = (patch_size[0] + 2 * temporal_overlap, *patch_size[1:])  # what a token sees and says
        volume = math.prod(self.window)
        projection = partial(StageLinear, num_stages) if stage_projections and num_stages is not None else nn.Linear

        self.patch_embed = projection(in_channels * volume, hidden_size)
        head_dim = hidden_size // num_attention_heads
        self.position_embed = nn.Linear(head_dim, hidden_size, bias=False) if absolute_positions else None
        self.time_embed = nn.Sequential(
            nn.Linear(TIME_CHANNELS, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )
        self.class_embed = nn.Embedding(num_classes + 1, hidden_size) if num_classes is not None else None
        self.stage_embed = nn.Embedding(num_stages, hidden_size) if num_stages is not None else None
        self.text_embed = TextEmbedding(text_dim, hidden_size) if text_dim is not None else None
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_attention_heads, mlp_ratio, qk_norm_eps, text_dim is not None)
            for _ in range(num_layers)
        )
        self.final_modulation = nn.Linear(hidden_size, 2 * hidden_size)
        self.final_projection = projection(hidden_size, (out_channels or in_channels) * volume)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for linear layers, small normals for embeddings, zeros for all that must start silent."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            if name.endswith(SILENT):
                nn.init.zeros_(module.weight)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        class_labels: Tensor | None = None,
        strides: tuple[float, float, float] = (1, 1, 1),
        stage: int | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Predict the target of one stage.

        Args:
            hidden_states: (B, C, T, H, W) noisy video of a stage, each axis a multiple of the patch.
            timestep: (B,) float, diffusion time in [0, 1], 1 is pure noise.
            encoder_hidden_states: (B, L, text_dim) text embeddings.
            encoder_attention_mask: (B, L) bool, True where a text token is attended to. A sample whose mask is
                all False is unconditional: it attends to a learned null token, which every sample has.
            class_labels: (B,) integers, 0 .. num_classes - 1, or num_classes for no class.
            strides: (T, H, W) stride of the stage against full size; full size is (1, 1, 1).
            stage: index of the stage, 0 the finest; needed by, and read by, a network with ``num_stages``.
            return_dict: return a ``Transformer2DModelOutput`` rather than a tuple.

        Returns:
            ``sample`` of shape (B, out_channels, T, H, W), in the dtype of ``hidden_states``.

        Raises:
            ValueError: an argument of wrong shape or value, with the rule and the nearest legal values.
        """
        batch, size = hidden_states.shape[0], hidden_states.shape[2:]
        checks.check_video(hidden_states, self.in_channels, self.patch_size)
        checks.check_timestep(timestep, batch)
        checks.check_strides(strides)
        checks.check_text(encoder_hidden_states, encoder_attention_mask, batch, self.text_dim)
        checks.check_labels(class_labels, batch, self.num_classes)
        checks.check_stage(stage, self.num_stages)

        which = (stage,) if self.stage_projections else ()
        weight = self.patch_embed.weight
        windows = overlapping(hidden_states.to(weight.dtype), self.patch_size[0], self.temporal_overlap)
        tokens = self.patch_embed(patchify(windows, self.window), *which)
        conditioning = self._conditioning(timestep, class_labels, stage)
        rotary = self._rotary(size, strides, tokens)
        if self.position_embed is not None:
            tokens = tokens + self.position_embed(angle_features(rotary))
        text, text_mask = None, None
        if self.text_embed is not None and encoder_hidden_states is not None:
            text, text_mask = self.text_embed(encoder_hidden_states, encoder_attention_mask)

        checkpoint: Any = self._gradient_checkpointing_func
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                tokens = checkpoint(block, tokens, conditioning, rotary, text, text_mask)
            else:
                tokens = block(tokens, conditioning, rotary, text, text_mask)

        shift, scale = self.final_modulation(conditioning)[:, None].chunk(2, dim=-1)
        tokens = self.final_projection(modulated_norm(tokens, shift, scale), *which)
        windows = unpatchify(tokens, (size[0] // self.patch_size[0] * self.window[0], *size[1:]), self.window)
        sample = blended(windows, self.patch_size[0], self.temporal_overlap).to(hidden_states.dtype)
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    def _conditioning(self, timestep: Tensor, class_labels: Tensor | None, stage: int | None) -> Tensor:
        """(B, D): SiLU of the sum of the embeddings of time, class and stage."""
        embedding = self.time_embed(timestep_embedding(timestep, TIME_CHANNELS).to(self.patch_embed.weight.dtype))
        if self.class_embed is not None and class_labels is not None:
            embedding = embedding + self.class_embed(class_labels)
        if self.stage_embed is not None and stage is not None:
            embedding = embedding + self.stage_embed.weight[stage]
        return F.silu(embedding)

    def _rotary(self, size: Sequence[int], strides: Sequence[float], tokens: Tensor) -> Tensor:
        """Rotary table of this size: a token of a patch of p elements has p times the stage's stride."""
        grid = tuple(n // p for n, p in zip(size, self.patch_size, strict=True))
        token_strides = tuple(float(p * stride) for p, stride in zip(self.patch_size, strides, strict=True))
        return self.rope.table(grid, token_strides, tokens.device, tokens.dtype)
