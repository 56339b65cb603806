"""Freed memory, kept for the next step."""

from __future__ import annotations

import ctypes
import sys

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
