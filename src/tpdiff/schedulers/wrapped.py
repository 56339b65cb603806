"""What a pyramid must know of the diffusers schedulers it can wrap, and how to make one walk a grid of ours."""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from tpdiff.pyramid.schedule import FlowMatchingSchedule, Level, Schedule, VariancePreservingSchedule
from tpdiff.pyramid.targets import check_prediction_type
from tpdiff.schedulers.options import option

NOT_QUITE_NOISE = 1 - 1e-6  # where a solver in log signal-to-noise begins: at 1 its logarithm is infinite
ONE_STEP_AGO = {"prev_derivative": None, "dt": None, "sample": None}  # what a second-order step remembers
STOCHASTIC = "a stage's noise estimate is not the score of its marginal, so only deterministic steps are right"


@dataclass(frozen=True)
class Kind:
    """How a scheduler class keeps its grid.

    Attributes:
        table: it looks levels up in a table by whole timesteps; otherwise it walks an array of noise levels.
        log_snr: it computes in the log of the signal-to-noise ratio.
        scaled: its latents are divided by γ, x_0 + κ ε.
        twice: it evaluates the network at both ends of a step (second order).
    """

    table: bool = False
    log_snr: bool = False
    scaled: bool = False
    twice: bool = False


KINDS = {
    "FlowMatchEulerDiscreteScheduler": Kind(),
    "FlowMatchHeunDiscreteScheduler": Kind(twice=True),
    "UniPCMultistepScheduler": Kind(log_snr=True),
    "DPMSolverMultistepScheduler": Kind(log_snr=True),
    "DDIMScheduler": Kind(table=True),
    "CogVideoXDDIMScheduler": Kind(table=True),
    "EulerDiscreteScheduler": Kind(scaled=True),
    "HeunDiscreteScheduler": Kind(scaled=True, twice=True),
}
OWN_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


def check_wrappable(base: Any) -> Kind:
    """The kind of a scheduler that stages can run.

    Raises:
        ValueError: a scheduler that is unknown, stochastic, spaces its steps in a way that stages cannot follow, or
            cannot begin where its schedule does.
    """
    name = type(base).__name__
    if name not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise ValueError(
            f"{name} cannot run inside a stage: it is unknown or draws noise ({STOCHASTIC}). Known: {known}"
        )
    if option(base, "stochastic_sampling"):
        raise ValueError(f"{name} with stochastic_sampling=True draws noise: {STOCHASTIC}; set it to False")
    algorithm = option(base, "algorithm_type", "")
    if algorithm.startswith("sde"):
        raise ValueError(f"{name} with algorithm_type={algorithm!r} draws noise: {STOCHASTIC}; use 'dpmsolver++'")
    for spacing in OWN_SPACINGS:
        if option(base, spacing):
            raise ValueError(f"{name} with {spacing}=True spaces its steps over one schedule; stages need it off")
    if option(base, "timestep_type") == "continuous":
        raise ValueError(f"{name} with timestep_type='continuous' tells the network another time than the index's")
    if getattr(base, "solver_p", None) is not None:
        raise ValueError(f"{name} with a solver_p of its own cannot be reset at a jump")
    if in_kappa(base) and base.alphas_cumprod[-1] == 0:
        raise ValueError(
            f"{name} computes in noise-to-signal ratios, and the last of its betas leaves no signal, whose ratio is "
            "infinite; nearest: DDIMScheduler"
        )
    prediction_type = option(base, "prediction_type")
    if prediction_type == "flow_prediction" and not is_flow(base):
        raise ValueError(
            f"{name} with prediction_type='flow_prediction' has other noise levels than flow matching's: set "
            "use_flow_sigmas=True if the class takes it; nearest: FlowMatchEulerDiscreteScheduler"
        )
    if prediction_type == "epsilon":
        check_prediction_type("epsilon", schedule_of(base).level(1.0))
    return KINDS[name]


