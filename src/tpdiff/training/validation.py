"""Validation during training: held-out losses, sampled videos and a distance, of the averaged weights.

It draws no random number of the training's and is no part of its seconds: a run with validation is the run without.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tpdiff.data import frames_to_uint8, write_video
from tpdiff.files import write_whole
from tpdiff.metrics.clips import Clip
from tpdiff.metrics.distance import frechet_distance
from tpdiff.metrics.features import efficientnet_features
from tpdiff.metrics.reference import Reference
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.training.config import Config
from tpdiff.training.distribution import all_or_none, means
from tpdiff.training.held_out import midpoints, open_held_out, quantile_losses
from tpdiff.training.randomness import sample_generators

if TYPE_CHECKING:
    from tpdiff.training.trainer import Trainer

RECORDS, FOLDER = "validation.jsonl", "validation"


class Validation:
    """What a run is measured by, and what was measured: one line a validation in `validation.jsonl`.

    Attributes:
        records: the lines, oldest first.
        held_out: the clips.

    Args:
        trainer: the run, already restored: lines after its step are of a run that died, and go.
        dry: refuse what would be refused, but leave the run's folder and the caches as they are.

    Raises:
        ValueError: held-out videos that cannot be decoded, captions that the model cannot be told, or a distance
            without the package for its features. (`tpdiff.training.preflight` finds more, beforehand.)
    """

    def __init__(self, trainer: Trainer, dry: bool = False):
        self.config: Config = trainer.config
        self.out, self.device = trainer.out, trainer.device
        self.records = read_records(self.out / RECORDS, trainer.step)
        if not trainer.accelerator.is_main_process:
            return
        wanted = self.config.validation
        features = efficientnet_features(self.device) if wanted.distance_clips else None
        self.held_out = open_held_out(self.config)
        if self.config.condition.kind != "none":
            trainer.trainee.check(self.held_out.prompts)
        self.reference = None if features is None else self._fit_reference(features, kept=not dry)
        if self.reference is not None and self.config.condition.kind != "none":
            trainer.trainee.check([clip.source.entry.caption for clip in self.reference.clips])
        if not dry:
            _forget_after(self.out, trainer.step, self.records)

    @property
    def seconds(self) -> float:
        """What all validations of the run took."""
        return sum(record["took"] for record in self.records)

    @property
    def losses(self) -> dict[int, float]:
        """Mean loss of every stage at the last validation; empty before the first."""
        return {int(k): v for k, v in self.records[-1]["loss"].items()} if self.records else {}

    def due(self, trainer: Trainer) -> bool:
        """Whether a multiple of `every_steps` or `every_seconds` was passed since the last validation, or the run's
        end was reached.
        """
        step, seconds = (self.records[-1]["step"], self.records[-1]["seconds"]) if self.records else (0, 0.0)
        wanted = self.config.validation
        passed = [trainer.step // n > step // n for n in (wanted.every_steps,) if n]
        passed += [trainer.seconds // s > seconds // s for s in (wanted.every_seconds,) if s]
        return any(passed) or (trainer.done and trainer.step > step)

    def run(self, trainer: Trainer) -> None:
        """Measure the averaged weights as they are now and write the record; a stop that the main process is asked for
        meanwhile leaves none. Collective: every process calls it, and where it fails on one it does on all.
        """
        record: dict[str, Any] | None = {"step": trainer.step, "seconds": trainer.seconds, "loss": {}, "took": 0.0}
        main = trainer.accelerator.is_main_process
        with trainer.ema.whole(main, self.device), all_or_none(trainer.accelerator):
            if main:
                record = self._measure(trainer)
        (given_up,) = means(trainer.accelerator, [float(record is None)])
        if record is not None and not given_up:
            self.records.append(record)

    def _measure(self, trainer: Trainer) -> dict[str, Any] | None:
        started = time.perf_counter()
        wanted = self.config.validation
        losses = quantile_losses(
            trainer.trainee,
            trainer.ema.network,
            self.held_out,
            trainer.latents,
            self.config,
            self.device,
            trainer.accelerator.autocast,
            lambda: trainer.stop_requested,
        )
        if losses is None:
            return None
        pipeline = self._sampler(trainer)
        samples = self._write_samples(trainer, pipeline) if wanted.samples else []
        distance = self._distance(trainer, pipeline) if wanted.distance_clips else None
        if samples is None or (distance is None and wanted.distance_clips):
            return None
        means = {str(k): sum(row) / len(row) for k, row in losses.items()}
        record = {
            "step": trainer.step,
            "seconds": trainer.seconds,
            "tokens": trainer.tokens,
            "clips": len(self.held_out.video),
            "loss": means,
            "quantiles": midpoints(wanted.quantiles),
            "losses": {str(k): row for k, row in losses.items()},
            "distance": distance,
            "samples": samples,
            "took": time.perf_counter() - started,
        }
        if self.config.log.trackers:
            values = {f"validation/loss_stage_{k}": value for k, value in means.items()}
            values |= {} if distance is None else {"validation/distance": distance["value"]}
            trainer.accelerator.log(values, step=trainer.step)
        with (self.out / RECORDS).open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        return record

    def _sampler(self, trainer: Trainer) -> PyramidPipeline:
        """A pipeline over the averaged weights, in the precision that they are trained in."""
        lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.config.train.precision)
        return trainer.pipeline() if lower is None else trainer.pipeline().lowered(lower)

    def _write_samples(self, trainer: Trainer, pipeline: PyramidPipeline) -> list[str] | None:
        """Videos of the first captions with a `metadata.jsonl`; their paths from the run's folder on."""
        folder = self.out / FOLDER / f"step-{trainer.step:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        captions = self._captions(self.held_out.prompts, self.config.validation.samples)
        lines: list[dict[str, Any]] = []
        for batch in self._sampled(trainer, pipeline, captions, "sample"):
            for video in batch:
                name = f"{len(lines):04d}.mp4"
                write_video(folder / name, video.permute(1, 2, 3, 0).contiguous(), pipeline.config.fps)
                lines.append({"file_name": name, "caption": captions[len(lines)]})
        if len(lines) < len(captions):
            return None
        write_whole(folder / "metadata.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        return [str((folder / line["file_name"]).relative_to(self.out)) for line in lines]

    def _distance(self, trainer: Trainer, pipeline: PyramidPipeline) -> dict[str, Any] | None:
        """The distance of fresh samples, with real against real at as many clips (`Reference.floor_at`) beside it."""
        reference, count = self.reference, self.config.validation.distance_clips
        assert reference is not None
        captions = self._captions([clip.source.entry.caption or "" for clip in reference.clips], count)
        made = [reference.project(batch) for batch in self._sampled(trainer, pipeline, captions, "distance")]
        if sum(map(len, made)) < count:
            return None
        value, floor = frechet_distance(reference.real, np.concatenate(made)), reference.floor_at(count)
        real = len(reference.real)
        return {"name": reference.features.distance, "value": value, "clips": count, "real": real, "floor": floor}

    def _sampled(
        self, trainer: Trainer, pipeline: PyramidPipeline, captions: list[str | None], purpose: str
    ) -> Iterator[Tensor]:
        """uint8 (B, 3, T, H, W), batch by batch, always from the same noise; ends early when a stop is asked for."""
        wanted, count = self.config.validation, self.config.validated_at_once
        guidance: dict[str, Any] = {} if wanted.guidance_scale is None else {"guidance_scale": wanted.guidance_scale}
        for first in range(0, len(captions), count):
            if trainer.stop_requested:
                return
            chunk = captions[first : first + count]
            generators = sample_generators(wanted.seed, range(first, first + len(chunk)), f"validation {purpose}")
            frames: Any = pipeline(
                chunk,
                num_inference_steps=wanted.sample_steps,
                generator=generators,
                output_type="pt",
                **guidance,
            ).frames
            yield frames_to_uint8(frames).transpose(1, 2).contiguous().cpu()

    def _captions(self, known: list[str], count: int) -> list[str | None]:
        """So many captions, the known ones again and again; None each for a model without."""
        told = self.config.condition.kind != "none"
        return [known[i % len(known)] if told else None for i in range(count)]

    def _fit_reference(self, features: Any, kept: bool) -> Reference:
        """The real side of the distance; `kept` on disk for the next time."""
        data, wanted = self.config.data, self.config.validation
        return Reference.fit(
            data.path,
            frames=data.frames,
            height=data.height,
            width=data.width,
            fps=data.fps,
            resize=data.resize,
            seed=wanted.seed,
            split=wanted.split,
            fit_split=data.split,
            max_bad_share=data.max_bad_share,
            cache_dir=Path(data.cache_dir or self.out / FOLDER) / "features" if kept else None,
            features=features,
            check=self._check_reference,
        )

    def _check_reference(self, clips: Sequence[Clip]) -> None:
        """Refuse real clips that no distance can be measured to."""
        if len(clips) < 2:
            raise ValueError(
                f"validation.distance_clips needs at least 2 clips of validation.split={self.config.validation.split}, "
                f"which has {len(clips)}; give more videos there, or validation.distance_clips=0"
            )


def read_records(path: Path, step: float = math.inf) -> list[dict[str, Any]]:
    """The lines of a `validation.jsonl` up to a step; one that a death cut short counts as absent."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return [record for record in found if record["step"] <= step]


def _forget_after(out: Path, step: int, records: list[dict[str, Any]]) -> None:
    """Remove lines and samples of what a run that died did after its last checkpoint."""
    if (out / RECORDS).is_file():
        write_whole(out / RECORDS, "".join(json.dumps(record) + "\n" for record in records))
    for folder in (out / FOLDER).glob("step-*"):
        number = folder.name.removeprefix("step-")
        if number.isdigit() and int(number) > step:
            shutil.rmtree(folder, ignore_errors=True)
