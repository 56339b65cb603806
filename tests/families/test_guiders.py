"""Guiders of diffusers in a pipeline that takes one: they count the steps of all stages."""

import pytest
import torch
from diffusers import AdaptiveProjectedGuidance, ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from recording import evaluations
from tiny import find_case

from tpdiff import apply_pyramid

CASE = find_case("hunyuan15")
TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]


def pyramidal(guider, steps):
    pipe = apply_pyramid(CASE.pipe(), TIME, steps)
    pipe.guider = guider
    return pipe


def seen_by_stage(pipe):
    """A call's evaluations of the network, coarsest stage first."""
    with evaluations(CASE, pipe) as calls:
        CASE.run(pipe)
    return [[call for call in calls if call.size == size] for size in CASE.stage_latents(TIME)]


@pytest.mark.parametrize(
    ("span", "counts"),
    [
        ({"stop": 0.8}, [4 + 4, 4 + 4, 2]),
        ({"stop": 0.5}, [4 + 4, 4 + 1, 2]),
        ({"start": 0.5}, [4, 4 + 3, 2 + 2]),
        ({"start": 0.9}, [4, 4, 2 + 1]),
    ],
)
def test_guidance_for_a_part_of_the_steps(span, counts):
    """Of 10 steps, those with guidance have two evaluations; the next call is the same."""
    pipe = pyramidal(ClassifierFreeGuidance(6.0, **span), (4, 4, 2))
    assert [len(calls) for calls in seen_by_stage(pipe)] == counts
    assert [len(calls) for calls in seen_by_stage(pipe)] == counts
    assert "set_state" not in vars(pipe.guider)


def test_only_the_first_step_of_all_is_left_out():
    """The velocity is zero there: the second step has the latents of the first."""
    for place, calls in enumerate(seen_by_stage(pyramidal(ClassifierFreeZeroStarGuidance(6.0), (2, 2, 2)))):
        assert len(calls) == 2 + 2
        assert torch.equal(calls[0].input, calls[1].input)  # with the prompt and without
        assert torch.equal(calls[1].input, calls[2].input) == (place == 0)


def test_an_average_over_steps_begins_anew_in_every_stage():
    """Over one step it is that step."""
    made = [
        CASE.run(pyramidal(AdaptiveProjectedGuidance(6.0, adaptive_projected_guidance_momentum=momentum), steps))
        for steps in ((1, 1, 1), (1, 2, 1))
        for momentum in (None, -0.5)
    ]
    assert torch.equal(made[0], made[1])
    assert not torch.allclose(made[2], made[3], atol=1e-5)
