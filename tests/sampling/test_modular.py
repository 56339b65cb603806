"""Modular pipelines with stages: the stock loop step inside, the same videos as the ordinary pipeline's."""

import re
from pathlib import Path

import pytest
import torch
from accelerating import COUNTS, FACTORS, call, pyramid_of, pyramidal, wan
from diffusers import FirstBlockCacheConfig, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from diffusers.modular_pipelines import WanBlocks
from diffusers.modular_pipelines.wan.modular_blocks_wan22 import Wan22Blocks
from diffusers.modular_pipelines.wan.modular_blocks_wan_i2v import WanImage2VideoCoreDenoiseStep

from tpdiff import PyramidScheduler, apply_pyramid
from tpdiff.sampling.modular import coarse_latents_block, make_pyramidal, pyramid_denoise_block

PAGE = Path(__file__).resolve().parents[2] / "docs" / "modular.md"
SIZE = {"num_frames": 33, "height": 64, "width": 64}


@pytest.fixture(scope="module")
def encoded():
    """The two prompts' embeddings."""
    prompt, negative = wan().encode_prompt("a red ball", "the dog", max_sequence_length=16)
    return {"prompt_embeds": prompt, "negative_prompt_embeds": negative}


@pytest.fixture
def run(encoded):
    """(pipeline, outputs' name) -> what it makes."""

    def go(pipe, output="latents", **options):
        generator = torch.Generator().manual_seed(3)
        return pipe(**{**encoded, **SIZE, "generator": generator, "output": output, **options})

    return go


def core(blocks):
    return blocks.sub_blocks["denoise"].sub_blocks


def built(blocks, parts=None, **more):
    """A pipeline of blocks that take encoded prompts, with tiny real components."""
    blocks.sub_blocks.pop("text_encoder", None)
    pipe = blocks.init_pipeline()
    parts = (parts or wan()).components | more
    pipe.update_components(**{name: parts[name] for name in ("transformer", "scheduler", "vae", *more)})
    return pipe


def sizes_seen(pipe):
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(tuple(kwargs["hidden_states"].shape[2:])), with_kwargs=True
    )
    return seen


def test_one_stage_is_the_stock_pipeline(run):
    stock = run(built(WanBlocks()), num_inference_steps=4)
    one = run(built(make_pyramidal(WanBlocks(), [(1, 1, 1)])), num_inference_steps=4)
    assert torch.equal(one, stock)


def test_one_stage_takes_its_own_steps(run):
    """Unless the call says its levels."""
    stock = run(built(WanBlocks()), num_inference_steps=3)
    one = built(make_pyramidal(WanBlocks(), [(1, 1, 1)], steps=3))
    seen = sizes_seen(one)
    assert torch.equal(run(one, num_inference_steps=4), stock)
    assert len(seen) == 2 * 3
    euler = FlowMatchEulerDiscreteScheduler()
    levels = {"sigmas": [1.0, 0.7, 0.2, 0.1]}
    stock = run(built(WanBlocks(), wan(scheduler=euler)), **levels)
    assert torch.equal(run(built(make_pyramidal(WanBlocks(), [(1, 1, 1)], 3), wan(scheduler=euler)), **levels), stock)


def test_three_stages_make_what_the_ordinary_pipeline_makes(run):
    pipe = built(make_pyramidal(WanBlocks(), FACTORS, COUNTS))
    own, seen = pipe.scheduler, sizes_seen(pipe)
    made = run(pipe)
    assert made.shape == (1, 16, 9, 8, 8)
    assert torch.allclose(made, call(pyramidal(wan())), atol=1e-5)
    stages = ((3, 4, 4), (5, 8, 8), (9, 8, 8))
    assert seen == [size for size, count in zip(stages, COUNTS, strict=True) for _ in range(2 * count)]
    assert pipe.scheduler is own
    assert torch.equal(run(pipe), made), "something is left from the first call"


