"""Which levels stages visit, and what the network is told there: flow matching's, and those around pure noise."""

import math

import numpy as np
import pytest
import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from scheduled import BOTH, STABLE_DIFFUSION, TIME, bounds, grids, make, noise, run, staged

from tpdiff.pyramid import Pyramid
from tpdiff.schedulers import PyramidScheduler, schedule_of

EULER, UNIPC, DPM = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"
HEUN = "FlowMatchHeunDiscreteScheduler"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SHIFTED = [(EULER, {"shift": 5.0}), (UNIPC, {**FLOW, "flow_shift": 5.0}), (DPM, {**FLOW, "flow_shift": 5.0})]


def unshifted(sigma, shift):
    return sigma / (shift - (shift - 1) * sigma)


# Flow matching


@pytest.mark.parametrize(("name", "config"), [(EULER, {}), (UNIPC, FLOW), (DPM, FLOW)])
def test_without_a_shift_levels_are_even(name, config):
    scheduler = staged(make(name, **config), BOTH)
    for grid, (start, end), n in zip(grids(scheduler, [5, 3, 2]), bounds(scheduler), [5, 3, 2], strict=True):
        assert grid == pytest.approx(np.linspace(start, end, n + 1), abs=2e-6)


@pytest.mark.parametrize(("name", "config"), SHIFTED)
def test_with_a_shift_levels_are_even_before_it(name, config):
    scheduler = staged(make(name, **config))
    for grid, (start, end), n in zip(grids(scheduler, [6, 4, 3]), bounds(scheduler), [6, 4, 3], strict=True):
        u = unshifted(grid, 5.0)
        assert u == pytest.approx(np.linspace(u[0], u[-1], n + 1), abs=5e-6)
        assert grid[[0, -1]] == pytest.approx([start, end], abs=2e-6)
        assert np.ptp(np.diff(grid)) > 0.01


def test_a_shift_set_later_counts():
    scheduler, shifted = staged(make(EULER)), staged(make(EULER, shift=7.0))
    scheduler.base.set_shift(7.0)
    assert np.array_equal(grids(scheduler, [2, 2, 2]), grids(shifted, [2, 2, 2]))


@pytest.mark.parametrize(("kind", "shift"), [("exponential", math.exp(0.8)), ("linear", 0.8)])
def test_a_dynamic_shift_is_one_or_one_a_stage(kind, shift):
    scheduler = staged(make(EULER, use_dynamic_shifting=True, time_shift_type=kind))
    plain = [grids(staged(make(EULER, shift=s)), [4, 4, 4]) for s in (shift, 1.0 if kind == "linear" else math.e)]
    assert grids(scheduler, [4, 4, 4], mu=0.8) == [pytest.approx(grid) for grid in plain[0]]
    mixed = grids(scheduler, [4, 4, 4], mu=[0.8, 1.0, 0.8])
    assert mixed == [pytest.approx(plain[i][j]) for j, i in enumerate([0, 1, 0])]
    with pytest.raises(ValueError, match="`mu` must be passed"):
        scheduler.set_timesteps(6)


@pytest.mark.parametrize(
    ("name", "config"),
    [(UNIPC, {**FLOW, "flow_shift": 3.0}), (EULER, {"use_dynamic_shifting": True}), (EULER, {"shift_terminal": 0.1})],
)
def test_a_shift_or_a_terminal_that_the_class_does_not_take_is_none(name, config):
    """`from_config` keeps another class's options in the configuration."""
    other = make(name, **config)
    for shift in (5.0, 1.0):
        plain = make(HEUN, shift=shift)
        kept = type(plain).from_config(other.config, shift=shift)
        assert config.keys() <= kept.config.keys()
        assert grids(staged(kept), [3, 3, 3]) == [pytest.approx(grid) for grid in grids(staged(plain), [3, 3, 3])]


@pytest.mark.parametrize(("name", "config"), [(HEUN, {}), (UNIPC, FLOW), (DPM, FLOW)])
def test_time_runs_backwards_only_where_the_class_takes_that(name, config):
    plain = make(name, **config)
    kept = type(plain).from_config(make(EULER, invert_sigmas=True).config, **config)
    assert kept.config.invert_sigmas
    one, other = staged(kept), staged(plain)
    for scheduler in (one, other):
        scheduler.set_timesteps(6)
    assert torch.equal(one.timesteps, other.timesteps)
    assert torch.equal(one.sigmas, other.sigmas)
    clean, at = noise(2, 1, 2, 1, 1), torch.tensor([900.0, 100.0])
    assert torch.equal(one.add_noise(clean, -clean, at), other.add_noise(clean, -clean, at))


