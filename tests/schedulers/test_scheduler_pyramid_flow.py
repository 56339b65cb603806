"""Pyramid Flow's conventions against another implementation of them: diffusers' HeliosScheduler.

That class starts from σ = 0.999 and not 1, and cuts its boundaries to whole thousandths; its figures are read here from
an instance, and ours must be the same function of them.
"""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import HeliosScheduler
from scheduled import SPACE, make, noise, run, staged

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.schedulers import PyramidScheduler

EULER = "FlowMatchEulerDiscreteScheduler"
STAGES = range(3)  # there 0 is the coarsest


@pytest.fixture(scope="module")
def helios():
    scheduler = HeliosScheduler()
    assert scheduler.config.gamma == pytest.approx(1 / 3)
    return scheduler


def like(helios, **options):
    """Our scheduler whose coarse stages end where theirs do."""
    ends = [helios.end_sigmas[1], helios.end_sigmas[0]]
    return PyramidScheduler(make(EULER), Pyramid(FlowMatchingSchedule(), SPACE, ends=ends), **options)


def test_stages_start_and_end_alike(helios):
    ours = like(helios).pyramid.stages[::-1]
    for i in STAGES[1:]:
        assert ours[i].start == pytest.approx(helios.start_sigmas[i], abs=1e-12)
    assert ours[0].start == 1
    assert helios.start_sigmas[0] == pytest.approx(0.999)
    assert [stage.end for stage in ours] == pytest.approx([helios.end_sigmas[i] for i in STAGES], abs=1e-12)


def test_even_ends_are_theirs_but_for_the_offset(helios):
    for i, stage in enumerate(Pyramid(FlowMatchingSchedule(), SPACE).stages[::-1]):
        assert stage.start == pytest.approx(helios.start_sigmas[i], abs=1.1e-3)
        assert stage.end == pytest.approx(helios.end_sigmas[i], abs=1.1e-3)


def test_jumps_have_their_coefficients(helios):
    """α and β as their pipeline reckons them, β on noise whose 2 x 2 blocks are correlated by -γ."""
    gamma, pyramid = helios.config.gamma, like(helios).pyramid
    for i in STAGES[1:]:
        signal = 1 - helios.ori_start_sigmas[i]
        alpha = 1 / (math.sqrt(1 + 1 / gamma) * (1 - signal) + signal)
        beta = alpha * (1 - signal) / math.sqrt(gamma)
        k = 2 - i
        assert pyramid.jump_coefficient(k) == pytest.approx(alpha, abs=1e-9)
        sigma = pyramid.stages[k].start
        ours = sigma**2 * (np.eye(4) - 1 / 4)
        assert ours == pytest.approx(beta**2 * (np.eye(4) * (1 + gamma) - gamma), abs=1e-9)


@pytest.mark.parametrize("steps", [4, 20])
def test_times_told_are_theirs(helios, steps):
    """Arc length: a stage that overlaps the next one in σ is told times that do not overlap."""
    scheduler = like(helios, timestep_policy="pyramid_flow")
    for i in STAGES:
        scheduler.restrict(2 - i)
        scheduler.set_timesteps([steps] * 3)
        share = np.linspace(1, 0, steps + 1)[:-1]  # of the stage that is left
        local = helios.sigmas_per_stage[i].numpy() / 0.999
        wanted = np.interp(share, local[::-1], helios.timesteps_per_stage[i].numpy()[::-1])
        assert scheduler.timesteps.numpy() == pytest.approx(wanted, abs=2.5)
    scheduler.restrict(None)
    scheduler.set_timesteps([steps] * 3)
    assert (scheduler.timesteps.diff() < 0).all()
    native = like(helios)
    native.set_timesteps([steps] * 3)
    assert (native.timesteps.diff() > 0).any()
    assert torch.equal(native.sigmas, scheduler.sigmas)


def test_times_told_add_up_over_the_stages():
    scheduler = staged(make(EULER), SPACE, timestep_policy="pyramid_flow")
    scheduler.set_timesteps([2, 2, 2])
    lengths = [stage.start - stage.end for stage in scheduler.pyramid.stages][::-1]
    left = 1 - np.cumsum([0, *lengths]) / sum(lengths)
    wanted = [1000 * at for a, b in pairwise(left) for at in (a, (a + b) / 2)]
    assert scheduler.timesteps.tolist() == pytest.approx(wanted, abs=1e-3)


def test_a_flow_per_stage_is_stepped_as_theirs(helios):
    """Their network's flow spans a stage in one unit; a step of ours over the same share moves as far."""
    scheduler = like(helios, per_stage_target=True)
    x, flow = noise(1, 2, 3, 4, 4), noise(1, 2, 3, 4, 4, seed=1)
    for i in STAGES:
        scheduler.restrict(2 - i)
        scheduler.set_timesteps([5, 5, 5])
        stage = scheduler.pyramid.stages[2 - i]
        share = (scheduler.sigmas - stage.end) / (stage.start - stage.end)
        helios.set_timesteps(5, i)
        for place, t in enumerate(scheduler.timesteps):
            ours = scheduler.step(flow, t, x).prev_sample
            theirs = helios.step_euler(
                flow, float(t), x, sigma=share[place], sigma_next=share[place + 1], return_dict=False
            )[0]
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_a_flow_per_stage_is_the_plain_one_times_its_length():
    plain, scaled = staged(make(EULER), SPACE), staged(make(EULER), SPACE, per_stage_target=True)
    lengths = [stage.start - stage.end for stage in plain.pyramid.stages]
    outs = []
    for scheduler in (plain, scaled):
        scheduler.set_timesteps([3, 3, 3])

        def network(x, t, scheduler=scheduler):
            return 0.4 * x * (lengths[scheduler.stage] if scheduler is scaled else 1)

        outs.append(run(scheduler, noise(1, 1, 2, 2, 2), network, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(*outs, atol=1e-5)
