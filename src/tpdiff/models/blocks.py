"""The transformer block of :class:`~tpdiff.models.video_dit.VideoDiT`.

Its wide linear layers have no bias: the shift of AdaLN, one for each sample, does what a bias before them would.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpdiff.models.fused import attention, gated_residual, modulated_norm, normed_rotary


class SelfAttention(nn.Module):
    """Attention of all tokens of a video to all others, with RMS-normed, rotated queries and keys."""

    def __init__(self, hidden_size: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.heads = (num_heads, hidden_size // num_heads)
        self.eps = eps
        self.to_qkv = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.to_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.qk_norm = nn.Parameter(torch.ones(2, self.heads[1]))

    def forward(self, tokens: Tensor, rotary: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D); ``rotary`` is (2, N, head_dim), see ``Rotary.table``."""
        query_key, value = self.to_qkv(tokens).unflatten(-1, (3, *self.heads)).split((2, 1), dim=2)
        query, key = normed_rotary(query_key, self.qk_norm, rotary, self.eps)
        return self.to_out(attention(query, key, value[:, :, 0].transpose(1, 2)))


class CrossAttention(nn.Module):
    """Attention of a video's tokens to its text; silent until its zero-initialised output is trained."""

    def __init__(self, hidden_size: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.heads = (num_heads, hidden_size // num_heads)
        self.eps = eps
        self.to_query = nn.Linear(hidden_size, hidden_size, bias=False)
        self.to_key_value = nn.Linear(hidden_size, 2 * hidden_size, bias=False)
        self.to_out = nn.Linear(hidden_size, hidden_size, bias=False)
        self.qk_norm = nn.Parameter(torch.ones(2, self.heads[1]))

    def forward(self, tokens: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """(B, N, D) -> (B, N, D); ``text`` is (B, L, D), ``mask`` (B, 1, 1, L) bool, True where attended to."""
        width = self.heads[1:]
        query = self.to_query(tokens).unflatten(-1, self.heads)
        key, value = self.to_key_value(text).unflatten(-1, (2, *self.heads)).unbind(2)
        query = F.rms_norm(query, width, self.qk_norm[0].to(query.dtype), self.eps)
        key = F.rms_norm(key, width, self.qk_norm[1].to(key.dtype), self.eps)
        query, key, value = (x.transpose(1, 2) for x in (query, key, value))
        return self.to_out(attention(query, key, value, mask))


class FeedForward(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, hidden_size: int, inner_size: int) -> None:
        super().__init__()
        self.expand = nn.Linear(hidden_size, inner_size, bias=False)
        self.contract = nn.Linear(inner_size, hidden_size, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.contract(F.gelu(self.expand(tokens)))


class DiTBlock(nn.Module):
    """Self-attention, optional cross-attention to text, feed-forward; all residual, modulated by AdaLN-zero.

    With (shift, scale, gate) a linear function of the sample's conditioning, a branch f acts as
    ``x + gate * f(norm(x) * (1 + scale) + shift)``; the function starts at zero, and the block at identity.
    """

    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float, eps: float, cross_attention: bool) -> None:
        super().__init__()
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)
        self.attention = SelfAttention(hidden_size, num_heads, eps)
        self.cross_attention = CrossAttention(hidden_size, num_heads, eps) if cross_attention else None
        self.feed_forward = FeedForward(hidden_size, int(hidden_size * mlp_ratio))

    def forward(
        self,
        tokens: Tensor,
        conditioning: Tensor,
        rotary: Tensor,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """One block.

        Args:
            tokens: (B, N, D).
            conditioning: (B, D), time, class and stage, after its SiLU.
            rotary: (2, N, head_dim), see :meth:`tpdiff.models.rotary.Rotary.table`.
            text: (B, L, D), when the block has cross-attention.
            text_mask: (B, 1, 1, L) bool, True where a text token is attended to.

        Returns:
            (B, N, D).
        """
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.modulation(conditioning)[:, None].chunk(6, dim=-1)
        tokens = gated_residual(tokens, gate, self.attention(modulated_norm(tokens, shift, scale), rotary))
        if self.cross_attention is not None and text is not None:
            tokens = tokens + self.cross_attention(F.layer_norm(tokens, tokens.shape[-1:]), text, text_mask)
        return gated_residual(tokens, mlp_gate, self.feed_forward(modulated_norm(tokens, mlp_shift, mlp_scale)))