def test_a_total_of_steps_and_the_video_itself(run):
    pipe = built(make_pyramidal(WanBlocks(), pyramid_of(wan())))
    seen = sizes_seen(pipe)
    video = run(pipe, "videos", num_inference_steps=7, output_type="pt")
    assert [seen.count(size) for size in dict.fromkeys(seen)] == [6, 4, 4]
    ordinary = call(apply_pyramid(wan(), pyramid_of(wan()), 7), output_type="pt")
    assert video.shape == (1, 33, 3, 64, 64)
    assert torch.allclose(video, ordinary, atol=1e-4)


def test_two_experts(run):
    """Wan 2.2: the noise level decides who evaluates, in every stage."""
    other = wan()
    torch.manual_seed(1)
    for weight in other.transformer.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    ordinary = pyramidal(wan(transformer_2=other.transformer, boundary_ratio=0.5))
    expected = call(ordinary, guidance=4.0, guidance_scale_2=3.0)
    pipe = built(make_pyramidal(Wan22Blocks(), FACTORS, COUNTS), transformer_2=other.transformer)
    pipe.update_components(boundary_ratio=0.5)
    assert torch.allclose(run(pipe), expected, atol=1e-5)


def test_guiders_count_the_steps_of_all_stages(run):
    """Guidance for the first 40 % of 15 steps: 6 of them with two evaluations."""
    pipe = built(make_pyramidal(WanBlocks(), FACTORS, COUNTS))
    pipe.update_components(guider=ClassifierFreeGuidance(guidance_scale=5.0, stop=0.4))
    seen = sizes_seen(pipe)
    run(pipe)
    assert [seen.count(size) for size in dict.fromkeys(seen)] == [2 * 5, 2 + 3, 6]


def test_a_guiders_average_over_steps_begins_anew_in_every_stage(run):
    """Over one step it is that step."""
    made = []
    for momentum in (None, -0.5):
        pipe = built(make_pyramidal(WanBlocks(), FACTORS, [1, 1, 1]))
        guider = AdaptiveProjectedGuidance(5.0, adaptive_projected_guidance_momentum=momentum)
        pipe.update_components(guider=guider)
        made.append(run(pipe))
    assert torch.equal(*made)


def test_the_loop_alone_takes_latents_of_the_coarsest_size(run):
    blocks = WanBlocks()
    core(blocks)["denoise"] = pyramid_denoise_block(core(blocks)["denoise"], FACTORS, COUNTS)
    pipe = built(blocks)
    with pytest.raises(ValueError, match=r"latents \(1, 16, 9, 8, 8\) are not .* coarsest stage's size, \(3, 4, 4\)"):
        run(pipe)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 16, 3, 4, 4, generator=generator)
    made = run(pipe, latents=noise, generator=generator)
    assert torch.allclose(made, call(pyramidal(wan())), atol=1e-5)


def test_what_stages_cannot_hold_is_refused_before_the_network_runs(run):
    pipe = built(make_pyramidal(WanBlocks(), FACTORS, COUNTS))
    seen = sizes_seen(pipe)
    with pytest.raises(ValueError, match=r"height 80 is not a multiple of 32 .*nearest: 64 or 96"):
        run(pipe, height=80)
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="transformer has a cache, but a modular loop"):
        run(pipe)
    assert seen == []


def test_a_given_picture_is_made_for_one_size(run):
    pipe = built(make_pyramidal(WanImage2VideoCoreDenoiseStep(), FACTORS, COUNTS))
    seen = sizes_seen(pipe)
    picture = {"image_condition_latents": torch.zeros(1, 20, 9, 8, 8), "image_embeds": torch.zeros(1, 5, 8)}
    with pytest.raises(
        ValueError, match=r"image_condition_latents \(1, 20, 9, 8, 8\) is made for one size, .*ordinary"
    ):
        run(pipe, **picture)
    assert seen == []


