"""A video that cannot be read ends a run, and costs none of its steps."""

import shutil

import pytest
import torch
import yaml
from command_line import call

from tpdiff.training.autoencoder import AutoencoderTrainer
from tpdiff.training.checkpoint import checkpoints, read_checkpoint
from tpdiff.training.load_config import load_config
from tpdiff.training.trainer import Trainer


@pytest.fixture
def videos(clips, tmp_path):
    """A folder of twelve videos: two steps are an epoch."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted(clips.glob("train/*.mp4"))[:12]:
        shutil.copy(path, folder)
    return folder


@pytest.fixture
def recipe(tiny_values, videos, tmp_path):
    values = tiny_values()
    values["data"] |= {"path": str(videos), "split": None, "cache": "none"}
    values["condition"] = {"kind": "none"}
    values["train"] |= {"steps": 6, "alignment": "none"}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def autoencoder(videos, tmp_path):
    tiny = {"latent_channels": 4, "hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1}
    values = {
        "data": {"path": str(videos), "split": None, "frames": 5, "height": 16, "width": 16, "cache": "none"},
        "autoencoder": tiny,
        "train": {"batch_size": 6, "steps": 6, "warmup_steps": 0},
        "held_out": {"split": None},
        "statistics_clips": 2,
        "log": {"checkpoint_every_steps": None},
    }
    path = tmp_path / "autoencoder.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def loses(monkeypatch, kind, name, path, steps):
    """Have a trainer's video vanish after so many steps."""
    step = getattr(kind, name)

    def train_step(self, batch):
        result = step(self, batch)
        if self.step == steps - 1:
            path.rename(path.with_suffix(".gone"))
        return result

    monkeypatch.setattr(kind, name, train_step)


@pytest.mark.parametrize(
    ("made", "kind", "name"),
    [("recipe", Trainer, "train_step"), ("autoencoder", AutoencoderTrainer, "_train_step")],
)
def test_a_run_ends_with_a_checkpoint_and_goes_on_as_if_nothing_had_been(
    made, kind, name, videos, tmp_path, monkeypatch, request
):
    path, out = request.getfixturevalue(made), tmp_path / "run"
    assert call("train", path, "--out", tmp_path / "whole")[0] == 0
    lost = sorted(videos.glob("*.mp4"))[-1]
    with monkeypatch.context() as patched:
        loses(patched, kind, name, lost, 3)
        code, shown, said = call("train", path, "--out", out)
    assert code == 2, (shown, said)
    (last,) = checkpoints(out)
    step = int(last.name.removeprefix("step-"))
    assert 3 <= step < 6
    assert f"error: {lost}: " in said
    assert said.rstrip().endswith(f"the run so far is in {last}; --resume goes on from there")
    lost.with_suffix(".gone").rename(lost)
    code, shown, said = call("train", path, "--out", out, "--resume")
    assert code == 0, (shown, said)
    whole, resumed = (read_checkpoint(checkpoints(run)[-1])[0] for run in (tmp_path / "whole", out))
    assert whole.keys() == resumed.keys()
    for key in whole:
        one, two = (t[key][:, 1:] if key == "losses" else t[key] for t in (whole, resumed))
        assert torch.equal(one, two), key


def test_before_the_first_step_there_is_nothing_to_keep(recipe, videos, tmp_path):
    trainer = Trainer(load_config(recipe), tmp_path / "run")
    for path in videos.glob("*.mp4"):
        path.unlink()
    with pytest.raises(ValueError) as caught:
        trainer.run()
    assert not hasattr(caught.value, "__notes__")
    assert checkpoints(tmp_path / "run") == []


def test_what_is_kept_already_is_not_written_again(recipe, videos, tmp_path, monkeypatch):
    trainer = Trainer(load_config(recipe, ["log.checkpoint_every_steps=3"]), tmp_path / "run")
    saved, save = [], trainer.save
    monkeypatch.setattr(trainer, "save", lambda: saved.append(trainer.step) or save())
    step = trainer.train_step

    def train_step(batches):
        parts = step(batches)
        if trainer.step == 2:
            shutil.rmtree(videos)
        return parts

    monkeypatch.setattr(trainer, "train_step", train_step)
    with pytest.raises(ValueError):
        trainer.run()
    assert saved == [3]
