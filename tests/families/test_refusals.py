"""What cannot be run is refused before any work, with what would do."""

import inspect
import re

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    LCMScheduler,
    UNet2DModel,
    UniPCMultistepScheduler,
)
from recording import encodings, evaluations
from tiny import CASES, find_case

from tpdiff import apply_pyramid
from tpdiff.families import find_family
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule
from tpdiff.sampling.asking import Asker
from tpdiff.schedulers import schedule_of

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
BOTH = [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
STEPS = (2, 1, 1)
SOME = pytest.mark.parametrize("case", [find_case("wan"), find_case("modelscope")], ids=str)


def refused(case, pipe, message, **changes):
    """A call raises ValueError with the message, and no network or encoder has been called. The whole message."""
    with (
        evaluations(case, pipe) as calls,
        encodings(pipe) as encoded,
        pytest.raises(ValueError, match=message) as caught,
    ):
        case.run(pipe, **changes)
    assert calls == []
    assert sum(encoded.values()) == 0
    return str(caught.value)


def nearest(message):
    """The values that a message offers."""
    return [int(number) for number in re.findall(r"\d+", message.split("nearest:")[1])]


@pytest.mark.parametrize("axis", [0, 1, 2], ids=["num_frames", "height", "width"])
def test_sizes_are_refused_with_the_nearest_legal_ones(case, axis):
    pipe = apply_pyramid(case.stageable(), BOTH if case.over_space else TIME, STEPS)
    name, wrong = ("num_frames", "height", "width")[axis], case.size[axis] + 1
    message = refused(case, pipe, f"{name} {wrong} is .*; nearest: ", **{"size": case.size, name: wrong})
    values = nearest(message)
    assert case.size[axis] in values
    assert len(values) == (2 if case.over_space or axis == 0 else 1)
    for value in set(values) - {case.size[axis]}:
        assert case.run(pipe, size=(*case.size[:axis], value, *case.size[axis + 1 :])).isfinite().all()


@pytest.mark.parametrize(
    ("name", "axis", "wrong", "message"),
    [
        (
            "cogvideox-pairs",
            "height",
            257,
            "height 257 is out of this network's positions' reach, 1 to 256; nearest: 256",
        ),
        ("cogvideox-picture", "width", 48, "width 48 is out of this network's positions' reach, 64 to 64; nearest: 64"),
        (
            "animatediff",
            "num_frames",
            36,
            "num_frames 36 is out of this network's positions' reach, 1 to 32; nearest: 32",
        ),
    ],
)
def test_sizes_that_a_network_has_no_positions_for_are_refused(name, axis, wrong, message):
    """Stock tells of them in the full-size stage only, the last one, or by a broken tensor operation."""
    case = find_case(name)
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    refused(case, pipe, message, **{axis: wrong})


def may_leave_out(case):
    return inspect.signature(type(case.pipe()).__call__).parameters["height"].default is None


def test_a_plain_time_axis_has_legal_lengths_of_its_own():
    """Latent frames in blocks of four from the first on: 1 + 4 (4 n - 1) frames."""
    case = find_case("wan")
    pipe = case.stageable()
    apply_pyramid(pipe, Pyramid(schedule_of(pipe.scheduler), TIME), STEPS)
    refused(case, pipe, "num_frames 17 is not 3 less than a multiple of 16 .*; nearest: 13 or 29")
    with evaluations(case, pipe) as calls:
        made = case.run(pipe, num_frames=13)
    assert [call.size[0] for call in calls[::2]] == [1, 1, 2, 4]
    assert made.shape[2] == 4


@pytest.mark.parametrize("case", [case for case in CASES if may_leave_out(case)], ids=str)
def test_sizes_left_out_are_the_pipelines_own(case):
    """And are checked as well."""
    pipe = apply_pyramid(case.stageable(), BOTH if case.over_space else TIME, STEPS)
    usual = find_family(pipe).defaults(pipe)
    with evaluations(case, pipe) as calls:
        try:
            case.run(pipe, height=None, width=None)
        except ValueError as error:
            assert f"{usual['height']} is not" in str(error) or f"{usual['width']} is not" in str(error)
            assert calls == []
        else:
            ratio = find_family(pipe).vae_ratio(pipe)
            assert calls[-1].size[1:] == (usual["height"] // ratio[1], usual["width"] // ratio[2])


def test_an_unknown_pipeline_is_refused_with_those_that_are_known():
    pipe = DDIMPipeline(
        UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)),
        DDIMScheduler(),
    )
    with pytest.raises(ValueError, match="no family is registered for DDIMPipeline; known: ") as caught:
        apply_pyramid(pipe, TIME)
    for case in CASES:
        assert type(case.pipe()).__name__ in str(caught.value)
    assert "register_family" in str(caught.value)


