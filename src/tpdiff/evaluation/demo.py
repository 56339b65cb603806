"""The demo: record a game, train a vanilla and a pyramidal twin for the same time, sample both, report."""

import datetime
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tpdiff import __version__
from tpdiff.data import ClipDataset, frames_to_uint8, record_doom, write_video
from tpdiff.data.doom import require_vizdoom
from tpdiff.evaluation import machine
from tpdiff.evaluation.arms import Arms
from tpdiff.evaluation.budget import warm_up
from tpdiff.evaluation.latency import count_flops, measure, wait
from tpdiff.evaluation.results import ArmResult, Comparison, LatencyRow, LossPoint, ShippedClips, StageView
from tpdiff.evaluation.samples import sampler
from tpdiff.files import write_whole
from tpdiff.pyramid.steps import split_steps
from tpdiff.recipes import recipe_path
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.shipped import card, shipped_autoencoder, shipped_models
from tpdiff.training.config import Config
from tpdiff.training.load_config import load_config
from tpdiff.training.setup import open_dataset
from tpdiff.training.trainer import Trainer

SCENARIO = "basic"
CLIPS, CLIP_FRAMES, SIZE, PACE = 1000, 16, (48, 64), 0.25
LABELS = {"vanilla": "Vanilla diffusion", "pyramid": "Temporal pyramid"}
METHODS = {"vanilla": "vanilla", "pyramid": "stagewise"}
STEPS = 30
GUIDANCE = 3.0
SHOWN = 4
TIMED = 80  # clips sampled together when sampling is timed, so that a full-size step takes long enough to measure
POINTS = 1500
NOT_TRAINING = 200.0
MARK, COMPARISON, PAGE = "demo.json", "comparison.json", "report.html"
DATA, LATENTS, SAMPLES, TIMING = "data", "latents", "samples", "timing"
MADE = (DATA, LATENTS, *METHODS, SAMPLES, TIMING, COMPARISON, PAGE)  # all that a demo makes in its folder
Say = Callable[[str], None]


def training_seconds(minutes: float) -> float:
    """Seconds each arm may train so that the whole demo takes `minutes`: recording, sampling and timing come off.

    Raises:
        ValueError: too little is left.
    """
    seconds = (60 * minutes - NOT_TRAINING) / len(METHODS)
    if seconds < 10:
        raise ValueError(f"{minutes:g} minutes leave no time to train; nearest: {(NOT_TRAINING + 60) / 60:.0f}")
    return seconds


def begin(out: Path, fresh: bool = False) -> None:
    """Mark a folder that is new or empty as a demo's. To start over in one that is marked, remove what a demo makes,
    and nothing else.

    Raises:
        ValueError: no folder, or a start over in one that holds other things and no mark.
        DataError: a start over without VizDoom.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder")
    if not out.exists() or not any(out.iterdir()):
        write_whole(out / MARK, json.dumps({"made by": "tpdiff demo", "version": __version__}) + "\n")
    elif fresh and not (out / MARK).is_file():
        raise ValueError(
            f"{out} does not say that it is a demo's (it has no {MARK}), so nothing is removed; empty it yourself, or "
            "give a new folder"
        )
    elif fresh:
        require_vizdoom()  # without it nothing could take the old one's place
        for path in (out / name for name in MADE):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def record(out: Path, progress: Callable[[int, int], None] | None = None, clips: int = CLIPS) -> Path:
    """Gameplay of one scenario as captioned mp4s under `out`/`DATA`."""
    options: dict[str, Any] = {"frames": CLIP_FRAMES, "size": SIZE, "frame_skip": 1, "pace": PACE}
    return record_doom(out / DATA, clips=clips, scenario=SCENARIO, progress=progress, **options).folder


def arm_configs(out: Path, data: Path, seconds: float, overrides: Sequence[str] = ()) -> dict[str, Config]:
    """The configuration of each arm.

    Raises:
        ValueError: an override that none can have, or of the method, which is what the arms differ in, or of the
            videos, which a demo records.
    """
    changed = {change.partition("=")[0].strip() for change in overrides}
    if "train.method" in changed:
        raise ValueError(f"train.method is what a demo compares, {' and '.join(METHODS.values())}; leave it out")
    if "data.path" in changed:
        yours = "tpdiff train text-to-video data.path=my_videos data.split=train"
        raise ValueError(f"data.path: a demo records its videos; for yours: {yours}")
    common = [f"data.path={data}", f"data.cache_dir={out / LATENTS}", f"train.seconds={seconds:g}"]
    common += [f"model.autoencoder={shipped_autoencoder()}", *overrides]
    recipe = recipe_path("demo")
    return {name: load_config(recipe, [*common, f"train.method={m}"]) for name, m in METHODS.items()}


def build_arms(out: Path, data: Path, seconds: float, overrides: Sequence[str] = ()) -> Arms:
    """Both arms, new or as they were left, their clips' latents at hand and their memory touched."""
    configs = arm_configs(out, data, seconds, overrides)
    arms = Arms(configs, out)
    _held_out(configs["vanilla"], arms.dataset.captions[:SHOWN])
    for trainer in arms.trainers.values():
        warm_up(trainer)
    return arms


