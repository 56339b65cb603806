"""Applying, replacing, removing and saving a pyramid."""

import copy
import pickle

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from recording import evaluations
from tiny import find_case

from tpdiff import PyramidScheduler, apply_pyramid, remove_pyramid
from tpdiff.families import families
from tpdiff.pyramid import Pyramid
from tpdiff.schedulers import schedule_of

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
TWO = [(1, 1, 1), (4, 1, 1)]
STEPS = (2, 1, 1)


def test_removing_brings_the_stock_pipeline_back(case):
    pipe = case.stageable()
    kind, scheduler, stock = type(pipe), pipe.scheduler, case.run(pipe)
    known = set(vars(pipe))
    assert apply_pyramid(pipe, TIME, STEPS) is pipe
    assert isinstance(pipe, kind)
    assert type(pipe).__name__ == kind.__name__
    assert isinstance(pipe.scheduler, PyramidScheduler)
    assert not torch.equal(case.run(pipe), stock)
    assert remove_pyramid(pipe) is pipe
    assert type(pipe) is kind
    assert pipe.scheduler is scheduler
    assert set(vars(pipe)) == known | set(vars(case_after_a_call(case)))
    assert torch.equal(case.run(pipe), stock)
    assert remove_pyramid(pipe) is pipe


def case_after_a_call(case):
    pipe = case.stageable()
    case.run(pipe)
    return pipe


def test_applying_again_replaces(case):
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    scheduler = pipe._pyramid_call.base
    three = case.run(pipe)
    apply_pyramid(pipe, TWO, (2, 2))
    assert len(type(pipe).__mro__) == len(type(case.pipe()).__mro__) + 2
    with evaluations(case, pipe) as calls:
        two = case.run(pipe)
    assert len({call.size for call in calls}) == 2
    assert not torch.equal(two, three)
    apply_pyramid(pipe, TIME, STEPS)
    assert torch.equal(case.run(pipe), three)
    remove_pyramid(pipe)
    assert pipe.scheduler is scheduler


def test_the_pipelines_own_scheduler_is_not_changed(case):
    pipe = case.stageable()
    before = dict(pipe.scheduler.config)
    scheduler = pipe.scheduler
    apply_pyramid(pipe, TIME, STEPS)
    case.run(pipe)
    assert dict(scheduler.config) == before
    assert scheduler is pipe._pyramid_call.base


def test_steps_win_over_the_calls_and_else_the_call_decides(case):
    pipe = case.stageable()
    for steps, counts in ((STEPS, STEPS), (7, (3, 2, 2)), (None, (3, 1, 1))):
        apply_pyramid(pipe, TIME, steps)
        with evaluations(case, pipe) as calls:
            case.run(pipe, num_inference_steps=5)
        seen = [sum(call.size == size for call in calls) for size in case.stage_latents(TIME)]
        wanted = pipe.evaluations(counts)
        assert [n * sum(wanted) for n in seen] == [n * sum(seen) for n in wanted]  # with and without the prompt


def test_a_saved_pyramidal_pipeline_loads_as_stock_and_is_pyramidal_again(case, tmp_path):
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    kind = type(pipe).__mro__[2]
    made = case.run(pipe)
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    loaded = case.quiet(kind.from_pretrained(tmp_path))
    assert type(loaded) is kind
    assert isinstance(loaded.scheduler, PyramidScheduler)
    with (
        evaluations(case, loaded) as calls,
        pytest.raises(ValueError, match=r"apply_pyramid\(pipe\) once it is loaded"),
    ):
        case.run(loaded)
    assert calls == []
    apply_pyramid(loaded)
    torch.testing.assert_close(case.run(loaded), made, atol=1e-4, rtol=1e-4)  # loaded weights may lie otherwise
    assert loaded._pyramid_call.counts == list(STEPS)
    remove_pyramid(loaded)
    remove_pyramid(pipe)
    assert type(loaded.scheduler) is type(pipe.scheduler)
    assert loaded.scheduler.config == pipe.scheduler.config
    torch.testing.assert_close(case.run(loaded), case.run(pipe), atol=1e-4, rtol=1e-4)


def test_a_scheduler_that_takes_its_place_is_noticed_and_kept():
    case = find_case("wan")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    first = case.run(pipe)
    pipe.scheduler = other = case.other(case.pipe())
    with evaluations(case, pipe) as calls, pytest.raises(ValueError, match="apply the pyramid again"):
        case.run(pipe)
    assert calls == []
    apply_pyramid(pipe, TIME, STEPS)
    assert type(pipe.scheduler.base) is type(other)
    assert not torch.allclose(case.run(pipe), first, atol=1e-4)
    assert remove_pyramid(pipe).scheduler is other


