"""The pieces of a transformer block around its linear layers, in few passes over memory.

Each function is a formula in plain PyTorch. Two of them, the rotation of queries and keys and the attention, have a
second form with a hand-written gradient, used for bfloat16 on a CPU, where PyTorch's own kernels run at a fraction of
the rate of its matrix multiplications; anywhere else, and under ``torch.compile``, the plain form runs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_SCORES = 2**21  # attention scores worked on at once: 4 MiB, so that they stay in the cache
KEPT_TOKENS = 512  # up to this many keys, the attention weights are kept for the backward pass


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``layer_norm(x) * (1 + scale) + shift``: x (B, N, D); shift and scale (B, 1, D), one a sample."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


def gated_residual(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """``x + gate * branch``: x and branch (B, N, D); gate (B, 1, D), one a sample."""
    return x + gate * branch


def normed_rotary(x: Tensor, weight: Tensor, table: Tensor, eps: float) -> Tensor:
    """RMS norm over a head's channels, then rotation by the token's position.

    With z = x / rms(x) * weight, the pair (z_j, z_{j + d/2}) turns by the angle of the token and of pair j.

    Args:
        x: (B, N, S, H, d), S the streams (query and key).
        weight: (S, d), gain of the norm of each stream.
        table: (2, N, d), see :meth:`tpdiff.models.rotary.Rotary.table`.
        eps: added to the mean square.

    Returns:
        (S, B, H, N, d).
    """
    cos, sin = table
    weight = weight.to(x.dtype)
    if _takes_fast_path(x):
        return _NormedRotary.apply(x, weight, cos, sin, eps)
    z = F.rms_norm(x, x.shape[-1:], eps=eps) * weight[:, None]
    z = z.permute(2, 0, 3, 1, 4)
    return z * cos + _swap_halves(z) * sin


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """``softmax(query key^T / sqrt(d)) value`` of every head.

    Args:
        query: (B, H, N, d).
        key: (B, H, L, d).
        value: (B, H, L, d).
        mask: (B, 1, 1, L) bool, True where a key is attended to.

    Returns:
        (B, N, H * d).
    """
    if _takes_fast_path(query):
        bias = None
        if mask is not None:
            bias = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, -torch.inf)
            bias = bias.expand(-1, query.shape[1], -1, -1).flatten(0, 1)
        heads = (x.flatten(0, 1).contiguous() for x in (query, key, value))
        out = _BlockedAttention.apply(*heads, bias).unflatten(0, query.shape[:2])
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return out.transpose(1, 2).flatten(2)


def _takes_fast_path(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16 and not torch.compiler.is_compiling()


def _swap_halves(x: Tensor) -> Tensor:
    return x.roll(x.shape[-1] // 2, -1)


class _NormedRotary(torch.autograd.Function):
    """:func:`normed_rotary`, with its gradient by hand."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cos: Tensor, sin: Tensor, eps: float) -> Tensor:
        streams = x.permute(2, 0, 3, 1, 4)
        rms = torch.linalg.vector_norm(streams, dim=-1, keepdim=True) * x.shape[-1] ** -0.5
        inverse = (rms.to(torch.promote_types(x.dtype, torch.float32)).square() + eps).rsqrt().to(x.dtype)
        normed = torch.empty(streams.shape, dtype=x.dtype)
        torch.mul(streams, inverse, out=normed)
        ctx.save_for_backward(normed, inverse, weight, cos, sin)
        gain = weight[:, None, None, None]
        out = normed * (gain * cos)
        return out.addcmul_(_swap_halves(normed), _swap_halves(gain) * sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        normed, inverse, weight, cos, sin = ctx.saved_tensors
        # z = normed * weight; the rotation is orthogonal: its transpose turns the gradient back
        grad_z = _swap_halves(grad * sin).addcmul_(grad, cos)
        product = grad_z * normed
        grad_weight = product.sum((1, 2, 3))
        # x / rms(x): the part of the gradient along x itself is lost
        along = product.flatten(1, 3) @ (weight[..., None] / weight.shape[-1])
        grad_normed = grad_z.mul_(weight[:, None, None, None])
        grad_normed.addcmul_(normed, along.view(inverse.shape), value=-1)
        return grad_normed.mul_(inverse).permute(1, 3, 0, 2, 4), grad_weight, None, None, None


class _BlockedAttention(torch.autograd.Function):
    """Attention as matrix multiplications and a softmax, over as many heads at once as the cache holds.

    Query (G, N, d), key and value (G, L, d), bias (G, 1, L) or None, G = B H; all contiguous.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        query = query * query.shape[-1] ** -0.5
        heads, length = query.shape[0], key.shape[1]
        keep = any(ctx.needs_input_grad) and length <= KEPT_TOKENS
        step = _heads_at_once(query, key)
        weights = query.new_empty(heads if keep else step, query.shape[1], length)
        out = torch.empty_like(query)
        for start in range(0, heads, step):
            part = slice(start, start + step)
            block = weights[part] if keep else weights[: heads - start]
            _attention_weights(query[part], key[part], None if bias is None else bias[part], block)
            torch.bmm(block, value[part], out=out[part])
        ctx.save_for_backward(query, key, value, bias, weights if keep else None)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, bias, kept = ctx.saved_tensors
        grad, heads, step = grad.contiguous(), query.shape[0], _heads_at_once(query, key)
        grad_query, grad_key, grad_value = (torch.empty_like(x) for x in (query, key, value))
        scratch = query.new_empty(2, min(step, heads), query.shape[1], key.shape[1])
        for start in range(0, heads, step):
            part = slice(start, start + step)
            weights, grad_scores = scratch[:, : heads - start]
            if kept is not None:
                weights = kept[part]
            else:
                _attention_weights_again(query[part], key[part], None if bias is None else bias[part], weights)
            torch.bmm(weights.mT, grad[part], out=grad_value[part])
            torch.bmm(grad[part], value[part].mT, out=grad_scores)
            torch.ops.aten._softmax_backward_data.out(grad_scores, weights, -1, query.dtype, grad_input=grad_scores)
            torch.bmm(grad_scores, key[part], out=grad_query[part])
            torch.bmm(grad_scores.mT, query[part], out=grad_key[part])
        return grad_query.mul_(query.shape[-1] ** -0.5), grad_key, grad_value, None


def _heads_at_once(query: Tensor, key: Tensor) -> int:
    return max(1, BLOCK_SCORES // (query.shape[1] * key.shape[1]))


def _attention_weights(query: Tensor, key: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Write softmax(query key^T + bias) into ``out``; the query is already scaled."""
    torch.bmm(query, key.mT, out=out)
    if bias is not None:
        out += bias
    torch.softmax(out, -1, out=out)


@torch.library.custom_op("tpdiff::attention_weights_again", mutates_args=("out",))
def _attention_weights_again(query: Tensor, key: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """`_attention_weights` as an operator of its own, which counters of operations do not look into: what is computed
    a second time counts once."""
    _attention_weights(query, key, bias, out)