def test_a_shift_that_the_class_takes_counts_from_another_configuration():
    told = [(EULER, {"shift": 5.0}, {}), (UNIPC, {"flow_shift": 5.0}, FLOW), (DPM, {"flow_shift": 5.0}, FLOW)]
    for name, shift, config in told:
        plain = make(name, **shift, **config)
        for other in (make(HEUN, shift=2.0), make(UNIPC, **FLOW, flow_shift=2.0)):
            kept = type(plain).from_config(other.config, **shift, **config)
            assert grids(staged(kept), [3, 3, 3]) == [pytest.approx(grid) for grid in grids(staged(plain), [3, 3, 3])]


def test_the_terminal_stretch_is_followed():
    """LTX: of n even steps the last starts from 0.1. The stages' levels stand evenly on the same stretched curve."""
    base = make(EULER, shift_terminal=0.1, shift=2.0)
    scheduler = staged(base)
    base.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12))
    u, curve = np.linspace(0, 1, 13), [0.0, *base.sigmas[:-1].flip(0).double().numpy()]
    assert curve[1] == pytest.approx(0.1)
    fine = np.linspace(1 / 12, 1, 10001)
    stretched = 1 - (1 - 2 * fine / (1 + fine)) * 0.9 / (1 - 2 / 13)
    assert np.interp(u[1:], fine, stretched) == pytest.approx(curve[1:], abs=1e-5)
    for grid in grids(scheduler, [4, 4, 4]):
        at = np.interp(grid[grid > 0.1], stretched, fine)
        assert np.ptp(np.diff(at)) < 1e-3 * abs(np.diff(at)).max()
    whole = grids(staged(base), [4, 4, 4])[-1]
    assert np.diff(whole)[-1] == pytest.approx(-whole[-2])


def test_a_pipelines_own_table_is_followed():
    """Mochi's, straight at first and then quadratic: equal steps of u are equal shares of the table."""
    table = np.array(linear_quadratic_schedule(32, 0.025))
    scheduler = staged(make(EULER, invert_sigmas=True))
    for grid, (start, end), n in zip(
        grids(scheduler, [7, 5, 3], sigmas=table), bounds(scheduler), [7, 5, 3], strict=True
    ):
        sigma = 1 - grid
        assert sigma[[0, -1]] == pytest.approx([start, end], abs=2e-6)
        share = np.interp(sigma, [0.0, *table[::-1]], np.linspace(0, 1, 33))
        assert share == pytest.approx(np.linspace(share[0], share[-1], n + 1), abs=2e-5)
    scheduler.set_timesteps(sigmas=table)
    assert len(scheduler.timesteps) == 32
    with pytest.raises(ValueError, match=r"sigmas must fall from 1 towards 0; got 0\.5 \.\.\. 0\.4"):
        scheduler.set_timesteps(sigmas=[0.5, 0.6, 0.4])


@pytest.mark.parametrize(("name", "config"), [(EULER, {}), (UNIPC, FLOW), (DPM, FLOW)])
def test_flow_times_are_a_thousand_sigmas(name, config):
    scheduler = staged(make(name, **config))
    scheduler.set_timesteps(7)
    assert scheduler.timesteps.dtype == torch.float32
    assert torch.allclose(scheduler.timesteps, 1000 * scheduler.sigmas[:-1], atol=2e-3)
    assert scheduler.timesteps[0] == 1000


def test_mochis_times_run_the_other_way():
    scheduler = staged(make(EULER, invert_sigmas=True))
    scheduler.set_timesteps(7)
    assert scheduler.timesteps[0] == scheduler.sigmas[0] == 0
    assert scheduler.sigmas[-1] == 1
    assert torch.allclose(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])


# A last level without signal

PURE = {**STABLE_DIFFUSION, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", DPM, UNIPC])
def test_a_new_scheduler_starts_from_its_own_last_level(name):
    """Pure noise has an infinite noise-to-signal ratio; what computes in ratios keeps a last trace of signal."""
    base, before = make(name, **PURE), make("DDIMScheduler", **PURE)
    swapped, own = PyramidScheduler(base, Pyramid(schedule_of(before), TIME)), staged(base)
    made = []
    for scheduler in (swapped, own):
        scheduler.set_timesteps([3, 2, 2])
        assert scheduler.timesteps[0] == 999 and scheduler.sigmas[0] == pytest.approx(4096, rel=1e-3)
        made.append(run(scheduler, noise(1, 1, 2, 1, 1), generator=torch.Generator().manual_seed(0)))
        clean = torch.ones(1, 1, 2, 1, 1)
        assert scheduler.add_noise(clean, clean, torch.tensor([999])).isfinite().all()
    torch.testing.assert_close(*made, rtol=1e-3, atol=1e-3)


def test_a_scheduler_that_starts_at_infinity_is_refused():
    base = make("HeunDiscreteScheduler", trained_betas=[*np.linspace(1e-4, 0.02, 999), 1.0])
    with pytest.raises(ValueError, match=r"HeunDiscreteScheduler computes in noise-to-signal ratios.*nearest: DDIM"):
        staged(base)
