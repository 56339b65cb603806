"""What a run will take, measured before it begins: memory and seconds a step of every stage, time and disk in all.

A trainer is built as for the run and takes steps of every stage that is trained, on the run's own first clips, its
loader's processes included; then it is thrown away. Nothing is written.
"""

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tpdiff.data import ClipDataset, ShardDataset
from tpdiff.data.clips import Progress
from tpdiff.models.memory import give_back_freed_memory, peak_bytes, reset_peak
from tpdiff.training.checkpoint import pack_optimizer
from tpdiff.training.config import Config
from tpdiff.training.ema import trained
from tpdiff.training.trainer import Trainer

ROUNDS = 3
ALLOCATED = "the most that PyTorch allocated on the GPU, with weights, averages and moments"
GROWTH = "how much the resident memory of this process grew in a step, beyond weights, averages, moments and clips kept"


@dataclass(frozen=True)
class StageCost:
    """A training step of one stage.

    Attributes:
        stage: k, 0 the finest.
        size: (t, h, w) of its latents.
        tokens: of one clip.
        clips: in a step, on all processes and in all micro-batches.
        share: of the steps that are of this stage; 1 where each step goes through all stages.
        seconds: the median of a few, from the asking for clips to the new weights.
        waiting: of these, for clips.
        memory: bytes on this process; None where the system does not tell.
    """

    stage: int
    size: tuple[int, ...]
    tokens: int
    clips: int
    share: float
    seconds: float
    waiting: float
    memory: int | None

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds


@dataclass(frozen=True)
class DryRun:
    """A run as it is to be expected.

    Attributes:
        device: where it trains.
        memory: what is said of the stages' memory.
        stages: those that are trained, finest first.
        step_seconds: the mean step.
        steps: of the whole run, in the time it takes: `seconds`. Validation and checkpoints come on top.
        checkpoint_bytes: of one checkpoint, without what the pipeline keeps beside its network.
        checkpoints: how many there are at once, the one being written included.
        free_bytes: of the run's disk.
    """

    device: str
    memory: str
    stages: tuple[StageCost, ...]
    step_seconds: float
    steps: float
    seconds: float
    checkpoint_bytes: int
    checkpoints: int
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether the disk holds the checkpoints."""
        return self.checkpoints * self.checkpoint_bytes <= self.free_bytes

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON values."""
        stages = [asdict(stage) | {"clips_per_second": stage.clips_per_second} for stage in self.stages]
        return asdict(self) | {"stages": stages, "steps_per_second": 1 / self.step_seconds, "fits": self.fits}


def dry_run(
    config: Config,
    out: str | Path,
    rounds: int = ROUNDS,
    dataset: ClipDataset | ShardDataset | None = None,
    progress: Progress | None = None,
) -> DryRun:
    """Measure a run. Collective: every process of it calls this.

    The stages take turns: a round to warm up, one to measure memory, and `rounds` for the time. Latents that the run
    keeps (`data.latents`) are encoded before the clock starts, as in all epochs but the first.

    Args:
        config: the run.
        out: where it would be; need not exist, and is left alone.
        rounds: steps of each stage whose median is taken.
        dataset: clips that are open already; None opens the configuration's.
        progress: told of (videos read, videos in all) while they open.

    Raises:
        ValueError: whatever the run itself would refuse.
    """
    trainer = Trainer(_unwritten(config), out, dataset=dataset, dry=True, progress=progress)
    if config.data.latents != "none":
        trainer.latents.keep_in_memory()
    drawn, numbers = trainer.mix, trainer.mix.trained
    trainer.mix = replace(drawn, in_turn=True)
    clips, processes = trainer.open_stream(), trainer.accelerator.num_processes
    for _ in numbers:
        _seconds(trainer, clips)
    peaks = [_peak(trainer, clips) for _ in numbers]
    turns = [[_seconds(trainer, clips) for _ in numbers] for _ in range(rounds)]
    stages = tuple(
        StageCost(
            stage=k,
            size=trainer.pyramid.stage_shape((1, *trainer.latents.shape), k)[2:],
            tokens=drawn.tokens[k],
            clips=drawn.clips[k] * processes * config.train.accumulation,
            share=1.0 if config.train.all_stages else drawn.shares[k],
            seconds=median(seconds for seconds, _ in times),
            waiting=median(waited for _, waited in times),
            memory=peak,
        )
        for k, peak, times in zip(numbers, peaks, zip(*turns, strict=True), strict=True)
    )
    step = sum(stage.share * stage.seconds for stage in stages)
    if config.train.all_stages:
        trainer.mix = drawn
        step = median(_seconds(trainer, clips)[0] for _ in range(rounds))
    ends = [float(config.train.steps)] if config.train.steps else []
    ends += [config.train.seconds / step] if config.train.seconds else []
    return DryRun(
        device=str(trainer.device),
        memory=ALLOCATED if trainer.device.type == "cuda" else GROWTH,
        stages=stages,
        step_seconds=step,
        steps=min(ends),
        seconds=min(ends) * step,
        checkpoint_bytes=_checkpoint_bytes(trainer),
        checkpoints=config.log.keep_checkpoints + 1,
        free_bytes=shutil.disk_usage(_existing(Path(out))).free,
    )


def _unwritten(config: Config) -> Config:
    """The same without what it would write to disk."""
    data = config.data.model_copy(update={"latents": "none"})
    if data.cache == "disk":
        data = data.model_copy(update={"cache": "auto"})
    return config.model_copy(update={"data": data})


def _seconds(trainer: Trainer, clips: Iterator[dict[str, Any]]) -> tuple[float, float]:
    """Seconds of a step, and those of them that it waited for clips."""
    started = trainer.clock()
    batches = [next(clips) for _ in range(trainer.config.train.accumulation)]
    waited = trainer.clock() - started
    if trainer.latents.kept:
        for batch in batches:
            trainer.latents.of_batch(batch)
    started = trainer.clock()
    trainer.train_step(batches)
    if trainer.device.type == "cuda":
        torch.cuda.synchronize(trainer.device)
    trainer.step += 1
    return waited + trainer.clock() - started, waited


def _peak(trainer: Trainer, clips: Iterator[dict[str, Any]]) -> int | None:
    """Bytes of memory that a step takes."""
    give_back_freed_memory()
    reset_peak()
    before = 0 if trainer.device.type == "cuda" else peak_bytes()
    _seconds(trainer, clips)
    peak = peak_bytes()
    return None if peak is None or before is None else peak - before


def _checkpoint_bytes(trainer: Trainer) -> int:
    """Weights, averages and moments to resume from, and the averaged weights once more for the pipeline."""
    changed = trained(trainer.network).values()
    moments = pack_optimizer(trainer.optimizer, trainer.network).values()
    pipeline = changed if hasattr(trainer.network, "peft_config") else trainer.network.parameters()
    return sum(map(_bytes, [*changed, *changed, *moments, *pipeline]))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _existing(path: Path) -> Path:
    """The nearest folder above that is there."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
