"""Three stages: the stock shape, the same video again, and networks that meet every stage's size, no other."""

import math

import pytest
import torch
from recording import encodings, evaluations
from tiny import CASES

from tpdiff import apply_pyramid

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
SPACE = [(1, 1, 1), (1, 2, 2), (1, 4, 4)]
BOTH = [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
AXES = {"time": TIME, "space": SPACE, "both": BOTH}
EACH_WAY = pytest.mark.parametrize(
    ("case", "factors"),
    [
        pytest.param(case, factors, id=f"{case}-{name}")
        for case in CASES
        for name, factors in AXES.items()
        if case.over_space or name == "time"
    ],
)
STEPS = (2, 1, 1)


@EACH_WAY
def test_stages_give_what_stock_gives_and_no_network_meets_another_size(case, factors):
    pipe, size = case.stageable(), case.size if factors != TIME else case.narrow
    with evaluations(case, pipe) as stock_calls:
        stock = case.run(pipe, size=size, num_inference_steps=sum(STEPS))
    pipe = apply_pyramid(case.stageable(), factors, STEPS)
    sizes = case.stage_latents(factors, size)
    with evaluations(case, pipe) as calls:
        latents = case.run(pipe, size=size)
    assert latents.shape == stock.shape
    assert torch.isfinite(latents).all()
    a_step = len(stock_calls) // sum(STEPS)  # with the prompt, and without
    expected = [size for size, n in zip(sizes, pipe.evaluations(STEPS), strict=True) for _ in range(n * a_step)]
    assert [call.size for call in calls] == expected
    assert sizes[-1] == stock_calls[-1].size
    assert len(set(map(math.prod, sizes))) == 3
    assert torch.equal(case.run(pipe, size=size), latents)


def test_another_scheduler_runs_as_well(case):
    pipe = case.pipe()
    pipe.scheduler = case.other(pipe)
    stock = case.run(pipe)
    apply_pyramid(pipe, TIME, STEPS)
    latents = case.run(pipe)
    assert latents.shape == stock.shape
    assert torch.equal(case.run(pipe), latents)


def test_the_generator_decides(case):
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    first = case.run(pipe)
    assert not torch.allclose(case.run(pipe, generator=torch.Generator().manual_seed(8)), first, atol=1e-6)


def test_a_batch_is_its_single_runs(case):
    """Two prompts, each with a generator of its own."""
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
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
