"""Encoders that wait on the CPU: the same training, and on a GPU less of its memory."""

import pytest
import torch
from test_tuning import trained
from tiny import find_case

OVER = ["validation.every_steps=2", "validation.clips=2", "validation.samples=1"]


@pytest.mark.parametrize("name", ["ltx"])
def test_training_is_the_same(name, tuning, tmp_path):
    case = find_case(name)
    runs = [trained(tuning(case, offload=offload), tmp_path / f"{offload}") for offload in (False, True)]
    plain, offloaded = ([point[1:] for point in run.losses] for run in runs)
    assert plain == offloaded


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["ltx", "wan-picture"])
@pytest.mark.parametrize("offload", [False, True])
def test_encoders_are_where_they_should_be_between_steps(name, offload, tuning, tmp_path):
    case = find_case(name)
    trainer = trained(tuning(case, *OVER, "validation.sample_steps=3", offload=offload), tmp_path / "run")
    pipe = trainer.trainee.pipe
    for part, module in pipe.components.items():
        if isinstance(module, torch.nn.Module):
            stays = part in case.networks or not offload
            assert next(module.parameters()).is_cuda is stays, part
