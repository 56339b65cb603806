"""Cores, and how PyTorch's threads wait for one another. PyTorch reads it when loaded, so nothing of it is imported."""

import os


def wait_passively() -> None:
    """Let idle OpenMP threads sleep instead of spin, unless the user has chosen (OMP_WAIT_POLICY).

    On a machine shared with anything else, a thread that spins takes the core from the one it waits for: training on
    two cores beside one other process was measured 8 to 20 times slower so.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def usable_cores() -> int:
    """How many cores this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
