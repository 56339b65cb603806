"""One sampling under observation: time in the network and in the scheduler, and the most memory in use."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tpdiff.evaluation.latency import wait
from tpdiff.models.memory import peak_bytes, reset_peak


@dataclass
class Watch:
    """What one sampling spent where, in seconds.

    Attributes:
        calls: of every network call, in order.
        scheduler: of the scheduler's steps, its set-up, and the jumps.
        total: of all.
        peak: most memory used meanwhile, bytes; None where the system does not tell.
    """

    calls: list[float] = field(default_factory=list)
    scheduler: float = 0.0
    total: float = 0.0
    peak: int | None = None


def watched(run: Callable[[], object], pipe: Any, network: nn.Module) -> Watch:
    """One sampling under observation; the device is waited for at every turn, so it is not one of those timed."""
    watch = Watch()
    begun: list[float] = []

    def begin(*_: Any) -> None:
        wait()
        begun.append(time.perf_counter())

    def end(*_: Any) -> None:
        wait()
        watch.calls.append(time.perf_counter() - begun.pop())

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            wait()
            start = time.perf_counter()
            result = function(*args, **kwargs)
            wait()
            watch.scheduler += time.perf_counter() - start
            return result

        return inner

    scheduler = pipe.scheduler
    names = [name for name in ("set_timesteps", "step", "jump") if hasattr(scheduler, name)]
    hooks = [network.register_forward_pre_hook(begin), network.register_forward_hook(end)]
    for name in names:
        vars(scheduler)[name] = timed(getattr(scheduler, name))
    reset_peak()
    try:
        wait()
        start = time.perf_counter()
        run()
        wait()
        watch.total = time.perf_counter() - start
    finally:
        for name in names:
            del vars(scheduler)[name]
        for hook in hooks:
            hook.remove()
    watch.peak = peak_bytes()
    return watch
