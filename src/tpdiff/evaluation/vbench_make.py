"""The videos of a set for VBench, sampled from a model; a call that was interrupted goes on where it stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from tpdiff.data import frames_to_uint8, write_video
from tpdiff.evaluation.vbench_set import Video, VideoSet, write_set
from tpdiff.files import holding

ASIDE = "unfinished.mp4"  # beside the folders that VBench reads, which hold videos of the set alone
CALL = ("guidance_scale", "negative_prompt", "solver", "num_frames", "height", "width")


def make_videos(
    pipeline: Any,
    wanted: VideoSet,
    folder: str | Path,
    source: bytes,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Sample what is missing of a set. Every video appears under its name when it is whole; `wanted.sampling` holds
    the arguments of the call ("steps", ...) and "batch", the videos that are made together, whole batches again where
    some are missing, so that the set comes out the same however often it was interrupted.

    pipeline: a `PyramidPipeline` or `TunedPipeline`. source: the file that the prompts are from. progress: called
    with (videos there, videos in all).

    Returns how many were made. Raises ValueError for prompts or settings that the model cannot serve; the folder is
    then left alone, as it is while another process writes to it.
    """
    folder = Path(folder)
    pipeline.conditioner.check(sorted({video.prompt for video in wanted.videos}))
    made = 0
    with ExitStack() as kept:
        for first in range(0, len(wanted.videos), wanted.sampling["batch"]):
            batch = wanted.videos[first : first + wanted.sampling["batch"]]
            missing = [n for n, video in enumerate(batch) if not all(p.is_file() for p in _places(folder, video))]
            clips = _sample(pipeline, batch, wanted.sampling) if missing else []
            if first == 0:  # not before it is known that the model takes the settings
                kept.enter_context(holding(folder))
                for stray in folder.glob(f"*{ASIDE.removesuffix('.mp4')}*.mp4"):
                    stray.unlink()
                write_set(wanted, folder, source)
            for number in missing:
                _store(clips[number], pipeline.config.fps, folder, _places(folder, batch[number]))
            made += len(missing)
            if progress is not None:
                progress(first + len(batch), len(wanted.videos))
    return made


def _sample(pipeline: Any, batch: Sequence[Video], sampling: dict[str, Any]) -> Any:
    """(B, T, H, W, 3) in [0, 1], a video by its own seed."""
    generators = [torch.Generator().manual_seed(video.seed) for video in batch]
    told = {name: sampling[name] for name in CALL if sampling.get(name) is not None}
    prompts, steps = [video.prompt for video in batch], sampling["steps"]
    return pipeline(prompts, num_inference_steps=steps, generator=generators, **told).frames


def _places(folder: Path, video: Video) -> list[Path]:
    return [folder / place / video.name for place in video.folders]


def _store(clip: Any, fps: float, folder: Path, places: Sequence[Path]) -> None:
    """Write frames (T, H, W, 3) in [0, 1] under several names."""
    aside = write_video(folder / ASIDE, frames_to_uint8(clip), fps)
    for place in places[1:]:
        os.replace(shutil.copyfile(aside, aside.with_stem(f"{aside.stem}-copy")), place)
    os.replace(aside, places[0])
