"""Memory: kept from one step to the next, given back, and measured."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names and values of malloc.h
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C allocator keep the memory of freed tensors instead of handing it back to the system.

    A training step on a CPU frees and asks for the same hundreds of megabytes again and again; by default glibc
    returns every large block to the kernel, which then has to clear its pages anew at each use.
    Call it once, before training on a CPU. The process then holds on to its peak use until it ends, as CUDA's
    allocator does on a GPU.

    Returns:
        whether it took effect: True on Linux with glibc, False, without doing anything, elsewhere.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_TRIM_THRESHOLD, LARGEST) and mallopt(M_MMAP_THRESHOLD, LARGEST))


def reset_peak() -> None:
    """Begin to watch. Where the system cannot, `peak_bytes` tells the process's peak since it began."""
    if _on_cuda():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")  # proc(5): the peak of the resident set starts over


def peak_bytes() -> int | None:
    """Most bytes in use since `reset_peak`: allocated on the GPU, or resident in memory; None: the system tells not."""
    if _on_cuda():
        return torch.cuda.max_memory_allocated()
    try:
        lines = _STATUS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def give_back_freed_memory() -> None:
    """Hand what is freed back to the system, `keep_freed_memory` or not, so that the next use of it can be measured."""
    gc.collect()
    if _on_cuda():
        torch.cuda.empty_cache()
    elif sys.platform.startswith("linux") and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def works_on(module: nn.Module) -> torch.device:
    """Where a module's inputs have to be: where accelerate's hooks bring it to work, or where its weights are."""
    hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
    found = (getattr(hook, "execution_device", None) for hook in hooks)
    device = next((device for device in found if device is not None), None)
    return next(module.parameters()).device if device is None else torch.device(device)


@contextmanager
def moved(modules: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Have modules on a device while active, then each where it was."""
    places = [(module, weight.device) for module in modules for weight in islice(module.parameters(), 1)]
    try:
        for module, _ in places:
            module.to(device)
        yield
    finally:
        for module, place in places:
            module.to(place)


@contextmanager
def visiting(modules: Iterable[nn.Module], device: torch.device, until: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Have modules on a device only while they work: each comes when it is called, by what diffusers' autoencoders have
    for it as well (`encode`, `decode`), and all go back where they were once one of others is called, and in the end.

    Args:
        modules: they have no hooks of accelerate's.
        device: where they work.
        until: those others.
    """
    visits = [_Visit(module, device) for module in modules if next(module.parameters(), None) is not None]

    def send_back(*_: Any) -> None:
        for visit in visits:
            visit.end()

    handles = [module.register_forward_pre_hook(send_back) for module in until]
    try:
        for visit in visits:
            add_hook_to_module(visit.module, visit)
        yield
    finally:
        send_back()
        for handle in handles:
            handle.remove()
        for visit in visits:
            remove_hook_from_module(visit.module)


class _Visit(ModelHook):
    """A module's stay on a device, where a pipeline then takes itself to be."""

    def __init__(self, module: nn.Module, device: torch.device):
        self.module, self.execution_device = module, device
        self.home: torch.device | None = None  # while it is away

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        if self.home is None:
            self.home = next(module.parameters()).device
            module.to(self.execution_device)
        return args, kwargs

    def end(self) -> None:
        """Back to where it was."""
        if self.home is not None:
            self.module.to(self.home)
            self.home = None


def _on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_initialized()
