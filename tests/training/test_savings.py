"""What takes less memory or time: a compiled network, moments of 8 bits, encoders that wait on the CPU."""

import sys

import pytest
import torch

from tpdiff.models.memory import moved
from tpdiff.training.checkpoint import checkpoints
from tpdiff.training.eight_bit import put_together, take_apart
from tpdiff.training.optimizer import build_optimizer, set_rate
from tpdiff.training.trainer import Trainer


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_compiled_network_has_one_graph_a_stage_and_the_same_losses(tiny, tmp_path, precision):
    options = ["train.steps=12", "train.token_budget=64", "model.num_layers=2", f"train.precision={precision}"]
    losses = {}
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for compiled in ("false", "true"):
        trainer = Trainer(tiny(*options, f"train.compile={compiled}"), tmp_path / compiled)
        trainer.run()
        losses[compiled] = torch.tensor([loss for *_, loss in trainer.losses])
        assert trainer.network.state_dict().keys() == trainer.ema.network.state_dict().keys()
    assert {stage for _, _, stage, _ in trainer.losses} == {0, 1, 2}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
    tolerance = 1e-4 if precision == "no" else 1e-2
    torch.testing.assert_close(losses["true"], losses["false"], rtol=tolerance, atol=tolerance)


@pytest.fixture
def eager():
    """torchao compiles its step, which takes minutes; what it computes is the same without."""
    pytest.importorskip("torchao.optim")
    with torch.compiler.set_stance("force_eager"):
        yield


def test_moments_of_8_bits_learn_and_resume_exactly(tiny, tmp_path, eager):
    config = tiny("train.optimizer=adamw8bit", "train.steps=6", "model.hidden_size=64", "log.checkpoint_every_steps=3")
    whole = Trainer(config, tmp_path / "run")
    whole.run()
    kinds = {type(state["exp_avg"]).__name__ for state in whole.optimizer.state.values()}
    assert kinds == {"OptimState8bit", "Parameter"} or kinds == {"OptimState8bit", "Tensor"}
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-00000003"]
    resumed = Trainer(config, tmp_path / "run", resume=True)
    resumed.run()
    assert [point[1:] for point in resumed.losses] == [point[1:] for point in whole.losses]
    pairs = zip(resumed.network.state_dict().values(), whole.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    plain = Trainer(tiny("train.steps=6", "model.hidden_size=64"), tmp_path / "plain")
    plain.run()
    assert sum(moment_bytes(whole)) < 0.35 * sum(moment_bytes(plain))
    first, last = (torch.tensor([loss for *_, loss in t.losses]) for t in (whole, plain))
    torch.testing.assert_close(first, last, rtol=0.02, atol=0.02)


def moment_bytes(trainer):
    return [
        part.numel() * part.element_size()
        for state in trainer.optimizer.state.values()
        for name, moment in state.items()
        for part in take_apart(name, moment).values()
        if part.dtype != torch.float32 or part.numel() != 256
    ]


def test_8_bits_need_their_package(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(ValueError, match=r"adamw8bit needs torchao: pip install 'tpdiff\[quantize\]'"):
        Trainer(tiny("train.optimizer=adamw8bit"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rate_is_set_whether_it_is_a_number_or_a_tensor(tiny):
    plain = build_optimizer(torch.nn.Linear(2, 2), tiny().train)
    set_rate(plain, 0.25)
    assert plain.param_groups[0]["lr"] == 0.25
    plain.param_groups[0]["lr"] = torch.tensor(0.5)
    set_rate(plain, 0.125)
    assert torch.equal(plain.param_groups[0]["lr"], torch.tensor(0.125))


def test_plain_moments_are_taken_apart_as_they_are():
    moment = torch.rand(3)
    assert take_apart("exp_avg", moment)["exp_avg"] is moment
    assert put_together({"exp_avg": moment})["exp_avg"] is moment


def test_what_was_moved_goes_back(tiny):
    """The meta device is one that every machine has; there only the way back of what has data can be seen to fail."""
    there, here = torch.nn.Linear(2, 2, device="meta"), torch.nn.Linear(2, 2)
    with moved([here, torch.nn.ReLU()], torch.device("cpu")):
        assert here.weight.device.type == "cpu"
    with moved([there], torch.device("meta")):
        assert there.weight.is_meta
    with pytest.raises(NotImplementedError), moved([here], torch.device("meta")):
        assert here.weight.is_meta
