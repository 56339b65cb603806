"""Guiders of diffusers over stages: they count the steps of all, and average within one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tpdiff.sampling.acceleration import Enter


@contextmanager
def staged_guider(pipe: Any, evaluations: Sequence[int]) -> Iterator[Enter]:
    """While it lasts, the guider of a pipeline that has one is told the steps of all stages: `enter(place)` makes it
    begin stage number `place`, 0 the coarsest, and be in no step yet, which a pipeline may ask before the first: then
    it encodes the negative prompt that a later step needs. Afterwards it is in no step, either.

    Args:
        pipe: the pipeline.
        evaluations: network evaluations of every stage, coarsest first.
    """
    guider = getattr(pipe, "guider", None)
    if guider is None:
        yield lambda place: None
        return
    stock, before = guider.set_state, 0

    def enter(place: int) -> None:
        nonlocal before
        before = sum(evaluations[:place])
        stock(None, None, None)
        forget_averages(guider)

    def counted(step: int, num_inference_steps: int, timestep: Any) -> None:
        stock(before + step, sum(evaluations), timestep)

    guider.set_state = counted
    try:
        yield enter
    finally:
        del guider.set_state
        enter(0)


def forget_averages(guider: Any) -> None:
    """Let a guider that averages over steps begin anew: what it has is of another stage's size."""
    buffer = getattr(guider, "momentum_buffer", None)
    if buffer is not None:
        buffer.running_average = 0
