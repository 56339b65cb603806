"""The hardware and software that figures belong to."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tpdiff.threads import usable_cores

_CPUINFO = Path("/proc/cpuinfo")
DECIDING = ("cpu", "cores", "threads", "gpus", "torch")  # what ratios measured side by side share


def describe() -> dict[str, Any]:
    """Facts about this machine, JSON values, ready to print.

    Keys: cpu (model name), cores (usable by this process), threads (PyTorch's), memory_gib, cpu_capability (vector
    instructions PyTorch uses), cpu_bf16 (instructions for bfloat16 products, "none" where they are emulated), gpus
    (names), gpu_bf16, torch, python, system.
    """
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_bf16": _cpu_bf16(),
        "gpus": gpus,
        "gpu_bf16": bool(gpus) and torch.cuda.is_bf16_supported(including_emulation=False),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def one_line(facts: Mapping[str, Any] | None = None) -> str:
    """`describe` in one line."""
    m = facts or describe()
    gpus = f"{', '.join(m['gpus'])}; " if m["gpus"] else ""
    return (
        f"{gpus}{m['cpu']}, {m['cores']} cores, {m['threads']} threads, {m['memory_gib']} GiB, "
        f"bf16 {m['cpu_bf16']}, torch {m['torch']}"
    )


def refuse_others(kept: Mapping[Path, Mapping[str, Any]]) -> None:
    """Refuse to go on with a table of measurements of which a row was measured elsewhere.

    Args:
        kept: where each row is kept, and what `describe` said where it was measured.

    Raises:
        ValueError: naming what differs.
    """
    now = describe()
    for path, made in kept.items():
        apart = [
            f"{key} {made[key]!r} (here {now[key]!r})" for key in DECIDING if key in made and made[key] != now[key]
        ]
        if apart:
            raise ValueError(
                f"{path} was measured elsewhere, with {', '.join(apart)}, and the rows of a table are measured side by "
                "side: go on as there, or keep what is measured here apart with --results"
            )


def commit() -> str | None:
    """The commit that this code is of, with a "+" where files differ from it; None outside a working copy."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    told = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=10", "--dirty=+"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or None


def cpu_model() -> str:
    """The processor's name, as far as the system tells."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"


def matmul_gflops(
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    size: int = 1024,
    seconds: float = 0.3,
) -> float:
    """Measured rate of square matrix products, in GFLOP/s: the best of as many as fit into `seconds`.

    Args:
        dtype: of the operands.
        device: where to multiply.
        size: rows and columns.
        seconds: time to spend after one product of warm-up.
    """
    device = torch.device(device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, spent = float("inf"), 0.0
    a @ b
    while spent < seconds:
        _wait(device)
        begin = time.perf_counter()
        a @ b
        _wait(device)
        took = time.perf_counter() - begin
        best, spent = min(best, took), spent + took
    return 2 * size**3 / best / 1e9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _cpuinfo(key: str) -> str:
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.split(":")[0].strip() == key), "")


def _cpu_bf16() -> str:
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512", "bf16": "Arm"}
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    return ", ".join(name for flag, name in known.items() if flag in flags) or "none"


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
