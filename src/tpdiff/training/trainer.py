"""The trainer: data, objective, optimizer, average and checkpoints, in one loop."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed

from tpdiff.data import ClipDataset, ShardDataset
from tpdiff.data.clips import Progress
from tpdiff.files import write_whole
from tpdiff.models.memory import keep_freed_memory
from tpdiff.training import checkpoint as ckpt
from tpdiff.training.batches import open_batches
from tpdiff.training.cache_settings import open_source
from tpdiff.training.compiled import compile_stages
from tpdiff.training.config import Config
from tpdiff.training.distribution import agree, all_or_none, open_accelerator, share_of
from tpdiff.training.ema import EMA
from tpdiff.training.latents import Latents
from tpdiff.training.load_config import dump_config
from tpdiff.training.objective import StageLoss
from tpdiff.training.optimizer import build_optimizer, check_optimizer, learning_rate, spent
from tpdiff.training.preflight import look_ahead
from tpdiff.training.pretrained import Pretrained
from tpdiff.training.progress import Recent, Report, Status
from tpdiff.training.setup import check_folder, warn_of_lonely_captions
from tpdiff.training.stage_mix import open_mix
from tpdiff.training.state import capture, check_same_run, restore
from tpdiff.training.step import check_values, take_step
from tpdiff.training.trackers import check_trackers, start_trackers
from tpdiff.training.trainee import OwnNetwork, Trainee
from tpdiff.training.validation import Validation
from tpdiff.training.videos import captions_digest, videos_of


class Trainer:
    """One training run in one folder.

    Everything that can be refused is refused while it is built: configuration, sizes, captions, files. `run`
    then trains until the budget is spent, in as many slices as the caller likes.

    Args:
        config: what to train.
        out: the run's folder; must be empty or absent unless `resume`.
        resume: continue from the newest checkpoint in `out`.
        dataset: share an already opened dataset; None opens `config.data`.
        dry: write nothing, whatever `out` holds; neither `run` nor `save` may be called.
        progress: told of (videos read, videos in all) while the dataset opens.

    Attributes:
        clock: tells the seconds by which training is timed and its budget spent; the wall's.

    Raises:
        ValueError: anything about the configuration, the data or the folder that cannot work.
    """

    def __init__(
        self,
        config: Config,
        out: str | Path,
        resume: bool = False,
        dataset: ClipDataset | ShardDataset | None = None,
        dry: bool = False,
        progress: Progress | None = None,
    ):
        self.config, self.out = config, Path(out)
        check_trackers(config.log.trackers)  # what costs nothing comes first, before models are fetched and read
        check_optimizer(config.train)
        found = None if dry else check_folder(self.out, config, resume)
        if found is not None:
            check_same_run(found, config)
        train, idle = config.train, config.pretrained is not None
        self.accelerator = open_accelerator(train.precision, config.log.trackers, self.out, idle)
        if train.token_budget is None:
            share_of(train.batch_size, self.accelerator.num_processes, train.accumulation)
        shards = look_ahead(config, dataset is not None, self.accelerator.is_main_process)
        self.trainee: Trainee = OwnNetwork(config) if config.pretrained is None else Pretrained(config)
        self.pyramid = self.trainee.convention.pyramid
        set_seed(config.seed)
        self.device = self.accelerator.device
        self.latents = Latents(config, self.pyramid, self.device, autoencoder=self.trainee.autoencoder)
        with torch.random.fork_rng([]):  # encoders are read to compare shards with them, and may draw first weights
            self.dataset = open_source(config, shards, progress) if dataset is None else dataset
        self.latents.serve(self.dataset)
        self.videos = videos_of(self.dataset, config.data.path)
        told = config.condition.kind != "none"
        self.captions_digest = captions_digest(self.dataset, config.data.path) if told else None
        if self.device.type == "cpu":
            keep_freed_memory()
        sizes = (self.latents.shape, self.trainee.patch_size)
        ranks = (self.accelerator.num_processes, self.accelerator.process_index)
        self.mix = open_mix(config, self.pyramid, *sizes, *ranks)
        if isinstance(self.dataset, ClipDataset):
            warn_of_lonely_captions(config, self.dataset, max(self.mix.clips) * ranks[0])
        self.trainee.open(self.dataset, self.latents)
        self.network: Any = self.trainee.network
        sharded, kept = self.accelerator.is_fsdp2, "cpu" if train.ema_device == "cpu" else None
        self.ema = EMA(self.network if sharded else self.network.to(self.device), train.ema_decay, kept, sharded)
        optimizer = build_optimizer(self.network, train, sharded)
        self.wrapped, self.optimizer = self.accelerator.prepare(self.network, optimizer)
        self.trainee.place(self.accelerator)
        if sharded:
            self.ema.follow(self.network)
        if train.compile:
            sizes_of_clips = len(self.dataset.buckets) if isinstance(self.dataset, ShardDataset) else 1
            compile_stages(self.network, len(self.pyramid) * sizes_of_clips)
        self.step, self.seconds, self.tokens, self.samples = 0, 0.0, 0, 0
        self.losses: list[tuple[float, int, int, float]] = []  # (seconds, step, stage, loss)
        self.recent = Recent()
        self.clock = time.perf_counter
        self.stop_requested = self._stop_agreed = False
        self._stream: Iterator[dict[str, Any]] | None = None
        self._status: Status | None = None  # the last reported
        if found is not None:
            restore(self, found)
        self._saved_step = self.step
        self.validation = Validation(self, dry) if config.validation.on else None
        if not dry:
            self._begin(resume)

    # Running

    @property
    def fraction(self) -> float:
        """Share of the budget (steps or seconds, whichever is nearer its end) that is done."""
        return spent(self.config.train, self.step, self.seconds)

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.fraction >= 1

    @property
    def stopping(self) -> bool:
        """Whether to stop now; of several processes all say the same."""
        return self.stop_requested if self.accelerator.num_processes == 1 else self._stop_agreed

    def run(self, seconds: float = math.inf, report: Report | None = None) -> None:
        """Train until the budget is spent, `seconds` more training seconds have passed, or a stop is asked for.

        A step counts from the asking for its clips; checkpoints, validation, reports and the start of the workers do
        not count.

        Raises:
            ValueError: a loss or a gradient that is not a number; what was saved before stays.
            ValueError, OSError: clips that cannot be read, after a checkpoint of the last step; so does whatever ends a
                validation.
        """
        self._open_stream()
        until, log = self.seconds + seconds, self.config.log
        while not self.done and self.seconds < until and not self.stopping:
            self._validate(report)  # first, so that a run resumed at this step does what it would have done
            if self.stopping:
                break
            started = self.clock()
            batches = self._next_batches()
            parts = self.train_step(batches)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            values = [(p.stage, float(p.loss), p.alignment_gain) for p in parts]
            elapsed, self._stop_agreed, values = agree(
                self.accelerator, self.clock() - started, self.stop_requested, values
            )
            if self._stop_agreed:
                self.stop_requested = True
            self.seconds += elapsed
            self.step += 1
            tokens = sum(p.positions for p in parts) // math.prod(self.trainee.patch_size)
            tokens *= self.accelerator.num_processes
            self.tokens += tokens
            self.samples += self.accelerator.num_processes * sum(len(batch["index"]) for batch in batches)
            check_values(self, values)
            self.losses += [(self.seconds, self.step, stage, loss) for stage, loss, _ in values]
            self.recent.add(values, tokens, elapsed)
            if self.step % log.every_steps == 0 or self.done:
                self._report(report)
            if log.checkpoint_every_steps and self.step % log.checkpoint_every_steps == 0 and not self.done:
                self.save()
        if self.done and not self.stopping:
            self._validate(report)

    def request_stop(self) -> None:
        """End `run` after the step under way."""
        self.stop_requested = True

    def train_step(self, batches: list[dict[str, Any]]) -> list[StageLoss]:
        """One optimizer step over its micro-batches; advances neither the clock nor the counters."""
        parts, self.gradient_norm = take_step(self, batches)
        return parts

    def open_stream(self) -> Iterator[dict[str, Any]]:
        """The micro-batches from the present step on."""
        sizes = self.mix.clips[0] if self.config.train.token_budget is None else self.mix.sizes(self.step)
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        clips = self.dataset if self.trainee.takes_pictures else self.latents.spared(self.dataset)
        return open_batches(clips, sizes, self.config.data.workers, self.samples, rank, processes)

    # Results

    def pipeline(self) -> Any:
        """A pipeline over the averaged weights, as they are now, without a bar of its own."""
        pipeline = self.trainee.pipeline(self.ema.network)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save(self) -> Path:
        """Write a checkpoint of this moment; returns its folder. Collective: every process calls it.

        Raises:
            OSError: it could not be written; older checkpoints stay.
        """
        folder = self.out / "checkpoints" / f"step-{self.step:08d}"
        main = self.accelerator.is_main_process
        with self.ema.whole(main):
            ckpt.write_checkpoint(folder, self.pipeline() if main else None, *capture(self), self.accelerator)
        if main:
            ckpt.drop_old_checkpoints(self.out, self.config.log.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self._saved_step = self.step
        return folder

    def save_average(self, folder: str | Path) -> Path:
        """Write the averaged weights alone, as a pipeline that `PyramidPipeline.from_pretrained` loads; whole or not
        at all, in place of what was there. Collective: every process calls it. Returns the folder.

        Raises:
            OSError: it could not be written.
        """
        main = self.accelerator.is_main_process
        with self.ema.whole(main), all_or_none(self.accelerator):
            if main:
                ckpt.write_pipeline(Path(folder), self.pipeline())
        return Path(folder)

    def close(self) -> None:
        """Flush the trackers and part from the other processes."""
        if self.config.log.trackers or self.accelerator.num_processes > 1:
            self.accelerator.end_training()

    # Inside

    def _begin(self, resume: bool) -> None:
        if self.accelerator.is_main_process:
            self.out.mkdir(parents=True, exist_ok=True)
            write_whole(self.out / "config.yaml", dump_config(self.config))
        start_trackers(self.accelerator, self.config, self.step, resume)

    def _open_stream(self) -> None:
        if self._stream is None:
            self._stream = self.open_stream()

    def _next_batch(self) -> dict[str, Any]:
        self._open_stream()
        assert self._stream is not None
        return next(self._stream)

    def _agree_to_stop(self) -> None:
        _, self._stop_agreed, _ = agree(self.accelerator, 0.0, self.stop_requested, [])
        if self._stop_agreed:
            self.stop_requested = True

    def _next_batches(self) -> list[dict[str, Any]]:
        """The micro-batches of a step."""
        with self._kept_if_this_fails(), all_or_none(self.accelerator):  # so that none waits in a step
            return [self._next_batch() for _ in range(self.config.train.accumulation)]

    @contextmanager
    def _kept_if_this_fails(self) -> Iterator[None]:
        """While active, an error, which all processes meet, leaves a checkpoint of the steps so far."""
        try:
            yield
        except Exception as error:
            if self.step > self._saved_step:
                folder = self.save()
                error.add_note(f"the run so far is in {folder}; --resume goes on from there")
            raise

    def _validate(self, report: Report | None) -> None:
        if self.validation is None or not self.validation.due(self):
            return
        with self._kept_if_this_fails():
            self.validation.run(self)
        self._agree_to_stop()
        if self._status is not None:
            self._tell(report, self._status)

    def _report(self, report: Report | None) -> None:
        recent, self.recent = self.recent, Recent()
        status = recent.status(self.step, self.seconds, self.fraction)
        values = {
            "loss": status.loss,
            "lr": learning_rate(self.config.train, self.step, self.fraction),
            "tokens_per_second": status.tokens_per_second,
        }
        values |= {f"loss/stage_{k}": v for k, v in status.stage_losses.items()}
        values |= {"alignment_gain": recent.mean_gain(), "training_seconds": self.seconds}
        if self.config.log.trackers:
            self.accelerator.log(values, step=self.step)
        self._status = status
        self._tell(report, status)

    def _tell(self, report: Report | None, status: Status) -> None:
        if report is not None and self.accelerator.is_main_process:
            held_out = {} if self.validation is None else self.validation.losses
            report(replace(status, held_out=held_out))
