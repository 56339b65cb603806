"""Plateaus, times to reach them and joined intervals, on curves whose answers are known."""

import numpy as np
import pytest

from tpdiff.evaluation.study_figures import Difference, difference, learnt, plateau, reached, sooner, to_final
from tpdiff.metrics.distance import frechet_distance, paired_draws


def curve(*distances, rate=1.0):
    return [
        {"seconds": 10.0 * (i + 1), "steps": int(rate * 100 * (i + 1)), "flops": rate * 5.0 * (i + 1), "distance": d}
        for i, d in enumerate(distances)
    ]


def test_plateau_is_the_mean_of_the_last_three():
    assert plateau(curve(100, 9, 6, 3)) == pytest.approx(6)
    with pytest.raises(ValueError, match="needs 3 evaluations, got 2"):
        plateau(curve(1, 2))


def test_reached_needs_three_in_a_row():
    base = curve(50, 40, 30, 20, 11, 10, 9)  # plateau 10, first counted at 50 s
    arm = curve(30, 9, 12, 10, 10, 8, 8, rate=2.0)  # the 9 is alone
    found = reached(arm, base)
    assert (found.seconds, found.steps) == (40.0, 800)
    assert found.ratios == pytest.approx({"seconds": 50 / 40, "steps": 500 / 800, "flops": 25 / 40})


def test_an_arm_that_is_not_there_long_enough_never_reached():
    base = curve(50, 40, 11, 10, 9)
    assert reached(curve(50, 40, 30, 9, 9), base) is None


def test_sooner_is_read_off_the_mean_curves_by_straight_lines():
    base = curve(100, 60, 50, 40, 30)  # judged at 30 s and 50 s
    assert sooner([curve(100, 40, 35, 33, 20)], [base]) == pytest.approx(
        {30.0: 30 / (10 + 10 * 50 / 60), 50.0: 50 / (40 + 10 * 3 / 13)}
    )
    assert sooner([curve(100, 40, 35, 33, 31)], [base])[50.0] is None
    assert sooner([base], [base]) == pytest.approx({30.0: 1.0, 50.0: 1.0})
    both = sooner([curve(100, 60, 40), curve(100, 40, 20)], [curve(100, 70, 60), curve(100, 70, 40)])
    assert both == pytest.approx({30.0: 30 / 20})  # means 100, 50, 30 against 100, 70, 50


def test_difference_joins_independent_seeds():
    rng = np.random.default_rng(0)
    paired = [
        {"difference": m, "replicates": list(m + rng.normal(0, 1, 4000)), "shared": True} for m in (-1.0, -3.0, -2.0)
    ]
    found = difference(paired)
    assert found.mean == pytest.approx(-2)
    half = 1.96 / np.sqrt(3)  # the mean of three independent draws
    assert (found.low, found.high) == pytest.approx((-2 - half, -2 + half), abs=0.08)
    assert found.seeds == [-1.0, -3.0, -2.0]
    assert found.over_seeds == pytest.approx((-2 - 4.303 / np.sqrt(3), -2 + 4.303 / np.sqrt(3)), abs=1e-3)
    assert found.verdict == "better in these seeds"
    assert difference(paired[:1]).over_seeds == (-np.inf, np.inf)
    assert difference([{"difference": 0.1, "replicates": [-1.0, 0.0, 1.0], "shared": True}]).verdict == "undecided"
    unmarked = difference([{key: p[key] for key in ("difference", "replicates")} for p in paired])
    assert (unmarked.low, unmarked.high) == pytest.approx((-2 - 1.96, -2 + 1.96), abs=0.08)  # as if one were all


@pytest.mark.parametrize(
    ("seeds", "reach", "verdict"),
    [
        ([-9.0, -10.0, -11.0], 1, "better"),
        ([9.0, 10.0, 11.0], 1, "worse"),
        ([-1.0, -10.0, -19.0], 1, "better in these seeds"),
        ([-10.0], 1, "better in this seed"),
        ([-10.0, 1.0], 1, "better in the mean of these seeds"),
        ([10.0, -1.0], 1, "worse in the mean of these seeds"),
        ([-9.0, -10.0, -11.0], 11, "undecided"),
    ],
)
def test_a_verdict_says_whether_it_is_of_these_seeds_alone(seeds, reach, verdict):
    mean = float(np.mean(seeds))
    assert Difference(mean, mean - reach, mean + reach, seeds).verdict == verdict


def test_curves_of_few_samples_are_brought_to_the_final_distance():
    arm = {"evaluations": curve(100, 60, 40), "final": {"distance": 30}}
    assert [one["distance"] for one in to_final(arm)] == pytest.approx([75, 45, 30])
    assert [one["seconds"] for one in to_final(arm)] == [10, 20, 30] and arm["evaluations"][0]["distance"] == 100


def test_a_base_that_ends_worse_than_untrained_is_reached_by_whoever_trains():
    untrained = {"seconds": 0.0, "steps": 0, "flops": 0.0, "distance": 100.0}
    base, arm = [untrained, *curve(110, 110, 110, 110)], [untrained, *curve(90, 80, 70, 60)]
    assert reached(arm, base).ratios["seconds"] == pytest.approx(20 / 10)
    assert sooner([arm], [base]) == pytest.approx({20.0: 20 / 10, 40.0: 40 / 10})


def test_the_interval_over_seeds_knows_that_they_share_their_real_clips():
    """Of equally good models: how far the mean over three seeds lies from 0 by chance, and what one study says."""
    rng = np.random.default_rng(1)
    shift = np.array([0.6, 0, 0, 0])

    def three_seeds():
        real = rng.normal(size=(120, 4))
        return [(real, rng.normal(size=(120, 4)) + shift, rng.normal(size=(120, 4)) - shift) for _ in range(3)]

    def farther(real, a, b):
        return frechet_distance(real, a) - frechet_distance(real, b)

    def one(real, a, b, seed, rounds):
        value = farther(real, a, b)
        drawn = paired_draws(real, a, b, rounds, seed)
        return {"difference": value, "replicates": list(value + drawn - drawn.mean()), "shared": True}

    apart = [np.mean([farther(*sets) for sets in three_seeds()]) for _ in range(300)]
    found = [difference([one(*sets, seed, 200) for seed, sets in enumerate(three_seeds())]) for _ in range(5)]
    said = np.mean([f.high - f.low for f in found]) / (2 * 1.96)
    assert said == pytest.approx(np.std(apart), rel=0.15)


def arm(distance=10.0, accuracy=0.8, magnitude=1.0, real=1.0):
    return {
        "evaluations": [{"distance": 100.0}],
        "final": {
            "distance": distance,
            "accuracy": {"action": {"made": accuracy, "real": real}},
            "figures": {"motion_magnitude": {"made": magnitude, "real": 1.0}},
        },
    }


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        ({}, set()),
        ({"distance": 25.0}, {"distance"}),
        ({"accuracy": 0.79}, {"accuracy of action"}),
        ({"accuracy": 0.79, "real": 0.79}, {"classifier of action"}),
        ({"accuracy": 0.65, "real": 0.8}, set()),
        ({"magnitude": 0.49}, {"motion"}),
        ({"magnitude": 2.01}, {"motion"}),
    ],
)
def test_what_an_arm_must_have_learnt(change, missing):
    assert {name for name, fine in learnt(arm(**change)).items() if not fine} == missing
