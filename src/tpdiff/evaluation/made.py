"""The made side of an evaluation: clips of a folder, or samples of a model, by number."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tpdiff.data import read_clip, scan
from tpdiff.data.clips import Geometry
from tpdiff.evaluation.gauges import facts_of
from tpdiff.evaluation.samples import Sampling, sample_batch
from tpdiff.metrics.clips import Clip, clips_digest, exact_sources, file_digest, shuffled
from tpdiff.models.conditioning import NoCondition
from tpdiff.pyramid.steps import split_steps
from tpdiff.sampling.pipeline import PyramidPipeline, newest_checkpoint
from tpdiff.sampling.tuned import HERE, LORA, TOLD

FOLDER_PART = 16  # clips of a folder that are in memory at a time


@dataclass(frozen=True)
class Made:
    """Made clips that can be asked for by number.

    Attributes:
        count: how many.
        part: how many are best asked for at a time.
        source: what they are and everything that they depend on, JSON values.
        load: (first, last) -> uint8 (last - first, 3, T, H, W).
        facts: for each clip, what its caption or metadata say of it.
    """

    count: int
    part: int
    source: dict[str, Any]
    load: Callable[[int, int], Tensor]
    facts: tuple[dict[str, Any], ...]


def is_model(path: str | Path) -> bool:
    """Whether a folder holds a run, a checkpoint or a pipeline rather than videos."""
    path = Path(path)
    return any((path / name).exists() for name in ("model_index.json", TOLD, "checkpoints", "config.yaml"))


def model_geometry(path: str | Path) -> Geometry:
    """The clips that a model was trained on, from its run's configuration, else from the pipeline.

    Raises:
        FileNotFoundError: no model there.
    """
    folder = newest_checkpoint(Path(path))
    for place in (folder, folder.parent.parent):
        if (place / "config.yaml").is_file():
            data = yaml.safe_load((place / "config.yaml").read_text())["data"]
            return Geometry(data["frames"], data["height"], data["width"], data.get("fps"), data.get("resize", "crop"))
    told = folder / TOLD
    index = json.loads((told if told.is_file() else folder / "model_index.json").read_text())
    return Geometry(*index["default_size"])


def folder_geometry(path: str | Path) -> Geometry:
    """The size and number of frames of a folder's first video, to which the others are held."""
    from tpdiff.data import probe

    info = probe(scan(path).entries[0].path, decode=True)
    return Geometry(info.frames, info.height, info.width)


def folder_clips(path: str | Path, geometry: Geometry, count: int | None = None, seed: int = 0) -> Made:
    """The videos of a folder, each a clip. Their names and order do not matter, their contents do.

    count: so many of them, drawn by seed; None: all.

    Raises:
        DataError: naming the videos that cannot be read or are of another geometry.
        ValueError: more clips than videos.
    """
    sources = exact_sources(path, geometry)
    if count is not None and count > len(sources):
        raise ValueError(f"{count} clips were asked for, {path} holds {len(sources)} videos; nearest: {len(sources)}")
    clips = [Clip(source, 0) for source in shuffled(sources, seed)[:count]]

    def load(first: int, last: int) -> Tensor:
        return torch.stack([_whole(clip, geometry) for clip in clips[first:last]])

    facts = tuple(facts_of(clips))
    return Made(len(clips), FOLDER_PART, {"kind": "videos", "digest": clips_digest(clips)}, load, facts)


def model_clips(
    path: str | Path,
    geometry: Geometry,
    like: Sequence[Clip],
    count: int | None = None,
    *,
    steps: int | Sequence[int] = 30,
    guidance_scale: float = 1.0,
    solver: str | None = None,
    batch: int = 16,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Made:
    """Samples of a model with seeds `seed`, `seed` + 1, ... and the captions of real clips in their order.

    like: the real clips; where more samples are wanted they are gone through again. count: None: as many as them.
    solver: as `Sampling`'s; None: "euler", or a fine-tuned pipeline's own scheduler.

    Raises:
        ValueError: a count, caption, size or number of steps that the model cannot serve.
        FileNotFoundError: no model there.
    """
    count = len(like) if count is None else count
    if count < 1:
        raise ValueError(f"clips {count} is below 1")
    folder = newest_checkpoint(Path(path))
    pipeline = PyramidPipeline.from_pretrained(folder).to(device)
    if isinstance(pipeline, PyramidPipeline):
        pipeline.set_progress_bar_config(disable=True)
        solver = solver or "euler"
    else:
        pipeline.check_options([] if solver is None else ["solver"])
    split_steps(steps, len(pipeline.pyramid))
    pipeline.check_size(geometry[:3])
    entries = [clip.source.entry for clip in itertools.islice(itertools.cycle(like), count)]
    sampling = Sampling(steps, guidance_scale, solver, batch)
    takes_captions = not isinstance(pipeline.conditioner, NoCondition)
    captions = [entry.caption if takes_captions else None for entry in entries]
    pipeline.conditioner.check(sorted({c for c in captions if c is not None}))

    def load(first: int, last: int) -> Tensor:
        return sample_batch(pipeline, captions[first:last], sampling, seed + first, geometry[:3])

    source = {
        "kind": "samples",
        "weights": weights_digest(folder),
        "first_seed": seed,
        "steps": steps if isinstance(steps, int) else list(steps),
        "guidance_scale": guidance_scale,
        "solver": solver,
        "batch": batch,
        "captions": hashlib.sha256(json.dumps(captions).encode()).hexdigest(),
        "caption_rule": "those of the real clips, in their order",
    }
    facts = tuple({"caption": entry.caption, **entry.extra} for entry in entries)
    return Made(count, batch, source, load, facts)


def _whole(clip: Clip, geometry: Geometry) -> Tensor:
    """uint8 (3, T, H, W): every frame of a file; the pixel that an odd side grew by is cut off again."""
    frames, height, width, fps, _ = geometry
    pictures = read_clip(clip.source.entry.path, frames=frames, fps=fps)[:, :height, :width]
    return pictures.permute(3, 0, 1, 2).contiguous()


def weights_digest(folder: Path) -> str:
    """SHA-256 over what a pipeline is loaded from; the state of training beside it does not count."""
    patterns = ("model_index.json", TOLD, LORA, "*/*.safetensors", "*/*.json")
    files = [file for pattern in patterns for file in sorted(folder.glob(pattern))]
    lines = [f"{file.relative_to(folder).as_posix()} {file_digest(file)}" for file in files]
    if (folder / TOLD).is_file() and (base := json.loads((folder / TOLD).read_text())["base"]) != HERE:
        lines.append(weights_digest(Path(base)) if Path(base).is_dir() else base)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