def finish(out: Path, arms: Arms, command: str, say: Say, rounds: int = 3) -> Comparison:
    """Sample both arms, time their sampling, and gather everything for the report."""
    trainers = arms.trainers
    captions = arms.dataset.captions[:SHOWN]
    config = trainers["vanilla"].config
    say("sampling both models")
    results = [_arm_result(name, trainer, captions, out) for name, trainer in trainers.items()]
    say("timing both samplers in turn")
    latency = time_sampling({n: sampler(t) for n, t in trainers.items()}, captions, out, rounds)
    real = _real_clips(config, captions, out)
    shipped = _shipped_clips(captions, out)
    return Comparison(
        title="Vanilla and temporal-pyramid video diffusion, trained for the same time",
        command=command,
        created=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        minutes=round(trainers["vanilla"].seconds / 60, 1),
        machine=machine.describe(),
        data={
            "scenario": SCENARIO,
            "training clips": len(arms.dataset),
            "captions": len(arms.dataset.captions),
            "bad files": len(arms.dataset.bad),
        },
        real=real,
        real_captions=captions,
        arms=results,
        latency=latency,
        notes=[
            f"Both arms trained {trainers['vanilla'].seconds:.0f} and {trainers['pyramid'].seconds:.0f} seconds on the "
            "same machine in alternating slices, with the same network, seed, clips and learning rate.",
            "Losses of different stages measure different problems and cannot be compared with one another.",
            "Samples use the same seed for every caption and arm; nothing was selected.",
        ],
        shipped=shipped,
    )


def time_sampling(
    pipelines: dict[str, PyramidPipeline], captions: list[str], out: Path, rounds: int
) -> list[LatencyRow]:
    """Seconds of the same batch sampled by each pipeline in turn, with and without decoding and writing the files."""
    prompts = [captions[i % len(captions)] for i in range(TIMED)]
    folder = out / TIMING
    folder.mkdir(parents=True, exist_ok=True)
    sampled: dict[str, list[float]] = {name: [] for name in pipelines}

    def sample(name: str) -> Tensor:
        wait()
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        options: dict[str, Any] = {"guidance_scale": GUIDANCE, "generator": generator, "output_type": "latent"}
        made = pipelines[name](prompts, num_inference_steps=STEPS, **options)
        wait()
        sampled[name].append(time.perf_counter() - started)
        return torch.as_tensor(made.frames)

    def sample_and_write(name: str) -> None:
        video = pipelines[name].decode(sample(name)) / 2 + 0.5
        for i, frames in enumerate(video.transpose(1, 2)):
            write_video(folder / f"{i}.mp4", _to_uint8(frames), pipelines[name].config.fps)

    written = measure({name: partial(sample_and_write, name) for name in pipelines}, rounds=rounds)
    alone = {name: seconds[-rounds:] for name, seconds in sampled.items()}
    flops = {name: count_flops(partial(sample, name)) for name in pipelines}
    steps = {name: "-".join(map(str, split_steps(STEPS, len(p.pyramid)))) for name, p in pipelines.items()}
    return [
        LatencyRow(name, steps[name], seconds[name], flops[name], decode)
        for decode, seconds in ((False, alone), (True, written))
        for name in pipelines
    ]


def _shipped_clips(captions: list[str], out: Path) -> list[ShippedClips]:
    """What the models that come along make of the same captions and seeds."""
    found = []
    for name, folder in shipped_models().items():
        pipeline, made = PyramidPipeline.from_pretrained(folder), card(folder)
        if not set(captions) <= set(pipeline.config.labels or ()):
            continue  # another scene was recorded than they know
        pipeline.set_progress_bar_config(disable=True)
        paths = _sample_to(pipeline, captions, out / SAMPLES / name)
        found.append(
            ShippedClips(
                label=f"{made['label']}, shipped",
                made=f"not trained here: {made['summary']}",
                videos=[str(p.relative_to(out)) for p in paths],
                captions=captions,
            )
        )
    return found


