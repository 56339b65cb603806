"""Fields resized by the cosine transform, sampled with perfect denoisers: fractional strides, and pyramids for a base
model that was never trained on one. Laws are exact (see gaussian.py); what is left is the solver's error.
"""

from fractions import Fraction

import numpy as np
import pytest
import torch
from gaussian import autoregressive, law_error, sampled_law
from gaussian_field import GaussianField, base_field, cosines, diagonal_field, kron
from scipy.linalg import block_diag
from torch import Tensor

from tpdiff.pyramid import (
    FlowMatchingSchedule,
    Pyramid,
    Spectrum,
    VariancePreservingSchedule,
    boundaries,
    power_lost,
    spectral_pyramid,
)

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
    field = GaussianField(pyramid, mean, cov, prediction_type, size=size)
    options = {**HEUN, "true_start": schedule is VP}
    if schedule is VP:  # whose first level is no level of clean data
        assert law_error(field, 160, **options) < 3e-3
    else:
        coarse, fine = (law_error(field, steps, **options) for steps in (10, 40))
        assert fine < 1e-3
        assert 12 < coarse / fine < 20
    assert law_error(field, 40, jump_noise=False, **options) > 0.2


# A base model, never trained on a pyramid


def falling(*size: int) -> np.ndarray:
    """Powers of cosines that fall as ν^-2 from a plateau on, as those of pictures do."""
    axes = np.meshgrid(*(np.arange(n) / n for n in size), indexing="ij")
    return 0.1 / (0.04 + sum(axis**2 for axis in axes))


def share_kept(field: GaussianField, steps: int = 160, **options) -> np.ndarray:
    """Power of every cosine of the sampled field as a share of the true power, (T, H, W)."""
    _, cov = sampled_law(field, steps, **HEUN, **options)
    alone = int(field.pyramid.causal_time)
    time = block_diag(np.eye(alone), cosines(field.size[0] - alone))
    basis = kron([time, *map(cosines, field.size[1:])])
    rotated = basis @ cov @ basis.T
    assert np.abs(rotated - np.diag(np.diag(rotated))).max() < 1e-9
    return (np.diag(rotated) / np.diag(basis @ field.cov @ basis.T)).reshape(field.size)


@pytest.mark.parametrize(
    ("factors", "size"),
    [
        pytest.param(THIRDS, (1, 6, 6), id="HW"),
        pytest.param([(1, 1, 1), (1.5, 1, 1), (3, 1, 1)], (12, 1, 1), id="T"),
        pytest.param([(1, 1, 1), (2, 1, 1), (2, 2, 2)], (4, 4, 4), id="T-then-HW"),
    ],
)
def test_every_band_loses_the_share_that_the_theory_says(factors, size):
    """(1 - v) P with v = P / (P + κ_s²) for what a jump brings in, P in the finer stage's units; nothing else lost."""
    power = falling(*size)
    for tolerance in (0.3, 0.03):
        pyramid = spectral_pyramid(Spectrum(power, None, size, 1), FLOW, factors, tolerance)
        wanted, grids = np.ones(size), base_field(pyramid, power).grids
        inside = [np.ix_(*(np.arange(n) for n in grid)) for grid in grids]
        for k in reversed(range(len(pyramid) - 1)):
            lost = np.zeros(size)
            own = power / np.prod(factors[k])
            lost[inside[k]] = (own / (own + pyramid.stages[k].start_level.kappa ** 2))[inside[k]]
            lost[inside[k + 1]] = 0
            assert lost.max() == pytest.approx(tolerance)
            wanted -= lost
        np.testing.assert_allclose(share_kept(base_field(pyramid, power)), wanted, atol=1e-3)


def test_the_error_of_the_covariance_falls_with_the_tolerance():
    power = falling(12, 1, 1)
    errors = []
    for tolerance in (0.3, 0.1, 0.03):
        pyramid = spectral_pyramid(Spectrum(power, None, power.shape, 1), FLOW, [(1, 1, 1), (2, 1, 1)], tolerance)
        errors.append(law_error(base_field(pyramid, power), 40, **HEUN))
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2]
    assert errors[2] < 0.01 * power.max()


def test_a_field_with_next_to_nothing_in_the_band_is_exact():
    power = falling(8, 1, 1)
    power[4:] = 1e-6
    pyramid = Pyramid(FLOW, [(1, 1, 1), (2, 1, 1)], ends=[0.5], resize="dct")
    assert power_lost(Spectrum(power, None, (8, 1, 1), 1), pyramid) == [pytest.approx(5e-7, rel=1e-3)]
    base = base_field(Pyramid(FLOW), power)
    assert law_error(base_field(pyramid, power), 40, **HEUN) < law_error(base, 40, **HEUN) + 1e-4
    late, _ = boundaries(Spectrum(power, None, (8, 1, 1), 1), [(1, 1, 1), (2, 1, 1)], FLOW, 0.01)
    assert late[0] < 0.01  # nearly all of the way at half the frames


