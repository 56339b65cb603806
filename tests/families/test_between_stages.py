"""What happens between the stages of a call: draws, caches, hooks, frame rates."""

import math

import pytest
import torch
from diffusers import FirstBlockCacheConfig, WanPipeline
from recording import evaluations
from tiny import CASES, find_case

from tpdiff import apply_pyramid, remove_pyramid
from tpdiff.families import find_family

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
STEPS = (2, 2, 1)


@pytest.mark.parametrize("case", [case for case in CASES if case.pictures is None], ids=str)
def test_the_generator_draws_the_start_and_the_jumps_and_nothing_more(case):
    """Noise that a stock call makes and a stage throws away is not taken from the caller's generator."""
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    used, expected = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    case.run(pipe, generator=used)
    config = case.predictors(pipe)[0].config
    channels = config.get("out_channels") or config["in_channels"]
    filling = find_family(pipe).filling(pipe, case.narrow)
    for place, (t, h, w) in enumerate(case.stage_latents(TIME)):
        parts = [t] if place == 0 or not filling else [filling, t - filling]
        for frames in parts:
            torch.randn(1, channels, frames, h, w, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())


@pytest.mark.parametrize("name", ["ltx", "ltx-picture"])
def test_a_stage_with_fewer_frames_is_told_a_slower_rate(name):
    """Seconds between latent frames: 8 / 24 at full rate."""
    case = find_case(name)
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    seen = []
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["rope_interpolation_scale"][0]), with_kwargs=True
    )
    case.run(pipe, frame_rate=24)
    handle.remove()
    assert seen == pytest.approx([32 / 24] * 2 + [16 / 24] * 2 + [8 / 24])


@pytest.mark.parametrize("name", ["cogvideox", "cogvideox-picture"])
def test_dynamic_guidance_follows_from_the_steps_of_all_stages(name):
    case = find_case(name)
    pipe, whole = apply_pyramid(case.stageable(), TIME, (3, 2, 2)), 7
    seen = []

    def look(which, step, timestep, tensors):
        seen.append((timestep.item(), which.guidance_scale))
        return {}

    case.run(pipe, use_dynamic_cfg=True, guidance_scale=6.0, callback_on_step_end=look)
    assert len(seen) == whole
    for t, guidance in seen:
        assert guidance == 1 + 6 * ((1 - math.cos(math.pi * ((whole - t) / whole) ** 5.0)) / 2)


def with_a_cache(pipe):
    """The pipeline with a network of three blocks, all of which are cached after the first step."""
    config = {**pipe.transformer.config, "num_layers": 3}
    pipe.transformer = type(pipe.transformer).from_config(config).eval()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))
    return pipe


def test_a_cache_keeps_nothing_of_a_call_that_failed():
    """For the stock pipeline, either, which empties its caches at the end of a call alone."""
    case = find_case("wan")
    pipe = with_a_cache(case.stageable())
    stock = case.run(pipe)
    apply_pyramid(pipe, TIME, (3, 3, 3))
    left = 3

    def fail(*given):
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("out of memory")

    handle = pipe.transformer.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        case.run(pipe)
    handle.remove()
    assert torch.equal(case.run(remove_pyramid(pipe)), stock)


def test_caches_are_emptied_between_stages():
    """A cache holds activations of the stage's size; in the next stage it must begin anew."""
    case = find_case("wan")
    pipe = apply_pyramid(with_a_cache(case.stageable()), TIME, (3, 3, 3))
    last, blocks = [], pipe.transformer.blocks
    handle = blocks[0].register_forward_pre_hook(lambda module, args: last.append(args[0].shape[1]))
    made = case.run(pipe)
    handle.remove()
    assert made.isfinite().all()
    assert len(set(last)) == 3


def test_offloaded_networks_are_put_away_once_a_call(monkeypatch):
    case = find_case("wan")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    seen = []
    with evaluations(case, pipe) as calls:
        monkeypatch.setattr(WanPipeline, "maybe_free_model_hooks", lambda self: seen.append(len(calls)))
        case.run(pipe)
    assert seen == [2 * sum(STEPS)]
