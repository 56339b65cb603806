"""Time several ways of doing one thing side by side, and count the operations of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from tpdiff.evaluation.results import LatencyRow

Reporter = Callable[[int, int, str, float], None]
"""(runs done, runs in all, variant, its seconds)."""


def _cpu_attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """q kᵀ and p v of shapes (B, heads, L, d): what PyTorch's counter does not know of the fused CPU kernel."""
    return 2 * prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_backward(
    grad: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Two products for each of the forward's on every device; kernels' recomputation of q kᵀ is not counted, though
    PyTorch's counter does for those of CUDA."""
    return 2 * _cpu_attention(query, key, value)


ATTENTION_FORMULAS: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    **dict.fromkeys(
        (
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
            torch.ops.aten._scaled_dot_product_flash_attention_backward,
            torch.ops.aten._scaled_dot_product_efficient_attention_backward,
            torch.ops.aten._scaled_dot_product_cudnn_attention_backward,
        ),
        _attention_backward,
    ),
}


def count_flops(fn: Callable[[], object]) -> int:
    """Floating-point operations of one call: matrix multiplications, convolutions and attention, 2 a multiply-add.

    Element-wise work is not counted. Runs `fn` once.
    """
    counter = FlopCounterMode(display=False, custom_mapping=ATTENTION_FORMULAS)
    with counter:
        fn()
    return int(counter.get_total_flops())


def measure(
    variants: Mapping[str, Callable[[], object]],
    rounds: int = 7,
    warmup: int = 1,
    progress: Reporter | None = None,
) -> dict[str, list[float]]:
    """Seconds of each variant in each round; all variants take a turn in every round.

    Odd rounds run in reverse order, so that a machine that slows down or speeds up does so for all alike.

    Args:
        variants: name -> callable; its result is dropped.
        rounds: timed rounds.
        warmup: rounds before them that are not timed.
        progress: told after every timed run.

    Returns:
        name -> `rounds` times in seconds, in order of the rounds. CUDA work is waited for.

    Raises:
        ValueError: nothing to time, or no rounds.
    """
    if not variants:
        raise ValueError("no variants to measure")
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds {rounds} must be at least 1 and warmup {warmup} at least 0")
    names = list(variants)
    for _ in range(warmup):
        for name in names:
            variants[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    done = 0
    for round_ in range(rounds):
        for name in reversed(names) if round_ % 2 else names:
            seconds = _seconds(variants[name])
            times[name].append(seconds)
            done += 1
            if progress is not None:
                progress(done, rounds * len(names), name, seconds)
    return times


def _seconds(fn: Callable[[], object]) -> float:
    wait()
    begin = time.perf_counter()
    fn()
    wait()
    return time.perf_counter() - begin


def wait() -> None:
    """Until the GPU, where one is in use, has done all it was given."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Speedup:
    """How many times faster b is than a.

    Attributes:
        ratio: median seconds of a over median seconds of b.
        paired: a over b in each round; empty where the rounds do not correspond.
    """

    ratio: float
    paired: tuple[float, ...]

    def share(self, limit: float) -> float:
        """The part of a possible ratio that was reached, 1 for all of it."""
        return self.ratio / limit


def speedup(a: Sequence[float], b: Sequence[float]) -> Speedup:
    """Compare seconds of a with seconds of b, measured in the same rounds.

    Raises:
        ValueError: no times, or times that are not positive.
    """
    if not a or not b or min(*a, *b) <= 0:
        raise ValueError("speedup needs positive times of both sides")
    paired = tuple(x / y for x, y in zip(a, b, strict=True)) if len(a) == len(b) else ()
    return Speedup(median(a) / median(b), paired)


@dataclass(frozen=True)
class Standing:
    """A latency row against its base: the first row that decodes, or does not, as it does.

    Attributes:
        row: the row.
        base: whether the row is itself the base.
        speedup: base over row.
        limit: the same ratio of floating-point operations; None for the base, and where they were not counted.
        share: part of `limit` reached; None where there is no limit.
    """

    row: LatencyRow
    base: bool
    speedup: Speedup
    limit: float | None
    share: float | None


def standings(rows: Sequence[LatencyRow]) -> list[Standing]:
    """Every row against its base, in the order given."""
    bases: dict[bool, LatencyRow] = {}
    result = []
    for row in rows:
        base = bases.setdefault(row.decode, row)
        faster = speedup(base.seconds, row.seconds)
        limit = base.flops / row.flops if row is not base and base.flops > 0 and row.flops > 0 else None
        share = None if limit is None else faster.share(limit)
        result.append(Standing(row, row is base, faster, limit, share))
    return result