@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
def test_levels_set_by_hand_cost_what_is_foretold(schedule):
    power = falling(6, 1, 6)
    pyramid = Pyramid(schedule, [(1, 1, 1), (1.5, 1, 2), (3, 1, 3)], ends=[0.25, 0.5], resize="dct")
    kept = share_kept(base_field(pyramid, power), true_start=True)
    foretold = power_lost(Spectrum(power, None, power.shape, 1), pyramid)
    assert 1 - kept.min() == pytest.approx(max(foretold), abs=0.01 if schedule is VP else 1e-3)
    assert max(foretold) > 0.15


def test_a_causal_first_frame_loses_no_more_than_the_tolerance():
    """The first frame stands alone, its blocks and bands are its own; whichever is stronger decides."""
    factors, size, tolerance = [(1, 1, 1), (2, 1, 2)], (7, 1, 6), 0.1
    rest, first = falling(6, 1, 6), falling(1, 1, 6)
    for strength, decides in ((0.2, "rest"), (5.0, "first")):
        spectrum = Spectrum(rest, strength * first[0], size, 1)
        pyramid = spectral_pyramid(spectrum, FLOW, factors, tolerance)
        assert pyramid.causal_time
        cov = np.zeros((42, 42))
        cov[:6, :6], cov[6:, 6:] = diagonal_field(strength * first), diagonal_field(rest)
        field = GaussianField(pyramid, np.zeros(42), cov, "flow_prediction", size=size, base=True)
        lost = 1 - share_kept(field)
        worst = {"first": lost[0].max(), "rest": lost[1:].max()}
        assert worst[decides] == pytest.approx(tolerance, abs=1e-3)
        assert max(worst.values()) < tolerance + 1e-3
        assert power_lost(spectrum, pyramid) == [pytest.approx(tolerance)]


def test_stage_wise_targets_would_be_wrong_for_a_base_model():
    """The pyramid of a trained network ends in the same law only with its own targets; the base ones lose the band."""
    power = falling(6, 1, 1)
    pyramid = Pyramid(FLOW, [(1, 1, 1), (2, 1, 1)], resize="dct")
    trained = GaussianField(pyramid, np.zeros(6), diagonal_field(power), "flow_prediction", size=(6, 1, 1))
    assert law_error(trained, 40, **HEUN) < 0.002
    assert share_kept(base_field(pyramid, power)).min() < 0.9


class OneSpectrum(GaussianField):
    """A perfect base model of full-size clips that takes every stage for such a clip: power ν^-n of its own axes."""

    exponent: int

    def __call__(self, x: Tensor, t: Tensor, stage: int) -> Tensor:
        believed = diagonal_field(scale_free(self.grids[stage], self.exponent))
        sigma = float(t[0])
        noisy = x.flatten(1).double().numpy().T
        whitened = np.linalg.solve((1 - sigma) ** 2 * believed + sigma**2 * np.eye(len(believed)), noisy)
        return torch.from_numpy((sigma * whitened - (1 - sigma) * believed @ whitened).T.copy()).view_as(x)


def scale_free(size, exponent: int) -> np.ndarray:
    """Powers ν^-n; the mean, which has no ν, is given that of ν = 1/8."""
    axes = np.meshgrid(*(np.arange(n) / n for n in size), indexing="ij")
    squares = sum(axis**2 for axis in axes)
    squares.flat[0] = 1 / 64
    return 0.05 * squares ** (-exponent / 2)


@pytest.mark.parametrize(
    ("size", "factors", "exponent", "kept"),
    [
        pytest.param((1, 8, 8), [(1, 1, 1), (1, 2, 2)], 2, 1, id="HW-2"),
        pytest.param((24, 1, 1), [(1, 1, 1), (2, 1, 1)], 1, 1, id="T-1"),
        pytest.param((24, 1, 1), [(1, 1, 1), (2, 1, 1)], 2, 0.704, id="T-2"),
    ],
)
def test_a_network_that_knows_one_spectrum_is_right_where_clips_look_alike_at_every_size(size, factors, exponent, kept):
    power = scale_free(size, exponent)
    pyramid = spectral_pyramid(Spectrum(power, None, size, 1), FLOW, factors, 0.01)
    field = OneSpectrum(pyramid, np.zeros(power.size), diagonal_field(power), "flow_prediction", size=size, base=True)
    field.exponent = exponent
    share = share_kept(field).flatten()
    assert share[1] == pytest.approx(kept, abs=0.002)
    assert share[1:].min() > min(kept, 0.99) - 0.003
