"""Twins trained side by side: same network, seed and data, equal seconds, in alternating slices."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch

from tpdiff.training.config import Config
from tpdiff.training.progress import Status
from tpdiff.training.setup import open_dataset
from tpdiff.training.trainer import Trainer

ArmReport = Callable[[str, Status], None]
Clock = Literal["wall", "cpu"]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}  # cpu: the process's, its threads added up


class Arms:
    """Several runs that share one machine, one dataset and one clock budget each.

    Args:
        configs: one configuration an arm; their data sections are equal.
        out: each arm's run lies in out/<name>, and is continued where it was left.
        clock: a name of `CLOCKS`; by the processor's, which adds up all threads, one thread computes from now on.

    Raises:
        ValueError: whatever `Trainer` refuses, or the processor's clock where a GPU or other processes do the work.
    """

    def __init__(self, configs: Mapping[str, Config], out: Path, clock: Clock = "wall"):
        first = next(iter(configs.values()))
        self.dataset = open_dataset(first)
        self.trainers = {
            name: Trainer(config, out / name, resume=(out / name / "config.yaml").exists(), dataset=self.dataset)
            for name, config in configs.items()
        }
        for trainer in self.trainers.values():
            if clock == "cpu" and trainer.device.type != "cpu":
                raise ValueError(f"clock cpu does not see what {trainer.device.type} does; nearest: wall")
            if clock == "cpu" and trainer.config.data.workers:
                raise ValueError("clock cpu does not see what processes that load clips do; nearest: data.workers=0")
            trainer.clock = CLOCKS[clock]
        if clock == "cpu":
            torch.set_num_threads(1)
        self.stop_requested = False

    def run(
        self,
        slice_seconds: float = 15.0,
        report: ArmReport | None = None,
        until: float = math.inf,
        save_slices: bool = False,
    ) -> None:
        """Train all arms to the end of their budgets, a slice each in turn, so that drift of the machine hits all.

        A stop that was asked for ends the slice at its next step; every arm then has a checkpoint.

        Args:
            slice_seconds: training seconds of a turn.
            report: told of every arm's progress.
            until: stop, with a checkpoint of every arm, when all have trained so many seconds.
            save_slices: leave a checkpoint after every turn, so that a death costs one slice.
        """
        while not self.stop_requested and (waiting := self._short_of(until)):
            for name in waiting:
                trainer = self.trainers[name]
                seconds = min(slice_seconds, until - trainer.seconds)
                trainer.run(seconds, None if report is None else lambda s, name=name: report(name, s))  # type: ignore[misc]
                if save_slices:
                    trainer.save()
                if self.stop_requested:
                    break
        for trainer in self.trainers.values():
            trainer.save()

    def _short_of(self, until: float) -> list[str]:
        return [name for name, t in self.trainers.items() if not t.done and t.seconds < until]

    def request_stop(self) -> None:
        """End after the step under way."""
        self.stop_requested = True
        for trainer in self.trainers.values():
            trainer.stop_requested = True
