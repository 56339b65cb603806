"""What a command computes on, and in which precision."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16", "float16")
Offload = Annotated[
    bool, typer.Option("--offload", help="Keep on the CPU what is not at work: for a GPU that cannot hold all of it.")
]


def as_device(name: str | None) -> torch.device:
    """The device of that name, such as cuda:1; None: cuda if there is one, else cpu.

    Raises:
        ValueError: neither cpu nor cuda, or a device that is not there.
    """
    if name is not None and not re.fullmatch(r"(cpu|cuda)(:\d+)?", name):
        raise ValueError(f"device {name!r} is neither cpu nor cuda")
    import torch

    place = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    there = torch.cuda.device_count() if place.type == "cuda" else 1
    if not there:
        raise ValueError(f"device {name!r}: there is no CUDA device here; use cpu")
    if (place.index or 0) >= there:
        raise ValueError(f"device {name!r} is not there; nearest: {place.type}:{there - 1}")
    return place


def as_dtype(name: str) -> torch.dtype:
    """Raises ValueError for a dtype that weights are not kept in."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is none of {', '.join(DTYPES)}")
    import torch

    return getattr(torch, name)
