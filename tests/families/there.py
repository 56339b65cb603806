"""What runs on the second device only, by `../second_device/test_second_device.py`."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, PartialState
from second_device import There
from tiny import CASES, find_case

from tpdiff import apply_pyramid
from tpdiff.metrics import efficientnet_features
from tpdiff.training.trainer import Trainer

TIME, STEPS = [(1, 1, 1), (2, 1, 1), (4, 1, 1)], (2, 2, 1)
USUAL = ("wan", "cogvideox-rotary", "ltx-picture", "hunyuan", "animatediff")


@pytest.mark.parametrize("wrong", ["an operand", "a row of an index", "a generator", "NumPy"])
def test_what_cuda_refuses_is_refused(second_device, wrong):
    x, y = torch.zeros(2, 3, device=second_device), torch.ones(2, 3)
    attempts = {
        "an operand": (RuntimeError, lambda: x + y),
        "a row of an index": (RuntimeError, lambda: y[torch.tensor([0], device=second_device)]),
        "a generator": (RuntimeError, lambda: torch.randn(2, device=second_device, generator=torch.Generator())),
        "NumPy": (TypeError, lambda: np.asarray(x)),
    }
    error, attempt = attempts[wrong]
    with pytest.raises(error, match="second"):
        attempt()


def test_what_cuda_takes_is_taken(second_device):
    x = torch.arange(6.0, device=second_device).reshape(2, 3).requires_grad_()
    (x[torch.tensor([1])] * torch.tensor(2.0)).square().sum().backward()
    assert isinstance(x.grad, There) and x.grad.device == second_device
    assert x.grad.tolist() == [[0, 0, 0], [24, 32, 40]]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_pipeline_makes_there_what_it_makes_here(case, second_device):
    here = case.run(apply_pyramid(case.stageable(), TIME, STEPS))
    there = case.run(apply_pyramid(case.stageable().to(second_device), TIME, STEPS))
    assert there.device == second_device
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=2e-4)


@pytest.mark.parametrize("name", USUAL)
def test_a_run_there_has_the_losses_that_it_has_here(name, tuning, tmp_path, monkeypatch, second_device):
    losses = {}
    for place in (second_device, torch.device("cpu")):
        monkeypatch.setattr(PartialState, "default_device", property(lambda self, place=place: place))
        AcceleratorState._reset_state(True)
        trainer = Trainer(tuning(find_case(name)), tmp_path / place.type)
        trainer.run()
        assert {weights.device for weights in trainer.network.parameters()} == {place}
        losses[place.type] = [loss for *_, loss in trainer.losses]
    assert losses["second"] == pytest.approx(losses["cpu"], rel=1e-4)


def test_features_are_the_same(second_device):
    clips = torch.randint(256, (2, 3, 8, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    here, there = (efficientnet_features(place).compute(clips) for place in ("cpu", second_device))
    np.testing.assert_allclose(there, here, rtol=0, atol=1e-4)
