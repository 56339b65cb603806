"""PyramidScheduler: a diffusers scheduler that runs another one in each stage and jumps between them (MATH 2, 3)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from tpdiff.pyramid.jump import jump
from tpdiff.pyramid.noise import Generators, check_generators
from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.steps import split_steps
from tpdiff.pyramid.targets import check_per_stage
from tpdiff.pyramid.told import check_policy
from tpdiff.schedulers.runs import Run, plan_run, start_level
from tpdiff.schedulers.spacing import spacing_of
from tpdiff.schedulers.walk import Walk
from tpdiff.schedulers.wrapped import (
    built,
    check_schedule,
    check_step_options,
    check_wrappable,
    described,
    is_flow,
    noised,
    plain_step,
    scale_of,
    walker_of,
)


class PyramidScheduler(SchedulerMixin, ConfigMixin):
    """Runs `base_scheduler` inside each stage of `pyramid`, on that stage's interval, and jumps between them in `step`.

    Where a stage ends, `step` returns the latents (B, C, T, H, W) at the **next** stage's size, so a loop that starts
    from noise of the coarsest stage's size ends with latents of full size. With one stage it is the base scheduler.

    Args:
        base_scheduler: FlowMatchEuler, FlowMatchHeun, UniPC, DPM-Solver multistep, DDIM, CogVideoXDDIM, Euler or Heun;
            copied, never changed. A dict is its saved configuration.
        pyramid: on the base scheduler's noise schedule (`schedule_of`). A dict is its saved configuration.
        steps: a total, or one count a stage, coarsest first; wins over `set_timesteps`'s `num_inference_steps`.
        timestep_policy: what the network is told: "native", the base scheduler's own time of the current noise level,
            or "pyramid_flow", arc length over the overlapping stages (`train.timestep_policy`, Pyramid Flow).
        per_stage_target: the network's flow is per unit of a stage's own time (Pyramid Flow's checkpoints), not of σ.
        applied: belongs to a pipeline that `apply_pyramid` calls once a stage, and refuses to run all stages itself:
            such a pipeline, saved and loaded, would start from latents of full size.

    Raises:
        ValueError: a scheduler that cannot run inside a stage (stochastic, unknown, or of epsilon on a schedule that
            ends in pure noise), a pyramid on another schedule, an unknown policy.

    Attributes:
        generator: draws the jumps' noise, one, or one a sample, where `step` is given none.
        timesteps: what the network is told, all stages in turn (not falling throughout: stages overlap).
    """

    __module__ = "tpdiff"  # the name that saved pipelines hold: diffusers loads them once `tpdiff` is imported
    config_name = "scheduler_config.json"  # type: ignore[assignment]
    _compatibles: list = []  # noqa: RUF012  as the base class has it
    _internal_dict: Any

    def __init__(
        self,
        base_scheduler: Any,
        pyramid: Pyramid | dict,
        steps: int | Sequence[int] | None = None,
        timestep_policy: str = "native",
        per_stage_target: bool = False,
        applied: bool = False,
    ):
        self.base = built(base_scheduler)
        self.pyramid = Pyramid.from_config(pyramid) if isinstance(pyramid, dict) else pyramid
        if len(self.pyramid) > 1:
            check_wrappable(self.base)
            check_schedule(self.base, self.pyramid.schedule)
            if per_stage_target:
                check_per_stage(self.pyramid.schedule)
        check_policy(timestep_policy, self.pyramid)
        self.register_to_config(
            base_scheduler=described(self.base),
            pyramid=self.pyramid.config(),
            steps=None if steps is None else split_steps(steps, len(self.pyramid)),
            timestep_policy=timestep_policy,
            per_stage_target=per_stage_target,
            applied=applied,
        )
        self._walker = self.base if len(self.pyramid) == 1 else walker_of(self.base)  # walks a stage's own grid
        self._walk: Walk | None = None  # what `set_timesteps` laid out, where there are stages
        self.num_inference_steps: int | None = None
        self.generator: Generators = None
        self._only: int | None = None
        self._steps: Sequence[int] | None = None

    # What pipelines read

    @property
    def config(self) -> Any:
        """The base scheduler's configuration and this one's own, for pipelines that ask."""
        return FrozenDict({**self.base.config, **self._internal_dict})

    @property
    def order(self) -> int:
        """The base scheduler's order."""
        return self.base.order

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """What unit noise is multiplied by to be the first latents."""
        if len(self.pyramid) == 1:
            return getattr(self.base, "init_noise_sigma", 1.0)  # flow matching schedulers have none
        if self._walk is None or self._walk.first.stage < len(self.pyramid) - 1:
            return 1.0  # the latents come from a jump, whose result has the right scale
        start = self._walk.first.levels[0]
        scale = scale_of(self.base, start)
        return 1.0 if scale == 1.0 else math.sqrt(1 + start.kappa**2)

    @property
    def timesteps(self) -> Tensor:
        """What the network is told at each evaluation, (N,); before `set_timesteps`, the base scheduler's own."""
        return self._walk.timesteps if self._walk else self.base.timesteps

    @property
    def sigmas(self) -> Tensor:
        """The base scheduler's noise levels at each evaluation, all stages in turn, then the last one's end; before
        `set_timesteps`, its own, where it keeps any."""
        return self._walk.sigmas if self._walk else self.base.sigmas

    @property
    def stage(self) -> int:
        """The stage that the next step belongs to, 0 the finest."""
        return self._walk.run.stage if self._walk else len(self.pyramid) - 1

    @property
    def step_index(self) -> int | None:
        """Evaluations done."""
        if len(self.pyramid) == 1:
            return self.base.step_index
        return self._walk.done if self._walk else None

    @property
    def begin_index(self) -> int | None:
        """Where sampling begins: always at the first step."""
        return getattr(self.base, "begin_index", None) if len(self.pyramid) == 1 else 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Only 0 where there are stages: a start within the schedule would need latents of some stage's size."""
        if len(self.pyramid) == 1:
            if hasattr(self.base, "set_begin_index"):
                self.base.set_begin_index(begin_index)
        elif begin_index != 0:
            raise ValueError(f"begin_index {begin_index}: sampling through stages begins at the first step, 0")

    # Sampling

    def restrict(self, stage: int | None, steps: Sequence[int] | None = None) -> None:
        """Let `set_timesteps` give the steps of one stage alone, or of all (None). `jump` then leads on.

        Args:
            stage: k, or None.
            steps: all stages' counts, coarsest first, that hold meanwhile.

        Raises:
            ValueError: a stage that the pyramid does not have.
        """
        if stage is not None and stage not in range(len(self.pyramid)):
            raise ValueError(f"no stage {stage}: stages are 0, the finest, to {len(self.pyramid) - 1}")
        self._only, self._steps = stage, steps

    def check(self, steps: Sequence[int], sigmas: Sequence[float] | None = None) -> None:
        """Refuse before the first stage what `set_timesteps`, restricted to one stage after the other, would refuse.

        Args:
            steps: one count a stage, coarsest first.
            sigmas: as in `set_timesteps`.

        Raises:
            ValueError: more steps than a stage has whole timesteps, or levels that stages cannot follow.
        """
        for k in range(len(self.pyramid)) if len(self.pyramid) > 1 else ():
            self._plan(k, steps, sigmas, mu=1.0)  # a shift moves levels, it refuses none

    def _plan(self, k: int, counts: Sequence[int], sigmas: Sequence[float] | None, mu: float | None) -> Run:
        """The steps of stage k."""
        if sigmas is not None and not is_flow(self.base):
            raise ValueError("sigmas to follow are flow matching's; give num_inference_steps")
        spacing = spacing_of(self.base, sum(counts), sigmas, mu) if is_flow(self.base) else None
        return plan_run(self.base, self.pyramid, k, counts[-1 - k], spacing, self.config.timestep_policy)

    def set_timesteps(
        self,
        num_inference_steps: int | Sequence[int] | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | Sequence[float] | None = None,
    ) -> None:
        """Lay out the steps of every stage and begin at the first.

        Args:
            num_inference_steps: a total, split evenly with the remainder to the coarsest; or one count a stage,
                coarsest first.
            device: of `timesteps`.
            timesteps: of a plain schedule; refused where there are stages.
            sigmas: levels before the shift, falling from 1, whose spacing all stages follow.
            mu: dynamic shift; one, or one a stage, coarsest first.

        Raises:
            ValueError: counts that do not fit the stages, more steps than a stage has whole timesteps, or a saved
                pyramidal pipeline to which `apply_pyramid` has not been applied again.
        """
        if len(self.pyramid) == 1:
            given = {"timesteps": timesteps, "sigmas": sigmas, "mu": mu}
            options = {name: value for name, value in given.items() if value is not None}
            wanted = num_inference_steps
            if self.config.steps and sigmas is None and timesteps is None:
                wanted = self.config.steps
            if wanted is not None:
                options["num_inference_steps"] = split_steps(wanted, 1)[0]
            self.base.set_timesteps(device=device, **options)
            self.num_inference_steps = self.base.num_inference_steps
            return
        if self.config.applied and self._only is None:
            raise ValueError(
                "this pipeline was saved with stages: call tpdiff.apply_pyramid(pipe) once it is loaded; a modular one "
                "takes blocks of tpdiff.make_pyramidal, or pipe.update_components(scheduler=pipe.scheduler.base)"
            )
        if timesteps is not None:
            raise ValueError("timesteps of a plain schedule have no meaning with stages; give num_inference_steps")
        wanted = num_inference_steps if num_inference_steps is not None else None if sigmas is None else len(sigmas)
        counts = self._steps or self.config.steps
        if counts is None:
            if wanted is None:
                raise ValueError("give num_inference_steps, or sigmas")
            counts = split_steps(wanted, len(self.pyramid))
        mus = list(mu) if isinstance(mu, Sequence) else [mu] * len(counts)
        shifts = zip(reversed(range(len(self.pyramid))), mus, strict=True)
        runs = [self._plan(k, counts, sigmas, shift) for k, shift in shifts if self._only in (None, k)]
        self._walk = Walk(self._walker, runs, device)
        self.num_inference_steps = sum(len(run.levels) - 1 for run in runs)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The latents as the network takes them."""
        scale = getattr(self._walker, "scale_model_input", None)  # flow matching schedulers have none
        return sample if scale is None else scale(sample, timestep)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Generators = None,
        return_dict: bool = True,
        **options: Any,
    ) -> SchedulerOutput | tuple:
        """One step of the base scheduler; where it ends a stage, the jump into the next one.

        Args:
            model_output: the network's prediction, of the latents' shape.
            timestep: the current one of `timesteps`.
            sample: the latents (B, C, T, H, W); of any shape in the last stage.
            eta: must be 0 where there are stages.
            generator: draws the jump's noise; None: `self.generator`.
            return_dict: a SchedulerOutput, or the tuple (prev_sample,).
            options: of the base scheduler's step, where there is one stage.

        Raises:
            ValueError: noise asked for (eta above 0), an option that stages do not take, other than one generator a
                sample, or no steps left.
        """
        if len(self.pyramid) == 1:
            given = dict(options) | {"eta": eta, "generator": generator}
            return plain_step(self.base, model_output, timestep, sample, return_dict, given)
        if eta > 0 or options.get("s_churn", 0.0) > 0:
            raise ValueError("a stage is sampled without noise: its noise estimate is not the score; use eta=0")
        check_step_options(self.base, options)
        if self._walk is None or self._walk.over:
            raise ValueError("no steps left; call set_timesteps first")
        if self.stage and sample.ndim == 5 and isinstance(generator, list | tuple):
            check_generators(generator, len(sample))
        if self.config.per_stage_target:
            ends = self.pyramid.stages[self.stage]
            model_output = model_output / (ends.start_level.sigma - ends.end_level.sigma)
        prev = self._walk.step(model_output, sample)
        if self._walk.ends_run and not self._walk.over:
            prev = self.jump(prev, generator)
            self._walk.enter_next()
        return SchedulerOutput(prev_sample=prev) if return_dict else (prev,)

    def jump(self, sample: Tensor, generator: Generators = None) -> Tensor:
        """The latents (B, C, T, H, W) that ended the current stage -> those that the next finer one starts from."""
        if self._walk is None:
            raise ValueError("no stage has ended; call set_timesteps first")
        run = self._walk.run
        k, end = run.stage - 1, run.levels[-1]
        start = start_level(self.base, self.pyramid, k)
        x = sample.float() / scale_of(self.base, end)
        source = self.generator if generator is None else generator
        x = jump(x, self.pyramid.resizer, self.pyramid.ratio(k), end, start, source)
        return (x * scale_of(self.base, start)).to(sample.dtype)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean latents (B, ...) at timesteps (B,), in the base scheduler's terms; with stages, at native times."""
        if len(self.pyramid) > 1:
            return noised(self.base, original_samples, noise, timesteps)
        if hasattr(self.base, "add_noise"):
            return self.base.add_noise(original_samples, noise, timesteps)
        return self.base.scale_noise(original_samples, timesteps, noise)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, as flow-matching schedulers name it and order its arguments."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return self.base.config.num_train_timesteps
