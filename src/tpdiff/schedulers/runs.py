"""The steps of one stage: which noise levels are visited, and what the network is told there (MATH 3, 7)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpdiff.pyramid.schedule import CLEAN, Level
from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.told import as_told
from tpdiff.schedulers.options import option
from tpdiff.schedulers.spacing import Spacing
from tpdiff.schedulers.wrapped import KINDS, has_whole_times, in_kappa, is_flow, schedule_of


@dataclass(frozen=True)
class Run:
    """One stage's steps.

    Attributes:
        stage: k, 0 the finest.
        levels: the n + 1 levels visited, noisiest first.
        times: what the network is told at each of them, (n + 1,): whole timesteps int64, others float32.
    """

    stage: int
    levels: list[Level]
    times: Tensor

    @property
    def finest(self) -> bool:
        """Whether the steps end at clean latents."""
        return self.stage == 0


def plan_run(base: Any, pyramid: Pyramid, k: int, steps: int, spacing: Spacing | None, policy: str) -> Run:
    """The steps of stage k under a wrapped scheduler.

    Args:
        base: the wrapped scheduler.
        pyramid: the stages.
        k: the stage.
        steps: how many.
        spacing: flow matching's; None: uniform in t.
        policy: what the network is told, one of `tpdiff.pyramid.told.POLICIES`.

    Raises:
        ValueError: more steps than the stage has whole timesteps.
    """
    levels = _spaced(pyramid, k, steps, spacing) if spacing else _indexed(base, pyramid, k, steps)
    t = torch.tensor([level.t for level in levels], dtype=torch.float64)
    return Run(k, levels, native_times(base, as_told(t, pyramid, k, policy)))


def first_told(base: Any, pyramid: Pyramid, k: int, policy: str) -> float:
    """The time in [0, 1] that the network is told first in stage k (`tpdiff.pyramid.as_told`)."""
    start = torch.tensor(start_level(base, pyramid, k).t, dtype=torch.float64)
    return float(as_told(start, pyramid, k, policy))


def evaluations(base: Any, counts: Sequence[int]) -> list[int]:
    """Network evaluations in every stage of so many steps, coarsest first. A solver of second order makes two a step,
    but for the last, which ends in clean latents."""
    twice = base.order == 2
    return [2 * n - (place == len(counts) - 1) if twice else n for place, n in enumerate(counts)]


def start_level(base: Any, pyramid: Pyramid, k: int) -> Level:
    """s_k, or the next noisier whole timestep where the network is told whole ones. A scheduler that computes in κ,
    which is infinite without signal, starts from its own last level instead, as it does without stages."""
    start = pyramid.stages[k].start_level
    if has_whole_times(base):
        start = pyramid.schedule.level(float(times_told(base, torch.tensor(start.t, dtype=torch.float64))))
    return schedule_of(base).level(start.t) if start.alpha == 0 and in_kappa(base) else start


def times_told(base: Any, t: Tensor) -> Tensor:
    """Times in [0, 1] that the network can be told: t, or the next noisier whole timesteps' (MATH 3), float64."""
    if not has_whole_times(base):
        return t.double()
    last = base.config.num_train_timesteps - 1
    rounding = max(1e-9, last * torch.finfo(t.dtype).eps)
    return (t.double() * last - rounding).ceil().clamp(0, last) / last


def native_times(base: Any, t: Tensor) -> Tensor:
    """What the network is told at times t in [0, 1]: whole timesteps int64, others float32."""
    train = base.config.num_train_timesteps
    if is_flow(base):
        t = 1 - t if option(base, "invert_sigmas") else t
        return (t * train).to(torch.float32)
    index = t * (train - 1)
    return index.round().to(torch.int64) if has_whole_times(base) else index.to(torch.float32)


def levels_walked(base: Any, run: Run) -> Tensor:
    """The wrapped scheduler's own levels in a run it has just entered."""
    if KINDS[type(base).__name__].table:
        return torch.tensor([level.sigma for level in run.levels])
    return base.sigmas


def _spaced(pyramid: Pyramid, k: int, steps: int, spacing: Spacing) -> list[Level]:
    stage = pyramid.stages[k]
    inner = spacing.between(stage.start, stage.end, steps)[1:-1]
    return [stage.start_level, *(pyramid.schedule.level(t) for t in inner), stage.end_level]


def _indexed(base: Any, pyramid: Pyramid, k: int, steps: int) -> list[Level]:
    start, end = start_level(base, pyramid, k), CLEAN if k == 0 else pyramid.stages[k].end_level
    last = base.config.num_train_timesteps - 1
    top, bottom = start.t * last, end.t * last
    whole = has_whole_times(base)
    if whole:  # as if the stage ended on the whole timestep below, so that no two places round to one
        top, bottom = round(top), math.floor(bottom + 1e-9)
        if steps > top - bottom:
            room = f"stage {k} has {top - bottom} whole timesteps, too few for {steps} steps"
            raise ValueError(f"{room}; nearest: {top - bottom}")
    places = torch.linspace(top, bottom, steps + 1, dtype=torch.float64)[1:-1]
    places = places.round() if whole else places
    return [start, *(pyramid.schedule.level(place / last) for place in places.tolist()), end]
