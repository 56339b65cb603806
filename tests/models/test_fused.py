"""The fused pieces against plain formulas, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tpdiff.models import fused
from tpdiff.models.fused import attention, gated_residual, modulated_norm, normed_rotary
from tpdiff.models.rotary import Rotary

B, N, H, D = 3, 6, 2, 8
EPS = 1e-6


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hand-written gradients, whatever the dtype."""
    monkeypatch.setattr(fused, "_takes_fast_path", lambda x: True)


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def table(dtype: torch.dtype = torch.float64) -> Tensor:
    return Rotary(D).table((N, 1, 1), (2.0, 1.0, 1.0), torch.device("cpu"), dtype)


def plain_normed_rotary(x: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """Complex numbers instead of halves, one stream and head at a time."""
    angles = torch.complex(table[0], table[1])[:, D // 2 :]
    z = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight[:, None]
    turned = torch.complex(*z.chunk(2, -1)) * angles[:, None, None]
    return torch.cat((turned.real, turned.imag), -1).permute(2, 0, 3, 1, 4)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.einsum("bhnd,bhld->bhnl", query, key) / D**0.5
    if mask is not None:
        scores = scores.where(mask, -torch.inf)
    return torch.einsum("bhnl,bhld->bnhd", scores.softmax(-1), value).flatten(2)


def assert_same(ours, plain, inputs: list[Tensor], **tolerance: float) -> None:
    got, expected = ours(*inputs), plain(*inputs)
    torch.testing.assert_close(got, expected, **tolerance)
    weights = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((got * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, **tolerance)


def test_modulated_norm() -> None:
    inputs = leaves((B, N, D), (B, 1, D), (B, 1, D))

    def plain(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        normed = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return torch.stack([normed[b] * (1 + scale[b]) + shift[b] for b in range(B)])

    assert_same(modulated_norm, plain, inputs)


def test_gated_residual() -> None:
    inputs = leaves((B, N, D), (B, 1, D), (B, N, D))
    assert_same(gated_residual, lambda x, gate, y: torch.stack([x[b] + gate[b] * y[b] for b in range(B)]), inputs)


def test_plain_normed_rotary() -> None:
    inputs = leaves((B, N, 2, H, D), (2, D))
    assert_same(lambda x, w: normed_rotary(x, w, table(), EPS), lambda x, w: plain_normed_rotary(x, w, table()), inputs)


@pytest.mark.usefixtures("fast")
def test_fast_normed_rotary() -> None:
    inputs = leaves((B, N, 2, H, D), (2, D))
    assert_same(
        lambda x, w: normed_rotary(x, w, table(), EPS),
        lambda x, w: plain_normed_rotary(x, w, table()),
        inputs,
        rtol=1e-6,  # the inverse root is taken in float32
        atol=1e-6,
    )


@pytest.mark.usefixtures("fast")
def test_fast_normed_rotary_of_zeros_is_finite() -> None:
    x = torch.zeros(1, N, 2, H, D, dtype=torch.bfloat16, requires_grad=True)
    out = normed_rotary(x, torch.ones(2, D), table(torch.bfloat16), EPS)
    out.sum().backward()
    assert not out.any() and x.grad.isfinite().all()


@pytest.mark.parametrize("lengths", [(6, 6), (6, 4), (3, 5)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("is_fast", [False, True])
@pytest.mark.parametrize("block", [1, 2 * 36, 10**6])
@pytest.mark.parametrize("kept", [0, 512])
def test_attention(
    monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, int], masked: bool, is_fast: bool, block: int, kept: int
) -> None:
    n, length = lengths
    monkeypatch.setattr(fused, "_takes_fast_path", lambda x: is_fast)
    monkeypatch.setattr(fused, "BLOCK_SCORES", block)
    monkeypatch.setattr(fused, "KEPT_TOKENS", kept)
    mask = torch.arange(length) < torch.tensor([length, 1, 2])[:, None] if masked else None
    mask = mask[:, None, None] if mask is not None else None
    inputs = leaves((B, H, n, D), (B, H, length, D), (B, H, length, D))
    assert_same(lambda *x: attention(*x, mask), lambda *x: plain_attention(*x, mask), inputs)
    if is_fast:
        assert torch.autograd.gradcheck(lambda *x: attention(*x, mask), inputs, fast_mode=True)


def test_attention_takes_heads_first_views() -> None:
    inputs = [x.transpose(1, 2) for x in leaves((B, N, H, D), (B, N, H, D), (B, N, H, D), dtype=torch.bfloat16)]
    exact = plain_attention(*(x.double() for x in inputs))
    torch.testing.assert_close(attention(*inputs).double(), exact, rtol=0.02, atol=0.02)


def test_large_scores_do_not_overflow() -> None:
    q, k, v = leaves((B, H, N, D), (B, H, N, D), (B, H, N, D), dtype=torch.bfloat16)
    out = attention(100 * q, 100 * k, v)
    assert out.isfinite().all()
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), (q, k, v)))


@pytest.mark.parametrize("size", [(2, 128, 4, 64), (1, 600, 2, 32)])
def test_bfloat16_is_as_close_to_exact_as_pytorch(size: tuple[int, ...]) -> None:
    """Against float64: no worse than twice the error of PyTorch's own bfloat16 attention, value and gradient."""
    inputs = [torch.randn(size).transpose(1, 2).bfloat16().requires_grad_() for _ in range(3)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    weights = torch.randn(size).flatten(2).bfloat16()

    def run(function, x: list[Tensor]) -> list[Tensor]:
        out = function(*x)
        return [out, *torch.autograd.grad((out * weights.to(out.dtype)).sum(), x)]

    def pytorch(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    for ours, theirs, truth in zip(run(attention, inputs), run(pytorch, inputs), run(pytorch, exact), strict=True):
        assert (ours - truth).norm() < 2 * (theirs - truth).norm() + 1e-3 * truth.norm()


def operations(node: torch.autograd.graph.Node | None) -> set[str]:
    """Names of all operations of a graph."""
    return set() if node is None else {node.name()}.union(*(operations(n) for n, _ in node.next_functions))


def test_only_bfloat16_on_a_cpu_takes_the_fast_path() -> None:
    x = torch.randn(1, 1, 2, D, dtype=torch.bfloat16, requires_grad=True)
    assert any("BlockedAttention" in name for name in operations(attention(x, x, x).grad_fn))
    y = x.float()
    assert not any("BlockedAttention" in name for name in operations(attention(y, y, y).grad_fn))
