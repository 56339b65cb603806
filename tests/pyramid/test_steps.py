"""How a number of steps is split over the stages, coarsest first."""

import json

import numpy as np
import pytest

from tpdiff.pyramid.steps import split_steps


@pytest.mark.parametrize(
    ("steps", "stages", "counts"),
    [
        (30, 3, [10, 10, 10]),
        (20, 3, [8, 6, 6]),
        (50, 3, [18, 16, 16]),
        (7, 2, [4, 3]),
        (3, 3, [1, 1, 1]),
        (9, 1, [9]),
        ([20, 20, 10], 3, [20, 20, 10]),
        ((1, 2), 2, [1, 2]),
        (np.int64(20), 3, [8, 6, 6]),
        (np.array([20, 20, 10]), 3, [20, 20, 10]),
        ([np.int32(2), 1], 2, [2, 1]),
    ],
)
def test_steps_of_every_stage(steps, stages, counts):
    made = split_steps(steps, stages)
    assert made == counts
    assert json.loads(json.dumps(made)) == counts  # saved with schedulers


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        (2, "2 steps cannot fill 3 stages; nearest: 3"),
        (0, "0 steps cannot fill 3 stages; nearest: 3"),
        (-5, "-5 steps cannot fill 3 stages; nearest: 3"),
        ([20, 10], r"2 step counts \(20-10\) for 3 stages; give 3, coarsest first"),
        ([5, 5, 5, 5], r"4 step counts \(5-5-5-5\) for 3 stages"),
        ([5, 0, 5], "at least one whole step, got 5-0-5; nearest: 1"),
        ([5, 2.5, 5], "at least one whole step, got 5-2.5-5"),
        ("20,20,10", r"steps '20,20,10' are neither a whole total \(30\) nor one count a stage, coarsest first \(\[10"),
        (6.0, "steps 6.0 are neither a whole total"),
        (None, "steps None are neither a whole total"),
    ],
)
def test_counts_that_cannot_be_are_refused(steps, complaint):
    with pytest.raises(ValueError, match=complaint):
        split_steps(steps, 3)
