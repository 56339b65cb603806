"""Several processes train as one does: real processes over gloo, with DDP and FSDP2, killed and resumed."""

import errno
import json
import os
import shutil
import signal
import time

import pytest
import torch
from processes import PATIENCE, assert_same_curve, curve, ends, order, start, train

from tpdiff import PyramidPipeline
from tpdiff.training import checkpoint as ckpt
from tpdiff.training.distribution import open_accelerator, share_of
from tpdiff.training.trainer import Trainer


@pytest.fixture
def values(tiny_values):
    """A run with everything that could differ between processes: captions, alignment, dropout, accumulation."""
    values = tiny_values()
    values["model"]["num_layers"] = 2
    values["condition"]["dropout"] = 0.3
    values["train"] |= {"batch_size": 8, "steps": 20, "accumulation": 2, "alignment": "assignment", "lr": 5e-3}
    values["train"]["ema_decay"] = 0.9
    values["log"]["checkpoint_every_steps"] = 5
    return values


# As one


@pytest.mark.parametrize("way", ["ddp", "fsdp2", pytest.param("hsdp", marks=pytest.mark.slow)])
def test_processes_give_the_loss_curve_of_one(values, tmp_path, way):
    one = train(values, tmp_path / "one", 1)
    many = train(values, tmp_path / "many", 4 if way == "hsdp" else 2, way)
    assert_same_curve(one, many, 1e-4)
    assert one.keys() == many.keys()
    for name in one:
        if name.startswith(("network.", "ema.")):
            torch.testing.assert_close(one[name], many[name], rtol=0, atol=1e-3)
    parts = sorted(p.name for p in ckpt.checkpoints(tmp_path / "many")[-1].glob("*.safetensors"))
    both = [f"training_state-0000{k}-of-00002.safetensors" for k in (1, 2)]
    assert parts == (["training_state.safetensors"] if way == "ddp" else both)
    network = PyramidPipeline.from_pretrained(tmp_path / "many").transformer
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, many[f"ema.{name}"])


def test_gradients_are_in_parts_after_every_micro_batch(values, tmp_path):
    """Whole until the last, they would take the memory of an unsharded network."""
    values["train"]["steps"] = 2
    train(values, tmp_path / "run", 2, "fsdp2")
    for rank in range(2):
        whole = [json.loads(line) for line in (tmp_path / "run" / f"whole-{rank}.jsonl").read_text().splitlines()]
        assert whole == [[0, []], [0, []], [1, []], [1, []]]


def test_token_budgets_are_shared(values, tmp_path):
    values["train"] |= {"token_budget": 128, "steps": 12}  # 4, 8 and 16 clips of 32, 16 and 8 tokens
    one, two = (train(values, tmp_path / f"{world}", world) for world in (1, 2))
    assert {int(stage) for stage in curve(one)[:, 1]} == {0, 1, 2}
    assert_same_curve(one, two, 1e-4)
    assert order(tmp_path / "2", 2).keys() == order(tmp_path / "1", 1).keys() == set(range(12))
    seen = [sorted(i for batch in order(tmp_path / f"{w}", w).values() for b in batch for i in b) for w in (1, 2)]
    assert seen[0] == seen[1] == list(range(len(seen[0])))


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_in_double_precision_the_curve_is_the_same_for_longer(values, tmp_path, way):
    values["train"]["steps"] = 50
    one = train(values, tmp_path / "one", 1, double=True)
    two = train(values, tmp_path / "two", 2, way, double=True)
    assert one["network.patch_embed.weight"].dtype == two["network.patch_embed.weight"].dtype == torch.float64
    assert_same_curve(one, two, 1e-5)


def test_the_average_may_be_kept_apart(values, tmp_path):
    values["train"]["steps"] = 4
    plain = train(values, tmp_path / "plain", 1)
    values["train"]["ema_device"] = "cpu"
    apart = train(values, tmp_path / "apart", 1)
    assert all(torch.equal(plain[name], apart[name]) for name in plain if name != "losses")


