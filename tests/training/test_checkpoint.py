"""Checkpoints: whole or absent, nothing pickled, and safe on a disk that fills up."""

import errno
import fcntl
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tpdiff import PyramidPipeline
from tpdiff.training import checkpoint as ckpt
from tpdiff.training.trainer import Trainer


def trained(config, out, **options):
    trainer = Trainer(config, out, **options)
    trainer.run()
    return trainer


def contents(folder):
    """Every file under a folder with its bytes, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def run(tiny, tmp_path):
    """A trainer with one checkpoint, at step 1 of 2."""
    trainer = Trainer(tiny("train.steps=2"), tmp_path / "run")
    trainer.run(seconds=1e-9)
    trainer.save()
    return trainer


def test_a_checkpoint_is_safetensors_and_json(run):
    folder = run.out / "checkpoints" / "step-00000001"
    names = set(contents(folder))
    assert {"model_index.json", "training_state.json", "training_state.safetensors"} < names
    assert "transformer/diffusion_pytorch_model.safetensors" in names
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    for name in names:
        if name.endswith(".json"):
            json.loads((folder / name).read_text())
        else:
            assert load_file(folder / name)
    assert not any(p.name.startswith(".") for p in folder.rglob("*"))


def test_it_holds_the_network_the_average_the_moments_and_the_counters(run):
    tensors, state = ckpt.read_checkpoint(run.out / "checkpoints" / "step-00000001")
    for name, tensor in run.network.state_dict().items():
        assert torch.equal(tensors[f"network.{name}"], tensor)
    for name, tensor in run.ema.network.state_dict().items():
        assert torch.equal(tensors[f"ema.{name}"], tensor)
    for name, p in run.network.named_parameters():
        assert torch.equal(tensors[f"optimizer.{name}.exp_avg"], run.optimizer.state[p]["exp_avg"])
        assert torch.equal(tensors[f"optimizer.{name}.exp_avg_sq"], run.optimizer.state[p]["exp_avg_sq"])
        assert int(tensors[f"optimizer.{name}.step"]) == 1
    assert (state["step"], state["ema_updates"]) == (1, 1)
    assert state["config"] == run.config.model_dump(mode="json")


def test_its_model_is_the_average(run):
    pipeline = PyramidPipeline.from_pretrained(run.out)
    for name, tensor in run.ema.network.state_dict().items():
        assert torch.equal(pipeline.transformer.state_dict()[name], tensor)


@pytest.mark.parametrize("keep", [1, 2])
def test_only_so_many_checkpoints_are_kept(tiny, tmp_path, keep):
    config = tiny("train.steps=7", "log.checkpoint_every_steps=2", f"log.keep_checkpoints={keep}")
    trainer = trained(config, tmp_path / "run")
    kept = [f"step-{n:08d}" for n in (2, 4, 6)][-keep:]
    assert [p.name for p in ckpt.checkpoints(tmp_path / "run")] == kept
    trainer.save()
    assert [p.name for p in ckpt.checkpoints(tmp_path / "run")] == [*kept, "step-00000007"][-keep:]
    assert sorted(os.listdir(tmp_path / "run" / "checkpoints")) == [*kept, "step-00000007"][-keep:]


def test_the_average_alone_is_a_small_model_written_whole(run, monkeypatch, tmp_path):
    folder = run.save_average(tmp_path / "averages" / "10-seconds")
    assert os.listdir(folder.parent) == [folder.name]
    assert not any("training_state" in name for name in contents(folder))
    state = PyramidPipeline.from_pretrained(folder).transformer.state_dict()
    for name, tensor in run.ema.network.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(state[name], tensor)
    before = contents(folder)
    run.run()
    with monkeypatch.context() as m:
        m.setattr(ckpt, "_flush", no_space)
        with pytest.raises(OSError, match=r"pipeline .*10-seconds could not be written"):
            run.save_average(folder)
    assert contents(folder.parent) == {f"10-seconds/{name}": data for name, data in before.items()}
    run.save_average(folder)
    assert contents(folder) != before


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_after(count, original):
    """Fails from the given call on."""
    calls = []

    def write(*args, **kwargs):
        calls.append(args)
        return no_space() if len(calls) > count else original(*args, **kwargs)

    return write


@pytest.mark.parametrize(
    "point", ["make folder", "weights", "model index", "tensors", "state", "first flush", "third flush", "rename"]
)
def test_a_full_disk_leaves_what_was_there(run, monkeypatch, point):
    run.run()
    before = contents(run.out)
    with monkeypatch.context() as m:
        if point == "make folder":
            m.setattr(Path, "mkdir", no_space)
        elif point == "weights":
            m.setattr("diffusers.models.modeling_utils.safetensors.torch.save_file", no_space)
        elif point == "model index":
            m.setattr(PyramidPipeline, "save_config", no_space)
        elif point == "tensors":
            m.setattr(ckpt, "save_file", no_space)
        elif point == "state":
            m.setattr(Path, "write_text", no_space)
        elif point.endswith("flush"):
            m.setattr(ckpt, "_flush", full_after(0 if point.startswith("first") else 2, ckpt._flush))
        else:
            m.setattr(ckpt.os, "replace", no_space)
        with pytest.raises(OSError) as caught:
            run.save()
    message = str(caught.value)
    assert "step-00000002 could not be written" in message
    assert os.strerror(errno.ENOSPC) in message
    assert contents(run.out) == before
    assert os.listdir(run.out / "checkpoints") == ["step-00000001"]
    assert PyramidPipeline.from_pretrained(run.out)(None, num_inference_steps=3).frames.shape == (1, 8, 16, 16, 3)
    run.save()
    assert [p.name for p in ckpt.checkpoints(run.out)] == ["step-00000001", "step-00000002"]


@pytest.mark.parametrize("point", ["tensors", "rename"])
def test_a_full_disk_does_not_cost_the_checkpoint_that_is_written_again(run, monkeypatch, point):
    """A finished run that is resumed writes the same step once more."""
    before = contents(run.out)
    with monkeypatch.context() as m:
        m.setattr(*((ckpt, "save_file") if point == "tensors" else (ckpt.os, "replace")), no_space)
        with pytest.raises(OSError, match="could not be written"):
            run.save()
    assert contents(run.out) == before


def test_windows_opens_no_folders_and_flushes_what_is_open_for_writing(run, monkeypatch):
    opened, flushed = os.open, os.fsync

    def open_there(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, *arguments, **options)

    def flush_there(handle):
        if fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flushed(handle)

    run.run()
    with monkeypatch.context() as m:
        m.setattr(os, "open", open_there)
        m.setattr(os, "fsync", flush_there)
        m.setattr(ckpt, "WINDOWS", True)
        run.save()
        m.setattr(ckpt, "WINDOWS", False)
        with pytest.raises(OSError, match="step-00000002 could not be written"):
            run.save()
    assert [p.name for p in ckpt.checkpoints(run.out)] == ["step-00000001", "step-00000002"]
    assert ckpt.read_checkpoint(ckpt.checkpoints(run.out)[-1])[1]["step"] == 2


def test_a_file_system_that_is_really_full(run, tiny, tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        trainer = Trainer(tiny("train.steps=2", "log.keep_checkpoints=5"), place / "run")
        trainer.run(seconds=1e-9)
        trainer.save()
        size = sum(len(data) for data in contents(place / "run" / "checkpoints").values())
        assert 300_000 < size < 600_000, "one must fit and two must not"
        before = contents(place / "run")
        trainer.run()
        with pytest.raises(OSError, match="step-00000002 could not be written"):
            trainer.save()
        assert contents(place / "run") == before
        resumed = trained(tiny("train.steps=2", "log.keep_checkpoints=5"), place / "run", resume=True)
        assert resumed.step == 2
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_leftovers_of_a_killed_write_are_ignored_and_replaced(run, tiny):
    folder = run.out / "checkpoints"
    for name in (".step-00000002.partial", ".step-00000009.partial"):
        (folder / name / "transformer").mkdir(parents=True)
        (folder / name / "training_state.json").write_text("{")
        (folder / name / "model_index.json").write_text("{}")
    assert [p.name for p in ckpt.checkpoints(run.out)] == ["step-00000001"]
    assert PyramidPipeline.from_pretrained(run.out) is not None
    resumed = trained(tiny("train.steps=2"), run.out, resume=True)
    assert resumed.step == 2
    resumed.save()
    assert not (folder / ".step-00000002.partial").exists()
    assert "training_state.safetensors" in contents(folder / "step-00000002")


@pytest.mark.parametrize("damage", ["cut short", "not JSON", "no tensors"])
def test_a_damaged_checkpoint_is_named(run, tiny, damage):
    folder = run.out / "checkpoints" / "step-00000001"
    tensors = folder / "training_state.safetensors"
    if damage == "cut short":
        tensors.write_bytes(tensors.read_bytes()[:500])
    elif damage == "no tensors":
        tensors.unlink()
    else:
        (folder / "training_state.json").write_text("{")
    with pytest.raises(ValueError, match="step-00000001 is not a training checkpoint that can be resumed"):
        Trainer(tiny("train.steps=2"), run.out, resume=True)


def test_moments_find_their_parameters(tmp_path):
    """Names of which one is the beginning of another do not mix."""
    torch.manual_seed(0)
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "ab": torch.nn.Linear(2, 2)})
    network["a"].weight_b = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    sum(p.square().sum() for p in network.parameters()).backward()
    optimizer.step()
    packed = ckpt.pack_optimizer(optimizer, network)
    again = torch.optim.AdamW(network.parameters(), lr=0.1)
    ckpt.unpack_optimizer(again, network, packed)
    for p in network.parameters():
        assert again.state[p].keys() == optimizer.state[p].keys()
        for moment, value in optimizer.state[p].items():
            assert torch.equal(again.state[p][moment], value)