def built(base: Any) -> Any:
    """A scheduler of one's own: a copy of one, or built from what `described` gave.

    Raises:
        ValueError: a class that diffusers does not have.
    """
    if not isinstance(base, dict):
        return copy.deepcopy(base)
    name = base.get("_class_name", "")
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin) and issubclass(kind, ConfigMixin)):
        raise ValueError(f"unknown base scheduler {name!r}: not one of diffusers' schedulers")
    return kind.from_config({key: value for key, value in base.items() if key != "_class_name"})


def described(base: Any) -> dict:
    """A scheduler's class and configuration as JSON has them: arrays are lists."""
    config = {name: value.tolist() if hasattr(value, "tolist") else value for name, value in base.config.items()}
    return {**config, "_class_name": type(base).__name__}


def walker_of(base: Any) -> Any:
    """A copy of a scheduler to walk stages with. It clips nothing: a stage's clean estimate rightly exceeds the data's
    range by a share of its high band (MATH 2), so that clipping it would bend the path.
    """
    walker = copy.deepcopy(base)
    clips = [name for name in ("clip_sample", "thresholding") if option(walker, name)]
    walker.register_to_config(**dict.fromkeys(clips, False))
    return walker


def is_flow(base: Any) -> bool:
    """Whether a scheduler's noise levels are flow matching's."""
    return type(base).__name__.startswith("FlowMatch") or bool(option(base, "use_flow_sigmas"))


def in_kappa(base: Any) -> bool:
    """Whether a scheduler computes in noise-to-signal ratios κ, or their logarithms."""
    return not (is_flow(base) or KINDS[type(base).__name__].table)


def schedule_of(base: Any) -> Schedule:
    """The noise schedule of a diffusers scheduler, or of the one inside a `PyramidScheduler`: what its `Pyramid` is
    built on.

    Raises:
        ValueError: a scheduler without one that we know.
    """
    base = getattr(base, "base", base)
    if is_flow(base):
        return FlowMatchingSchedule()
    if getattr(base, "alphas_cumprod", None) is None:
        raise ValueError(f"{type(base).__name__} has no noise schedule that a pyramid can be built on")
    return VariancePreservingSchedule(base.alphas_cumprod)


def check_schedule(base: Any, schedule: Schedule) -> None:
    """Refuse a pyramid on another noise schedule than its scheduler's.

    Raises:
        ValueError: naming both.
    """
    own = schedule_of(base)
    times = torch.linspace(0, 1, 101, dtype=torch.float64)
    if own.name != schedule.name or not torch.allclose(own.sigma(times), schedule.sigma(times), atol=1e-5):
        raise ValueError(
            f"the pyramid's schedule ({schedule.name}) is not the one of {type(base).__name__} ({own.name}, or other "
            "betas): build it on tpdiff.schedulers.schedule_of(pipe.scheduler)"
        )


def has_whole_times(base: Any) -> bool:
    """Whether the network is told whole timesteps, so that levels must stand on them."""
    return KINDS[type(base).__name__].table or (KINDS[type(base).__name__].log_snr and not is_flow(base))


