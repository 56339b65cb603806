"""A pyramid of one stage is the stock pipeline, bit for bit."""

import pytest
import torch

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


def test_what_is_compared_depends_on_its_inputs(case):
    """Else equal results would say nothing."""
    pipe = case.pipe()
    stock = case.run(pipe)
    assert not torch.allclose(case.run(pipe, prompt="the blue ball falls left"), stock, atol=1e-6)
    assert not torch.allclose(case.run(pipe, generator=torch.Generator().manual_seed(8)), stock, atol=1e-6)
    assert not torch.allclose(case.run(pipe, num_inference_steps=5), stock, atol=1e-6)
