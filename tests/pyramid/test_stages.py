"""Where stages start and end: published values, round trips, and everything a pyramid must refuse (MATH 3)."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from pyramid_reference import BOTH, FLOW, SCHEDULES, SETTINGS, SPACE, TIME, VP, coefficients, noise_map, normal

from tpdiff.pyramid import Pyramid, VariancePreservingSchedule, positions

# MATH 3's table: three stages, uniform ends at 2/3 and 1/3. Into k=1, then into k=0.
GOLDEN_FLOW = [
    pytest.param(TIME, (8, 1, 1), (0.738796, 0.414214), (0.783612, 0.878680), (0.522408, 0.292893), id="2"),
    pytest.param(SPACE, (1, 4, 4), (0.8, 0.5), (0.6, 0.75), (0.692820, 0.433013), id="4"),
    pytest.param(BOTH, (4, 4, 4), (0.849779, 0.585786), (0.450663, 0.621320), (0.794895, 0.547953), id="8"),
]


def shape_at(size, factors):
    return tuple(n // f for n, f in zip(size, factors, strict=True))


def assert_golden(pyramid, size, coefficient, weight):
    for k, c, w in zip((1, 0), coefficient, weight, strict=True):
        assert pyramid.jump_coefficient(k) == pytest.approx(c, abs=1e-5)
        added = noise_map(pyramid, k, shape_at(size, pyramid.stages[k].factors))
        np.testing.assert_allclose(np.linalg.norm(added, axis=1), w, atol=1e-5)


@pytest.mark.parametrize(("factors", "size", "starts", "coefficient", "weight"), GOLDEN_FLOW)
def test_golden_values_of_flow_matching(factors, size, starts, coefficient, weight):
    pyramid = Pyramid(FLOW, factors)
    assert [stage.end for stage in pyramid.stages] == pytest.approx([0, 1 / 3, 2 / 3], abs=1e-15)
    assert [stage.start for stage in pyramid.stages] == pytest.approx([starts[1], starts[0], 1.0], abs=1e-6)
    assert_golden(pyramid, size, coefficient, weight)


def test_golden_values_of_stable_diffusion():
    pyramid = Pyramid(VP, TIME)
    assert [999 * stage.end for stage in pyramid.stages] == pytest.approx([0, 333, 666], abs=1e-9)
    starts = [999 * stage.start for stage in pyramid.stages]
    assert starts == pytest.approx([437.958633, 751.591130, 999], abs=1e-4)
    assert pyramid.stages[1].start_level.alpha == pytest.approx(0.235486, abs=1e-5)
    assert pyramid.stages[0].start_level.alpha == pytest.approx(0.604278, abs=1e-5)
    assert_golden(pyramid, (8, 1, 1), (0.726448, 0.826182), (0.687221, 0.563404))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_stages_overlap_by_half_the_log_of_the_block(schedule, setting):
    """λ_e = λ_s + ½ ln d at both jumps; the last stage ends clean and the first starts at the schedule's last."""
    pyramid = setting.pyramid(schedule)
    for k in (0, 1):
        gamma_s, sigma_s = coefficients(schedule, pyramid.stages[k].start)
        gamma_e, sigma_e = coefficients(schedule, pyramid.stages[k + 1].end)
        gap = math.log(gamma_e / sigma_e) - math.log(gamma_s / sigma_s)
        assert gap == pytest.approx(0.5 * math.log(setting.block), abs=1e-9)
        assert pyramid.stages[k].start > pyramid.stages[k + 1].end
        assert pyramid.block(k) == setting.block
    clean = pyramid.stages[0].end_level
    assert (clean.t, clean.alpha, clean.sigma) == (0, 1, 0)
    noisy = pyramid.stages[2].start_level
    assert (noisy.t, noisy.alpha, noisy.sigma) == pytest.approx((1.0, *coefficients(schedule, 1.0)), abs=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_starts_give_back_the_ends(schedule, setting):
    by_ends = setting.pyramid(schedule, ends=[0.25, 0.6])
    by_starts = setting.pyramid(schedule, starts=[stage.start for stage in by_ends.stages[:-1]])
    for a, b in zip(by_ends.stages, by_starts.stages, strict=True):
        assert (a.start, a.end) == pytest.approx((b.start, b.end), abs=1e-9)
        assert a.end_level.kappa == pytest.approx(b.end_level.kappa, rel=1e-8)
    both = setting.pyramid(
        schedule, ends=[s.end for s in by_ends.stages[1:]], starts=[s.start for s in by_ends.stages[:-1]]
    )
    assert [s.start for s in both.stages] == pytest.approx([s.start for s in by_ends.stages], abs=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_pyramid_is_rebuilt_from_its_config(schedule, setting):
    pyramid = setting.pyramid(schedule, ends=[0.2, 0.7])
    again = Pyramid.from_config(json.loads(json.dumps(pyramid.config())))
    assert again.factors == pyramid.factors
    assert again.causal_time == pyramid.causal_time
    for a, b in zip(pyramid.stages, again.stages, strict=True):
        for x, y in ((a.start_level, b.start_level), (a.end_level, b.end_level)):
            assert (x.t, x.alpha, x.sigma) == pytest.approx((y.t, y.alpha, y.sigma), abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "factors", "times", "spans"),
    [
        pytest.param(
            FLOW,
            TIME,
            {"ends": (0.2, 0.4), "starts": (0.9, 0.8)},
            [(0.9, 0), (0.8, 0.2), (1, 0.4)],
            id="noisier-starts-than-the-jumps-need-and-falling",
        ),
        pytest.param(VP, TIME[:2], {"starts": (0.001,)}, [(0.001, 0), (1, 3.58313e-6)], id="end-by-the-first-index"),
    ],
)
def test_a_pyramid_of_unusual_starts_is_rebuilt_from_its_config(schedule, factors, times, spans):
    pyramid = Pyramid(schedule, factors, **times)
    again = Pyramid.from_config(json.loads(json.dumps(pyramid.config())))
    for one in (pyramid, again):
        assert [t for stage in one.stages for t in (stage.start, stage.end)] == pytest.approx(sum(spans, ()), abs=1e-10)


# Refusals


@pytest.mark.parametrize(
    ("schedule", "factors", "starts", "ends"),
    [
        pytest.param(
            FLOW, ((1, 1, 1), (2, 1, 1), (4, 4, 4)), (0.5, 0.55), r"0\.41421\d*, 0\.17767\d*", id="ends-not-rising"
        ),
        pytest.param(VP, TIME[:2], (0.0005,), r"0\.0", id="end-cleaner-than-the-first-index"),
    ],
)
def test_starts_whose_ends_cannot_be_are_refused(schedule, factors, starts, ends):
    message = rf"^ends must rise strictly inside \(0, 1\), finest stage first; got \[{ends}\]$"
    with pytest.raises(ValueError, match=message):
        Pyramid(schedule, factors, starts=starts)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_an_infeasible_jump_is_refused_by_both_levels(schedule):
    with pytest.raises(ValueError, match="infeasible jump") as refusal:
        Pyramid(schedule, TIME[:2], ends=[0.6], starts=[0.61])
    message = str(refusal.value)
    limit = coefficients(schedule, 0.61)[1] / coefficients(schedule, 0.61)[0] / math.sqrt(2)
    for part in ("0.6 ", "0.61 ", "blocks of 2", f"{limit:.6g}"):
        assert part in message
    Pyramid(schedule, TIME[:2], ends=[0.5], starts=[0.61])  # a cleaner end is fine


def test_feasibility_is_decided_at_the_exact_level():
    for block, factors in ((2, TIME), (4, SPACE), (8, BOTH)):
        start = math.sqrt(block) / (1 + math.sqrt(block))  # κ = sqrt(d) from an end at κ = 1
        Pyramid(FLOW, factors[:2], ends=[0.5], starts=[start + 1e-6])
        with pytest.raises(ValueError, match="infeasible jump"):
            Pyramid(FLOW, factors[:2], ends=[0.5], starts=[start - 1e-6])


def test_a_causal_axis_is_held_to_its_nominal_block():
    """One frame alone has a block of 4, but the pyramid serves longer videos too."""
    with pytest.raises(ValueError, match="blocks of 8"):
        Pyramid(FLOW, BOTH[:2], ends=[0.5], starts=[0.7], causal_time=True)  # 0.7 would do for blocks of 4


def test_an_end_too_noisy_to_roll_back_is_refused():
    """κ at Stable Diffusion's last level is 14.6: an end at κ = 12 has no start at κ = 12 sqrt(8)."""
    with pytest.raises(ValueError, match=r"infeasible jump: .* t = 0\.95 .*blocks of 8.*spans .* to 14\.6"):
        Pyramid(VP, BOTH[:2], ends=[0.95])
    Pyramid(FLOW, BOTH[:2], ends=[0.95])  # flow matching has every level
    Pyramid(VP.zero_terminal_snr(), BOTH[:2], ends=[0.95])


@pytest.mark.parametrize("name", ["ends", "starts"])
@pytest.mark.parametrize(
    ("times", "complaint"),
    [
        ([0.5], "1 times; 3 stages need 2"),
        ([0.2, 0.4, 0.6], "3 times; 3 stages need 2"),
        ([0.6, 0.3], "must rise strictly inside"),
        ([0.4, 0.4], "must rise strictly inside"),
        ([0.0, 0.5], "must rise strictly inside"),
        ([0.5, 1.0], "must rise strictly inside"),
        ([-0.1, 0.5], "must rise strictly inside"),
        ([0.5, math.nan], "must rise strictly inside"),
    ],
)
def test_times_out_of_order_range_or_number_are_refused(name, times, complaint):
    with pytest.raises(ValueError, match=f"{name} .*{complaint}"):
        Pyramid(FLOW, TIME, **{name: times})


@pytest.mark.parametrize(
    ("factors", "complaint"),
    [
        ([], r"finest stage's factors must be \(1, 1, 1\)"),
        ([(2, 1, 1), (4, 1, 1)], r"finest stage's factors must be \(1, 1, 1\)"),
        ([(4, 1, 1), (2, 1, 1), (1, 1, 1)], r"finest stage's factors must be \(1, 1, 1\)"),
        ([(1, 1, 1), (4, 1, 1), (2, 1, 1)], "must not shrink"),
        ([(1, 1, 1), (2, 2, 2), (4, 1, 1)], "must not shrink"),
        ([(1, 1, 1), (0, 1, 1)], "whole"),
        ([(1, 1, 1), (-2, 1, 1)], "whole"),
        ([(1, 1, 1), (1.5, 1, 1)], "haar resizes by whole ratios.*frames has ratio 1.5"),
        ([(1, 1, 1), (math.inf, 1, 1)], "whole"),
        ([(1, 1, 1), (math.nan, 1, 1)], "whole"),
        ([(1, 1, 1), (1, 0.75, 1)], "whole"),
        ([(1, 1, 1), (1, 1.333, 1)], "height has stride 1.333, which is no simple fraction .*; the nearest is 4/3"),
        ([(1, 1, 1), (Fraction(301, 200), 1, 1)], "num_frames has stride 301/200, which is no simple fraction"),
        ([(1, 1, 1), (1.5, 1.5, 1), (3, 1.25, 1)], r"must not shrink .*\(1.5, 1.5, 1\), \(3, 1.25, 1\)"),
        ([(1, 1, 1), (2, 1)], "whole"),
        ([(1, 1, 1), (2, 1, 1), (3, 1, 1)], "haar resizes by whole ratios.*frames has ratio 1.5"),
        ([(1, 1, 1), (1, 2, 2), (1, 2, 5)], "haar resizes by whole ratios.*width has ratio 2.5"),
    ],
)
def test_illegal_factors_are_refused(factors, complaint):
    with pytest.raises(ValueError, match=complaint):
        Pyramid(FLOW, factors)


@pytest.mark.parametrize(
    ("resize", "complaint"),
    [
        ("linear", "linear resizes by whole ratios from stage to stage; height has ratio 1.5"),
        ("db2", "db2 resizes by powers of two from stage to stage; height has ratio 1.5"),
    ],
)
def test_fractional_strides_are_for_operators_that_can(resize, complaint):
    with pytest.raises(ValueError, match=complaint):
        Pyramid(FLOW, [(1, 1, 1), (1, 1.5, 1.5)], resize=resize)


def test_an_unknown_operator_is_refused():
    with pytest.raises(ValueError, match=r"unknown resize 'bicubic'; known: .*haar"):
        Pyramid(FLOW, TIME, resize="bicubic")


# Levels inside a stage


@pytest.mark.parametrize("k", [0, 1, 2])
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("spacing", ["time", "angle"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_run_from_the_start_to_the_end_inclusive(schedule, spacing, steps, k):
    stage = Pyramid(schedule, TIME).stages[k]
    levels = Pyramid(schedule, TIME).levels(k, steps, spacing)
    assert len(levels) == steps + 1
    assert (levels[0], levels[-1]) == (stage.start_level, stage.end_level)
    for level in levels[1:-1]:
        assert (level.alpha, level.sigma) == pytest.approx(coefficients(schedule, level.t), abs=1e-9)
    if spacing == "time":
        spots = [level.t for level in levels]
    else:
        spots = [math.atan2(level.sigma, level.alpha) for level in levels]
    gaps = np.diff(spots)
    if spacing == "angle" and schedule is VP and k == 0:
        gaps = gaps[:-1]  # the leap from the first index into clean data has a size of its own
    assert np.all(gaps < 0)
    np.testing.assert_allclose(gaps, gaps.mean() if len(gaps) else 0, atol=1e-9)


def test_every_angle_spaced_level_can_be_named_to_the_network():
    """The denoiser is told t alone, so the level at that t must be the level it is given."""
    for level in Pyramid(VP, TIME).levels(0, 160, "angle")[1:-1]:
        assert (level.alpha, level.sigma) == pytest.approx(coefficients(VP, level.t), abs=1e-6)


def test_levels_refuse_no_steps_and_unknown_spacings():
    pyramid = Pyramid(FLOW, TIME)
    with pytest.raises(ValueError, match="stage 1 needs at least one step, got 0"):
        pyramid.levels(1, 0)
    with pytest.raises(ValueError, match="unknown spacing 'karras'; known: time, angle"):
        pyramid.levels(1, 1, "karras")


def test_training_times_spread_over_the_stage():
    pyramid = Pyramid(FLOW, TIME)
    u = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    stage = pyramid.stages[1]
    assert pyramid.times(u, 1).tolist() == pytest.approx([1 / 3, (1 / 3 + 0.738796) / 2, 0.738796], abs=1e-6)
    assert pyramid.times(u, 1)[2] == stage.start


def test_stage_shapes_follow_the_resized_latents():
    plain = Pyramid(FLOW, BOTH)
    assert plain.stage_shape((2, 16, 8, 12, 20), 2) == tuple(plain.down(normal(2, 16, 8, 12, 20), 2).shape)
    assert plain.stage_shape((2, 16, 8, 12, 20), 1) == (2, 16, 4, 6, 10)
    causal = Pyramid(FLOW, TIME, causal_time=True)
    assert [causal.stage_shape((1, 4, 21, 3, 3), k)[2] for k in (0, 1, 2)] == [21, 11, 6]
    assert [causal.stage_shape((1, 4, 1, 3, 3), k)[2] for k in (0, 1, 2)] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"num_frames 6 is not a multiple of 4 .*nearest: 4 or 8"):
        Pyramid(FLOW, TIME).stage_shape((1, 4, 6, 3, 3), 0)
    with pytest.raises(ValueError, match=r"num_frames 20 is not 1 \+ a multiple of 4 .*nearest: 17 or 21"):
        causal.stage_shape((1, 4, 20, 3, 3), 0)
    with pytest.raises(ValueError, match="expected a shape"):
        plain.stage_shape((16, 8, 12, 20), 0)


THIRDS = [(1, 1, 1), (1, 1.5, 1.5), (1, 3, 3)]


def test_fractional_strides_come_out_whole_at_every_stage():
    pyramid = Pyramid(FLOW, THIRDS, resize="dct")
    assert pyramid.multiples == (1, 3, 3)
    assert [pyramid.stage_shape((2, 4, 5, 12, 18), k)[2:] for k in range(3)] == [(5, 12, 18), (5, 8, 12), (5, 4, 6)]
    x = normal(1, 1, 5, 12, 18)
    assert [tuple(pyramid.down(x, k).shape[2:]) for k in range(3)] == [(5, 12, 18), (5, 8, 12), (5, 4, 6)]
    assert pyramid.up(pyramid.down(x, 1), 0).shape == x.shape
    assert pyramid.block(0) == pytest.approx(2.25)
    assert pyramid.block(1) == pytest.approx(4)
    with pytest.raises(ValueError, match=r"height 13 is not a multiple of 3 \(3 pyramid\); nearest: 12 or 15"):
        pyramid.check_shape((1, 4, 5, 13, 18))
    mixed = Pyramid(FLOW, [(1, 1, 1), (4 / 3, 1.5, 1), (4, 2.5, 1)], resize="dct")
    assert mixed.multiples == (4, 15, 1)  # 4/3 and 4; 3/2 and 5/2
    assert [mixed.stage_shape((1, 1, 8, 30, 1), k)[2:4] for k in range(3)] == [(8, 30), (6, 20), (2, 12)]


def test_a_causal_time_axis_takes_fractional_strides_after_its_first_frame():
    pyramid = Pyramid(FLOW, [(1, 1, 1), (1.5, 1, 1), (3, 1, 1)], resize="dct", causal_time=True)
    x = normal(1, 2, 13, 1, 1)
    assert [pyramid.stage_shape(x.shape, k)[2] for k in range(3)] == [13, 9, 5]
    assert [pyramid.down(x, k).shape[2] for k in range(3)] == [13, 9, 5]
    torch.testing.assert_close(pyramid.down(x, 2)[:, :, 0], x[:, :, 0])
    with pytest.raises(ValueError, match=r"num_frames 12 is not 1 \+ a multiple of 3 .*nearest: 10 or 13"):
        pyramid.check_shape((1, 2, 12, 1, 1))
    for k, stage in enumerate(pyramid.stages):  # the mean place of the frames is the same at every stage
        where = positions(pyramid.stage_shape(x.shape, k)[2], stage.factors[0], causal=True)
        assert where[0] == 0
        assert where[1:].mean() == pytest.approx(6.5)


def test_whole_strides_stay_whole_and_fractions_are_read_as_meant():
    strides = [(1, 1, 1), (1.0, Fraction(3, 2), 4 / 3), (Fraction(2), 3, 20 / 3)]
    pyramid = Pyramid(FLOW, strides, resize="dct")
    assert pyramid.factors == ((1, 1, 1), (1, 1.5, 4 / 3), (2, 3, 20 / 3))
    assert [type(f) for f in pyramid.stages[1].factors] == [int, float, float]
    assert pyramid.ratio(1) == (2, 2, 5)  # 20/3 over 4/3 is not 5 in floats
    again = Pyramid.from_config(json.loads(json.dumps(pyramid.config())))
    assert again.factors == pyramid.factors
    assert again.multiples == pyramid.multiples == (2, 3, 20)
    assert [type(f) for f in again.stages[2].factors] == [int, int, float]


def test_stages_whose_both_levels_are_known_may_overlap_as_far_as_they_like():
    """A coarse stage may end cleaner than the finer one does, in its own terms, so long as each has somewhere to go."""
    ends, starts = [0.5, 0.45], [0.67, 0.63]
    with pytest.raises(ValueError, match="ends must rise strictly"):
        Pyramid(FLOW, SPACE, ends=ends)
    pyramid = Pyramid(FLOW, SPACE, ends=ends, starts=starts)
    assert [(s.start, s.end) for s in pyramid.stages] == [(0.67, 0.0), (0.63, 0.5), (1.0, 0.45)]
    assert Pyramid.from_config(json.loads(json.dumps(pyramid.config()))).stages == pyramid.stages
    with pytest.raises(ValueError, match=r"stage 1 must start noisier than it ends; it runs from t = 0\.63 to 0\.64"):
        Pyramid(FLOW, SPACE, ends=[0.64, 0.45], starts=[0.79, 0.63])
    with pytest.raises(ValueError, match=r"ends must lie inside \(0, 1\)"):
        Pyramid(FLOW, SPACE, ends=[0.5, 1.0], starts=starts)


def test_zero_terminal_snr_moves_only_the_last_level_to_pure_noise():
    pyramid = Pyramid(VP.zero_terminal_snr(), TIME)
    assert pyramid.stages[2].start_level.alpha == 0
    assert pyramid.stages[2].start_level.sigma == 1
    assert isinstance(pyramid.schedule, VariancePreservingSchedule)


def test_a_stage_can_start_at_the_last_time_that_has_signal():
    """A roll-back may lead exactly there; what is saved must build the same again."""
    end = VP.level_from_kappa(float(VP.kappa(1.0)) / 2**0.5).t
    pyramid = Pyramid(VP, [(1, 1, 1), (2, 1, 1)], ends=[end])
    assert pyramid.stages[0].start == 1.0
    again = Pyramid.from_config(json.loads(json.dumps(pyramid.config())))
    assert [(stage.start, stage.end) for stage in again.stages] == [(1.0, 0.0), (1.0, pytest.approx(end))]
    with pytest.raises(ValueError, match=r"starts must rise strictly inside \(0, 1\], finest stage first"):
        Pyramid(VP, [(1, 1, 1), (2, 1, 1)], starts=[1.1])
    with pytest.raises(ValueError, match=r"starts must rise strictly inside \(0, 1\), finest"):
        Pyramid(FLOW, [(1, 1, 1), (2, 1, 1)], starts=[1.0])


@pytest.mark.parametrize("k", [-1, 3])
def test_stages_that_there_are_not(k):
    pyramid, x = Pyramid(FLOW, TIME), normal(1, 1, 8, 1, 1)
    for ask in (
        lambda: pyramid.stage_shape(x.shape, k),
        lambda: pyramid.down(x, k),
        lambda: pyramid.times(torch.tensor([0.5]), k),
        lambda: pyramid.levels(k, 2),
        lambda: pyramid.pair(x, None, x, k),
        lambda: pyramid.jump(x, k),
    ):
        with pytest.raises(ValueError, match=rf"no stage {k}: stages are 0, the finest, to 2"):
            ask()
    with pytest.raises(ValueError, match="no stage 3"):
        pyramid.jump(x, 2)  # from a coarser one than the coarsest