@SOME
def test_without_a_pyramid_there_is_none_to_apply(case):
    with pytest.raises(ValueError, match="give a pyramid"):
        apply_pyramid(case.pipe())


@SOME
@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((2, 2), "2 step counts .* for 3 stages"),
        (2, "2 steps cannot fill 3 stages"),
        ((2, 0, 1), "every stage needs at least one whole step"),
    ],
)
def test_step_counts_that_do_not_fit_are_refused(case, steps, message):
    pipe = case.stageable()
    kind, scheduler = type(pipe), pipe.scheduler
    with pytest.raises(ValueError, match=message):
        apply_pyramid(pipe, TIME, steps)
    assert type(pipe) is kind
    assert pipe.scheduler is scheduler


@SOME
def test_too_few_steps_in_the_call_are_refused(case):
    pipe = apply_pyramid(case.stageable(), TIME)
    refused(case, pipe, "2 steps cannot fill 3 stages", num_inference_steps=2)


@pytest.mark.parametrize("steps", [(2, 1, 600), None])
def test_more_steps_than_a_stage_has_timesteps_are_refused(steps):
    """That is known before the coarser stages are made."""
    case = find_case("animatediff")
    pipe = apply_pyramid(case.stageable(), TIME, steps)
    message = r"stage 0 has (\d+) whole timesteps, too few for 600 steps; nearest: \1$"
    refused(case, pipe, message, num_inference_steps=1800)


def test_sigmas_that_do_not_fall_are_refused():
    case = find_case("hunyuan")
    pipe = apply_pyramid(case.stageable(), TIME)
    refused(case, pipe, r"sigmas must fall from 1 towards 0; got 1 \.\.\. 0\.2", sigmas=[1.0, 0.5, 0.6, 0.2])


@SOME
def test_a_pyramid_on_another_schedule_is_refused(case):
    pipe = case.stageable()
    scheduler, own = pipe.scheduler, schedule_of(pipe.scheduler)
    other = VariancePreservingSchedule() if own.name == "flow_matching" else FlowMatchingSchedule()
    with pytest.raises(ValueError, match="schedule_of"):
        apply_pyramid(pipe, Pyramid(other, TIME, causal_time=True))
    assert pipe.scheduler is scheduler
    assert case.run(pipe).isfinite().all()


@pytest.mark.parametrize("case", [case for case in CASES if not case.default_runs], ids=str)
def test_the_stochastic_default_is_refused_by_name(case):
    pipe = case.pipe()
    with pytest.raises(ValueError, match=r"CogVideoXDPMScheduler cannot run inside a stage.*CogVideoXDDIMScheduler"):
        apply_pyramid(pipe, TIME)
    assert case.run(pipe).isfinite().all()


@SOME
def test_a_stochastic_scheduler_is_refused(case):
    pipe = case.pipe()
    pipe.scheduler = LCMScheduler()
    with pytest.raises(ValueError, match="LCMScheduler cannot run inside a stage"):
        apply_pyramid(pipe, TIME)


FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}


@pytest.mark.parametrize("kept", [True, False], ids=["from_config", "plain"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (FlowMatchEulerDiscreteScheduler, {"invert_sigmas": False}),
        (FlowMatchHeunDiscreteScheduler, {}),
        (UniPCMultistepScheduler, FLOW),
        (DPMSolverMultistepScheduler, FLOW),
        (DDIMScheduler, {"prediction_type": "v_prediction"}),
    ],
)
def test_a_scheduler_whose_time_runs_the_other_way_is_refused(kind, config, kept):
    case = find_case("mochi")
    pipe = case.pipe()
    other = kind.from_config(pipe.scheduler.config, **config) if kept else kind(**config)
    message = f"{kind.__name__}.* cannot sample Mochi.*: use FlowMatchEulerDiscreteScheduler with invert_sigmas=True"
    for stages in (TIME, TIME[:1]):
        pipe.scheduler = other
        with pytest.raises(ValueError, match=message):
            apply_pyramid(pipe, stages)
        assert pipe.scheduler is other
    with pytest.raises(ValueError, match=message):
        Asker(pipe)
    apply_pyramid(replaced := case.pipe(), TIME)
    replaced.scheduler = other
    with pytest.raises(ValueError, match=message):
        apply_pyramid(replaced)


