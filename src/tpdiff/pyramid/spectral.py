"""Pyramids without training: stage boundaries from the spectrum of the latents.

While noise hides a band of frequencies, a latent may as well be kept at a size that lacks the band: the idea of
spectral progressive diffusion (SPEED, arXiv 2605.18736), here for any strides of time and space and for any schedule.

**Units.** White noise of unit variance has power 1 in every coefficient of the orthonormal DCT. Stage k holds D_k x_0,
whose coefficients are those of x_0 divided by sqrt(d_k), d_k the product of its strides, while its own noise is white.
So a coefficient of full-size power P has power P / d_k in stage k, and level κ of stage k shows as much of it as level
sqrt(d_k) κ of full size: the same bookkeeping as the jump's κ_s = sqrt(d) κ_e (MATH 3).

**What a jump loses.** The coarse stage is the base process on D_{k+1} x_0 and knows nothing of the band H_k that it
lacks. The jump into stage k gives that band noise alone, of variance σ², where the base process on D_k x_0 has
γ² P + σ² (P the band's power in stage k, γ and σ at s_k). The share that is missing is

    v = γ² P / (γ² P + σ²) = P / (P + κ_s²),

the Wiener gain of the band: how much of what is there is signal. From s_k on, the probability flow of a Gaussian field
multiplies each coefficient by sqrt(P / (γ² P + σ²)), so it ends at (1 - v) P: *v is exactly the share of the band's
power that the finished latent lacks*. Bands that both stages hold lose nothing. With a tolerance δ for v

    κ_s = sqrt(P (1 - δ) / δ),        κ_e = κ_s / sqrt(d),    d the block of the jump.

P is that of the **strongest** band which stage k has and stage k+1 lacks, not their mean: the mean is mostly that of
the many faint bands far above the cut, and would be kept by giving up the one just above it, which stands beside
intact ones. So δ bounds the loss of every band; of a band in the mean over channels and clips, that is (a channel
stronger than the mean by q loses up to q δ / (1 - δ + q δ)).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise

import numpy as np
import scipy.fft
import torch

from tpdiff.pyramid.geometry import AXIS_NAMES, Strides, exact_strides, plain_strides
from tpdiff.pyramid.jump import roll_forward
from tpdiff.pyramid.operators import Operator, Ratio, find_operator
from tpdiff.pyramid.resize import ratio_between
from tpdiff.pyramid.schedule import CLEAN, Schedule
from tpdiff.pyramid.spectrum import Spectrum, along
from tpdiff.pyramid.stages import Pyramid

NOTHING = 1e-12  # a power that rounding alone leaves, as a share of the largest


def boundaries(
    spectrum: Spectrum,
    factors: Sequence[Sequence[float | Fraction]],
    schedule: Schedule,
    tolerance: float = 0.01,
    *,
    resize: str = "dct",
) -> tuple[list[float], list[float]]:
    """How far down each coarser stage may run, and where the next finer one starts (derivation: above).

    With "dct" the tolerance is exact for a Gaussian field. Other operators mix frequencies, so that what a stage lacks
    is correlated with what it keeps; there the rule bounds the power of H_k per frequency and no more, and the finished
    latent's law is wrong by the order of the tolerance's root. A Gaussian video of 24 frames at half the rate (power
    falling as ν^-2 over three decades), δ = 0.1, 0.03, 0.01: the worst combination of frequencies is off by 10, 3 and
    1 % with "dct", by 23, 11 and 6 % with "haar", and the covariance by 15 to 20 times as much as with "dct".

    Times need not rise from stage to stage. Where P falls as ν^-2 over the image, every stage ends at the same level
    in its own terms: what is left of the noise in a smaller picture looks the same at every size.

    Args:
        spectrum: of the latents that the network was trained on.
        factors: (T, H, W) stride of each stage against full size, finest first.
        schedule: the base method's noise schedule.
        tolerance: δ in (0, 1), the largest share of a band's power that may be lost.
        resize: the resizing operator.

    Returns:
        (ends e_1 .. e_{S-1}, starts s_0 .. s_{S-2}), times in (0, 1), as `Pyramid` takes them.

    Raises:
        ValueError: a tolerance outside (0, 1), factors that the operator or the spectrum cannot speak of, or a stage
            that would have nothing to do, by its number.
    """
    if not 0 < tolerance < 1:
        raise ValueError(f"tolerance must lie in (0, 1), got {tolerance}")
    strides, operator = exact_strides(factors), find_operator(resize)
    lacking = _lacking(spectrum, strides, operator)
    last = schedule.level(1.0).kappa
    clean, ends, starts = CLEAN, [], []
    for k, (fine, coarse) in enumerate(pairwise(strides)):
        kappa = math.sqrt(lacking[k] * (1 - tolerance) / tolerance)
        if kappa >= last:
            raise ValueError(
                f"{_useless(k + 1, strides, tolerance)}: the bands it lacks show already at the schedule's noisiest "
                f"level (from kappa {kappa:.4g} down; the schedule begins at {last:.4g})"
            )
        start = schedule.level_from_kappa(kappa)
        if not start.t > clean.t:
            raise ValueError(
                f"{_useless(k, strides, tolerance)}: the bands that stage {k + 1} lacks beside it show from "
                f"t = {start.t:.4g} on, and stage {k} would end at t = {clean.t:.4g}"
            )
        clean = roll_forward(start, operator.block(ratio_between(fine, coarse)), schedule)
        if not clean.t > 0:
            raise ValueError(
                f"{_useless(k, strides, tolerance)}: stage {k + 1} may run down to the schedule's first level"
            )
        starts.append(start.t)
        ends.append(clean.t)
    return ends, starts


def spectral_pyramid(
    spectrum: Spectrum,
    schedule: Schedule,
    factors: Sequence[Sequence[float | Fraction]],
    tolerance: float = 0.01,
    *,
    resize: str = "dct",
) -> Pyramid:
    """A pyramid for a network that knows nothing of pyramids, with the stage boundaries of its latents' spectrum.

    Its time axis is causal where the spectrum's is. Sample with the network's **own** prediction at every stage: the
    stage is the base process on D_k x_0 with the pair (D_k x_0, ε), free of the virtual pair's share of H_k (MATH 2).
    Of x_s = γ_s D_k x_0 + σ_s ε the jump leaves out γ_s H_k, the band below the noise, so that the network starts from
    a law that is right but for the tolerance.

    What no tolerance bounds is the network itself. At stage k it sees a clip of fewer elements, whose power at
    frequency ν (of its own highest) is P(ν / f) / d_k. That is the spectrum that it was trained on where P falls as
    ν^-n, n the axes that are resized: pictures, falling about as ν^-2 over two axes, look alike at every size. Time
    alone wants ν^-1. Where P falls faster, coarse stages hold more motion than the network expects, and it makes the
    slowest motion too weak: with ν^-2 along 24 frames at half the rate and a network that is perfect but for this, the
    lowest cosine keeps 0.53, 0.59 and 0.70 of its power at δ = 0.1, 0.03 and 0.01. A smaller tolerance helps here too,
    since the coarse stage then decides less.

    Raises:
        ValueError: see `boundaries`.
    """
    ends, starts = boundaries(spectrum, factors, schedule, tolerance, resize=resize)
    return Pyramid(schedule, factors, ends=ends, starts=starts, resize=resize, causal_time=spectrum.causal_time)


def power_lost(spectrum: Spectrum, pyramid: Pyramid) -> list[float]:
    """v of the jump into each stage k = 0 .. S-2: the largest share of a band's power that is lost without training.

    The inverse of `boundaries`: what a pyramid of any levels costs a network that knows nothing of pyramids.

    Raises:
        ValueError: strides that the spectrum cannot speak of, or the other kind of time axis.
    """
    if pyramid.causal_time != spectrum.causal_time:
        kinds = ("plain", "causal")
        raise ValueError(
            f"the spectrum was measured on a {kinds[spectrum.causal_time]} time axis, the pyramid has a "
            f"{kinds[pyramid.causal_time]} one"
        )
    lacking = _lacking(spectrum, exact_strides(pyramid.factors), pyramid.resizer.operator)
    return [p / (p + stage.start_level.kappa**2) for p, stage in zip(lacking, pyramid.stages[:-1], strict=True)]


def _lacking(spectrum: Spectrum, strides: Sequence[Strides], operator: Operator) -> list[float]:
    """The largest band power of H_k = (I - U D) D_k x_0, in stage k's own units, for k = 0 .. S-2."""
    _check_strides(spectrum, strides)
    powers = [spectrum.power] if spectrum.first is None else [spectrum.power, spectrum.first[None]]
    found = []
    for fine, coarse in pairwise(strides):
        ratio = ratio_between(fine, coarse)
        operator.check_ratio(ratio)
        parts = [_split(power, ratio, operator) for power in powers]
        strongest = max(float(high.max()) for high, _ in parts)
        floor = NOTHING * max(float(power.max()) for power in powers)
        found.append(strongest if strongest > floor else 0.0)
        powers = [low for _, low in parts]
    return found


