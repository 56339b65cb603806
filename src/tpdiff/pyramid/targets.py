"""A stage is ordinary diffusion between a virtual clean sample and a virtual noise (MATH 2).

    x_s = γ_s U D_{k+1} x_0 + σ_s ε        x_e = γ_e D_k x_0 + σ_e ε        (TPDiff Eqs. 7-8, Pyramid Flow Eqs. 9-10)

are joined by x_t = γ_t x0_k + σ_t ε_k, and any prediction type is the usual one of that pair.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from tpdiff.pyramid.schedule import FlowMatchingSchedule, Level, Schedule

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
PREDICTION_TYPES: tuple[str, ...] = get_args(PredictionType)


def check_per_stage(schedule: Schedule) -> None:
    """Refuse a flow per unit of a stage's own time where no time makes it x_s - x_e.

    Raises:
        ValueError: another schedule than flow matching's.
    """
    if schedule.name != FlowMatchingSchedule.name:
        raise ValueError(f"flows per stage belong to flow matching; this schedule is {schedule.name}")


@dataclass(frozen=True)
class StagePair:
    """The virtual pair of a stage.

    Attributes:
        sample: x0_k, (B, C, T, H, W) at the stage's size.
        noise: ε_k, same shape.
        schedule: the noise schedule.
        start: the stage's noisy end.
        end: the stage's clean end.
    """

    sample: Tensor
    noise: Tensor
    schedule: Schedule
    start: Level
    end: Level

    def at(self, t: Tensor) -> Tensor:
        """x_t = γ_t x0_k + σ_t ε_k (TPDiff Eq. 10 in closed form), t (B,) in [end, start] -> (B, C, T, H, W)."""
        alpha, sigma = self._coefficients(t)
        return alpha * self.sample + sigma * self.noise

    def target(self, t: Tensor, prediction_type: str, *, per_stage: bool = False) -> Tensor:
        """What the network should say at t (B,), (B, C, T, H, W).

        `per_stage` scales the flow target to one unit of the stage's own time, x_s - x_e, as Pyramid Flow's
        checkpoints expect (TPDiff Eq. 13); by default it is per unit of the schedule's σ.
        """
        alpha, sigma = self._coefficients(t)
        target = prediction_target(self.sample, self.noise, alpha, sigma, prediction_type)
        if not per_stage:
            return target
        if prediction_type != "flow_prediction":
            raise ValueError(f"per_stage targets are defined for flow_prediction, not {prediction_type}")
        check_per_stage(self.schedule)
        return target * (self.start.sigma - self.end.sigma)

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *(1,) * (self.sample.ndim - 1))
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha.to(self.sample).view(shape), sigma.to(self.sample).view(shape)


def virtual_pair(clean: Tensor, lifted: Tensor, noise: Tensor, start: Level, end: Level) -> tuple[Tensor, Tensor]:
    """(x0_k, ε_k) in closed form (MATH 2).

    With H = clean - lifted, x0_k = clean + κ_e/(κ_s - κ_e) H and ε_k = ε - H/(κ_s - κ_e), written without
    dividing by γ so that a start of pure noise is fine.

    Args:
        clean: D_k x_0, (B, C, T, H, W).
        lifted: U D_{k+1} x_0, same shape.
        noise: ε, same shape.
        start: the stage's noisy level s.
        end: its clean level e, cleaner than s.
    """
    high_band = clean - lifted
    delta = end.alpha * start.sigma - start.alpha * end.sigma
    sample = clean + (end.sigma * start.alpha / delta) * high_band
    return sample, noise - (start.alpha * end.alpha / delta) * high_band


def prediction_target(sample: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, prediction_type: str) -> Tensor:
    """The regression target of a (clean, noise) pair for a prediction type named as in diffusers.

    epsilon -> ε; sample -> x_0; v_prediction -> γ ε - σ x_0; flow_prediction -> ε - x_0 (= dx/dσ in flow matching).

    Raises:
        ValueError: an unknown prediction type.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return sample
    if prediction_type == "v_prediction":
        return alpha * noise - sigma * sample
    if prediction_type == "flow_prediction":
        return noise - sample
    raise ValueError(f"unknown prediction_type {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")


def sample_and_noise(
    prediction: Tensor, x: Tensor, alpha: Tensor | float, sigma: Tensor | float, prediction_type: str
) -> tuple[Tensor, Tensor]:
    """The (x̂_0, ε̂) that a prediction at x = γ x_0 + σ ε implies; inverse of `prediction_target`.

    Raises:
        ValueError: an unknown prediction type.
    """
    if prediction_type == "epsilon":
        return (x - sigma * prediction) / alpha, prediction
    if prediction_type == "sample":
        return prediction, (x - alpha * prediction) / sigma
    if prediction_type == "v_prediction":
        power = alpha**2 + sigma**2
        return (alpha * x - sigma * prediction) / power, (sigma * x + alpha * prediction) / power
    if prediction_type == "flow_prediction":
        total = alpha + sigma
        return (x - sigma * prediction) / total, (x + alpha * prediction) / total
    raise ValueError(f"unknown prediction_type {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")


def check_prediction_type(prediction_type: str, start: Level) -> None:
    """Refuse a prediction type that cannot be sampled from `start`.

    Raises:
        ValueError: an unknown type, or epsilon at a level without signal, where x_0 cannot be recovered.
    """
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"unknown prediction_type {prediction_type!r}; known: {', '.join(PREDICTION_TYPES)}")
    if prediction_type == "epsilon" and start.alpha == 0:
        raise ValueError(
            "epsilon prediction cannot start from pure noise (alpha = 0 at t = 1): use v_prediction, sample or "
            "flow_prediction, or a schedule that keeps some signal at its last level"
        )
