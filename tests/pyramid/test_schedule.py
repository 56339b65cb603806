"""Noise levels: published schedules, interpolation between levels, and the way back from κ to t (MATH 1)."""

import math

import numpy as np
import pytest
import torch
from pyramid_reference import FLOW, SCHEDULES, SD_ALPHAS_CUMPROD, VP, coefficients

from tpdiff.pyramid import VariancePreservingSchedule, schedule_from_config

_SQUARES = torch.linspace(0, math.pi / 2, 11, dtype=torch.float64).cos() ** 2
_SQUARES[-1] = 0
COSINE = VariancePreservingSchedule(_SQUARES)


def test_default_levels_are_those_of_stable_diffusion():
    np.testing.assert_allclose(VP.alphas_cumprod.numpy(), SD_ALPHAS_CUMPROD, rtol=1e-12)
    indices = torch.arange(1000, dtype=torch.float64)
    np.testing.assert_allclose(VP.alpha(indices / 999).numpy(), np.sqrt(SD_ALPHAS_CUMPROD), rtol=1e-11)
    np.testing.assert_allclose(VP.sigma(indices / 999).numpy(), np.sqrt(1 - SD_ALPHAS_CUMPROD), rtol=1e-11)
    assert VP.level(1.0).alpha == pytest.approx(0.068, abs=5e-4)


def test_default_levels_are_those_of_diffusers():
    from diffusers import DDIMScheduler

    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
    np.testing.assert_allclose(VP.alphas_cumprod.numpy(), theirs.numpy(), rtol=1e-4)  # theirs are float32 products
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    np.testing.assert_allclose(
        VariancePreservingSchedule.from_betas(betas).alphas_cumprod.numpy(), SD_ALPHAS_CUMPROD, rtol=1e-12
    )
    given = VariancePreservingSchedule.from_alphas_cumprod(theirs)
    assert torch.equal(given.alphas_cumprod, theirs.double())


def test_zero_terminal_snr_is_that_of_diffusers():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    theirs = torch.cumprod(1 - rescale_zero_terminal_snr(betas), dim=0)
    ours = VP.zero_terminal_snr().alphas_cumprod
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-9, atol=1e-15)
    assert ours[-1] == 0
    assert ours[0] == pytest.approx(float(VP.alphas_cumprod[0]), rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_between_levels(schedule):
    """Half way between two indices the log signal-to-noise ratio is the mean of theirs (VP); flow is a line."""
    for t in (0.01, 0.123456, 1 / 3, 0.5, 751.59113 / 999, 0.9999):
        assert (float(schedule.alpha(t)), float(schedule.sigma(t))) == pytest.approx(
            coefficients(schedule, t), abs=1e-12
        )
        level = schedule.level(t)
        assert (level.t, level.alpha, level.sigma) == pytest.approx((t, *coefficients(schedule, t)), abs=1e-12)
        assert float(schedule.kappa(t)) == pytest.approx(level.sigma / level.alpha, rel=1e-12)
        assert level.kappa == pytest.approx(level.sigma / level.alpha, rel=1e-12)
        assert math.tan(level.angle) == pytest.approx(level.kappa, rel=1e-9)


def test_beside_an_infinite_level_the_angle_is_linear():
    """cos² levels that run from exactly clean to exactly pure noise: the ends by angle, the middle by λ."""
    for t, angle in ((0.0, 0.0), (0.05, math.pi / 40), (0.95, 19 * math.pi / 40), (1.0, math.pi / 2)):
        assert float(COSINE.alpha(t)) == pytest.approx(math.cos(angle), abs=1e-12)
        assert float(COSINE.sigma(t)) == pytest.approx(math.sin(angle), abs=1e-12)
    assert float(COSINE.alpha(1.0)) == 0
    assert math.isinf(COSINE.level(1.0).kappa)
    middle = 0.5 * (math.log(math.tan(3 * math.pi / 20)) + math.log(math.tan(4 * math.pi / 20)))
    assert math.log(COSINE.level(0.35).kappa) == pytest.approx(middle, abs=1e-12)


@pytest.mark.parametrize("schedule", [*SCHEDULES, pytest.param(COSINE, id="cosine")])
def test_the_time_of_a_noise_to_signal_ratio(schedule):
    grid = [0.0, 0.001, 0.05, 0.333, 0.5, 0.77777, 0.97, 1.0]
    for t in grid:
        level = schedule.level(t)
        assert schedule.t_from_kappa(level.kappa) == pytest.approx(t, abs=1e-9)
        again = schedule.level_from_kappa(level.kappa)
        assert (again.t, again.alpha, again.sigma) == pytest.approx((t, level.alpha, level.sigma), abs=1e-9)
    kappas = [schedule.level(t).kappa for t in grid]
    assert kappas == sorted(kappas)
    with pytest.raises(ValueError, match="must be >= 0, got -1"):
        schedule.t_from_kappa(-1)


def test_ratios_outside_the_schedule():
    with pytest.raises(ValueError, match=r"ratio 20; this schedule spans 0\.029.* to 14\.6"):
        VP.t_from_kappa(20.0)
    below = VP.level_from_kappa(0.01)  # cleaner than index 0: the level is what was asked, its time the first
    assert below.t == 0
    assert below.kappa == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("values", [[0.5], [0.9, 0.9], [0.5, 0.7], [1.1, 0.5], [0.5, -0.1], [0.5, math.nan]])
def test_impossible_levels_are_refused(values):
    with pytest.raises(ValueError, match="fall strictly from clean to noisy"):
        VariancePreservingSchedule(torch.tensor(values))


def test_configs_rebuild_schedules():
    again = schedule_from_config(VP.config())
    assert torch.equal(again.alphas_cumprod, VP.alphas_cumprod)
    assert type(schedule_from_config(FLOW.config())) is type(FLOW)
    with pytest.raises(ValueError, match="unknown schedule 'edm'; known: flow_matching, variance_preserving"):
        schedule_from_config({"name": "edm"})


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_keep_their_shape_and_come_out_in_double(schedule):
    t = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    for value in (schedule.alpha(t), schedule.sigma(t), schedule.kappa(t)):
        assert value.shape == (2, 3)
        assert value.dtype == torch.float64
