"""Runs that die and are resumed end bit for bit as the run that lived.

Real commands in processes of their own, killed with SIGKILL wherever they are. The quick tests fork them from a
process that has imported everything; the slow one starts them as a user does.
"""

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import yaml

from tpdiff import PyramidPipeline
from tpdiff.cli import main
from tpdiff.training import checkpoint as ckpt
from tpdiff.training.trainer import Trainer

PATIENCE = 120  # seconds until a test gives up waiting
STEPS, EVERY = 24, 3
CLOCKS = {"tokens_per_second", "training_seconds"}

forks = multiprocessing.get_context("forkserver")
IMPORTED = ["tpdiff.cli", "tpdiff.training.trainer", "tpdiff.training.autoencoder", "torch._dynamo"]
forks.set_forkserver_preload([*IMPORTED, "torch.utils.tensorboard"])


@pytest.fixture
def recipe(tiny_values, tmp_path):
    """A recipe with everything on that a resumed run could get wrong."""
    values = tiny_values()
    values["data"]["workers"] = 2
    values["condition"]["dropout"] = 0.3
    values["train"] |= {"steps": STEPS, "accumulation": 2, "alignment": "assignment", "method": "stagewise"}
    values["train"] |= {"lr_schedule": "cosine", "warmup_steps": 5, "lr": 5e-3, "ema_decay": 0.95}
    log = {"trackers": ["tensorboard"], "every_steps": 2, "checkpoint_every_steps": EVERY, "keep_checkpoints": 3}
    values["log"] = log
    values["validation"] = {"every_steps": 5, "clips": 4, "quantiles": 2, "samples": 1, "sample_steps": 3}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


class Forked:
    """A command in a process forked from one that has imported everything."""

    def __init__(self, arguments, target=main):
        self.process = forks.Process(target=target, args=([str(a) for a in arguments],))
        self.process.start()
        self.pid = self.process.pid

    def running(self):
        return self.process.exitcode is None

    def end(self):
        self.process.join(PATIENCE)
        return self.process.exitcode


class Started:
    """A command as a user starts it."""

    def __init__(self, arguments):
        self.process = subprocess.Popen([sys.executable, "-m", "tpdiff", *map(str, arguments)], stderr=sys.stderr)
        self.pid = self.process.pid

    def running(self):
        return self.process.poll() is None

    def end(self):
        return self.process.wait(PATIENCE)


def train(recipe, out, *more):
    return ["train", recipe, "--out", out, *more]


def names(out, pattern):
    return {p.name for p in (out / "checkpoints").glob(pattern)}


