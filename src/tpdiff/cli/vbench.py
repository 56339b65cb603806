"""`tpdiff vbench`: videos as VBench and VBench-2.0 look for them, and what they measured."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tpdiff.cli.bars import progress_bar
from tpdiff.cli.data import AsJson, parse_size
from tpdiff.cli.device import Offload, as_device, as_dtype
from tpdiff.cli.quiet import quiet
from tpdiff.cli.sample import _steps, check_guidance

if TYPE_CHECKING:
    from tpdiff.evaluation.vbench_results import Measured
    from tpdiff.evaluation.vbench_set import VideoSet

app = typer.Typer(no_args_is_help=True, help="Make videos for VBench or VBench-2.0, or read what it measured.")


@app.command()
def make(
    model: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint, or a saved pipeline.")],
    out: Annotated[Path, typer.Option(help="The set's folder: new, empty, or one of the same settings to continue.")],
    info: Annotated[
        Path | None, typer.Option(help="VBench's checkout, VBench-2.0 in it, or the file of its prompts.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Other prompts instead, a text file with one a line.")] = None,
    dimension: Annotated[list[str] | None, typer.Option(help="To be measured; may be given again; else all.")] = None,
    num_videos: Annotated[int | None, typer.Option(min=1, help="Videos of each of --prompts; VBench's count.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first video; others count on.")] = 0,
    steps: Annotated[str, typer.Option(help="A total (30) or one count a stage, coarsest first (10,10,10).")] = "30",
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance; if not given a fine-tuned pipeline's own, else 1, which is none.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None,
    solver: Annotated[str | None, typer.Option(help="euler (if not given), ddim or heun.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames; as trained if not given.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH; as trained if not given.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Videos made at a time.")] = 4,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the network's weights; a fine-tuned one's bfloat16 on cuda, else float32.")
    ] = None,
    offload: Offload = False,
    as_json: AsJson = False,
) -> None:
    """Make the videos of a set, or those that are still missing."""
    quiet()
    from tpdiff.evaluation.vbench_make import make_videos
    from tpdiff.evaluation.vbench_set import SCRIPT, check_folder, continued, custom_set, info_file, standard_set

    if (info is None) == (prompts is None):
        raise ValueError("give either --info, VBench's own prompts, or --prompts, others")
    if info is not None and num_videos is not None:
        raise ValueError("VBench says how many videos its own prompts take; leave out --num-videos")
    height, width = (None, None) if size is None else parse_size(size)
    chosen = {
        "steps": _steps(steps),
        "guidance_scale": guidance_scale,
        "negative_prompt": negative_prompt,
        "solver": solver,
        "num_frames": frames,
        "height": height,
        "width": width,
        "batch": batch,
        "seed": seed,
    }
    if prompts is not None:
        chosen["num_videos"] = num_videos
    source = info_file(info) if info is not None else prompts
    assert source is not None  # one of both is given

    def asked(dimensions: Collection[str]) -> VideoSet:
        if info is not None:
            return standard_set(source, dimensions, seed)
        return custom_set(source, dimensions, num_videos, seed)

    asked(dimension or ())  # whatever is wrong with them, or with the folder, is said before a model is loaded
    check_folder(out)
    pipeline, sampling = _open(model, device, dtype, offload, chosen)
    wanted = continued(out, lambda names: replace(asked(names), sampling=sampling), dimension or ())
    with progress_bar("sampling", hidden=as_json) as progress:
        made = make_videos(pipeline, wanted, out, source.read_bytes(), progress)
    if as_json:
        facts = {"folder": str(out), "suite": wanted.suite, "mode": wanted.mode, "dimensions": [*wanted.dimensions]}
        print(json.dumps(facts | {"videos": len(wanted.videos), "made": made}, indent=2))
    else:
        print(f"{out}: {len(wanted.videos)} videos for {wanted.suite} ({wanted.mode}), {made} made now")
        script, read_back = shlex.join(["sh", f"{out / SCRIPT}"]), shlex.join(["tpdiff", "vbench", "read", f"{out}"])
        print(f"in its environment: {script} CHECKOUT; then: {read_back}")


@app.command()
def read(
    folder: Annotated[Path, typer.Argument(help="The set's folder.")],
    results: Annotated[
        list[Path] | None,
        typer.Option(help="A file *_eval_results.json, or a folder with some; may be given again; FOLDER/results."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this JSON file too.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read what VBench measured of a set: a figure a dimension, and its totals where nothing is missing."""
    from tpdiff.evaluation.vbench_results import read_results
    from tpdiff.files import write_whole

    measured = read_results(folder, results or ())
    text = json.dumps(measured.as_dict(), indent=2, ensure_ascii=False)
    if out is not None:
        write_whole(out, text + "\n")
    if as_json:
        print(text)
    else:
        _tell(measured, folder)


def _open(
    model: Path, device: str | None, dtype: str | None, offload: bool, chosen: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A model to sample from, and all that its samples depend on beside prompt and seed."""
    from tpdiff.evaluation.weights import pipeline_digest
    from tpdiff.models.memory import keep_freed_memory
    from tpdiff.pyramid.steps import split_steps
    from tpdiff.sampling.opening import open_pipeline
    from tpdiff.sampling.trained import newest_checkpoint

    place, asked = as_device(device), None if dtype is None else as_dtype(dtype)
    keep_freed_memory()
    pipeline, kind = open_pipeline(model, place, asked, offload)
    check_guidance(pipeline, chosen["guidance_scale"], chosen["negative_prompt"])
    split_steps(chosen["steps"], len(pipeline.pyramid))
    usual = dict(zip(("num_frames", "height", "width"), pipeline.config.default_size, strict=True))
    told = chosen | {name: value for name, value in usual.items() if chosen[name] is None}
    of = {"weights": pipeline_digest(newest_checkpoint(model)), "dtype": str(kind).removeprefix("torch.")}
    return pipeline, {**of, **told, "fps": float(pipeline.config.fps)}


def _tell(measured: Measured, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    standard = bool(measured.totals or measured.withheld)
    table = Table(title=f"{folder}: {measured.suite}, {measured.mode}", title_justify="left")
    for column in ("", "score", *(("normalised",) if standard else ()), "videos"):
        table.add_column(column, justify="right" if column else "left")
    for name, score in measured.dimensions.items():
        within = () if score.normalised is None else (f"{score.normalised:.4f}",)
        table.add_row(name, f"{score.value:.4f}", *within, f"{score.videos} of {score.of}")
    for name, total in measured.totals.items():
        table.add_row(name, "", f"{total:.4f}", "", style="bold")
    console.print(table)
    for name, why in (measured.missing | {f"no {key}": value for key, value in measured.withheld.items()}).items():
        console.print(f"{name}: {why}", soft_wrap=True, highlight=False)
    for name, value in measured.protocol["sampling"].items():
        console.print(f"  {name}: {value}", soft_wrap=True, highlight=False)
