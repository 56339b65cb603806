"""Noise schedules: how much signal and how much noise a latent holds at time t (MATH 1; TPDiff Eq. 6).

    x_t = alpha(t) x_0 + sigma(t) ε,        t in [0, 1], t = 1 the noisiest

`alpha` is γ_t and `sigma` is σ_t of the papers, `kappa = sigma / alpha` the noise-to-signal ratio. Everything
is computed in float64; callers cast to their own dtype.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """One noise level: its time in [0, 1], signal coefficient γ >= 0 and noise coefficient σ >= 0.

    A boundary of a stage carries all three, because the clean end of a pyramid is (0, 1, 0) even where the
    schedule's first level is not quite clean (MATH 1).
    """

    t: float
    alpha: float
    sigma: float

    @property
    def kappa(self) -> float:
        """Noise-to-signal ratio σ/γ in [0, inf]."""
        return math.inf if self.alpha == 0 else self.sigma / self.alpha

    @property
    def angle(self) -> float:
        """atan κ in [0, π/2], finite at every level."""
        return math.atan2(self.sigma, self.alpha)


CLEAN = Level(0.0, 1.0, 0.0)


class Schedule(Protocol):
    """What a pyramid asks of a noise schedule."""

    name: str

    def alpha(self, t: Tensor | float) -> Tensor:
        """γ at times t in [0, 1], float64, shape of t."""

    def sigma(self, t: Tensor | float) -> Tensor:
        """σ at times t in [0, 1], float64, shape of t."""

    def kappa(self, t: Tensor | float) -> Tensor:
        """σ/γ at times t, float64, shape of t; inf where γ = 0."""

    def t_from_kappa(self, kappa: float) -> float:
        """The time whose noise-to-signal ratio is κ. Raises ValueError where no time has it."""

    def level(self, t: float) -> Level:
        """The level at time t."""

    def level_from_kappa(self, kappa: float) -> Level:
        """The level of noise-to-signal ratio κ in [0, inf]."""

    def config(self) -> dict:
        """What `schedule_from_config` needs to build the schedule again (plain JSON values)."""


def _as_double(t: Tensor | float) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


class FlowMatchingSchedule:
    """Straight-line flow matching: γ = 1 - t, σ = t (TPDiff Eq. 4)."""

    name = "flow_matching"

    def alpha(self, t: Tensor | float) -> Tensor:
        return 1 - _as_double(t)

    def sigma(self, t: Tensor | float) -> Tensor:
        return _as_double(t)

    def kappa(self, t: Tensor | float) -> Tensor:
        return self.sigma(t) / self.alpha(t)

    def t_from_kappa(self, kappa: float) -> float:
        _refuse_negative(kappa)
        return 1.0 if math.isinf(kappa) else kappa / (1 + kappa)

    def level(self, t: float) -> Level:
        return Level(t, 1 - t, t)

    def level_from_kappa(self, kappa: float) -> Level:
        return self.level(self.t_from_kappa(kappa))

    def config(self) -> dict:
        return {"name": self.name}


class VariancePreservingSchedule:
    """DDPM / DDIM noise levels: γ = sqrt(ᾱ), σ = sqrt(1 - ᾱ) (TPDiff Eq. 1).

    N levels stand at t = i / (N - 1). Between two of them the schedule is linear in the log signal-to-noise
    ratio λ = -ln κ; beside a level without signal or without noise, where λ is infinite, it is linear in
    atan κ (MATH 1).

    Args:
        alphas_cumprod: ᾱ, shape (N,), values in [0, 1], strictly falling. None: Stable Diffusion's
            scaled-linear schedule, β from 0.00085 to 0.012, N = 1000.

    Raises:
        ValueError: fewer than two levels, a value outside [0, 1], or a sequence that does not fall.
    """

    name = "variance_preserving"

    def __init__(self, alphas_cumprod: Tensor | None = None):
        if alphas_cumprod is None:
            root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)
            alphas_cumprod = torch.cumprod(1 - root**2, dim=0)
        levels = torch.as_tensor(alphas_cumprod, dtype=torch.float64).flatten().cpu()
        if len(levels) < 2 or levels.min() < 0 or levels.max() > 1 or not bool((levels.diff() < 0).all()):
            raise ValueError(
                "alphas_cumprod must hold at least two values in [0, 1] that fall strictly from clean to noisy"
            )
        self.alphas_cumprod = levels
        self._angle = torch.atan2((1 - levels).sqrt(), levels.sqrt())
        self._log_snr = 0.5 * (torch.log(levels) - torch.log1p(-levels))

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> "VariancePreservingSchedule":
        """From ᾱ, shape (N,)."""
        return cls(alphas_cumprod)

    @classmethod
    def from_betas(cls, betas: Tensor) -> "VariancePreservingSchedule":
        """From β in (0, 1], shape (N,): ᾱ is the running product of 1 - β."""
        return cls(torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), dim=0))

    def zero_terminal_snr(self) -> "VariancePreservingSchedule":
        """The same schedule with its last level moved to pure noise, first level kept (arXiv 2305.08891, Alg. 1)."""
        root = self.alphas_cumprod.sqrt()
        return type(self)(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2)

    def _cos_sin(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        index = _as_double(t) * (len(self.alphas_cumprod) - 1)
        left = index.floor().clamp(0, len(self.alphas_cumprod) - 2).long()
        weight = index - left
        angle, log_snr = self._angle.to(index.device), self._log_snr.to(index.device)
        by_angle = torch.lerp(angle[left], angle[left + 1], weight)
        by_snr = torch.lerp(log_snr[left], log_snr[left + 1], weight)
        finite = log_snr[left].isfinite() & log_snr[left + 1].isfinite()
        alpha = torch.where(finite, torch.sigmoid(2 * by_snr).sqrt(), by_angle.cos())
        sigma = torch.where(finite, torch.sigmoid(-2 * by_snr).sqrt(), by_angle.sin())
        no_signal = (weight == 1) & (self.alphas_cumprod.to(index.device)[left + 1] == 0)
        return alpha.masked_fill(no_signal, 0.0), sigma

    def alpha(self, t: Tensor | float) -> Tensor:
        return self._cos_sin(t)[0]

    def sigma(self, t: Tensor | float) -> Tensor:
        return self._cos_sin(t)[1]

    def kappa(self, t: Tensor | float) -> Tensor:
        alpha, sigma = self._cos_sin(t)
        return sigma / alpha

    def t_from_kappa(self, kappa: float) -> float:
        _refuse_negative(kappa)
        angle = math.atan(kappa)
        first, last = float(self._angle[0]), float(self._angle[-1])
        if kappa == 0 or abs(angle - first) < 1e-12:
            return 0.0
        if abs(angle - last) < 1e-12:
            return 1.0
        if not first < angle < last:
            raise ValueError(
                f"no time has noise-to-signal ratio {kappa:.6g}; this schedule spans "
                f"{math.tan(first):.6g} to {math.tan(last):.6g}"
            )
        left = int(torch.searchsorted(self._angle, angle, right=True)) - 1
        a, b = float(self._log_snr[left]), float(self._log_snr[left + 1])
        if math.isfinite(a) and math.isfinite(b):
            weight = (a + math.log(kappa)) / (a - b)
        else:
            a, b = float(self._angle[left]), float(self._angle[left + 1])
            weight = (angle - a) / (b - a)
        return (left + weight) / (len(self.alphas_cumprod) - 1)

    def level(self, t: float) -> Level:
        alpha, sigma = self._cos_sin(t)
        return Level(t, float(alpha), float(sigma))

    def level_from_kappa(self, kappa: float) -> Level:
        _refuse_negative(kappa)
        angle = math.atan(kappa)
        t = 0.0 if angle <= float(self._angle[0]) else self.t_from_kappa(kappa)
        alpha = 0.0 if math.isinf(kappa) else math.cos(angle)
        return Level(t, alpha, math.sin(angle))

    def config(self) -> dict:
        return {"name": self.name, "alphas_cumprod": self.alphas_cumprod.tolist()}


def schedule_from_config(config: dict) -> Schedule:
    """Build the schedule that `Schedule.config` described.

    Raises:
        ValueError: an unknown name.
    """
    if config["name"] == FlowMatchingSchedule.name:
        return FlowMatchingSchedule()
    if config["name"] == VariancePreservingSchedule.name:
        return VariancePreservingSchedule(torch.tensor(config["alphas_cumprod"], dtype=torch.float64))
    raise ValueError(
        f"unknown schedule {config['name']!r}; known: {FlowMatchingSchedule.name}, {VariancePreservingSchedule.name}"
    )


def _refuse_negative(kappa: float) -> None:
    if not kappa >= 0:
        raise ValueError(f"noise-to-signal ratio must be >= 0, got {kappa}")
