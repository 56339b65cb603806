"""Fields resized by the cosine transform, sampled with perfect denoisers: fractional strides. Laws are exact
(see gaussian.py); what is left is the solver's error.
"""

from fractions import Fraction

import pytest
from gaussian import autoregressive, law_error
from gaussian_field import GaussianField, kron

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule

FLOW = FlowMatchingSchedule()
VP = VariancePreservingSchedule()
HEUN = {"solver": "heun", "spacing": "angle"}
THIRDS = [(1, 1, 1), (1, 1.5, 1.5), (1, 3, 3)]


# Fractional strides, stage-wise targets


@pytest.mark.parametrize(
    ("factors", "size", "causal"),
    [
        pytest.param(THIRDS, (1, 6, 6), False, id="HW"),
        pytest.param([(1, 1, 1), (1.5, 1, 1), (3, 1, 1)], (7, 1, 1), True, id="T-causal"),
        pytest.param([(1, 1, 1), (1.5, 1, 1.5), (3, 1, 3)], (4, 1, 6), True, id="TW-causal"),
        pytest.param([(1, 1, 1), (Fraction(4, 3), 1, 1), (4, 1, 1)], (8, 1, 1), False, id="T-4:3"),
    ],
)
@pytest.mark.parametrize(("schedule", "prediction_type"), [(FLOW, "flow_prediction"), (VP, "v_prediction")])
def test_fractional_stages_arrive_at_the_data(schedule, prediction_type, factors, size, causal):
    pyramid = Pyramid(schedule, factors, resize="dct", causal_time=causal)
    cov = kron(autoregressive(n, c)[1] for n, c in zip(size, (0.8, 0.6, 0.7), strict=True))
    mean = autoregressive(len(cov))[0]
    field = GaussianField(pyramid, mean, cov, prediction_type, size)
    options = {**HEUN, "true_start": schedule is VP}
    if schedule is VP:  # whose first level is no level of clean data
        assert law_error(field, 160, **options) < 3e-3
    else:
        coarse, fine = (law_error(field, steps, **options) for steps in (10, 40))
        assert fine < 1e-3
        assert 12 < coarse / fine < 20
    assert law_error(field, 40, jump_noise=False, **options) > 0.2
