"""One stage samples as the base method does, and so do two stages of equal size (MATH 2.4)."""

import itertools
import math

import numpy as np
import pytest
import torch

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule
from tpdiff.sampling.loop import sample_pyramid

FLOW = FlowMatchingSchedule()
VP = VariancePreservingSchedule()
SHAPE = (2, 3, 4, 4, 4)
ALPHAS_CUMPROD = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def bent(x, t, stage=0):
    """A made-up network, nowhere linear, that tells times apart."""
    return torch.sin(2 * x) + t.to(x.dtype).view(-1, 1, 1, 1, 1) * x.roll(1, dims=2)


def noise(seed=0, dtype=torch.float32):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def at(t):
    return torch.full((SHAPE[0],), t, dtype=torch.float32)


def vp_level(t):
    """(γ, σ) from λ, linear between indices; exactly clean at the end of sampling."""
    if t == 0:
        return 1.0, 0.0
    log_snr = np.interp(t * 999, np.arange(1000), 0.5 * np.log(ALPHAS_CUMPROD / (1 - ALPHAS_CUMPROD)))
    return 1 / math.sqrt(1 + math.exp(-2 * log_snr)), 1 / math.sqrt(1 + math.exp(2 * log_snr))


# Base methods, written plainly over a falling list of times


def flow_euler(x, times):
    for t, after in itertools.pairwise(times):
        x = x + (after - t) * bent(x, at(t))
    return x


def flow_heun(x, times):
    for t, after in itertools.pairwise(times):
        slope = bent(x, at(t))
        if after > 0:
            slope = (slope + bent(x + (after - t) * slope, at(after))) / 2
        x = x + (after - t) * slope
    return x


def vp_ddim(x, times, prediction_type="epsilon"):
    for t, after in itertools.pairwise(times):
        (gamma, sigma), (gamma_after, sigma_after) = vp_level(t), vp_level(after)
        said = bent(x, at(t))
        if prediction_type == "epsilon":
            sample, eps = (x - sigma * said) / gamma, said
        elif prediction_type == "sample":
            sample, eps = said, (x - gamma * said) / sigma
        else:
            sample, eps = gamma * x - sigma * said, sigma * x + gamma * said
        x = gamma_after * sample + sigma_after * eps
    return x


def even(start, end, steps):
    return torch.linspace(start, end, steps + 1, dtype=torch.float64).tolist()


@pytest.mark.parametrize("steps", [1, 7, 10])
@pytest.mark.parametrize(("solver", "base"), [("euler", flow_euler), ("heun", flow_heun)])
def test_one_stage_of_flow_matching_is_the_base_method_bit_for_bit(solver, base, steps):
    out = sample_pyramid(bent, Pyramid(FLOW), SHAPE, steps, latents=noise(), solver=solver)
    assert torch.equal(out, base(noise(), even(1, 0, steps)))


@pytest.mark.parametrize("steps", [1, 9, 27])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_one_stage_of_ddim_is_the_base_method_bit_for_bit(prediction_type, steps):
    options = {"prediction_type": prediction_type, "solver": "ddim"}
    out = sample_pyramid(bent, Pyramid(VP), SHAPE, steps, latents=noise(), **options)
    assert torch.equal(out, vp_ddim(noise(), even(1, 0, steps), prediction_type))


@pytest.mark.parametrize("solver", ["ddim", "euler"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_one_stage_of_ddim_is_the_base_method_to_rounding(prediction_type, solver):
    """In float64, where v is divided by a γ² + σ² that rounds beside one; Euler is DDIM in another order."""
    options = {"prediction_type": prediction_type, "solver": solver, "dtype": torch.float64}
    out = sample_pyramid(bent, Pyramid(VP), SHAPE, 9, latents=noise(), **options)
    expected = vp_ddim(noise(dtype=torch.float64), even(1, 0, 9), prediction_type)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)


def test_one_stage_starts_from_the_noise_the_base_method_draws():
    out = sample_pyramid(bent, Pyramid(FLOW), SHAPE, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(out, flow_euler(noise(3), even(1, 0, 5)))


@pytest.mark.parametrize("steps", [1, 8, 30])
def test_one_stage_is_diffusers_flow_matching(steps):
    """FlowMatchEulerDiscreteScheduler on the same sigmas; it holds them in float32, hence a tolerance."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    x = noise()
    for timestep in scheduler.timesteps:
        x = scheduler.step(bent(x, at(float(timestep) / 1000)), timestep, x, return_dict=False)[0]
    out = sample_pyramid(bent, Pyramid(FLOW), SHAPE, steps, latents=noise())
    torch.testing.assert_close(out, x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("steps", [9, 27])
def test_one_stage_is_diffusers_ddim(prediction_type, steps):
    """DDIMScheduler at whole timesteps, 999 down to 0 in equal strides, the last step into clean data.

    It takes square roots of float32 ᾱ where we hold float64 ones, hence a tolerance; epsilon, whose x / γ is
    x / 0.068 at the start, magnifies the difference.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=prediction_type,
    )
    stride = 999 // steps
    scheduler.num_inference_steps = 1000 // stride  # the stride by which its step looks ahead
    assert 1000 // scheduler.num_inference_steps == stride
    x = noise()
    for timestep in range(999, 0, -stride):
        if timestep == stride:
            scheduler.num_inference_steps = 1  # looks ahead past 0, which is clean
        x = scheduler.step(bent(x, at(timestep / 999)), timestep, x, eta=0.0).prev_sample
    pyramid = Pyramid(VP.from_alphas_cumprod(scheduler.alphas_cumprod))
    options = {"prediction_type": prediction_type, "solver": "ddim"}
    out = sample_pyramid(bent, pyramid, SHAPE, steps, latents=noise(), **options)
    tolerance = 3e-4 if prediction_type == "epsilon" else 2e-5
    torch.testing.assert_close(out, x, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("schedule", "prediction_type", "solver", "base"),
    [
        (FLOW, "flow_prediction", "euler", flow_euler),
        (FLOW, "flow_prediction", "heun", flow_heun),
        (VP, "epsilon", "ddim", vp_ddim),
    ],
    ids=["euler", "heun", "ddim"],
)
def test_two_stages_of_equal_size_are_the_base_method_on_both_grids(schedule, prediction_type, solver, base):
    pyramid = Pyramid(schedule, [(1, 1, 1), (1, 1, 1)], ends=[0.4])
    out = sample_pyramid(
        lambda x, t, stage: bent(x, t),
        pyramid,
        SHAPE,
        (6, 4),
        latents=noise(),
        dtype=torch.float64,
        generator=torch.Generator().manual_seed(1),
        prediction_type=prediction_type,
        solver=solver,
    )
    expected = base(noise(dtype=torch.float64), even(1, 0.4, 6) + even(0.4, 0, 4)[1:])
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