def wait_for(run, condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert run.running(), "the run ended by itself"
        assert time.monotonic() < until
        time.sleep(0.0005)


def kill(run):
    """SIGKILL, and see that no process of the run is left."""
    workers = psutil.Process(run.pid).children(recursive=True)
    os.kill(run.pid, signal.SIGKILL)
    assert run.end() == -signal.SIGKILL
    until = time.monotonic() + 20
    while left := [w for w in workers if w.is_running() and w.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < until, f"left behind: {left}"
        time.sleep(0.01)
    return len(workers)


def kill_inside(run, out, writing, delay):
    """Kill `delay` seconds into the writing of the `writing`-th checkpoint; whether it was still being written."""
    seen = names(out, ".*.partial")  # what an earlier death left
    wait_for(run, lambda: not seen & names(out, ".*.partial"))
    begun = []

    def enough():
        begun.extend(names(out, ".*.partial").difference(begun))
        return len(begun) >= writing

    wait_for(run, enough)
    time.sleep(delay)
    workers = kill(run)
    assert workers == 2
    partial = names(out, ".*.partial")
    assert len(partial) <= 1
    return any(p[1:].removesuffix(".partial") not in names(out, "step-*") for p in partial)


def kill_outside(run, out):
    """Kill some time after a new checkpoint."""
    before = names(out, "step-*")
    wait_for(run, lambda: names(out, "step-*") - before)
    time.sleep(0.05)
    kill(run)


def all_load(out):
    """Every folder that looks like a checkpoint is one."""
    for folder in (out / "checkpoints").glob("step-*"):
        tensors, state = ckpt.read_checkpoint(folder)
        assert f"step-{state['step']:08d}" == folder.name
        assert len(set(tensors["losses"][:, 1].tolist())) == state["step"]
        PyramidPipeline.from_pretrained(folder)


def scalars(out):
    """TensorBoard's points, (step, value) by name, without those of clocks."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(out / "tpdiff"), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = set(accumulator.Tags()["scalars"]) - CLOCKS
    return {tag: [(p.step, p.value) for p in accumulator.Scalars(tag)] for tag in tags}


def validations(out):
    """The lines of all validations, without what clocks said."""
    records = [json.loads(line) for line in (out / "validation.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in ("seconds", "took")} for record in records]


def assert_same_run(a, b, steps=STEPS):
    """Weights, averages, moments, losses, counters and logged curves of two finished runs, bit for bit."""
    (one, first), (two, second) = (ckpt.read_checkpoint(ckpt.checkpoints(out)[-1]) for out in (a, b))
    assert first["step"] == second["step"] == steps
    assert one.keys() == two.keys()
    assert {"network", "ema", "optimizer", "losses"} == {name.split(".")[0] for name in one}
    for name in one:
        left, right = (t[name][:, 1:] if name == "losses" else t[name] for t in (one, two))
        assert torch.equal(left, right), name
    for state in (first, second):
        del state["seconds"], state["recent"]["seconds"]
    assert first == second
    assert one["losses"][:, 1].tolist() == [float(step) for step in range(1, steps + 1) for _ in range(2)]
    assert (two["losses"][1:, 0] >= two["losses"][:-1, 0]).all()
    curves = scalars(a)
    assert [step for step, _ in curves["loss"]] == list(range(2, steps + 1, 2))
    assert scalars(b) == curves
    assert [record["step"] for record in validations(a)] == [*range(5, steps, 5), steps]
    assert validations(b) == validations(a)
    for record in validations(a):
        assert [(a / name).read_bytes() for name in record["samples"]] == [
            (b / name).read_bytes() for name in record["samples"]
        ]


def finish(start, recipe, out, *more):
    assert start(train(recipe, out, *more)).end() == 0
    assert not (names(out, ".*"))


def test_a_run_killed_again_and_again_is_the_run_that_lived(recipe, tmp_path):
    finish(Forked, recipe, tmp_path / "whole")
    out = tmp_path / "killed"
    run = Forked(train(recipe, out))
    assert kill_inside(run, out, 1, 0.002)
    assert names(out, "step-*") == set()
    inside = 0
    for _ in range(5):  # a kill may come too late
        run = Forked(train(recipe, out, "--resume"))
        inside += kill_inside(run, out, 2, 0.002)
        all_load(out)
        if inside:
            break
    assert inside
    run = Forked(train(recipe, out, "--resume"))
    kill_outside(run, out)
    all_load(out)
    finish(Forked, recipe, out, "--resume")
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
def test_ten_deaths_and_the_run_is_the_one_that_lived(recipe, tmp_path, capfd):
    out, draw, steps = tmp_path / "killed", random.Random(0), 120
    recipe.write_text(recipe.read_text().replace(f"steps: {STEPS}", f"steps: {steps}"))
    finish(Started, recipe, tmp_path / "whole")
    run = Started(train(recipe, out))
    wait_for(run, (out / "config.yaml").exists)
    kill(run)  # before any checkpoint
    run = Started(train(recipe, out, "--resume"))
    inside = int(kill_inside(run, out, 1, 0))  # during the very first
    kills, within = 2, 0.016
    while kills < 10 or inside < 4:
        assert kills < 18, f"only {inside} of {kills} deaths came inside the writing of a checkpoint"
        run = Started(train(recipe, out, "--resume"))
        if kills % 4 == 3:
            kill_outside(run, out)
        else:
            hit = kill_inside(run, out, 2, draw.uniform(0, within))
            inside += hit
            within *= 1 if hit else 0.5  # a quick machine writes in a few milliseconds
        all_load(out)
        kills += 1
    finish(Started, recipe, out, "--resume")
    assert_same_run(tmp_path / "whole", out, steps)
    with capfd.disabled():
        print(f"\n{kills} deaths, {inside} of them inside the writing of a checkpoint")


def die_between_the_renames(arguments):
    """The command, dead as soon as the checkpoint about to be replaced has been set aside."""
    rename = os.replace

    def replace(source, target):
        rename(source, target)
        if str(target).endswith(".before"):
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    main(arguments)


def test_a_death_between_the_two_renames_costs_no_checkpoint(recipe, tmp_path):
    """A finished run that is resumed writes its last checkpoint once more."""
    out, few = tmp_path / "run", ["train.steps=2", "log.keep_checkpoints=1", "log.trackers=[]", "data.workers=0"]
    finish(Forked, recipe, out, *few)
    before = ckpt.read_checkpoint(out / "checkpoints" / "step-00000002")
    run = Forked(train(recipe, out, *few, "--resume"), die_between_the_renames)
    assert run.end() == -signal.SIGKILL
    assert names(out, "*") == {".step-00000002.before", ".step-00000002.partial"}
    finish(Forked, recipe, out, *few, "train.steps=4", "--resume")
    tensors, _ = ckpt.read_checkpoint(ckpt.checkpoints(out)[-1])
    assert tensors["losses"][:, 1].tolist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert torch.equal(tensors["losses"][:4], before[0]["losses"])  # with the times of day one: not trained anew


def die_while_dropping(arguments):
    """The command, dead when the first file of a dropped checkpoint has gone."""
    remove = os.unlink

    def unlink(path, **options):
        remove(path, **options)
        if any(".dropped" in os.readlink(f"/proc/self/fd/{fd}") for fd in options.values() if fd is not None):
            os.kill(os.getpid(), signal.SIGKILL)

    os.unlink = unlink
    main(arguments)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_death_while_an_old_checkpoint_is_dropped_leaves_no_half_of_it(recipe, tmp_path):
    out, few = tmp_path / "run", ["train.steps=9", "log.keep_checkpoints=1", "log.trackers=[]", "data.workers=0"]
    assert Forked(train(recipe, out, *few), die_while_dropping).end() == -signal.SIGKILL
    assert names(out, "*") == {".step-00000003.dropped", "step-00000006"}
    all_load(out)
    finish(Forked, recipe, out, *few, "--resume")
    assert names(out, "*") == {"step-00000009"}


# Without deaths


def test_the_order_of_the_data_does_not_depend_on_the_workers(tiny, tmp_path):
    seen = []
    for workers in (0, 2):
        trainer = Trainer(tiny(f"data.workers={workers}", "train.steps=9"), tmp_path / f"{workers}")
        batches = [trainer._next_batch() for _ in range(7)]
        seen.append([(b["index"].tolist(), b["path"], b["caption"], b["video"]) for b in batches])
    for number, (one, two) in enumerate(zip(*seen, strict=True)):
        assert one[0] == list(range(6 * number, 6 * number + 6))
        assert one[:3] == two[:3]
        assert torch.equal(one[3], two[3])


def test_a_budget_of_seconds_goes_on_where_it_was(tiny, tmp_path):
    config = tiny("train.steps=", "train.seconds=0.4")
    trainer = Trainer(config, tmp_path / "run")
    trainer.run(seconds=0.2)
    trainer.save()
    spent = trainer.seconds
    assert spent >= 0.2
    time.sleep(0.3)  # no time of training
    resumed = Trainer(config, tmp_path / "run", resume=True)
    assert resumed.seconds == spent
    assert resumed.losses == trainer.losses
    resumed.run()
    clock = [seconds for seconds, *_ in resumed.losses]
    assert clock == sorted(clock)
    assert clock[len(trainer.losses)] > spent
    assert clock[-1] >= 0.4
    assert len(clock) == 1 or clock[-2] < 0.4


def test_the_command_refuses_another_configuration_with_every_difference(recipe, tmp_path, capsys):
    out = tmp_path / "run"
    few = ["train.steps=1", "log.trackers=[]", "data.workers=0"]
    assert Forked(train(recipe, out, *few)).end() == 0
    capsys.readouterr()
    others = ["train.lr=0.25", "seed=9", "data.fps=4", "train.timestep_policy=pyramid_flow"]
    with pytest.raises(SystemExit) as caught:
        main([str(a) for a in train(recipe, out, *few, *others, "--resume")])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    for difference in ("train.lr: 0.005 -> 0.25", "seed: 5 -> 9", "data.fps: 8.0 -> 4.0"):
        assert difference in said
    assert "train.timestep_policy: native -> pyramid_flow" in said
    assert json.loads((out / "checkpoints" / "step-00000001" / ckpt.STATE).read_text())["config"]["seed"] == 5
