"""`tpdiff export`: what a run trained, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpdiff.cli.quiet import quiet

if TYPE_CHECKING:
    import torch

FORMATS = ("diffusers", "comfyui")
DTYPES = ("float32", "bfloat16", "float16")


def export(
    run: Annotated[Path, typer.Argument(help="A run's folder or a checkpoint.")],
    out: Annotated[Path, typer.Option(help="diffusers: a new folder; comfyui: a new .safetensors file.")],
    format: Annotated[str, typer.Option(help="diffusers, or comfyui (low-rank matrices alone).")] = "diffusers",
    dtype: Annotated[str, typer.Option(help=f"Of the weights: {', '.join(DTYPES)}.")] = "float32",
) -> None:
    """Write the averaged weights: a whole stock pipeline, or low-rank matrices, without the state of training."""
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    if out.exists():
        raise ValueError(f"{out} is there already; choose another --out")
    if (out.suffix == ".safetensors") != (format == "comfyui"):
        rule = "a .safetensors file" if format == "comfyui" else "a folder"
        raise ValueError(f"--out {out}: the {format} format is {rule}")
    kind = as_dtype(dtype)
    quiet()
    from safetensors.torch import save

    from tpdiff.files import write_whole
    from tpdiff.sampling.export import original_matrices
    from tpdiff.sampling.pipeline import PyramidPipeline
    from tpdiff.sampling.tuned import TunedPipeline
    from tpdiff.training.checkpoint import write_pipeline

    pipeline: Any = PyramidPipeline.from_pretrained(run, dtype=kind)
    tuned = isinstance(pipeline, TunedPipeline)
    if format == "comfyui":
        if not tuned:
            raise ValueError("no comfyui format for a network of tpdiff's own; nearest: diffusers")
        matrices = original_matrices(pipeline)
        write_whole(out, save({name: value.to(kind) for name, value in matrices.items()}, {"format": "pt"}))
    else:
        write_pipeline(out, pipeline.whole() if tuned and not pipeline.config.adapters else pipeline)
    print(out)


def as_dtype(name: str) -> torch.dtype:
    """Raises ValueError for a dtype that weights are not kept in."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is none of {', '.join(DTYPES)}")
    import torch

    return getattr(torch, name)
