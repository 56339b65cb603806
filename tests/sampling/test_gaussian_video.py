"""Three stages turn noise into exactly the right Gaussian, given its perfect denoiser (MATH 2 and 3).

Means and covariances are propagated exactly (see gaussian.py), so all that is left is the solvers' own error, which
must fall with the steps at the solvers' order.

Where sampling starts: flow matching and a zero-terminal-SNR schedule start from N(0, I), which is exact for them.
Stable Diffusion's last level still holds signal (γ = 0.068); there the start is drawn from that level's true law, so
that what is measured is the pyramid and not the base method's own habit of starting from N(0, I).
"""

import itertools

import numpy as np
import pytest
import torch
from gaussian import GaussianVideo, autoregressive, jump_module, law_error, sampled_law

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule

FLOW = FlowMatchingSchedule()
VP = VariancePreservingSchedule()
ZERO_SNR = VP.zero_terminal_snr()
# Clean at its first level, so that no step has to bridge a gap between the first level and clean data.
COSINE = VariancePreservingSchedule(torch.linspace(0, 1.5, 1001, dtype=torch.float64).cos() ** 2)
STAGES = ((1, 1, 1), (2, 1, 1), (4, 1, 1))

CASES = [
    pytest.param(FLOW, "flow_prediction", id="flow-flow"),
    pytest.param(FLOW, "v_prediction", id="flow-v"),
    pytest.param(FLOW, "sample", id="flow-sample"),
    pytest.param(VP, "epsilon", id="vp-epsilon"),
    pytest.param(VP, "v_prediction", id="vp-v"),
    pytest.param(VP, "sample", id="vp-sample"),
    pytest.param(ZERO_SNR, "v_prediction", id="zero-snr-v"),
]
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])


def gaussian_video(schedule, prediction_type, causal) -> GaussianVideo:
    mean, cov = autoregressive(9 if causal else 8)
    return GaussianVideo(Pyramid(schedule, STAGES, causal_time=causal), mean, cov, prediction_type)


def error(video: GaussianVideo, steps: int, **options) -> float:
    true_start = video.pyramid.stages[-1].start_level.alpha > 0
    return law_error(video, steps, spacing="angle", true_start=true_start, **options)


@CAUSAL
@pytest.mark.parametrize("solver", ["euler", "ddim"])
@pytest.mark.parametrize(("schedule", "prediction_type"), CASES)
def test_first_order_solvers_arrive_at_the_data(schedule, prediction_type, solver, causal):
    video = gaussian_video(schedule, prediction_type, causal)
    coarse, middle, fine = (error(video, steps, solver=solver) for steps in (10, 40, 160))
    assert fine < 0.01
    assert 3.3 < coarse / middle < 4.5
    assert 3.3 < middle / fine < 4.5


@CAUSAL
@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    [
        pytest.param(FLOW, "flow_prediction", id="flow-flow"),
        pytest.param(FLOW, "v_prediction", id="flow-v"),
        pytest.param(COSINE, "epsilon", id="cosine-epsilon"),
        pytest.param(COSINE, "v_prediction", id="cosine-v"),
    ],
)
def test_heun_is_of_second_order_through_all_stages(schedule, prediction_type, causal):
    """Its last step, into clean data, is of first order but short: κ there falls as 1 / steps, its error as κ²."""
    video = gaussian_video(schedule, prediction_type, causal)
    coarse, middle, fine = (error(video, steps, solver="heun") for steps in (10, 40, 160))
    assert fine < 1e-4
    assert 13 < coarse / middle < 19
    assert 13 < middle / fine < 19


@CAUSAL
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_heun_on_stable_diffusion_stops_at_its_first_level(prediction_type, causal):
    """That level, κ = 0.029, is no level of clean data; the leap from it costs about κ² whatever the steps."""
    video = gaussian_video(VP, prediction_type, causal)
    assert error(video, 10, solver="heun") < 0.02
    assert error(video, 160, solver="heun") < 2e-3


@CAUSAL
def test_heun_on_stable_diffusion_with_sample_prediction(causal):
    video = gaussian_video(VP, "sample", causal)
    assert error(video, 160, solver="heun") < 2e-3


@CAUSAL
@pytest.mark.parametrize(
    ("schedule", "prediction_type"), [(FLOW, "flow_prediction"), (VP, "epsilon")], ids=["flow", "vp"]
)
def test_even_times_arrive_too(schedule, prediction_type, causal):
    """The default spacing. Stable Diffusion's first levels are far apart in angle, so it takes more steps."""
    video = gaussian_video(schedule, prediction_type, causal)
    errors = [law_error(video, n, true_start=schedule is VP) for n in (40, 160, 640)]
    assert errors[-1] < 0.004
    assert min(a / b for a, b in itertools.pairwise(errors)) > 3


@CAUSAL
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_stable_diffusions_own_start_costs_what_it_costs_the_base_method(prediction_type, causal):
    """N(0, I) in place of the true law at γ = 0.068 leaves an error that no steps remove, with a pyramid or without."""
    video = gaussian_video(VP, prediction_type, causal)
    left = [law_error(video, n, solver="heun", spacing="angle") for n in (40, 160)]
    assert left[0] == pytest.approx(left[1], rel=0.05)
    assert 0.01 < left[1] < 0.06
    base = GaussianVideo(Pyramid(VP), video.mean, video.cov, prediction_type)
    assert law_error(base, 160, solver="heun", spacing="angle") > 0.01


# What must fail


@CAUSAL
@pytest.mark.parametrize(("schedule", "prediction_type"), CASES)
def test_without_corrective_noise_the_law_is_wrong(schedule, prediction_type, causal):
    assert error(gaussian_video(schedule, prediction_type, causal), 160, jump_noise=False) > 0.2


def test_with_eq_15_as_printed_the_law_is_wrong(monkeypatch):
    """√2γ_s/(σ_s + √2γ_s) is γ_e itself and not γ_s/γ_e: both moments go astray (MATH 3, errata)."""
    video = gaussian_video(FLOW, "flow_prediction", causal=False)
    assert error(video, 160) < 0.01

    def jump_with(coefficient):
        def jump(self, x, k, generator=None):
            sigma = self.stages[k].start
            gamma = 1 - sigma
            lifted = x.repeat_interleave(2, dim=2)
            noise = jump_module.randn(lifted.shape).to(x)
            pairs = noise.unflatten(2, (-1, 2))
            return coefficient(gamma, sigma) * lifted + sigma * (pairs - pairs.mean(3, keepdim=True)).flatten(2, 3)

        return jump

    root = 2**0.5
    mended = jump_with(lambda gamma, sigma: (sigma + root * gamma) / root)
    printed = jump_with(lambda gamma, sigma: root * gamma / (sigma + root * gamma))
    monkeypatch.setattr(Pyramid, "jump", mended)
    assert error(video, 160) < 0.01
    monkeypatch.setattr(Pyramid, "jump", printed)
    mean, cov = sampled_law(video, 160, spacing="angle")
    assert np.abs(mean - video.mean).max() > 0.05
    assert np.abs(cov - video.cov).max() > 0.05


def test_the_gaussian_itself_is_no_easy_one():
    """A mean that varies in time and correlated frames: coarse stages hold neither of them whole."""
    mean, cov = autoregressive(8)
    assert np.ptp(mean) > 0.5
    assert np.linalg.eigvalsh(cov).min() < 0.2 < 2 < np.linalg.eigvalsh(cov).max()
