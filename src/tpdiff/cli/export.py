"""`tpdiff export`: what a run trained, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tpdiff.cli.device import DTYPES, as_dtype
from tpdiff.cli.quiet import quiet

FORMATS = ("diffusers", "comfyui")


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
    from tpdiff.sampling.export import SavedMatrices
    from tpdiff.sampling.pipeline import PyramidPipeline
    from tpdiff.sampling.trained import TOLD, newest_checkpoint
    from tpdiff.training.checkpoint import write_pipeline

    folder = newest_checkpoint(run)
    saved = SavedMatrices.open(folder, kind) if (folder / TOLD).is_file() else None
    if format == "comfyui":
        if saved is None:
            raise ValueError("no comfyui format for a network of tpdiff's own; nearest: diffusers")
        write_whole(out, save(saved.original(), {"format": "pt"}))
    elif saved is not None and saved.told.adapters:
        write_pipeline(out, saved)
    else:
        pipeline: Any = PyramidPipeline.from_pretrained(folder, dtype=kind)
        write_pipeline(out, pipeline if saved is None else pipeline.whole())
    print(out)
