"""One solver step against formulas written out here, and the order of accuracy on a Gaussian known exactly."""

import math

import numpy as np
import pytest
import torch
from gaussian import GaussianVideo, autoregressive, law_error

from tpdiff.pyramid import PREDICTION_TYPES, FlowMatchingSchedule, Level, Pyramid, VariancePreservingSchedule
from tpdiff.sampling.solvers import SOLVERS, ddim, euler, heun

FLOW = FlowMatchingSchedule()
COSINE = VariancePreservingSchedule(torch.linspace(0, 1.5, 1001, dtype=torch.float64).cos() ** 2)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def vp_level(angle):
    return Level(angle / 2, math.cos(angle), math.sin(angle))


def flow_level(t):
    return Level(t, 1 - t, t)


def said(prediction_type, level, sample, noise):
    return {
        "epsilon": noise,
        "sample": sample,
        "v_prediction": level.alpha * noise - level.sigma * sample,
        "flow_prediction": noise - sample,
    }[prediction_type]


LEVELS = pytest.mark.parametrize(
    ("level", "target"),
    [
        (flow_level(0.7), flow_level(0.55)),
        (flow_level(0.2), flow_level(0.0)),
        (vp_level(1.2), vp_level(0.9)),
        (vp_level(0.3), Level(0.0, 1.0, 0.0)),
    ],
    ids=["flow", "flow-to-clean", "vp", "vp-to-clean"],
)


@LEVELS
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_with_a_perfect_prediction_lands_on_the_path(solver, prediction_type, level, target):
    """Where sample and noise are the same everywhere on the path, every solver is exact, over any distance."""
    sample, noise = normal(2, 1, 3, 2, 2, seed=1), normal(2, 1, 3, 2, 2, seed=2)
    x = level.alpha * sample + level.sigma * noise
    step = SOLVERS[solver](lambda _, at: said(prediction_type, at, sample, noise), x, level, target, prediction_type)
    torch.testing.assert_close(step.latents, target.alpha * sample + target.sigma * noise, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.denoised, sample, rtol=0, atol=1e-12)


@LEVELS
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_euler_is_ddim_but_for_rounding(prediction_type, level, target):
    """For any prediction, right or wrong: both follow the straight line through the predicted pair."""
    x, anything = normal(2, 1, 3, 2, 2, seed=1), normal(2, 1, 3, 2, 2, seed=2)
    a, b = (solver(lambda *_: anything, x, level, target, prediction_type) for solver in (euler, ddim))
    torch.testing.assert_close(a.latents, b.latents, rtol=0, atol=1e-12)
    torch.testing.assert_close(a.denoised, b.denoised, rtol=0, atol=1e-12)
    if prediction_type == "epsilon":  # TPDiff Eq. 3
        denoised = (x - level.sigma * anything) / level.alpha
        torch.testing.assert_close(b.latents, target.alpha * denoised + target.sigma * anything)


def test_heun_is_the_mean_of_two_slopes():
    """Flow matching, where the step can be written in one line; dx/dt = v(x, t) = x t + 1 made up."""
    x, level, target = normal(2, 1, 3, 2, 2, seed=1), flow_level(0.8), flow_level(0.5)
    calls = []

    def velocity(x, level):
        calls.append(level.t)
        return x * level.t + 1

    step = heun(velocity, x, level, target, "flow_prediction")
    first = 0.8 * x + 1
    second = 0.5 * (x - 0.3 * first) + 1
    torch.testing.assert_close(step.latents, x - 0.3 * (first + second) / 2, rtol=0, atol=1e-12)
    torch.testing.assert_close(step.denoised, x - 0.8 * first, rtol=0, atol=1e-12)
    assert calls == [0.8, 0.5]


def test_heun_steps_once_into_a_level_without_noise():
    calls = []

    def velocity(x, level):
        calls.append(level.t)
        return x

    x = normal(2, 1, 3, 2, 2, seed=1)
    step = heun(velocity, x, flow_level(0.4), flow_level(0.0), "flow_prediction")
    torch.testing.assert_close(step.latents, 0.6 * x, rtol=0, atol=1e-12)
    assert calls == [0.4]


def one_stage(schedule, prediction_type):
    mean, cov = autoregressive(4, correlation=0.6, scale=0.8)
    return GaussianVideo(Pyramid(schedule), mean, cov, prediction_type)


@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    [(FLOW, "flow_prediction"), (COSINE, "epsilon"), (COSINE, "v_prediction")],
    ids=["flow", "vp-epsilon", "vp-v"],
)
@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ddim", 1), ("heun", 2)])
def test_order_of_accuracy_of_the_base_method(schedule, prediction_type, solver, order):
    """Error in the sampled law falls as steps^-order. Heun keeps its order in spite of the last step, which is of
    first order: that step is short, so its own error is of order steps^-2."""
    video = one_stage(schedule, prediction_type)
    errors = [law_error(video, steps, solver=solver, spacing="angle", true_start=True) for steps in (20, 40, 80, 160)]
    measured = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.abs(measured - order).max() < 0.15, (errors, measured)
