"""The way through the runs of all stages: the wrapped scheduler steps along one after another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tpdiff.schedulers.runs import Run, levels_walked
from tpdiff.schedulers.wrapped import KINDS, load_grid


class Walk:
    """Leads a scheduler through runs and knows where it is.

    Args:
        walker: a scheduler to walk with (`walker_of`), whose grid is replaced at every run.
        runs: at least one, coarsest first.
        device: of `timesteps`; None: the CPU.

    Attributes:
        timesteps: what the network is told at each evaluation, all runs in turn, (N,).
        sigmas: the scheduler's noise levels at each evaluation, then the last one's end, (N + 1,).
    """

    def __init__(self, walker: Any, runs: Sequence[Run], device: torch.device | str | None = None):
        self._walker, self._runs, self._device = walker, runs, device or "cpu"
        self._table = KINDS[type(walker).__name__].table
        parts, values = [], []
        for place, run in enumerate(runs):
            parts.append(self._enter(place))
            values.append(levels_walked(walker, run)[: len(parts[-1])])
        self.timesteps = torch.cat(parts)
        self.sigmas = torch.cat([*values, levels_walked(walker, runs[-1])[-1:]])
        self._counts = [len(part) for part in parts]
        self._enter(0)

    @property
    def first(self) -> Run:
        """The run that the walk begins with."""
        return self._runs[0]

    @property
    def run(self) -> Run:
        """The run that the next step belongs to, or after the last step the last."""
        return self._runs[self._run]

    @property
    def done(self) -> int:
        """Evaluations done."""
        return sum(self._counts[: self._run]) + self._place

    @property
    def ends_run(self) -> bool:
        """Whether the current run has no steps left."""
        return self._place == len(self._local)

    @property
    def over(self) -> bool:
        """Whether no steps are left at all."""
        return self.ends_run and self._run + 1 == len(self._runs)

    def step(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """The scheduler's next step within the current run."""
        at: Any = self._local[self._place]
        prev = self._walker.step(model_output, int(at) if self._table else at, sample, return_dict=False)[0]
        self._place += 1
        return prev

    def enter_next(self) -> None:
        """Go on to the next run."""
        self._enter(self._run + 1)

    def _enter(self, place: int) -> Tensor:
        """Begin a run; what the network is told in it."""
        run = self._runs[place]
        times = run.times.to(self._device)
        self._run, self._place = place, 0  # run, and evaluation in it
        self._local = load_grid(self._walker, run.levels, times, run.finest)  # the walker's own timesteps
        return times[:-1] if self._table else self._local