def test_a_plain_schedule_is_refused(run):
    pipe = built(make_pyramidal(WanBlocks(), FACTORS, COUNTS), wan(scheduler=FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(ValueError, match="timesteps or sigmas of a plain schedule"):
        run(pipe, sigmas=[1.0, 0.7, 0.2])
    run(pipe, num_inference_steps=3)


def test_blocks_that_stages_do_not_know():
    with pytest.raises(ValueError, match="is no denoising loop"):
        pyramid_denoise_block(core(WanBlocks())["prepare_latents"], FACTORS)
    unknown = core(WanBlocks())["prepare_latents"]
    unknown.model_name = "tomorrow"
    with pytest.raises(ValueError, match=r"no family 'tomorrow' is registered; known: .*wan"):
        coarse_latents_block(unknown, FACTORS)
    only = WanBlocks()
    only.sub_blocks.pop("denoise")
    with pytest.raises(ValueError, match="has 0 denoising loops"):
        make_pyramidal(only, FACTORS)
    bare = WanBlocks()
    core(bare).pop("prepare_latents")
    with pytest.raises(ValueError, match="no block before 'denoise' prepares latents"):
        make_pyramidal(bare, FACTORS)


def test_made_pyramidal_twice_they_have_the_stages_of_the_last_time(run):
    once = run(built(make_pyramidal(WanBlocks(), FACTORS, COUNTS)))
    blocks = make_pyramidal(WanBlocks(), [(1, 1, 1), (2, 1, 1)], [2, 2])
    assert torch.equal(run(built(make_pyramidal(blocks, FACTORS, COUNTS))), once)


def test_more_steps_than_a_stage_has_timesteps_are_refused_before_the_network_runs(run):
    whole_times = wan(scheduler=UniPCMultistepScheduler())
    pipe = built(make_pyramidal(WanBlocks(), FACTORS, [2, 2, 900]), whole_times)
    seen = sizes_seen(pipe)
    with pytest.raises(ValueError, match=r"stage 0 has \d+ whole timesteps, too few for 900 steps"):
        run(pipe)
    assert seen == []


@pytest.fixture(scope="module")
def saved_with_stages(tmp_path_factory):
    """The folder of a pipeline that was pyramidal when it was saved."""
    folder = tmp_path_factory.mktemp("saved") / "wan"
    pyramidal(wan()).save_pretrained(folder)
    return str(folder)


def opened(blocks, folder):
    """A pipeline of blocks that take encoded prompts, with the components of a folder."""
    blocks.sub_blocks.pop("text_encoder")
    pipe = blocks.init_pipeline(folder)
    pipe.load_components(dtype=torch.float32)
    assert isinstance(pipe.scheduler, PyramidScheduler)
    return pipe


def assert_alike(one, other):
    """But for rounding: loaded weights may lie otherwise."""
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_pipeline_saved_with_stages_runs_through_those_that_its_blocks_were_given(run, saved_with_stages):
    pipe = opened(make_pyramidal(WanBlocks(), FACTORS, COUNTS), saved_with_stages)
    own = pipe.scheduler
    assert_alike(run(pipe), call(pyramidal(wan())))
    assert pipe.scheduler is own
    one = opened(make_pyramidal(WanBlocks(), [(1, 1, 1)], 3), saved_with_stages)
    assert_alike(run(one, num_inference_steps=4), run(built(WanBlocks()), num_inference_steps=3))


def test_other_blocks_are_told_how_to_open_a_pipeline_saved_with_stages(run, saved_with_stages):
    pipe = opened(WanBlocks(), saved_with_stages)
    seen = sizes_seen(pipe)
    told = "takes blocks of tpdiff.make_pyramidal, or pipe.update_components(scheduler=pipe.scheduler.base)"
    with pytest.raises(ValueError, match=re.escape(told)):
        run(pipe, num_inference_steps=3)
    assert seen == []
    pipe.update_components(scheduler=pipe.scheduler.base)
    assert_alike(run(pipe, num_inference_steps=3), run(built(WanBlocks()), num_inference_steps=3))


def test_the_page(encoded, tmp_path):
    wan().save_pretrained(tmp_path)
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S).group(1)
    names = {"model": str(tmp_path), **encoded}
    exec(code, names)
    assert len(names["video"][0]) == 33
