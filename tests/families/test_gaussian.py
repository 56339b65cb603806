"""Right, not only finite: given its perfect network, every pipeline makes the Gaussian it should, in three stages.

Means are exact at any number of steps. What a covariance is off by is the solver's own error, so it must fall with the
steps at least nearly as a first-order solver's does.
"""

import pytest
from oracle import Oracle
from tiny import CASES, find_case

from tpdiff import apply_pyramid
from tpdiff.pyramid.resize import Resizer

FACTORS = {"time": [(1, 1, 1), (2, 1, 1), (4, 1, 1)], "width": [(1, 1, 1), (1, 1, 2), (1, 1, 4)]}
WAYS = [("default", "time"), ("default", "width"), ("other", "time")]


def errors(case, axis, scheduler, steps):
    """Of the mean, of the covariance, and between lines that should be alike."""
    pipe = case.pipe()
    if scheduler == "other":
        pipe.scheduler = case.other(pipe)
    apply_pyramid(pipe, FACTORS[axis], [steps] * 3)
    filled = case.latent[0] % 2 == 0 and pipe.scheduler.pyramid.causal_time  # a frame that fills a pair
    skipped = 1 if filled or case.kept else 0
    return Oracle(case, pipe, axis, skipped, pipe.scheduler.pyramid.causal_time and not case.kept).errors()


@pytest.mark.parametrize(
    ("case", "scheduler", "axis"),
    [
        pytest.param(case, scheduler, axis, id=f"{case}-{scheduler}-{axis}")
        for case in CASES
        for scheduler, axis in WAYS
        if (case.default_runs or scheduler == "other") and (case.over_space or axis == "time")
    ],
)
def test_three_stages_make_the_right_gaussian(case, scheduler, axis):
    mean, few, apart = errors(case, axis, scheduler, 8)
    assert mean < 1e-4
    assert apart < 1e-4
    mean, many, apart = errors(case, axis, scheduler, 32)
    assert mean < 1e-4
    assert many < 0.09
    assert many < few / 2.5
    assert apart < 1e-4


@pytest.mark.parametrize("name", ["wan", "cogvideox-pairs", "ltx-picture", "mochi", "animatediff"])
def test_without_the_jumps_noise_it_is_wrong(name, monkeypatch):
    """So the covariance does tell."""
    monkeypatch.setattr(Resizer, "corrective_noise", lambda self, z, *rest: 0 * z)
    assert errors(find_case(name), "time", "other", 40)[1] > 0.2
