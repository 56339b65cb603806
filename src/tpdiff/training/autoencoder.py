"""Training a small video autoencoder: state, budget, checkpoints, what it is worth in the end."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tpdiff.data import ClipDataset, to_float
from tpdiff.data.clips import Progress
from tpdiff.data.stream import generator_for
from tpdiff.files import write_whole
from tpdiff.models.memory import keep_freed_memory
from tpdiff.models.video_autoencoder import VideoAutoencoder
from tpdiff.training import checkpoint as ckpt
from tpdiff.training.autoencoder_config import FOR_DIFFUSION, AutoencoderConfig, check_keys
from tpdiff.training.batches import open_batches
from tpdiff.training.data_config import DataConfig
from tpdiff.training.distribution import open_accelerator
from tpdiff.training.ema import EMA
from tpdiff.training.load_config import dump_config
from tpdiff.training.optimizer import build_optimizer, learning_rate, spent
from tpdiff.training.progress import check_finite, clock
from tpdiff.training.reconstruction import Quality, latent_statistics, measure, reconstruction_loss
from tpdiff.training.setup import check_folder, look_at_videos, open_clips, said_of
from tpdiff.training.state import check_same_run
from tpdiff.training.trackers import check_trackers, start_trackers
from tpdiff.training.videos import check_same_videos, videos_of

T = TypeVar("T")


@dataclass(frozen=True)
class AutoencoderStatus:
    """A run at one moment; `loss`, `psnr` (dB) and `kl` (nats an element) are means since the last report."""

    step: int
    seconds: float
    fraction: float
    loss: float
    psnr: float
    kl: float
    clips_per_second: float

    def line(self) -> str:
        """The status in one line of text."""
        left = self.seconds * (1 - self.fraction) / self.fraction if self.fraction else math.inf
        return (
            f"step {self.step}  loss {self.loss:.4f}  PSNR {self.psnr:.2f} dB  KL {self.kl:.2f}  "
            f"{self.clips_per_second:.1f} clips/s  {clock(self.seconds)} done, {clock(left)} left"
        )


class AutoencoderTrainer:
    """One training run in one folder, on one device.

    Every checkpoint is a folder as save_pretrained writes it: the averaged weights, with the mean and deviation of
    their latents over `statistics_clips` training clips, so that `tpdiff.models.autoencoder.load_autoencoder` takes
    it as it is.

    Args:
        config: what to train.
        out: the run's folder; must be empty or absent unless `resume`.
        resume: continue from the newest checkpoint in `out`.
        progress: told of (videos read, videos in all) while the dataset opens.

    Raises:
        ValueError: anything about the configuration, the data or the folder that cannot work.
    """

    def __init__(
        self, config: AutoencoderConfig, out: str | Path, resume: bool = False, progress: Progress | None = None
    ):
        self.config, self.out = config, Path(out)
        check_trackers(config.log.trackers)
        check_keys(config)
        found = check_folder(self.out, config, resume)
        if found is not None:  # what is not heeded never mattered
            check_same_run(found, config, "held_out.", *(f"data.{key}:" for key in FOR_DIFFUSION))
        look_at_videos(config.data, captions=False)
        self._of_held_out(partial(look_at_videos, captions=False))
        self.accelerator = open_accelerator(config.train.precision, config.log.trackers, self.out)
        self.device = self.accelerator.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.dataset = open_clips(config.data, config.seed, require_captions=False, progress=progress)
        self.held_out = self._of_held_out(partial(open_clips, seed=0, require_captions=False))
        self.videos = videos_of(self.dataset, config.data.path)
        torch.manual_seed(config.seed)
        self.network = VideoAutoencoder(**config.autoencoder.model_dump()).to(self.device)
        if found is None:
            clips = self._clips(self.dataset, config.statistics_clips)
            self.network.start_from_components(to_float(clip.to(self.device)) for clip in clips)
        self.ema = EMA(self.network, config.train.ema_decay)
        self.optimizer = build_optimizer(self.network, config.train)
        self.step, self.seconds = 0, 0.0
        self.losses: list[tuple[float, int, float, float, float]] = []  # (seconds, step, loss, PSNR, KL)
        self.stop_requested = False
        self._stream: Iterator[dict[str, Any]] | None = None
        self._saved_step = 0
        if found is not None:
            self._restore(found)
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / "config.yaml", dump_config(config))
        start_trackers(self.accelerator, config, self.step, resume)

    @property
    def fraction(self) -> float:
        """Share of the budget (steps or seconds, whichever is nearer its end) that is done."""
        return spent(self.config.train, self.step, self.seconds)

    @property
    def done(self) -> bool:
        """Whether the budget is spent."""
        return self.fraction >= 1

    def run(self, report: Callable[[AutoencoderStatus], None] | None = None) -> None:
        """Train until the budget is spent or a stop is asked for; checkpoints and reports do not count.

        Raises:
            ValueError: a loss or a gradient that is not a number; what was saved before stays.
            ValueError, OSError: clips that cannot be read, after a checkpoint of the last step.
        """
        log = self.config.log
        while not self.done and not self.stop_requested:
            started = time.perf_counter()
            batch = self._next_batch()
            loss = self._train_step(batch["video"])
            self.seconds += time.perf_counter() - started
            self.step += 1
            self.losses.append((self.seconds, self.step, *loss))
            if self.step % log.every_steps == 0 or self.done:
                self._report(report)
            if log.checkpoint_every_steps and self.step % log.checkpoint_every_steps == 0 and not self.done:
                self.save()

    def request_stop(self) -> None:
        """End `run` after the step under way."""
        self.stop_requested = True

    def save(self) -> Path:
        """Write a checkpoint of this moment; returns its folder.

        Raises:
            OSError: it could not be written; older checkpoints stay.
        """
        vae: Any = self.ema.network
        mean, deviation = latent_statistics(vae, self._clips(self.dataset, self.config.statistics_clips), self.device)
        vae.register_to_config(latents_mean=mean, latents_std=deviation)
        tensors = {f"network.{n}": t for n, t in self.network.state_dict().items()}
        tensors |= ckpt.pack_optimizer(self.optimizer, self.network)
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "ema_updates": self.ema.updates,
            "losses": self.losses,
            "videos": self.videos,
            "config": self.config.model_dump(mode="json"),
        }
        average = {f"ema.{n}": t for n, t in vae.state_dict().items()}
        folder = self.out / "checkpoints" / f"step-{self.step:08d}"
        ckpt.write_checkpoint(folder, vae, {**tensors, **average}, state)
        ckpt.drop_old_checkpoints(self.out, self.config.log.keep_checkpoints)
        self._saved_step = self.step
        return folder

    def close(self) -> None:
        """Flush the trackers."""
        if self.config.log.trackers:
            self.accelerator.end_training()

    def quality(self) -> Quality | None:
        """How well the averaged weights reconstruct held-out clips, kept in `quality.json`; None without such."""
        if self.held_out is None:
            return None
        clips = min(self.config.held_out.clips, len(self.held_out))
        quality = measure(self.ema.network, self._clips(self.held_out, clips), self.device)
        write_whole(self.out / "quality.json", json.dumps({"step": self.step, **asdict(quality)}, indent=1))
        if self.config.log.trackers:
            values = {f"held_out/{name}": value for name, value in asdict(quality).items() if value is not None}
            self.accelerator.log(values, step=self.step)
        return quality

    # Inside

    def _train_step(self, video: Tensor) -> tuple[float, float, float]:
        train = self.config.train
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train, self.step, self.fraction)
        clean = to_float(video.to(self.device))
        generator = generator_for(self.config.seed, "posterior", self.step)
        with self.accelerator.autocast():
            loss = reconstruction_loss(self.network, clean, train, generator)
        loss.total.backward()
        limit = math.inf if train.max_grad_norm is None else train.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network)
        for what, value in (("the loss", loss.total.detach()), ("the gradient", norm)):
            check_finite(what, float(value), self.step + 1)
        return float(loss.total.detach()), loss.psnr, float(loss.kl)

    def _next_batch(self) -> dict[str, Any]:
        if self._stream is None:
            size = self.config.train.batch_size
            self._stream = open_batches(self.dataset, size, self.config.data.workers, self.step * size)
        try:
            return next(self._stream)
        except Exception as error:
            if self.step > self._saved_step:
                folder = self.save()
                error.add_note(f"the run so far is in {folder}; --resume goes on from there")
            raise

    def _report(self, report: Callable[[AutoencoderStatus], None] | None) -> None:
        status = self._status()
        if self.config.log.trackers:
            values = {name: getattr(status, name) for name in ("loss", "psnr", "kl", "clips_per_second")}
            values |= {"lr": self.optimizer.param_groups[0]["lr"], "training_seconds": self.seconds}
            self.accelerator.log(values, step=self.step)
        if report is not None:
            report(status)

    def _status(self) -> AutoencoderStatus:
        """Of the steps since the report before, whoever made it: of a resumed run the one that died."""
        since = (self.step - 1) // self.config.log.every_steps * self.config.log.every_steps
        recent = self.losses[since:]
        before = self.losses[since - 1][0] if since else 0.0
        loss, psnr, kl = (sum(point[i] for point in recent) / len(recent) for i in (2, 3, 4))
        rate = len(recent) * self.config.train.batch_size / max(self.seconds - before, 1e-9)
        return AutoencoderStatus(self.step, self.seconds, self.fraction, loss, psnr, kl, rate)

    def _of_held_out(self, work: Callable[[DataConfig], T]) -> T | None:
        """What is done with the held-out videos; None without such."""
        split = self.config.held_out.split
        if split is None:
            return None
        with said_of(f"held_out.split {split!r}", "; null leaves the measurement out"):
            return work(self.config.data.model_copy(update={"split": split}))

    @staticmethod
    def _clips(dataset: ClipDataset, count: int) -> Iterator[Tensor]:
        return (dataset[i]["video"] for i in range(count))

    def _restore(self, folder: Path) -> None:
        tensors, state = ckpt.read_checkpoint(folder)
        check_same_videos(folder, state.get("videos"), self.videos, self.config.data.path, self.dataset.bad)
        for prefix, network in (("network.", self.network), ("ema.", self.ema.network)):
            network.load_state_dict({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
        ckpt.unpack_optimizer(self.optimizer, self.network, tensors)
        self.step, self.seconds, self.ema.updates = state["step"], state["seconds"], state["ema_updates"]
        self._saved_step = self.step
        self.losses = [tuple(point) for point in state["losses"]]
