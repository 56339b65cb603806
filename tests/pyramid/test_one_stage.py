"""One stage is the base method bit for bit, and two stages of equal size are the base method too (MATH 2.4)."""

import pytest
import torch
from pyramid_reference import FLOW, SD_ALPHAS_CUMPROD, VP, coefficients, normal

from tpdiff.pyramid import PREDICTION_TYPES, Pyramid

CLEAN, NOISE = normal(4, 3, 5, 2, 2, seed=1).float(), normal(4, 3, 5, 2, 2, seed=2).float()
TYPES = pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)


def plain_target(prediction_type, clean, noise, gamma, sigma):
    return {
        "epsilon": noise,
        "sample": clean,
        "v_prediction": gamma * noise - sigma * clean,
        "flow_prediction": noise - clean,
    }[prediction_type]


@TYPES
def test_flow_matching_is_trained_bit_for_bit(prediction_type):
    t = torch.tensor([0.03, 0.25, 0.6, 0.999])
    pair = Pyramid(FLOW).pair(CLEAN, None, NOISE, 0)
    sigma = t.view(4, 1, 1, 1, 1)
    gamma = (1 - t.double()).float().view(4, 1, 1, 1, 1)
    assert torch.equal(pair.at(t), gamma * CLEAN + sigma * NOISE)
    assert torch.equal(pair.target(t, prediction_type), plain_target(prediction_type, CLEAN, NOISE, gamma, sigma))


@TYPES
def test_ddpm_is_trained_bit_for_bit(prediction_type):
    """At whole timesteps, with the same ᾱ; times are float64 as float32 cannot hold index / 999."""
    index = torch.tensor([0, 333, 437, 999])
    pair = Pyramid(VP).pair(CLEAN, None, NOISE, 0)
    levels = torch.from_numpy(SD_ALPHAS_CUMPROD)[index].view(4, 1, 1, 1, 1)
    gamma, sigma = levels.sqrt().float(), (1 - levels).sqrt().float()
    t = index.double() / 999
    assert torch.equal(pair.at(t), gamma * CLEAN + sigma * NOISE)
    assert torch.equal(pair.target(t, prediction_type), plain_target(prediction_type, CLEAN, NOISE, gamma, sigma))


@TYPES
def test_ddpm_is_trained_as_diffusers_does(prediction_type):
    """DDPMScheduler's own add_noise and get_velocity, to float32 rounding."""
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pyramid = Pyramid(VP.from_alphas_cumprod(theirs.alphas_cumprod))
    index = torch.tensor([0, 10, 500, 999])
    pair = pyramid.pair(CLEAN, None, NOISE, 0)
    t = index.double() / 999
    torch.testing.assert_close(pair.at(t), theirs.add_noise(CLEAN, NOISE, index), rtol=1e-5, atol=1e-6)
    wanted = {
        "epsilon": NOISE,
        "sample": CLEAN,
        "v_prediction": theirs.get_velocity(CLEAN, NOISE, index),
        "flow_prediction": NOISE - CLEAN,
    }[prediction_type]
    torch.testing.assert_close(pair.target(t, prediction_type), wanted, rtol=1e-5, atol=1e-6)


@TYPES
@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
def test_stages_of_equal_size_are_trained_as_the_base_method(schedule, k, prediction_type):
    pyramid = Pyramid(schedule, [(1, 1, 1), (1, 1, 1)], ends=[0.4])
    clean, noise = CLEAN.double(), NOISE.double()
    pair = pyramid.pair(clean, clean if k == 0 else None, noise, k)
    t = pyramid.times(torch.tensor([0.1, 0.4, 0.8, 1.0], dtype=torch.float64), k)
    gamma, sigma = (
        torch.tensor(c, dtype=torch.float64).view(4, 1, 1, 1, 1)
        for c in zip(*(coefficients(schedule, float(one)) for one in t), strict=True)
    )
    torch.testing.assert_close(pair.at(t), gamma * clean + sigma * noise, rtol=0, atol=1e-9)
    wanted = plain_target(prediction_type, clean, noise, gamma, sigma)
    torch.testing.assert_close(pair.target(t, prediction_type), wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
def test_stages_of_equal_size_meet_at_one_level_and_jump_without_a_change(schedule):
    pyramid = Pyramid(schedule, [(1, 1, 1), (1, 1, 1)], ends=[0.4])
    assert pyramid.stages[0].start == pytest.approx(0.4, abs=1e-12)
    assert pyramid.jump_coefficient(0) == pytest.approx(1, abs=1e-12)
    x = normal(2, 3, 5, 2, 2, seed=3)
    jumped = pyramid.jump(x, 0, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(jumped, x, rtol=0, atol=1e-9)
