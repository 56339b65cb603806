"""The made side of an evaluation: clips of a folder, or samples of a model, by number."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from torch import Tensor

from tpdiff.data import DataError, read_clip, scan
from tpdiff.data.clips import Geometry
from tpdiff.data.frames import check_rate
from tpdiff.data.video import grid_length, inspect
from tpdiff.evaluation.gauges import facts_of
from tpdiff.evaluation.samples import AnyPipeline, Sampling, sample_batch
from tpdiff.evaluation.weights import pipeline_digest
from tpdiff.metrics.clips import Clip, clips_digest, exact_sources, shuffled
from tpdiff.models.conditioning import NoCondition
from tpdiff.pyramid.steps import split_steps
from tpdiff.sampling.opening import open_pipeline
from tpdiff.sampling.solvers import check_solver
from tpdiff.sampling.trained import TOLD, newest_checkpoint
from tpdiff.sampling.tuned import TunedPipeline
from tpdiff.shipped import or_shipped

FOLDER_PART = 16  # clips of a folder that are in memory at a time
SAME_RATE = 0.02  # relative
BATCH, TUNED_BATCH = 16, 4  # clips sampled at a time, by networks of tpdiff's own and by fine-tuned pipelines


@dataclass(frozen=True)
class Made:
    """Made clips that can be asked for by number.

    Attributes:
        count: how many.
        part: how many are best asked for at a time.
        source: what they are and everything that they depend on, JSON values.
        load: (first, last) -> uint8 (last - first, 3, T, H, W).
        facts: for each clip, what its caption or metadata say of it; nothing where its model was told nothing.
        fps: frames a second of videos, the median; None: of samples, which have none.
    """

    count: int
    part: int
    source: dict[str, Any]
    load: Callable[[int, int], Tensor]
    facts: tuple[dict[str, Any], ...]
    fps: float | None = None

    def check_rate(self, real: Sequence[Clip]) -> None:
        """Raise ValueError where videos have another rate than real clips that are compared with them frame by frame:
        what moves alike would seem to move faster in one of them."""
        rate = median(clip.source.video.info.fps for clip in real)
        if self.fps is not None and abs(rate / self.fps - 1) > SAME_RATE:
            raise ValueError(
                f"the made videos have {self.fps:g} frames a second, the real ones {rate:g}: give --fps, the rate at "
                f"which both are compared; nearest: --fps {min(self.fps, rate):g}"
            )


def is_model(path: str | Path) -> bool:
    """Whether a folder holds a run, a checkpoint or a pipeline rather than videos."""
    path = or_shipped(path)
    return any((path / name).exists() for name in ("model_index.json", TOLD, "checkpoints", "config.yaml"))


def model_geometry(path: str | Path) -> Geometry:
    """The clips that a model was trained on, from its run's configuration, else from the pipeline.

    Raises:
        FileNotFoundError: no model there.
        ValueError: a pipeline that does not say it.
    """
    folder = newest_checkpoint(Path(path)).resolve()
    run = folder.parent.parent
    if folder.parent.name == "checkpoints" and (run / "config.yaml").is_file():
        data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
        return Geometry(data["frames"], data["height"], data["width"], data.get("fps"), data.get("resize", "crop"))
    told = folder / TOLD
    index = json.loads((told if told.is_file() else folder / "model_index.json").read_text(encoding="utf-8"))
    if "default_size" not in index:
        raise ValueError(
            f"{folder} holds a {index.get('_class_name', 'model')}, which does not say what it was trained on; give a "
            "folder of its samples (mp4) instead"
        )
    frames, height, width = index["default_size"]
    return Geometry(frames, height, width, index.get("fps"))


def folder_geometry(path: str | Path, fps: float | None = None) -> Geometry:
    """The size of a folder's first video and its number of frames at a rate (None: its own), to which the others are
    held.

    Raises:
        DataError: it holds none.
        ValueError: no such rate.
    """
    found = scan(path)
    if not found.entries:
        raise DataError(f"{path} holds no video: {found.skipped[0].path.name}: {found.skipped[0].reason}")
    info, times = inspect(found.entries[0].path)
    if fps is not None:
        check_rate(fps)
    return Geometry(grid_length(times, info.claimed_fps, fps), info.height, info.width, fps)


def folder_clips(path: str | Path, geometry: Geometry, count: int | None = None, seed: int = 0) -> Made:
    """The videos of a folder, each a clip. Their names and order do not matter, their contents do.

    count: so many of them, drawn by seed; None: all.

    Raises:
        DataError: naming the videos that cannot be read or are of another geometry.
        ValueError: more clips than videos, or a single one, which has no distance.
    """
    sources = exact_sources(path, geometry)
    if count is not None and count > len(sources):
        raise ValueError(f"{count} clips were asked for, {path} holds {len(sources)} videos; nearest: {len(sources)}")
    clips = [Clip(source, 0) for source in shuffled(sources, seed)[:count]]
    if len(clips) < 2:
        raise ValueError(f"1 clip is in {path}; a distance needs at least 2")

    def load(first: int, last: int) -> Tensor:
        return torch.stack([_whole(clip, geometry) for clip in clips[first:last]])

    facts = tuple(facts_of(clips))
    rate = median(clip.source.video.info.fps for clip in clips)
    return Made(len(clips), FOLDER_PART, {"kind": "videos", "digest": clips_digest(clips)}, load, facts, rate)


@dataclass(frozen=True)
class Model:
    """A model that clips of one size are asked of.

    Attributes:
        pipeline: the model.
        sampling: how it is asked.
        size: (frames, height, width) of the clips.
        source: what their samples depend on beside seed and captions, JSON values.
    """

    pipeline: AnyPipeline
    sampling: Sampling
    size: tuple[int, int, int]
    source: dict[str, Any]

    @property
    def told(self) -> bool:
        """Whether it is told captions."""
        return not isinstance(self.pipeline.conditioner, NoCondition)

    def check(self, like: Sequence[Clip]) -> None:
        """Raise ValueError for a caption of these clips that the model cannot be told."""
        captions = {clip.source.entry.caption for clip in like} if self.told else set()
        self.pipeline.conditioner.check(sorted(caption for caption in captions if caption is not None))

    def clips(self, like: Sequence[Clip], count: int | None = None, seed: int = 0) -> Made:
        """Samples with seeds `seed`, `seed` + 1, ... and the captions of real clips in their order. Of a model that is
        not told captions, nothing is said of any sample.

        like: the real clips; where more samples are wanted they are gone through again. count: None: as many as them.

        Raises:
            ValueError: a count or caption that the model cannot serve.
        """
        count = len(like) if count is None else count
        if count < 1:
            raise ValueError(f"clips {count} is below 1")
        asked = list(itertools.islice(itertools.cycle(like), count))
        self.check(asked)
        captions = [clip.source.entry.caption if self.told else None for clip in asked]

        def load(first: int, last: int) -> Tensor:
            return sample_batch(self.pipeline, captions[first:last], self.sampling, seed + first, self.size)

        source = self.source | {
            "first_seed": seed,
            "captions": hashlib.sha256(json.dumps(captions).encode()).hexdigest(),
            "caption_rule": "those of the real clips, in their order" if self.told else "none, as in training",
        }
        facts = tuple(facts_of(asked)) if self.told else ({},) * count
        return Made(count, self.sampling.batch, source, load, facts)


def open_model(
    path: str | Path,
    geometry: Geometry,
    *,
    steps: int | Sequence[int] = 30,
    guidance_scale: float | None = None,
    solver: str | None = None,
    batch: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    offload: bool = False,
) -> Model:
    """A model to sample clips of this geometry from.

    Args:
        path: a run's folder, a checkpoint or a pipeline.
        geometry: of the clips.
        steps: as `Sampling`'s.
        guidance_scale: None: a fine-tuned pipeline's own, else 1, which is none.
        solver: as `Sampling`'s; None: "euler", or a fine-tuned pipeline's own scheduler.
        batch: clips made at a time; None: 16, of a fine-tuned pipeline 4.
        device: where to sample.
        dtype, offload: as for `open_pipeline`.

    Raises:
        ValueError: a size, a number of steps or an option that the model cannot serve.
        FileNotFoundError: no model there.
    """
    folder, place = newest_checkpoint(Path(path)), torch.device(device)
    pipeline, kind = open_pipeline(folder, place, dtype, offload)
    if isinstance(pipeline, TunedPipeline):
        told = {"solver": solver, "guidance_scale": guidance_scale}
        pipeline.check_options([name for name, value in told.items() if value is not None])
        usual_guidance, batch = pipeline.usual_guidance, batch or TUNED_BATCH
    else:
        solver = solver or "euler"
        check_solver(solver)
        usual_guidance, batch = 1.0, batch or BATCH
    split_steps(steps, len(pipeline.pyramid))
    pipeline.check_size(geometry[:3])
    source = {
        "kind": "samples",
        "weights": pipeline_digest(folder),
        "device": place.type,
        "dtype": str(kind).removeprefix("torch."),
        "steps": steps if isinstance(steps, int) else list(steps),
        "guidance_scale": usual_guidance if guidance_scale is None else guidance_scale,
        "solver": solver,
        "batch": batch,
    }
    return Model(pipeline, Sampling(steps, guidance_scale, solver, batch), geometry[:3], source)


def _whole(clip: Clip, geometry: Geometry) -> Tensor:
    """uint8 (3, T, H, W): every frame of a file; the pixel that an odd side grew by is cut off again."""
    frames, height, width, fps, _ = geometry
    pictures = read_clip(clip.source.entry.path, frames=frames, fps=fps)[:, :height, :width]
    return pictures.permute(3, 0, 1, 2).contiguous()
