"""The stage loop: denoise a stage, jump, denoise the next (TPDiff 3.5; MATH 3)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tpdiff.pyramid.noise import Generators, check_generators, randn
from tpdiff.pyramid.schedule import Level
from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.steps import split_steps
from tpdiff.pyramid.targets import check_prediction_type
from tpdiff.sampling.solvers import SOLVERS, check_solver

Denoiser = Callable[[Tensor, Tensor, int], Tensor]
"""(x at the stage's size, t (B,) in [0, 1], stage) -> prediction of x's shape."""


@dataclass(frozen=True)
class Progress:
    """What a callback is told after every step.

    Attributes:
        step: steps done, from 1.
        total: steps in all.
        stage: the stage k it belongs to, 0 the finest.
        ends_stage: whether this was the stage's last step (a jump follows, or the end).
        t: the time reached, in [0, 1].
        latents: (B, C, T, H, W) at the stage's size, before any jump.
        denoised: the clean estimate x̂0_k of the step, same shape.
    """

    step: int
    total: int
    stage: int
    ends_stage: bool
    t: float
    latents: Tensor
    denoised: Tensor


@torch.no_grad()
def sample_pyramid(
    denoiser: Denoiser,
    pyramid: Pyramid,
    shape: Sequence[int],
    steps: int | Sequence[int],
    *,
    latents: Tensor | None = None,
    first_stage: int | None = None,
    generator: Generators = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    prediction_type: str = "flow_prediction",
    solver: str = "euler",
    spacing: str = "time",
    callback: Callable[[Progress], Tensor | None] | None = None,
) -> Tensor:
    """Sample clean latents from noise through all stages of a pyramid.

    With one stage this is the base method's own sampler.

    Args:
        denoiser: any callable (x, t, stage); it closes over text, guidance and per-frame conditions. x is
            (B, C, T, H, W) at the stage's size, t is float32 (B,).
        pyramid: the stages.
        shape: full size (B, C, T, H, W).
        steps: a total (split evenly, remainder to the coarsest) or one count a stage, coarsest first; of the stages
            that are run.
        latents: unit Gaussian noise at the **coarsest** size to start from; None: drawn. With `first_stage`, what that
            stage starts from.
        first_stage: k, to begin with latents at that stage's size and `start_level`, such as those of a video
            (`Pyramid.pair`, at its start); None: the coarsest.
        generator: one, or one a sample; every draw (start and jumps) comes from it.
        device: where to sample; None: the latents' device, or the CPU.
        dtype: of the latents between calls.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction", as in diffusers.
        solver: "euler", "ddim" (η = 0) or "heun".
        spacing: levels inside a stage uniform in "time" or in "angle" (atan κ).
        callback: called with a `Progress` after every step; a tensor that it returns takes the place of `latents`.

    Returns:
        Clean latents, (B, C, T, H, W) at full size.

    Raises:
        ValueError: before any call of the denoiser, for an illegal size, step count, solver or prediction type.
    """
    grids = check_sampling(
        pyramid,
        shape,
        steps,
        latents=latents,
        first_stage=first_stage,
        generator=generator,
        prediction_type=prediction_type,
        solver=solver,
        spacing=spacing,
    )
    first, total = max(grids), sum(len(grid) - 1 for grid in grids.values())
    if latents is None:
        x = randn(pyramid.stage_shape(shape, first), generator, device, dtype)
    else:
        x = latents.to(device or latents.device, dtype)

    advance = SOLVERS[solver]
    done = 0
    for k, grid in grids.items():
        if k < first:
            x = pyramid.jump(x, k, generator=generator)

        def predict(x: Tensor, level: Level, k: int = k) -> Tensor:
            t = torch.full((x.shape[0],), level.t, dtype=torch.float32, device=x.device)
            return denoiser(x, t, k).to(x.dtype)

        for level, target in pairwise(grid):
            step = advance(predict, x, level, target, prediction_type)
            x = step.latents.to(dtype)
            done += 1
            if callback is not None:
                given = callback(Progress(done, total, k, target is grid[-1], target.t, x, step.denoised))
                x = x if given is None else given.to(x)
    return x


def check_sampling(
    pyramid: Pyramid,
    shape: Sequence[int],
    steps: int | Sequence[int],
    *,
    latents: Tensor | None = None,
    first_stage: int | None = None,
    generator: Generators = None,
    prediction_type: str = "flow_prediction",
    solver: str = "euler",
    spacing: str = "time",
) -> dict[int, list[Level]]:
    """Refuse what `sample_pyramid` cannot do with the same arguments.

    Returns:
        The levels that each stage k visits, from the first stage on.

    Raises:
        ValueError: as `sample_pyramid`.
    """
    first = len(pyramid) - 1 if first_stage is None else first_stage
    if first not in range(len(pyramid)):
        raise ValueError(f"no stage {first}: stages are 0, the finest, to {len(pyramid) - 1}")
    counts = split_steps(steps, first + 1)
    check_solver(solver)
    grids = {k: pyramid.levels(k, counts[first - k], spacing) for k in range(first, -1, -1)}
    check_prediction_type(prediction_type, pyramid.stages[first].start_level)
    start_shape = pyramid.stage_shape(shape, first)
    if isinstance(generator, Sequence):
        check_generators(generator, shape[0])
    if latents is None and first_stage is not None:
        raise ValueError(f"first_stage {first} begins with latents of that stage; give them")
    if latents is not None and tuple(latents.shape) != start_shape:
        which = "coarsest" if first_stage is None else "first"
        raise ValueError(f"latents {tuple(latents.shape)} must have the {which} stage's shape {start_shape}")
    return grids