def _split(power: np.ndarray, ratio: Ratio, operator: Operator) -> tuple[np.ndarray, np.ndarray]:
    """(power of (I - UD) x at the fine size, power of D x at the coarse size) of x with independent coefficients."""
    ratio = (ratio[0] if power.shape[0] > 1 else 1.0, *ratio[1:])
    kept, mixed, low = power, power, power
    for axis, (n, r) in enumerate(zip(power.shape, ratio, strict=True)):
        down, both = _in_cosines(n, r, operator)
        kept = along(np.diag(np.diag(both)), kept, axis)
        mixed = along(both**2, mixed, axis)
        low = along(down**2, low, axis)
    return power - 2 * kept + mixed, low


def _in_cosines(n: int, ratio: float, operator: Operator) -> tuple[np.ndarray, np.ndarray]:
    """(D, UD) along one axis of n elements, between DCT coefficients."""
    units = torch.eye(n, dtype=torch.float64).reshape(n, 1, n, 1, 1)
    low = operator.down(units, (ratio, 1.0, 1.0))
    down, both = (x.flatten(1).T.numpy() for x in (low, operator.up(low, (ratio, 1.0, 1.0))))
    fine, coarse = (scipy.fft.dct(np.eye(m), norm="ortho", axis=0) for m in (n, len(down)))
    return coarse @ down @ fine.T, fine @ both @ fine.T


def _check_strides(spectrum: Spectrum, strides: Sequence[Strides]) -> None:
    measured = (spectrum.size[0] - int(spectrum.causal_time), *spectrum.size[1:])
    for axis, (name, elements, bands) in enumerate(zip(AXIS_NAMES, measured, spectrum.power.shape, strict=True)):
        for stride in (stage[axis] for stage in strides):
            if stride.numerator > elements:
                raise ValueError(
                    f"the spectrum was measured on {elements} along {name} and cannot speak of stride {stride}"
                )
            if bands % stride.numerator:
                raise ValueError(
                    f"the spectrum's {bands} bands along {name} cannot be cut at stride {stride}; "
                    f"measure it with a multiple of {stride.numerator}"
                )


def _useless(k: int, strides: Sequence[Strides], tolerance: float) -> str:
    return f"stage {k} of factors {plain_strides(strides[k])} is useless at tolerance {tolerance:g}, leave it out"