def _sample_to(pipeline: PyramidPipeline, captions: list[str], folder: Path, **options: Any) -> list[Path]:
    """One clip a caption, seeds 0, 1, ..., as numbered mp4s."""
    folder.mkdir(parents=True, exist_ok=True)
    videos = pipeline(
        captions,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=[torch.Generator().manual_seed(i) for i in range(len(captions))],
        output_type="pt",
        **options,
    ).frames
    paths = [folder / f"{i}.mp4" for i in range(len(captions))]
    for path, frames in zip(paths, videos, strict=True):
        write_video(path, _to_uint8(frames), pipeline.config.fps)
    return paths


def _arm_result(name: str, trainer: Trainer, captions: list[str], out: Path) -> ArmResult:
    """Sampled clips of one arm, and what the first of them looked like when each stage ended."""
    pipeline = sampler(trainer)
    folder = out / SAMPLES / name
    counts = split_steps(STEPS, len(pipeline.pyramid))
    lasts = {last - 1: len(counts) - 1 - n for n, last in enumerate(accumulate(counts))}  # step -> stage that it ends
    ends: dict[int, Tensor] = {}

    def keep(_: Any, step: int, __: float, tensors: dict[str, Tensor]) -> None:
        if step in lasts:
            ends[lasts[step]] = tensors["denoised"][:1]

    told = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["denoised"]}
    paths = _sample_to(pipeline, captions, folder, **told)
    views = [_stage_view(pipeline, *end, folder, out) for end in ends.items()] if len(ends) > 1 else []
    return ArmResult(
        name=name,
        label=LABELS[name],
        config=trainer.config.model_dump(mode="json"),
        seconds=trainer.seconds,
        steps=trainer.step,
        tokens=trainer.tokens,
        losses=[LossPoint(*one) for one in thinned(trainer.losses)],
        videos=[str(p.relative_to(out)) for p in paths],
        captions=captions,
        stages=views,
        clips=trainer.samples,
    )


def thinned(losses: Sequence[tuple[float, int, int, float]]) -> list[tuple[float, int, int, float]]:
    """About `POINTS` of (seconds, step, stage, loss), every stage thinned for itself: stages may take turns."""
    every, of_stage = max(1, len(losses) // POINTS), defaultdict[int, Iterator[int]](count)
    return [one for one in losses if next(of_stage[one[2]]) % every == 0]


def _stage_view(pipeline: PyramidPipeline, k: int, denoised: Tensor, folder: Path, out: Path) -> StageView:
    stage = pipeline.pyramid.stages[k]
    frames = _to_uint8(pipeline.decode(denoised)[0].transpose(0, 1) / 2 + 0.5)
    path = folder / f"stage-{k}.mp4"
    write_video(path, frames, pipeline.config.fps / stage.factors[0])
    return StageView(
        stage=k,
        factors=stage.factors,
        frames=frames.shape[0],
        height=frames.shape[1],
        width=frames.shape[2],
        video=str(path.relative_to(out)),
        start=stage.start,
        end=stage.end,
    )


def _real_clips(config: Config, captions: list[str], out: Path) -> list[str]:
    """One held-out clip a caption, cut and resized as in training, written to `out`/samples/real."""
    folder = out / SAMPLES / "real"
    paths = [folder / f"{i}.mp4" for i in range(len(captions))]
    for path, video in zip(paths, _held_out(config, captions), strict=True):
        write_video(path, video.permute(1, 2, 3, 0).contiguous(), config.data.fps or 8.0)
    return [str(p.relative_to(out)) for p in paths]


def _held_out(config: Config, captions: list[str]) -> list[Tensor]:
    """A clip of the test split for each caption, uint8 (3, T, H, W).

    Raises:
        ValueError: a caption without one.
    """
    held_out = config.model_copy(update={"data": config.data.model_copy(update={"split": "test"})})
    dataset: ClipDataset = open_dataset(held_out)
    found: dict[str, Tensor] = {}
    for i in range(len(dataset)):
        item = dataset[i]
        found.setdefault(item["caption"], item["video"])
    absent = [caption for caption in captions if caption not in found]
    if absent:
        raise ValueError(f"no held-out clip of {absent[0]!r} in {config.data.path}")
    return [found[caption] for caption in captions]


def _to_uint8(frames: Tensor) -> Tensor:
    """(T, 3, H, W) in [0, 1] -> uint8 (T, H, W, 3)."""
    return frames_to_uint8(frames).permute(0, 2, 3, 1).contiguous()