def test_a_scheduler_whose_time_runs_the_models_way_is_taken():
    case = find_case("mochi")
    pipe = case.pipe()
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config, shift=3.0)
    apply_pyramid(pipe, TIME, STEPS)
    apply_pyramid(pipe, TIME, STEPS)
    assert case.run(pipe).isfinite().all()


def test_learned_positions_refuse_another_height_and_width():
    case = find_case("cogvideox-picture")
    pipe = case.stageable()
    with pytest.raises(ValueError, match=r"learned position .* factors \(T, 1, 1\)"):
        apply_pyramid(pipe, BOTH)
    assert case.run(pipe).isfinite().all()


@pytest.mark.parametrize("name", ["free_init", "free_noise"])
def test_noise_that_is_not_white_is_refused(name):
    case = find_case("animatediff")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    getattr(pipe, f"enable_{name}")()
    refused(case, pipe, f"{name} makes noise of its own.*disable_{name}")
    getattr(pipe, f"disable_{name}")()
    assert case.run(pipe).isfinite().all()


@pytest.mark.parametrize("name", ["cogvideox", "mochi", "ltx"])
def test_timesteps_of_a_plain_schedule_are_refused(name):
    case = find_case(name)
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    refused(case, pipe, "timesteps of a plain schedule have no meaning with stages", timesteps=[999, 500, 200, 100])


@pytest.mark.parametrize("name", ["cogvideox", "animatediff"])
def test_noise_in_every_step_is_refused(name):
    case = find_case(name)
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    refused(case, pipe, r"eta 0\.5: a stage is sampled without noise, .*; use eta=0", eta=0.5)


@pytest.mark.parametrize("case", [case for case in CASES if case.pictures], ids=str)
def test_a_missing_picture_is_refused(case):
    """Also where stock takes given latents for ones that hold it."""
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    refused(case, pipe, f"{type(pipe).__name__} starts from a picture: give it as image", image=None)


def test_nothing_is_left_of_a_call_that_failed(case):
    """Neither in the pipeline nor in what the next call makes."""
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    between = dict(vars(pipe._pyramid_call))
    made = case.run(pipe)
    assert vars(pipe._pyramid_call) == between
    network = case.predictors(pipe)[-1]
    left = 3

    def fail(*given):
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("out of memory")

    handle = network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        case.run(pipe)
    handle.remove()
    assert vars(pipe._pyramid_call) == between
    assert pipe.scheduler.generator is None
    with pytest.raises(ValueError, match=r"tpdiff\.apply_pyramid"):  # restricted to no stage any more
        pipe.scheduler.set_timesteps(6)
    assert torch.equal(case.run(pipe), made)


def test_generators_that_are_not_one_a_video_are_refused_where_noise_is_given():
    """Stock pipelines that are given latents do not count the generators, which the jumps draw from."""
    for name in ("wan", "hunyuan", "mochi"):
        case = find_case(name)
        pipe = apply_pyramid(case.stageable(), TIME, STEPS)
        size, channels = case.stage_latents(TIME)[0], case.predictors(pipe)[0].config["in_channels"]
        noise = find_family(pipe).pack(pipe, torch.zeros(1, channels, *size), size)
        two = [torch.Generator(), torch.Generator()]
        refused(case, pipe, "2 generators for a batch of 1", latents=noise, generator=two)


@pytest.mark.parametrize("frames", [5, 9, 13])
def test_patches_of_several_frames_are_filled_over_space_alone(frames):
    """As stock CogVideoX 1.5 fills them, whose every length of 1 + 4 n frames runs."""
    case = find_case("cogvideox-pairs")
    size = (frames, *case.size[1:])
    pipe = apply_pyramid(case.stageable(), [(1, 1, 1), (1, 2, 2)], (2, 1))
    assert case.run(pipe, size=size).isfinite().all()
