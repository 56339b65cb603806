"""From the clean end of stage k+1 to the noisy start of stage k (MATH 3; TPDiff Eq. 14, mended).

    x_s = (γ_s / γ_e) U(x_e) + n,        cov n = σ_s² I - (γ_s/γ_e)² σ_e² U Uᵀ

Upsampling copies noise, so its noise is no longer white; n makes it so. With equal blocks of d elements and
κ_e = κ_s / sqrt(d), n is σ_s times white noise less its block mean.
"""

import math

from torch import Tensor

from tpdiff.pyramid.noise import Generators, randn
from tpdiff.pyramid.operators import Ratio
from tpdiff.pyramid.resize import Resizer
from tpdiff.pyramid.schedule import Level, Schedule


def jump_coefficient(end: Level, start: Level) -> float:
    """c = γ_s / γ_e: what the upsampled latent is multiplied by so that its mean is right."""
    return start.alpha / end.alpha


def roll_back(end: Level, block: float, schedule: Schedule) -> Level:
    """The noisiest level a stage may start at, from the coarser stage's clean end: κ_s = sqrt(d) κ_e (MATH 3).

    Raises:
        ValueError: the schedule has no level that noisy.
    """
    try:
        return schedule.level_from_kappa(math.sqrt(block) * end.kappa)
    except ValueError as error:
        raise ValueError(
            f"infeasible jump: from an end at t = {end.t:.6g} (kappa {end.kappa:.6g}), blocks of {block:g} need a "
            f"start at kappa {math.sqrt(block) * end.kappa:.6g}: {error}"
        ) from error


def roll_forward(start: Level, block: float, schedule: Schedule) -> Level:
    """The noisiest level the coarser stage may end at, from the finer stage's start: κ_e = κ_s / sqrt(d)."""
    return schedule.level_from_kappa(start.kappa / math.sqrt(block))


def check_feasible(end: Level, start: Level, block: float) -> None:
    """Refuse a jump whose upsampled noise already exceeds the start's (MATH 3: λ_e >= λ_s + ½ ln d).

    Raises:
        ValueError: naming both levels and the highest legal kappa.
    """
    limit = start.kappa / math.sqrt(block)
    if end.kappa > limit * (1 + 1e-9):
        raise ValueError(
            f"infeasible jump: the coarser stage ends at t = {end.t:.6g} (kappa {end.kappa:.6g}) and the finer one "
            f"starts at t = {start.t:.6g} (kappa {start.kappa:.6g}); with blocks of {block:g} the end's kappa may be "
            f"at most {limit:.6g}"
        )


def jump(x: Tensor, resizer: Resizer, ratio: Ratio, end: Level, start: Level, generator: Generators = None) -> Tensor:
    """x_e (B, C, T, H, W) of the coarser stage -> x_s of the finer one, its noise white again.

    Args:
        x: the latent at the coarser stage's clean end.
        resizer: the pyramid's resizer.
        ratio: (T, H, W) ratio between the two stages.
        end: the coarser stage's clean level e.
        start: the finer stage's noisy level s.
        generator: one, or one a sample.
    """
    c = jump_coefficient(end, start)
    lifted = resizer.up(x, ratio)
    z = randn(lifted.shape, generator, x.device, x.dtype)
    return c * lifted + resizer.corrective_noise(z, ratio, start.sigma, c * end.sigma)
