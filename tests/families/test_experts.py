"""Wan 2.2: the first network where t >= boundary, the second below, stage by stage."""

from itertools import groupby

import pytest
import torch
from recording import evaluations
from tiny import find_case

from tpdiff import apply_pyramid

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
STEPS = (4, 4, 4)


@pytest.mark.parametrize("name", ["wan-experts", "wan-experts-picture"])
def test_the_boundary_decides_in_every_stage(name):
    case = find_case(name)
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    boundary = 1000 * pipe.config.boundary_ratio
    with evaluations(case, pipe) as calls:
        case.run(pipe)
    assert [call.network for call in calls] == [
        "transformer" if float(call.time[0]) >= boundary else "transformer_2" for call in calls
    ]
    assert {call.network for call in calls} == {"transformer", "transformer_2"}


def test_stages_overlap_in_time_so_the_first_expert_may_come_back():
    """A finer stage starts noisier than the coarser one ended: with the boundary between, at its first steps."""
    case = find_case("wan-experts")
    pipe = case.stageable()
    pipe.register_to_config(boundary_ratio=0.7)  # the coarsest stage ends at t = 0.667, the next one starts at 0.739
    apply_pyramid(pipe, TIME, STEPS)
    with evaluations(case, pipe) as calls:
        case.run(pipe, guidance_scale=1.0)
    sizes = case.stage_latents(TIME)
    names = [[call.network for call in calls if call.size == size] for size in sizes]
    assert names[0] == ["transformer"] * 4
    assert names[1][0] == "transformer"
    assert names[1][-1] == "transformer_2"
    assert names[2] == ["transformer_2"] * 4
    assert float(next(call.time[0] for call in calls if call.size == sizes[1])) == pytest.approx(738.8, abs=0.1)


def test_an_expert_that_comes_back_finds_the_other_put_away():
    """Model offload's hooks, here from the CPU to itself. The coarsest stage ends with the second expert, and the next
    one starts with the first: what is on the device at a stage's end is put away unless the next one starts with it.
    """
    case = find_case("wan-experts")
    pipe = case.stageable()
    pipe.register_to_config(boundary_ratio=0.73)
    apply_pyramid(pipe, TIME, (10, 4, 4))
    pipe.enable_model_cpu_offload(device="cpu")
    seen = []
    for name in case.networks:
        network = getattr(pipe, name)
        network.register_forward_pre_hook(lambda *_, name=name: seen.append((name, "works")))
        (hook,) = (hook for hook in pipe._all_hooks if hook.model is network)
        hook.offload = lambda name=name: seen.append((name, "put away"))
    case.run(pipe, guidance_scale=1.0)
    coarse = [("transformer_2", "put away"), ("transformer", "works"), ("transformer_2", "works")]
    finest = [("transformer", "put away"), ("transformer_2", "works")]
    assert [event for event, _ in groupby(seen)] == [*coarse, *coarse, *finest]


def test_each_expert_has_its_own_guidance():
    case = find_case("wan-experts")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    plain = case.run(pipe, guidance_scale=4.0)
    assert torch.equal(case.run(pipe, guidance_scale=4.0, guidance_scale_2=4.0), plain)
    assert not torch.allclose(case.run(pipe, guidance_scale=4.0, guidance_scale_2=2.0), plain, atol=1e-6)
    assert torch.equal(case.run(pipe, guidance_scale=[4.0, 4.0, 4.0]), plain)
