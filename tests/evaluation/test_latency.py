import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tpdiff.evaluation import latency
from tpdiff.evaluation.latency import count_flops, measure, speedup, standings
from tpdiff.evaluation.results import LatencyRow
from tpdiff.models.fused import KEPT_TOKENS, attention

BATCH, HEADS, LENGTH, WIDTH = 2, 3, 20, 24
HEAD = WIDTH // HEADS
PROJECTIONS = 4 * 2 * BATCH * LENGTH * WIDTH * WIDTH
SCORES = 2 * 2 * BATCH * HEADS * LENGTH * LENGTH * HEAD


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (HEADS, HEAD)).transpose(1, 2) for part in list(self.parts)[:3])
        return self.parts[3](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_counted_as_by_hand(mode, dtype):
    layer, x = Attention().to(dtype), torch.randn(BATCH, LENGTH, WIDTH, dtype=dtype)
    with mode():
        assert count_flops(lambda: layer(x)) == PROJECTIONS + SCORES


def test_attention_between_different_lengths_and_widths():
    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * 2 * 3 * 5 * 7 * (8 + 8)


def test_backward_counts_two_products_for_each_of_the_forward():
    layer, x = Attention(), torch.randn(BATCH, LENGTH, WIDTH, requires_grad=True)
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * (PROJECTIONS + SCORES)


@pytest.mark.parametrize("tokens", [20, KEPT_TOKENS + 8])
def test_what_a_backward_pass_computes_again_counts_once(tokens):
    """Many attention weights are not kept for it."""
    q, k, v = (torch.randn(1, HEADS, tokens, HEAD, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    scores = 2 * 2 * HEADS * tokens * tokens * HEAD
    assert count_flops(lambda: attention(q, k, v).sum().backward()) == 3 * scores


@pytest.mark.parametrize("kernel", ["flash_attention", "efficient_attention", "cudnn_attention"])
def test_a_backward_pass_counts_alike_on_every_device(kernel):
    """PyTorch's own counter adds the scores that kernels of CUDA compute anew."""
    name = f"_scaled_dot_product_{kernel}_backward"
    shape = (BATCH, HEADS, LENGTH, HEAD)
    with FlopCounterMode(display=False, custom_mapping=latency.ATTENTION_FORMULAS) as counter:
        formula = counter.flop_registry[getattr(torch.ops.aten, name)]
    assert formula(*(torch.empty(shape) for _ in range(4)), out_val=None) == 2 * SCORES


def test_counting_does_not_add_up_over_calls():
    x = torch.randn(4, 5)
    assert [count_flops(lambda: x @ x.T) for _ in range(2)] == [2 * 4 * 5 * 4] * 2


def test_rounds_alternate_and_warm_up_is_not_timed():
    calls = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    told = []
    times = measure(variants, rounds=3, warmup=2, progress=lambda *report: told.append(report[:3]))
    assert "".join(calls) == "abcabc" + "abc" + "cba" + "abc"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert told[0] == (1, 9, "a") and told[-1] == (9, 9, "c") and len(told) == 9


def test_times_stand_with_their_variant(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock[0])

    def takes(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    assert measure({"slow": takes(2.0), "fast": takes(0.5)}, rounds=4) == {
        "slow": [2.0] * 4,
        "fast": [0.5] * 4,
    }


@pytest.mark.parametrize("arguments", [({},), ({"a": print}, 0), ({"a": print}, 1, -1)])
def test_nothing_to_measure_is_refused(arguments):
    with pytest.raises(ValueError):
        measure(*arguments)


def test_speedup_is_the_ratio_of_medians_and_paired_by_round():
    faster = speedup([4.0, 6.0, 100.0], [2.0, 3.0, 4.0])
    assert faster.ratio == 2.0
    assert faster.paired == (2.0, 2.0, 25.0)
    assert faster.share(2.5) == 0.8
    assert speedup([4.0], [2.0, 2.0]).paired == ()
    with pytest.raises(ValueError):
        speedup([1.0], [0.0])


def test_rows_stand_against_the_first_of_their_kind():
    rows = [
        LatencyRow("a", "30", [4.0], 100, False),
        LatencyRow("b", "10-10-10", [2.0], 40, False),
        LatencyRow("a", "30", [6.0], 100, True),
        LatencyRow("b", "10-10-10", [4.0], 40, True),
        LatencyRow("c", "5", [3.0], 0, True),
    ]
    base, without, _, decoded, uncounted = standings(rows)
    assert base.base and base.speedup.ratio == 1 and base.limit is None and base.share is None
    assert (without.speedup.ratio, without.limit, without.share) == (2.0, 2.5, 0.8)
    assert (decoded.speedup.ratio, decoded.share) == (1.5, 0.6)
    assert uncounted.speedup.ratio == 2.0 and uncounted.limit is None
