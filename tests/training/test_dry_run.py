"""The dry run: it counts what the run does, and leaves nothing behind."""

import json
from pathlib import Path

import pytest
import yaml
from torch.nn.modules.module import register_module_forward_pre_hook

from tpdiff.cli import main
from tpdiff.models.video_dit import VideoDiT
from tpdiff.training.dry_run import dry_run
from tpdiff.training.trainer import Trainer


def everything(folder):
    return sorted((str(p), p.stat().st_mtime_ns) for p in folder.rglob("*"))


def run(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in arguments])
    assert caught.value.code == 0


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.token_budget=64", "train.accumulation=2", "data.workers=2", "train.stage_weights=[1,1,2]"],
        ["train.all_stages=true"],
        ["train.method=vanilla", "train.steps=null", "train.seconds=30"],
    ],
)
def test_its_counts_are_the_runs(tiny, tmp_path, overrides):
    config = tiny("train.steps=12", *overrides)
    made = dry_run(config, tmp_path / "a" / "run", rounds=1)
    assert list(tmp_path.iterdir()) == []
    trainer = Trainer(config, tmp_path / "run")
    shapes = []
    trainer.network.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape)))
    trainer.run(seconds=1e-9 if config.train.steps is None else 1e9)
    seen = {shape[2:]: shape[0] * config.train.accumulation for shape in shapes}
    assert {stage.size: stage.clips for stage in made.stages}.items() >= seen.items()
    tokens = {stage.stage: stage.clips * stage.tokens for stage in made.stages}
    assert trainer.tokens * config.train.accumulation == sum(tokens[stage] for _, _, stage, _ in trainer.losses)
    assert all(stage.seconds > stage.waiting > 0 and stage.memory >= 0 for stage in made.stages)
    assert made.step_seconds > 0
    if config.train.steps is None:
        assert (made.seconds, made.steps) == (pytest.approx(30), pytest.approx(30 / made.step_seconds))
    else:
        assert (made.steps, made.seconds) == (12, pytest.approx(12 * made.step_seconds))
    folder = trainer.save()
    size = sum(p.stat().st_size for p in folder.rglob("*.safetensors"))
    assert made.checkpoint_bytes == pytest.approx(size, rel=0.1)
    assert made.checkpoints == 3 and made.fits


def test_memory_is_what_a_step_adds(tiny, tmp_path, monkeypatch):
    """By what the system is taken to say before and after a step of each stage."""
    monkeypatch.setattr("tpdiff.training.dry_run.peak_bytes", iter([100, 160, 200, 230, 300, 310]).__next__)
    made = dry_run(tiny(), tmp_path / "run", rounds=1)
    assert [stage.memory for stage in made.stages] == [60, 30, 10]
    monkeypatch.setattr("tpdiff.training.dry_run.peak_bytes", lambda: None)
    assert {stage.memory for stage in dry_run(tiny(), tmp_path / "run", rounds=1).stages} == {None}


def test_stages_without_a_weight_are_not_tried(tiny, tmp_path):
    """Coarsest first: 2 and 1 are trained, and what 0, the finest, would take is of no concern."""
    asked = set()

    def noting(module, inputs):
        if isinstance(module, VideoDiT):
            asked.add(tuple(inputs[0].shape[2:]))

    hook = register_module_forward_pre_hook(noting)
    try:
        made = dry_run(tiny("train.stage_weights=[1,1,0]"), tmp_path / "run", rounds=2)
    finally:
        hook.remove()
    assert asked == {(4, 16, 16), (2, 16, 16)}
    assert [(stage.stage, stage.size, stage.share) for stage in made.stages] == [
        (1, (4, 16, 16), 0.5),
        (2, (2, 16, 16), 0.5),
    ]
    assert made.step_seconds == pytest.approx(sum(stage.seconds for stage in made.stages) / 2)


def test_nothing_is_written_whatever_the_run_keeps(tiny_values, tmp_path, image_vae, monkeypatch, capsys):
    values = tiny_values()
    values["data"] |= {"cache": "disk", "latents": "disk", "cache_dir": str(tmp_path / "cache")}
    values["model"] |= {"autoencoder": str(image_vae), "patch_size": [1, 2, 2]}
    values["train"] |= {"steps": 2, "token_budget": 64}
    values["log"] |= {"trackers": ["tensorboard"], "checkpoint_every_steps": 1, "every_steps": 1}
    values["validation"] = {"every_steps": 1, "clips": 2, "samples": 1, "sample_steps": 3}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    run("train", recipe, "--dry-run", "--json")
    figures = json.loads(capsys.readouterr().out)
    assert [stage["clips"] for stage in figures["stages"]] == [2, 4, 8]
    assert figures["steps"] == 2 and figures["fits"]
    assert figures["steps_per_second"] == pytest.approx(1 / figures["step_seconds"])
    run("train", recipe, "--dry-run", "--out", "deep/run")
    shown = capsys.readouterr().out
    for word in ("tokens", "clips/s", "memory:", "steps/s", "3 checkpoints of", "free"):
        assert word in shown
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dry-run", "--resume"], "leave out --resume"),
        (["--json"], "--dry-run"),
        (["--dry-run", "data.height=12"], "height 12"),
    ],
)
def test_what_it_refuses(tiny_values, tmp_path, capsys, arguments, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(tiny_values()))
    with pytest.raises(SystemExit) as caught:
        main(["train", str(recipe), "--out", str(tmp_path / "run"), *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_there_already_is_left_alone(tiny, tmp_path):
    wanted = ["every_steps=1", "clips=2", "quantiles=1", "samples=1", "sample_steps=3"]
    options = ["train.steps=1", *(f"validation.{line}" for line in wanted)]
    trainer = Trainer(tiny(*options), tmp_path / "run")
    trainer.run()
    trainer.save()
    before = everything(tmp_path)
    assert {"validation.jsonl", "step-00000001", "0000.mp4"} <= {Path(path).name for path, _ in before}
    dry_run(tiny(*options, "validation.distance_clips=2"), tmp_path / "run", rounds=1)
    assert everything(tmp_path) == before
