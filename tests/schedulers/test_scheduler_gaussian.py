"""Every scheduler turns noise into exactly the right Gaussian through the stages, given its perfect network.

The law of the output is propagated exactly (gaussian.py), so what is left is the solver's own error.
"""

import itertools

import numpy as np
import pytest
from scheduled import BOTH, SPACE, STABLE_DIFFUSION, TIME, cosine, gaussian, law_error, make, scheduled_law, staged

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**STABLE_DIFFUSION, **V, "rescale_betas_zero_snr": True}
EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
UNIPC, DPM, DDIM, COG = (
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DDIMScheduler",
    "CogVideoXDDIMScheduler",
)
VP_EULER, VP_HEUN = "EulerDiscreteScheduler", "HeunDiscreteScheduler"
OWN = {DDIM: {"clip_sample": False}, COG: {"snr_shift_scale": 1.0}}


def over_types(*names):
    """A cosine schedule under each scheduler and each prediction type that it knows."""
    types = ("epsilon", "v_prediction", "sample")
    return [(name, cosine(prediction_type=kind, **OWN.get(name, {}))) for name in names for kind in types]


def label(case):
    name, config = case
    shown = (
        str(v) if isinstance(v, str) else k for k, v in config.items() if k not in ("trained_betas", "beta_schedule")
    )
    return "-".join([name.removesuffix("Scheduler"), *shown])


FIRST_ORDER = [(EULER, {}), (EULER, {"invert_sigmas": True}), *over_types(DDIM, COG, VP_EULER)]
SECOND_ORDER = [
    (HEUN, {}),
    (UNIPC, FLOW),
    (DPM, FLOW),
    (DPM, {**FLOW, "solver_type": "heun"}),
    *over_types(UNIPC, DPM, VP_HEUN),
]
WITHOUT_ORDER = [
    (UNIPC, {**FLOW, "solver_order": 3}),
    (DPM, {**FLOW, "solver_order": 3}),
    (UNIPC, {**cosine(), "predict_x0": False, "final_sigmas_type": "sigma_min"}),
    (DPM, {**FLOW, "final_sigmas_type": "sigma_min"}),
    (UNIPC, {**FLOW, "final_sigmas_type": "sigma_min", "solver_type": "bh1"}),
    (UNIPC, {**FLOW, "final_sigmas_type": "sigma_min", "lower_order_final": False}),
    (DDIM, {**STABLE_DIFFUSION, "clip_sample": False}),
    (DDIM, {**ZERO_SNR, "clip_sample": False}),
    (COG, {**V, "rescale_betas_zero_snr": True}),
    (UNIPC, STABLE_DIFFUSION),
    (UNIPC, ZERO_SNR),
    (DPM, STABLE_DIFFUSION),
    (VP_EULER, ZERO_SNR),
    (VP_HEUN, STABLE_DIFFUSION),
]
EVERY = FIRST_ORDER + SECOND_ORDER + WITHOUT_ORDER
GEOMETRIES = {
    "time": (TIME, (8, 1, 1), False),
    "space": (SPACE, (1, 4, 4), False),
    "both": (BOTH, (4, 4, 4), False),
    "causal": (TIME, (9, 1, 1), True),
    "causal-both": (BOTH, (5, 4, 4), True),
}


def built(case, geometry="time", **options):
    name, config = case
    factors, size, causal = GEOMETRIES[geometry]
    scheduler = staged(make(name, **config), factors, causal_time=causal)
    return scheduler, gaussian(scheduler, size, **options)


@pytest.mark.parametrize("case", FIRST_ORDER, ids=label)
def test_first_order_schedulers_arrive_at_the_data(case):
    scheduler, video = built(case)
    errors = [law_error(scheduler, video, 3 * steps) for steps in (10, 30, 90)]
    assert errors[-1] < 0.015
    assert all(2.6 < a / b < 3.3 for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("case", SECOND_ORDER, ids=label)
def test_second_order_schedulers_arrive_faster(case):
    """Orders fall to the first at every jump and beside clean data, without costing the second order as a whole."""
    scheduler, video = built(case)
    errors = [law_error(scheduler, video, 3 * steps) for steps in (10, 30, 90)]
    assert errors[-1] < 2.5e-4
    assert all(a / b > 6.5 for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("case", WITHOUT_ORDER, ids=label)
def test_the_rest_arrives_too(case):
    """Third order, noise prediction, and schedules with a last step from a level that is not clean."""
    scheduler, video = built(case)
    errors = [law_error(scheduler, video, 3 * steps) for steps in (10, 30, 90)]
    assert errors[-1] < 0.04
    assert all(a / b > 2 or b < 0.003 for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("geometry", ["space", "both", "causal", "causal-both"])
@pytest.mark.parametrize(
    "case", [FIRST_ORDER[0], *SECOND_ORDER[:3], FIRST_ORDER[2], FIRST_ORDER[9], *SECOND_ORDER[-2:]], ids=label
)
def test_every_axis_can_grow(case, geometry):
    scheduler, video = built(case, geometry, correlation=0.5)
    few, many = (law_error(scheduler, video, 3 * steps) for steps in (8, 24))
    assert few / many > (2.5 if case in FIRST_ORDER else 5)
    assert many < (0.1 if case in FIRST_ORDER else 0.006)
    assert law_error(scheduler, video, 24, jump_noise=False) > 0.25


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("case", EVERY, ids=label)
def test_a_single_clip_takes_one_step_a_stage(case, geometry):
    """Its paths are straight lines, so a right step of any solver ends on them, whatever the noise was."""
    scheduler, video = built(case, geometry, scale=0.0)
    leftover = scheduler.base.config.get("final_sigmas_type") == "sigma_min"
    for steps in ([1, 1, 1], [3, 1, 2]):
        mean, cov = scheduled_law(scheduler, video, steps)
        assert np.abs(mean - video.mean).max() < (0.01 if leftover else 1e-4)
        assert np.abs(cov).max() < 1e-4


def test_the_flow_that_rises_is_the_other_way_round():
    """Mochi's scheduler counts signal and not noise, so its network says x0 - ε; the wrong sign leads nowhere."""
    scheduler, video = built((EULER, {"invert_sigmas": True}))
    assert law_error(scheduler, video, 90, sign=-1) < 0.05
    assert law_error(scheduler, video, 90, sign=1) > 1
