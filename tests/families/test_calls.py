"""What a call takes and gives is the stock pipeline's: outputs, callbacks, guidance, latents."""

import inspect
import itertools
import re

import numpy as np
import pytest
import torch
from diffusers import HeunDiscreteScheduler
from PIL import Image
from recording import evaluations
from tiny import CASES, find_case

from tpdiff import apply_pyramid, remove_pyramid
from tpdiff.families import find_family

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
STEPS = (2, 2, 1)


def those(choose):
    """The cases that have something."""
    return pytest.mark.parametrize("case", [case for case in CASES if choose(case)], ids=str)


def takes(name):
    """The cases whose call takes an argument of that name."""
    return those(lambda case: name in inspect.signature(type(case.pipe()).__call__).parameters)


def pyramidal(case):
    return apply_pyramid(case.stageable(), TIME, STEPS)


def test_every_output_type_is_as_stock_gives_it(case):
    kinds = ("latent", "pt", "np", "pil")
    pipe = pyramidal(case)
    ours = {kind: pipe(**case.arguments(output_type=kind, return_dict=True)) for kind in kinds}
    assert torch.equal(case.run(pipe, return_dict=False), ours["latent"].frames)
    remove_pyramid(pipe)
    for kind in kinds:
        stock = pipe(**case.arguments(output_type=kind, return_dict=True, num_inference_steps=2))
        assert type(ours[kind]) is type(stock)
        made, theirs = ours[kind].frames, stock.frames
        assert type(made) is type(theirs)
        if kind == "pil":
            assert isinstance(made[0][0], Image.Image)
            assert [len(video) for video in made] == [len(video) for video in theirs]
            assert made[0][0].size == theirs[0][0].size
        else:
            assert (made.shape, made.dtype) == (theirs.shape, theirs.dtype)
            assert np.isfinite(np.asarray(made)).all()


@takes("negative_prompt")
def test_the_negative_prompt_counts(case):
    pipe = pyramidal(case)
    wanted = {"true_cfg_scale": 4.0} if case.name == "hunyuan" else {}
    some = case.run(pipe, negative_prompt="a ball", **wanted)
    assert not torch.allclose(case.run(pipe, negative_prompt="the blue ball falls", **wanted), some, atol=1e-6)


@those(lambda case: case.name not in ("hunyuan15", "wan-picture") and case.pictures != "list")
def test_two_videos_of_one_prompt(case):
    """Stock CogVideoX, AnimateDiff and ModelScope make one all the same; those left out fail in stock already."""
    pipe = case.stageable()
    if "num_videos_per_prompt" not in inspect.signature(type(pipe).__call__).parameters:
        with pytest.raises(TypeError, match="num_videos_per_prompt"):
            case.run(apply_pyramid(pipe, TIME, STEPS), num_videos_per_prompt=2)
        return
    stock = case.run(pipe, num_videos_per_prompt=2)
    apply_pyramid(pipe, TIME, STEPS)
    made = case.run(pipe, num_videos_per_prompt=2)
    assert made.shape == stock.shape
    if len(made) == 2:
        assert not torch.allclose(made[0], made[1], atol=1e-6)


@those(lambda case: case.guided)
def test_guidance_may_differ_by_stage(case):
    pipe = pyramidal(case)
    same = case.run(pipe, guidance_scale=4.0)
    assert torch.equal(case.run(pipe, guidance_scale=[4.0, 4.0, 4.0]), same)
    seen = [case.run(pipe, guidance_scale=scales) for scales in ([6.0, 4.0, 4.0], [4.0, 4.0, 6.0])]
    for one, other in itertools.combinations([same, *seen], 2):
        assert not torch.allclose(one, other, atol=1e-7)
    with pytest.raises(ValueError, match="guidance_scale has 2 values for 3 stages"):
        case.run(pipe, guidance_scale=[4.0, 6.0])


@those(lambda case: case.guided and case.name != "hunyuan")
def test_a_stage_without_guidance_evaluates_no_negative_prompt(case):
    pipe = pyramidal(case)
    rows = {}
    for scale in (4.0, 1.0):
        with evaluations(case, pipe) as calls:
            case.run(pipe, guidance_scale=[4.0, 4.0, scale])
        rows[scale] = sum(len(call.input) for call in calls if call.size == case.stage_latents(TIME)[-1])
    assert rows[4.0] == 2 * rows[1.0]