def test_one_latent_frame_has_no_time_to_halve():
    """Stages of a causal axis are then of one size, and so is the result."""
    case = find_case("wan")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    with evaluations(case, pipe) as calls:
        made = case.run(pipe, num_frames=1)
    assert made.shape[2] == 1
    assert {call.size[0] for call in calls} == {1}


def test_a_copy_is_a_pipeline_of_its_own():
    case = find_case("wan")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    other = copy.deepcopy(pipe)
    made = case.run(pipe)
    remove_pyramid(pipe)
    assert torch.equal(case.run(other), made)


@pytest.mark.parametrize("name", ["wan", "ltx", "animatediff"])
def test_a_pickled_pipeline_has_its_stages(name):
    case = find_case(name)
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    made = case.run(pipe)
    other = pickle.loads(pickle.dumps(pipe))
    torch.testing.assert_close(case.run(other), made, atol=1e-4, rtol=1e-4)  # its weights may lie otherwise
    assert other._pyramid_call is not pipe._pyramid_call
    assert type(remove_pyramid(other)) is type(case.pipe())


def test_a_family_is_pickled_by_its_name():
    for family in families():
        assert pickle.loads(pickle.dumps(family)) is family


def test_one_pyramid_serves_many_calls_of_unlike_sizes():
    """A stage's size is the call's, nothing is kept from the call before."""
    case = find_case("wan")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    first = case.run(pipe)
    larger = case.run(pipe, size=(33, 32, 16))
    assert larger.shape[2:] == (9, 4, 2)
    assert torch.equal(case.run(pipe), first)


def test_what_the_network_is_told_outlives_a_new_pyramid():
    case = find_case("wan")
    pipe = case.stageable()
    told = {"timestep_policy": "pyramid_flow", "per_stage_target": True}
    factors = Pyramid(schedule_of(pipe.scheduler), TIME, causal_time=True)
    pipe.scheduler = PyramidScheduler(pipe.scheduler, factors, STEPS, **told)
    for pyramid, steps, stages in ((None, None, [2, 1, 1]), (None, (1, 1, 2), [1, 1, 2]), (TWO, (2, 2), [2, 2])):
        apply_pyramid(pipe, pyramid, steps)
        assert {name: pipe.scheduler.config[name] for name in told} == told
        assert pipe.scheduler.config.steps == stages
    assert len(pipe.scheduler.pyramid) == 2
    for pyramid in (None, TIME, [(1, 1, 1)], TIME):
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
        apply_pyramid(pipe, pyramid, STEPS if pyramid is TIME else None)
        if pyramid != [(1, 1, 1)]:
            assert type(pipe.scheduler.base) is FlowMatchEulerDiscreteScheduler
            assert {name: pipe.scheduler.config[name] for name in told} == told
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ValueError, match="belong"):
        apply_pyramid(pipe, TIME)


def test_a_scheduler_with_stages_that_takes_its_place_is_taken():
    case = find_case("wan")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    base = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.scheduler = PyramidScheduler(base, Pyramid(schedule_of(base), TWO, causal_time=True), (2, 1))
    with pytest.raises(ValueError, match="the scheduler was replaced"):
        case.run(pipe)
    apply_pyramid(pipe)
    assert type(pipe.scheduler.base) is FlowMatchEulerDiscreteScheduler
    with evaluations(case, pipe) as calls:
        case.run(pipe)
    assert len(calls) == 2 * 3
    assert type(remove_pyramid(pipe).scheduler) is FlowMatchEulerDiscreteScheduler


def test_a_refused_pyramid_leaves_the_one_that_was_there():
    case = find_case("wan")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    before = case.run(pipe)
    with pytest.raises(ValueError, match="step counts"):
        apply_pyramid(pipe, TWO, (1, 1, 1))
    assert torch.equal(case.run(pipe), before)
    apply_pyramid(pipe, steps=(1, 1, 1))
    assert pipe.scheduler.config.steps == [1, 1, 1]


def test_a_new_scheduler_takes_over_the_stages():
    case = find_case("wan")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    other = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe.scheduler = other
    with pytest.raises(ValueError, match="the scheduler was replaced"):
        case.run(pipe)
    apply_pyramid(pipe)
    assert type(pipe.scheduler.base) is FlowMatchEulerDiscreteScheduler
    assert pipe.scheduler.config.steps == list(STEPS)
    fresh = case.stageable()
    fresh.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    assert torch.equal(case.run(pipe), case.run(apply_pyramid(fresh, TIME, STEPS)))
    assert remove_pyramid(pipe).scheduler is other
