"""Three stages: the stock shape, the same video again, and networks that meet every stage's size, no other."""

import math

import pytest
import torch
from recording import encodings, evaluations

from tpdiff import apply_pyramid

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
SPACE = [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
BOTH = [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
AXES = pytest.mark.parametrize("factors", [TIME, SPACE, BOTH], ids=["time", "space", "both"])
STEPS = (3, 2, 2)


def pyramidal(case, factors, steps=STEPS):
    if not case.over_space and factors is not TIME:
        pytest.skip("learned positions: no other height and width")
    return apply_pyramid(case.stageable(), factors, steps)


def stage_sizes(case, pipe):
    """(t, h, w) of the latents in every stage, coarsest first."""
    t, h, w = case.latent
    pyramid = pipe._pyramid_call.pyramid
    alone = 0 if not pyramid.causal_time else 1 if t % 2 else 2  # pairs: the first frame and one that fills its pair
    for stage_t, stage_h, stage_w in reversed(pyramid.factors):
        yield alone + (t - alone) // stage_t, h // stage_h, w // stage_w


@AXES
def test_stages_give_what_stock_gives_and_no_network_meets_another_size(case, factors):
    pipe = case.stageable()
    with evaluations(case, pipe) as stock_calls:
        stock = case.run(pipe, num_inference_steps=sum(STEPS))
    pipe = pyramidal(case, factors)
    sizes = list(stage_sizes(case, pipe))
    with evaluations(case, pipe) as calls:
        latents = case.run(pipe)
    assert latents.shape == stock.shape
    assert torch.isfinite(latents).all()
    a_step = len(stock_calls) // sum(STEPS)  # with the prompt, and without
    expected = [size for size, n in zip(sizes, pipe.evaluations(STEPS), strict=True) for _ in range(n * a_step)]
    assert [call.size for call in calls] == expected
    assert sizes[-1] == case.latent
    assert len({math.prod(size) for size in sizes}) == 3
    assert torch.equal(case.run(pipe), latents)


def test_another_scheduler_runs_as_well(case):
    pipe = case.pipe()
    pipe.scheduler = case.other(pipe)
    stock = case.run(pipe)
    apply_pyramid(pipe, TIME, STEPS)
    latents = case.run(pipe)
    assert latents.shape == stock.shape
    assert torch.equal(case.run(pipe), latents)


def test_the_generator_decides(case):
    pipe = pyramidal(case, TIME)
    first = case.run(pipe)
    assert not torch.allclose(case.run(pipe, generator=torch.Generator().manual_seed(8)), first, atol=1e-6)


def test_a_batch_is_its_single_runs(case):
    """Two prompts, each with a generator of its own."""
    pipe = pyramidal(case, BOTH if case.over_space else TIME)
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    both = case.run(pipe, batch=2, generator=generators)
    prompts = case.arguments(batch=2)["prompt"]
    for place, (prompt, seed) in enumerate(zip(prompts, (3, 4), strict=True)):
        alone = case.run(pipe, prompt=prompt, generator=[torch.Generator().manual_seed(seed)])
        torch.testing.assert_close(both[place : place + 1], alone, atol=1e-4, rtol=0)


def test_the_encoders_work_once_a_call(case):
    """As often as in a stock call, whatever the number of stages."""
    pipe = case.stageable()
    with encodings(pipe) as stock:
        case.run(pipe)
    apply_pyramid(pipe, TIME, STEPS)
    with encodings(pipe) as ours:
        case.run(pipe)
    assert ours == stock
    assert stock["text_encoder"] >= 1