@takes("callback_on_step_end")
def test_the_callback_sees_every_step_and_its_latents(case):
    pipe = pyramidal(case)
    seen = []

    def look(which, step, timestep, tensors):
        assert which is pipe
        assert pipe.num_timesteps == sum(pipe.evaluations(STEPS))
        seen.append((step, float(timestep), tuple(tensors["latents"].shape)))
        return {}

    plain = case.run(pipe)
    assert torch.equal(case.run(pipe, callback_on_step_end=look), plain)
    assert [step for step, _, _ in seen] == list(range(sum(pipe.evaluations(STEPS))))
    assert len({shape for _, _, shape in seen}) == 3
    assert seen[-1][2] == plain.shape


@takes("callback_on_step_end")
def test_the_callback_can_change_latents_in_every_stage(case):
    pipe = pyramidal(case)
    plain = case.run(pipe)
    for chosen in (0, sum(STEPS) - 1):

        def shift(which, step, timestep, tensors, chosen=chosen):
            return {"latents": tensors["latents"] + 0.1} if step == chosen else {}

        changed = case.run(pipe, callback_on_step_end=shift)
        assert not torch.allclose(changed, plain, atol=1e-5)


@takes("callback_on_step_end")
def test_the_callback_can_stop_everything(case):
    """Within a stage, at a stage's last step, in a later stage. What comes out has full size, and nothing is left."""
    pipe = pyramidal(case)
    whole = case.run(pipe)
    for last in (0, 1, 2):
        steps = []

        def stop(which, step, timestep, tensors, last=last, steps=steps):
            steps.append(step)
            which._interrupt = step == last
            return {}

        made = case.run(pipe, callback_on_step_end=stop)
        assert steps == list(range(last + 1))
        assert made.shape == whole.shape
        assert not torch.allclose(made, whole, atol=1e-4)
    assert torch.equal(case.run(pipe), whole)


@takes("callback")
def test_the_older_callback_counts_on_as_well(case):
    pipe = pyramidal(case)
    seen = []
    case.run(pipe, callback=lambda step, timestep, latents: seen.append(step), callback_steps=2)
    assert seen == [0, 2, 4]


@takes("callback")
def test_the_older_callback_is_told_steps_where_a_step_has_two_evaluations(case):
    pipe = case.stageable()
    pipe.scheduler = HeunDiscreteScheduler.from_config(pipe.scheduler.config)

    def told():
        seen = []
        case.run(pipe, num_inference_steps=5, callback=lambda step, timestep, latents: seen.append(step))
        return seen

    stock = told()
    apply_pyramid(pipe, TIME, STEPS)
    assert told() == stock == [0, 1, 2, 3, 4]


def test_latents_may_be_given_at_the_coarsest_stages_size(case):
    pipe = pyramidal(case)
    family, config = find_family(pipe), case.predictors(pipe)[0].config
    channels = config.get("out_channels") or config["in_channels"]

    def noise(size, seed):
        generator = torch.Generator().manual_seed(seed)
        return family.pack(pipe, torch.randn(1, channels, *size, generator=generator), size)

    coarse, fine = case.stage_latents(TIME)[0], case.stage_latents(TIME)[-1]
    made = case.run(pipe, latents=noise(coarse, 1))
    assert torch.equal(case.run(pipe, latents=noise(coarse, 1)), made)
    assert not torch.allclose(case.run(pipe, latents=noise(coarse, 2)), made, atol=1e-6)
    told = f"the coarsest stage's size, {coarse[0]} x {coarse[1]} x {coarse[2]} (frames, height, width)"
    with evaluations(case, pipe) as calls, pytest.raises(ValueError, match=re.escape(told)):
        case.run(pipe, latents=noise(fine, 1))
    assert calls == []


def test_two_experts_follow_the_stages_guidance():
    case = find_case("wan-experts")
    pipe = pyramidal(case)
    a_number = case.run(pipe, guidance_scale=[4.0, 4.0, 4.0], guidance_scale_2=4.0)
    assert torch.equal(case.run(pipe, guidance_scale=4.0), a_number)


def test_sigmas_count_the_steps():
    case = find_case("hunyuan")
    pipe = apply_pyramid(case.stageable(), TIME)
    with evaluations(case, pipe) as calls:
        case.run(pipe, sigmas=[1.0, 0.9, 0.8, 0.5, 0.2])
    assert len(calls) == 5
