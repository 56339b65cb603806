"""Deterministic steps from one noise level to the next, the same inside a stage as in the base method (MATH 2).

Divided by γ + σ, every path x = γ x_0 + σ ε of a virtual pair is a straight line in τ = σ / (γ + σ), with slope
ε - x_0. That is flow matching's own coordinate, and it is finite at pure noise and at clean data alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tpdiff.pyramid.schedule import Level
from tpdiff.pyramid.targets import sample_and_noise

Predict = Callable[[Tensor, Level], Tensor]
"""(x, level) -> the network's prediction there."""


@dataclass(frozen=True)
class Step:
    """Where a step led: the next latent, and the clean estimate x̂0_k it was taken towards."""

    latents: Tensor
    denoised: Tensor


Solver = Callable[[Predict, Tensor, Level, Level, str], Step]


def ddim(predict: Predict, x: Tensor, level: Level, target: Level, prediction_type: str) -> Step:
    """DDIM with η = 0 (TPDiff Eq. 3): x' = γ' x̂_0 + σ' ε̂."""
    sample, noise = sample_and_noise(predict(x, level), x, level.alpha, level.sigma, prediction_type)
    return Step(target.alpha * sample + target.sigma * noise, sample)


def euler(predict: Predict, x: Tensor, level: Level, target: Level, prediction_type: str) -> Step:
    """Euler's step along the straight line; for flow matching x' = x + (σ' - σ) v. Equal to DDIM but for rounding."""
    slope, sample = _slope(predict(x, level), x, level, prediction_type)
    return Step(_advance(x, slope, level, target), sample)


def heun(predict: Predict, x: Tensor, level: Level, target: Level, prediction_type: str) -> Step:
    """Heun's second-order step: the mean of the slopes at both ends; first order into a level without noise."""
    slope, sample = _slope(predict(x, level), x, level, prediction_type)
    ahead = _advance(x, slope, level, target)
    if target.sigma == 0:
        return Step(ahead, sample)
    slope_ahead, _ = _slope(predict(ahead, target), ahead, target, prediction_type)
    return Step(_advance(x, (slope + slope_ahead) / 2, level, target), sample)


SOLVERS: dict[str, Solver] = {"euler": euler, "ddim": ddim, "heun": heun}


def check_solver(name: str) -> None:
    """Raise ValueError for a name that is not in `SOLVERS`."""
    if name not in SOLVERS:
        raise ValueError(f"unknown solver {name!r}; known: {', '.join(SOLVERS)}")


def _slope(prediction: Tensor, x: Tensor, level: Level, prediction_type: str) -> tuple[Tensor, Tensor]:
    """(ε̂ - x̂_0, x̂_0) at a level."""
    sample, noise = sample_and_noise(prediction, x, level.alpha, level.sigma, prediction_type)
    return (prediction if prediction_type == "flow_prediction" else noise - sample), sample


def _advance(x: Tensor, slope: Tensor, level: Level, target: Level) -> Tensor:
    here, there = level.alpha + level.sigma, target.alpha + target.sigma
    return there * (x / here + (target.sigma / there - level.sigma / here) * slope)