def load_grid(base: Any, levels: Sequence[Level], times: Tensor, finest: bool) -> Tensor:
    """Make a scheduler walk `levels`, its history empty.

    Args:
        base: the scheduler; its grid is replaced.
        levels: n + 1 levels, noisiest first.
        times: what the network is told at each of them, (n + 1,).
        finest: whether the last level is the schedule's clean end, where the network is never evaluated.

    Returns:
        Timesteps for `base.step`, one an evaluation.
    """
    kind = KINDS[type(base).__name__]
    if kind.twice:
        vars(base).update(ONE_STEP_AGO)
    if kind.log_snr:
        order = base.config.solver_order
        vars(base).update(
            lower_order_nums=0, last_sample=None, model_outputs=[None] * order, timestep_list=[None] * order
        )
    base.num_inference_steps = len(levels) - 1
    if kind.table:
        return _load_table(base, levels)
    values = torch.tensor([_value(base, kind, level) for level in levels], dtype=torch.float64)
    if finest and kind.log_snr and option(base, "final_sigmas_type") == "sigma_min":
        least = 1 / base.config.num_train_timesteps if is_flow(base) else 0.0  # flow's clean end has no noise at all
        values[-1] = _value(base, kind, schedule_of(base).level(least))
    last = len(levels) - 1
    at = torch.arange(last + 1)
    if kind.twice:
        at = torch.tensor([0, *at[1:-1].repeat_interleave(2).tolist(), last])
    told = times[at[:-1] if finest or not kind.twice else at]
    base.sigmas = values[at].to(torch.float32)
    # a multistep solver lowers its order before the last timestep, which only the finest stage holds
    base.timesteps = told if finest else torch.cat([told, told[-1:].expand(option(base, "solver_order", 1))])
    base._step_index, base._begin_index = None, 0
    return told


def _value(base: Any, kind: Kind, level: Level) -> float:
    """A level in the scheduler's own terms."""
    if not is_flow(base):
        return level.kappa
    sigma = min(level.sigma, NOT_QUITE_NOISE) if kind.log_snr else level.sigma
    return 1 - sigma if option(base, "invert_sigmas") else sigma


def _load_table(base: Any, levels: Sequence[Level]) -> Tensor:
    """A table in which the scheduler's own stride leads from one of our levels to the next."""
    steps = len(levels) - 1
    stride = base.config.num_train_timesteps // steps
    if stride < 1:
        raise ValueError(f"{steps} steps are more than the scheduler's {base.config.num_train_timesteps} timesteps")
    places = torch.arange(steps - 1, -1, -1) * stride
    table = torch.ones(base.config.num_train_timesteps, dtype=torch.float64)
    table[places] = torch.tensor([level.alpha**2 for level in levels[:-1]], dtype=torch.float64)
    base.alphas_cumprod = table.to(torch.float32)
    base.final_alpha_cumprod = torch.tensor(levels[-1].alpha ** 2)
    base.timesteps = places
    return places


def scale_of(base: Any, level: Level) -> float:
    """What x = γ x_0 + σ ε is multiplied by to be the scheduler's latent at a level."""
    if not KINDS[type(base).__name__].scaled:
        return 1.0
    return math.inf if level.alpha == 0 else 1 / level.alpha


def noised(base: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """x = γ x_0 + σ ε (B, ...) at timesteps (B,) as `base` tells them, scaled as its latents are."""
    schedule, count = schedule_of(base), base.config.num_train_timesteps
    t = timesteps.to("cpu", torch.float64) / (count if is_flow(base) else count - 1)
    t = 1 - t if option(base, "invert_sigmas") else t
    alpha, sigma = (v.to(clean).view(-1, *(1,) * (clean.ndim - 1)) for v in (schedule.alpha(t), schedule.sigma(t)))
    x = alpha * clean + sigma * noise
    return x / alpha if KINDS[type(base).__name__].scaled else x


def check_step_options(base: Any, options: Mapping[str, Any]) -> None:
    """Refuse what a step inside a stage would not heed. None, False, 0 and the scheduler's own default ask nothing.

    Raises:
        ValueError: naming the option.
    """
    known = inspect.signature(base.step).parameters
    for name, value in options.items():
        usual = known[name].default if name in known else None
        if isinstance(value, Tensor) or (value and value != usual):
            raise ValueError(f"{name}: a step inside a stage takes no such option; leave it out")


def plain_step(
    base: Any, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool, options: Mapping[str, Any]
) -> Any:
    """A step of the scheduler itself, told those of `eta` and `generator` that it takes, and all other options."""
    known = inspect.signature(base.step).parameters
    given = {name: value for name, value in options.items() if name in known or name not in ("eta", "generator")}
    return base.step(model_output, timestep, sample, return_dict=return_dict, **given)
