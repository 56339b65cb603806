"""One sampling under observation: time in the network and in the scheduler, and the most memory in use."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tpdiff.evaluation.latency import wait

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


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


def reset_peak() -> None:
    """Begin to watch. Where the system cannot, `peak_bytes` tells the process's peak since it began."""
    if _on_cuda():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        _CLEAR.write_text("5")  # proc(5): the peak of the resident set starts over


def peak_bytes() -> int | None:
    """Most bytes in use since `reset_peak`: allocated on the GPU, or resident in memory; None: the system tells not."""
    if _on_cuda():
        return torch.cuda.max_memory_allocated()
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
