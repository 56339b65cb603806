"""What happens between the stages of a call: draws, caches, hooks, frame rates."""

import pytest
import torch
from diffusers import FirstBlockCacheConfig, WanPipeline
from recording import evaluations
from tiny import CASES, find_case

from tpdiff import apply_pyramid
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


def test_caches_are_emptied_between_stages():
    """A cache holds activations of the stage's size; in the next stage it must begin anew."""
    case = find_case("wan")
    pipe = case.stageable()
    config = {**pipe.transformer.config, "num_layers": 3}
    pipe.transformer = type(pipe.transformer).from_config(config).eval()
    apply_pyramid(pipe, TIME, (3, 3, 3))
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))  # after a stage's first step all is cached
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
