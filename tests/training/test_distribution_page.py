"""What docs/distribution.md says to type is typed, where it needs no GPU, with a tiny recipe in place of its own."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tpdiff.training import checkpoint as ckpt

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "distribution.md"
PATIENCE = 400  # seconds
COMMANDS = [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    ACCELERATE_USE_CPU=true")]


@pytest.fixture
def recipe(tiny_values, tmp_path):
    values = tiny_values()
    values["train"] |= {"batch_size": 8, "steps": 4, "precision": "bf16"}
    values["log"]["checkpoint_every_steps"] = 2
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def begin(command, recipe, tmp_path, *more):
    words = [w.replace("configs/gameplay.yaml", str(recipe)) for w in shlex.split(command)]
    words = [str(tmp_path / w) if w.startswith("runs/") else w for w in words]
    setting, *arguments = words
    name, _, value = setting.partition("=")
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "src")}
    environment = {**os.environ, **paths, name: value}
    return subprocess.Popen([*arguments, *more], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_the_commands_without_a_gpu_run(recipe, tmp_path):
    kinds = [word for command in COMMANDS for word in shlex.split(command) if word.startswith("configs/accelerate")]
    assert kinds == [f"configs/accelerate/{kind}.yaml" for kind in ("ddp", "fsdp2", "hsdp")]
    for command, parts in zip(COMMANDS, (1, 2, 2), strict=True):
        more = ["train.steps=6"] if "--resume" in command else []
        run = begin(command, recipe, tmp_path, *more)
        said, _ = run.communicate(timeout=PATIENCE)
        assert run.returncode == 0
        assert said.count("checkpoint: ") == 1
        folder = Path(said.split("checkpoint: ")[1].splitlines()[0])
        assert folder.name == ("step-00000006" if more else "step-00000004")
        assert len(list(folder.glob("training_state*.safetensors"))) == parts


@pytest.mark.slow
def test_a_launcher_that_is_told_to_end_leaves_a_checkpoint(recipe, tmp_path):
    run = begin(COMMANDS[1].replace(" --resume", ""), recipe, tmp_path, "train.steps=100000")
    out, until = tmp_path / "runs" / "two", time.monotonic() + PATIENCE
    while not ckpt.checkpoints(out):
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.05)
    before = ckpt.checkpoints(out)[-1]
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=PATIENCE)
    assert run.returncode != 0
    assert "stopped at step" in said
    last = ckpt.checkpoints(out)[-1]
    assert last.name >= before.name and f"checkpoint: {last}" in said


@pytest.mark.slow
def test_a_launcher_that_is_told_to_end_while_it_validates_leaves_a_checkpoint(recipe, tmp_path):
    """Before it kills what has not ended of itself."""
    long = ["validation.every_steps=2", "validation.clips=2", "validation.samples=1000000", "validation.sample_steps=3"]
    overrides = ["train.steps=100000", "log.checkpoint_every_steps=", *long]
    run = begin(COMMANDS[1].replace(" --resume", ""), recipe, tmp_path, *overrides)
    out, until = tmp_path / "runs" / "two", time.monotonic() + PATIENCE
    while not (out / "validation" / "step-00000002" / "0001.mp4").exists():
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.05)
    assert not ckpt.checkpoints(out)
    run.send_signal(signal.SIGTERM)
    said, _ = run.communicate(timeout=PATIENCE)
    (folder,) = ckpt.checkpoints(out)
    assert folder.name == "step-00000002" and f"checkpoint: {folder}" in said and "stopped at step 2" in said
    assert not (out / "validation.jsonl").exists()