@pytest.mark.gpu
def test_an_average_kept_on_the_cpu_is_lent_to_the_gpu(tiny, tmp_path):
    config = tiny("train.ema_device=cpu", "validation.every_steps=2", "validation.clips=2", "validation.samples=1")
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    assert {p.device.type for p in trainer.ema.network.parameters()} == {"cpu"}
    assert trainer.validation.losses


@pytest.mark.slow
def test_validation_sees_the_whole_average(values, tmp_path):
    """The main process samples from what all hold in parts."""
    values["train"]["steps"] = 4
    values["validation"] = {"every_steps": 2, "clips": 4, "quantiles": 2, "samples": 1, "sample_steps": 3}
    records = {}
    for world, way in ((1, "ddp"), (2, "fsdp2")):
        train(values, tmp_path / way, world, way)
        lines = (tmp_path / way / "validation.jsonl").read_text().splitlines()
        records[way] = [json.loads(line) for line in lines]
    assert [record["step"] for record in records["fsdp2"]] == [2, 4]
    for one, two in zip(records["ddp"], records["fsdp2"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-4)


def test_a_stop_during_validation_is_heard_by_all(values, tmp_path):
    """Only the main process validates, and only it is asked: all end at this step, with a checkpoint and no record."""
    values["train"]["steps"], values["log"]["checkpoint_every_steps"] = 4, None
    values["validation"] = {"every_steps": 2, "clips": 4, "quantiles": 2, "samples": 0, "batch_size": 1}
    out = tmp_path / "run"
    assert ends(start(values, out, 2, stopped=True)) == [0, 0]
    assert [folder.name for folder in ckpt.checkpoints(out)] == ["step-00000002"]
    assert not (out / "validation.jsonl").exists()
    train(values, out, 2, resume=True)
    lines = (out / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


@pytest.mark.parametrize("way", ["ddp", "fsdp2"])
def test_a_validation_that_fails_on_the_main_process_ends_all_with_a_checkpoint(values, tmp_path, way):
    values["train"]["steps"], values["log"]["checkpoint_every_steps"] = 4, None
    values["validation"] = {"every_steps": 2, "clips": 4, "quantiles": 2, "samples": 1, "sample_steps": 3}
    out = tmp_path / "run"
    blocked = out / "validation" / "step-00000002"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("in the way of its samples")
    assert ends(start(values, out, 2, way)) == [1, 1]
    assert [folder.name for folder in ckpt.checkpoints(out)] == ["step-00000002"]
    blocked.unlink()
    train(values, out, 2, way, resume=True)
    lines = (out / "validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


# Deaths


@pytest.mark.parametrize(
    ("way", "victim"),
    [
        ("fsdp2", 1),
        pytest.param("fsdp2", 0, marks=pytest.mark.slow),
        pytest.param("ddp", 0, marks=pytest.mark.slow),
        pytest.param("ddp", 1, marks=pytest.mark.slow),
    ],
)
def test_after_a_death_two_go_on_bit_for_bit_and_one_as_well(values, tmp_path, way, victim):
    whole = train(values, tmp_path / "whole", 2, way)
    out = tmp_path / "killed"
    values["train"]["steps"] = 100_000  # so that it does not end before it is killed
    processes = start(values, out, 2, way)
    until = time.monotonic() + PATIENCE
    while not ckpt.checkpoints(out):
        assert time.monotonic() < until and all(p.is_alive() for p in processes)
        time.sleep(0.001)
    os.kill(processes[victim].pid, signal.SIGKILL)
    codes = ends(processes)
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] not in (0, None)
    for folder in ckpt.checkpoints(out)[:-1] + [f for f in ckpt.checkpoints(out) if int(f.name[5:]) > 15]:
        shutil.rmtree(folder)
    begun = int(ckpt.checkpoints(out)[0].name[5:])
    shutil.copytree(out, tmp_path / "one")
    values["train"]["steps"] = 20
    two = train(values, out, 2, way, resume=True)
    for name in whole:
        left, right = (curve(t) if name == "losses" else t[name] for t in (whole, two))
        assert torch.equal(left, right), name
    one = train(values, tmp_path / "one", 1, resume=True)
    assert_same_curve(whole, one, 1e-4)
    wanted = order(tmp_path / "whole", 2)
    assert len(wanted) == 20 and wanted[3] == [list(range(48, 56)), list(range(56, 64))]
    found = order(out, 2)
    assert {step: found[step] for step in wanted} == wanted
    alone = order(tmp_path / "one", 1)
    assert {step: alone[step] for step in range(begun, 20)} == {step: wanted[step] for step in range(begun, 20)}


@pytest.mark.slow
def test_what_one_process_began_two_can_finish(values, tmp_path):
    values["train"]["steps"] = 8
    whole = train(values, tmp_path / "whole", 1)
    shutil.copytree(tmp_path / "whole", tmp_path / "two")
    shutil.rmtree(ckpt.checkpoints(tmp_path / "two")[-1])
    assert_same_curve(whole, train(values, tmp_path / "two", 2, "fsdp2", resume=True), 1e-4)


@pytest.mark.parametrize("full", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_disk_that_is_full_for_one_leaves_no_checkpoint_for_any(values, tmp_path, full):
    values["train"]["steps"] = 2
    values["log"]["checkpoint_every_steps"] = None
    assert ends(start(values, tmp_path / "run", 2, "fsdp2", full_disk=full)) == [1, 1]
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []
    said = [(tmp_path / "run" / f"error-{rank}").read_text() for rank in (full, 1 - full)]
    assert all("step-00000002 could not be written" in line for line in said)
    assert os.strerror(errno.ENOSPC) in said[0] and "another process failed" in said[1]


@pytest.mark.parametrize("way", ["fsdp2", pytest.param("ddp", marks=pytest.mark.slow)])
def test_videos_that_one_cannot_read_end_all_with_a_checkpoint(values, clips, tmp_path, way):
    videos = shutil.copytree(clips, tmp_path / "videos")
    values["data"] |= {"path": str(videos), "cache": "none"}
    values["train"]["steps"] = 6
    values["log"]["checkpoint_every_steps"] = None
    whole, out = train(values, tmp_path / "whole", 2, way), tmp_path / "run"
    assert ends(start(values, out, 2, way, away=(1, 3))) == [1, 1]
    assert [folder.name for folder in ckpt.checkpoints(out)] == ["step-00000003"]
    (tmp_path / "away").rename(videos)
    two = train(values, out, 2, way, resume=True)
    for name in whole:
        left, right = (curve(t) if name == "losses" else t[name] for t in (whole, two))
        assert torch.equal(left, right), name


# What is refused


@pytest.mark.parametrize(
    ("batch", "processes", "nearest"), [(6, 4, "4 or 8"), (3, 4, "4"), (9, 2, "8 or 10"), (17, 8, "16 or 24")]
)
def test_a_batch_that_does_not_divide_is_refused(batch, processes, nearest):
    with pytest.raises(ValueError, match=rf"train.batch_size {batch},.*{processes} processes; nearest: {nearest}$"):
        share_of(batch, processes)
    with pytest.raises(ValueError, match=r"nearest: 8; 8 with train\.accumulation=2 is as many clips a step$"):
        share_of(1, 8, 16)
    with pytest.raises(ValueError, match=r"nearest: 8$"):
        share_of(1, 8, 12)


def test_devices_without_float64_are_left_to_others(tmp_path, monkeypatch):
    """Times and noise levels are reckoned in it."""
    monkeypatch.setattr("accelerate.state.is_mps_available", lambda *args: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: torch.device("mps"))
    assert open_accelerator("no", [], tmp_path).device == torch.device("cpu")


@pytest.mark.parametrize("other", ["DEEPSPEED", "MEGATRON_LM"])
def test_other_ways_of_distribution_are_refused(tiny, tmp_path, monkeypatch, other):
    monkeypatch.setenv(f"ACCELERATE_USE_{other}", "true")
    with pytest.raises(ValueError, match=f"{other} is not supported; nearest: FSDP2"):
        Trainer(tiny(), tmp_path / "run")


def test_processes_that_do_not_see_each_other_are_refused(tiny, tmp_path, monkeypatch):
    """Two processes that each train alone in one folder would be worse than none."""
    if torch.cuda.is_available():
        pytest.skip("they see each other")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=r"2 processes were started.*ACCELERATE_USE_CPU=true"):
        Trainer(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
