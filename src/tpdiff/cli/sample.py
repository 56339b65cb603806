"""`tpdiff sample`: a trained model to mp4."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tpdiff.cli.data import parse_size
from tpdiff.cli.device import Offload, as_device, as_dtype
from tpdiff.cli.quiet import quiet

OTHER_KINDS = (".avi", ".gif", ".mkv", ".mov", ".png", ".webm", ".webp")


def sample(
    model: Annotated[Path, typer.Argument(help="A run's folder, a checkpoint, a saved pipeline, or gameplay-pyramid.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to show; may be given several times.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A text file with one prompt a line.")] = None,
    out: Annotated[Path, typer.Option(help="An .mp4 file; with several videos, a folder.")] = Path("video.mp4"),
    steps: Annotated[str, typer.Option(help="A total (30) or one count a stage, coarsest first (10,10,10).")] = "30",
    guidance_scale: Annotated[
        float | None, typer.Option(help="Guidance; if not given a fine-tuned pipeline's own, else 1, which is none.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None,
    num_videos: Annotated[int, typer.Option(min=1, help="Videos of every prompt.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the first video; the n-th has seed + n.")] = 0,
    image: Annotated[
        list[Path] | None, typer.Option(help="A first frame: one for all prompts, or given again for each.")
    ] = None,
    solver: Annotated[str | None, typer.Option(help="euler (if not given), ddim or heun.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames; as trained if not given.")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH; as trained if not given.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Videos made at a time.")] = 4,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Of the network's weights; a fine-tuned one's bfloat16 on cuda, else float32.")
    ] = None,
    offload: Offload = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was made as JSON.")] = False,
) -> None:
    """Make videos with a trained model."""
    quiet()
    import torch

    from tpdiff.data import frames_to_uint8, write_video
    from tpdiff.files import check_writable, read_prompts
    from tpdiff.models.memory import keep_freed_memory
    from tpdiff.sampling.opening import open_pipeline
    from tpdiff.sampling.tuned import TunedPipeline

    given = [*(prompt or []), *(read_prompts(prompts) if prompts else [])]
    pictures = _read_pictures(image or [], len(given))
    texts: list[str | None] = [p for p in given for _ in range(num_videos)] or [None] * num_videos
    paths = _paths(out, len(texts))
    height, width = (None, None) if size is None else parse_size(size)
    chosen = {"guidance_scale": guidance_scale, "negative_prompt": negative_prompt, "solver": solver}
    options: dict[str, Any] = {name: value for name, value in chosen.items() if value is not None}
    place, kind, counts = as_device(device), None if dtype is None else as_dtype(dtype), _steps(steps)
    for path in paths:
        check_writable(path)
    keep_freed_memory()
    pipeline, _ = open_pipeline(model, place, kind, offload)
    if pictures and not isinstance(pipeline, TunedPipeline):
        raise ValueError("this model starts from no picture; leave out --image")
    pipeline.conditioner.check([*texts, negative_prompt])
    check_guidance(pipeline, guidance_scale, negative_prompt)
    made = []
    each = 1 if pictures else batch
    for first in range(0, len(texts), each):
        chunk = texts[first : first + each]
        if pictures:
            options["image"] = pictures[first // num_videos % len(pictures)]
        generators = [torch.Generator().manual_seed(seed + first + i) for i in range(len(chunk))]
        of = f" of {len(texts)}" if len(texts) > len(chunk) else ""
        name = f"video {first + 1}" if len(chunk) == 1 else f"videos {first + 1} to {first + len(chunk)}"
        pipeline.set_progress_bar_config(desc=name + of, leave=False, disable=None)  # on a terminal only
        started = time.perf_counter()
        videos = pipeline(
            chunk,
            num_inference_steps=counts,
            num_frames=frames,
            height=height,
            width=width,
            generator=generators,
            **options,
        ).frames
        seconds = (time.perf_counter() - started) / len(chunk)
        for i, video in enumerate(videos):
            path = paths[first + i]
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, frames_to_uint8(video), pipeline.config.fps)
            made.append({"path": str(path), "prompt": chunk[i], "seed": seed + first + i, "seconds": seconds})
            if not as_json:
                print(f"{path}  {chunk[i] or ''}  ({seconds:.2f} s)")
    if as_json:
        print(json.dumps(made, indent=1))


def check_guidance(pipeline: Any, guidance_scale: float | None, negative_prompt: str | None = None) -> None:
    """Raise ValueError for guidance of a model that is told nothing, or a negative prompt without guidance."""
    from tpdiff.models.conditioning import NoCondition
    from tpdiff.sampling.tuned import TunedPipeline

    if isinstance(pipeline.conditioner, NoCondition) and guidance_scale not in (None, 1):
        raise ValueError(
            "this model is told nothing that guidance could lead towards; "
            f"leave out --guidance-scale {guidance_scale:g}"
        )
    usual = None if isinstance(pipeline, TunedPipeline) else 1.0
    if negative_prompt is not None and (usual if guidance_scale is None else guidance_scale) == 1:
        raise ValueError("without guidance nothing leads away from a negative prompt; raise --guidance-scale above 1")


def _read_pictures(paths: list[Path], prompts: int) -> list[Any]:
    """First frames, upright; their number must be one, or that of the prompts."""
    from PIL import Image, ImageOps

    if paths and len(paths) not in (1, max(prompts, 1)):
        raise ValueError(f"{len(paths)} pictures for {prompts} prompts; give one for all, or one each")
    return [ImageOps.exif_transpose(Image.open(path)).convert("RGB") for path in paths]


def _steps(text: str) -> int | list[int]:
    try:
        counts = [int(part) for part in text.replace("-", ",").split(",")]
    except ValueError:
        raise ValueError(f"steps {text!r} is neither a number (30) nor counts coarsest first (10,10,10)") from None
    return counts[0] if len(counts) == 1 else counts


def _paths(out: Path, count: int) -> list[Path]:
    """Where each video goes: the one file, or numbered files in a folder.

    Raises:
        ValueError: a file of another kind than mp4.
    """
    if out.suffix.lower() in OTHER_KINDS:
        raise ValueError(f"videos are written as .mp4; {out} ends in {out.suffix!r}")
    is_file = out.suffix.lower() == ".mp4"
    if is_file and count == 1:
        return [out]
    folder = out.with_suffix("") if is_file else out
    return [folder / f"{i:04d}.mp4" for i in range(count)]
