"""A pyramid of one stage is the stock pipeline, bit for bit."""

import pytest
import torch
from tiny import find_case

from tpdiff import apply_pyramid, remove_pyramid


@pytest.mark.parametrize("scheduler", ["default", "other"])
def test_one_stage_is_the_stock_pipeline(case, scheduler):
    pipe = case.pipe()
    if scheduler == "other":
        pipe.scheduler = case.other(pipe)
    stock = case.run(pipe)
    apply_pyramid(pipe, [(1, 1, 1)])
    assert torch.equal(case.run(pipe), stock)
    assert torch.isfinite(stock).all()
    remove_pyramid(pipe)
    assert torch.equal(case.run(pipe), stock)


def test_its_own_steps_and_guidance_are_taken(case):
    """Steps given once win over the call's, but not over levels that the call says."""
    pipe = case.pipe()
    scale = {"guidance_scale": 3.0} if case.guided else {}
    stock = case.run(pipe, num_inference_steps=2, **scale)
    apply_pyramid(pipe, [(1, 1, 1)], steps=2)
    listed = {name: [value] for name, value in scale.items()}
    for given in (scale, listed):
        assert torch.equal(case.run(pipe, num_inference_steps=3, **given), stock)
    if case.guided:
        with pytest.raises(ValueError, match="guidance_scale has 2 values for 1 stages"):
            case.run(pipe, guidance_scale=[3.0, 2.0])


def test_levels_of_the_call_win_over_its_own_steps():
    case = find_case("hunyuan")
    pipe = case.pipe()
    levels = {"sigmas": [1.0, 0.8, 0.3]}
    stock = case.run(pipe, **levels)
    apply_pyramid(pipe, [(1, 1, 1)], steps=2)
    assert torch.equal(case.run(pipe, **levels), stock)


def test_what_is_compared_depends_on_its_inputs(case):
    """Else equal results would say nothing."""
    pipe = case.pipe()
    stock = case.run(pipe)
    assert not torch.allclose(case.run(pipe, prompt="the blue ball falls left"), stock, atol=1e-6)
    assert not torch.allclose(case.run(pipe, generator=torch.Generator().manual_seed(8)), stock, atol=1e-6)
    assert not torch.allclose(case.run(pipe, num_inference_steps=5), stock, atol=1e-6)
