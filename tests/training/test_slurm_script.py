"""What examples/train.slurm asks of Slurm and of accelerate's launcher, with stand-ins for Slurm's commands."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "train.slurm"
PATIENCE = 60  # seconds
STAND_INS = {
    "scontrol": """
        import os, sys
        with open(os.path.join(os.environ["NOTES"], "scontrol"), "a") as file:
            print(*sys.argv[1:], file=file)
        if sys.argv[1] == "show":
            print("first\\nsecond")
    """,
    "srun": """
        import os, signal, subprocess, sys
        words = sys.argv[1:]
        while words[0].startswith("--"):
            del words[0]
        machines = [str(number) for number in range(int(os.environ["SLURM_NNODES"]))]
        tasks = [subprocess.Popen(words, env={**os.environ, "SLURM_NODEID": machine}) for machine in machines]
        signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
        sys.exit(max([task.wait() for task in tasks]))
    """,
    "accelerate": """
        import json, os, pathlib, signal, sys, time
        notes, machine = pathlib.Path(os.environ["NOTES"]), os.environ["SLURM_NODEID"]
        def end(*_):
            (notes / f"told-{machine}").touch()
            sys.exit(1)
        signal.signal(signal.SIGTERM, end)
        (notes / "words").write_text(json.dumps(sys.argv[1:]))
        (notes / "words").rename(notes / f"words-{machine}")
        time.sleep(float(os.environ["LASTS"]))
        sys.exit(int(os.environ["ENDS"]))
    """,
}


@pytest.fixture
def begin(tmp_path):
    """`begin("recipe.yaml", "--out", folder, machines=2)`: the script under way, 8 GPUs a machine."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in STAND_INS.items():
        lines = [line.removeprefix(" " * 8) for line in text.strip("\n").splitlines()]
        (tools / name).write_text("\n".join([f"#!{sys.executable}", *lines]) + "\n")
        (tools / name).chmod(0o755)

    def run(*arguments, machines=2, kind="fsdp2", lasts=0, ends=0):
        told = {"SLURM_JOB_ID": "34711", "SLURM_JOB_NODELIST": "first,second", "SLURM_GPUS_ON_NODE": "8"}
        told |= {"SLURM_NNODES": str(machines), "DISTRIBUTION": f"configs/accelerate/{kind}.yaml"}
        told |= {"NOTES": str(tmp_path), "LASTS": str(lasts), "ENDS": str(ends)}
        told |= {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        words, environment = ["bash", str(SCRIPT), *map(str, arguments)], {**os.environ, **told}
        return subprocess.Popen(words, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    return run


def understood(folder, machine, monkeypatch):
    """What accelerate's launcher makes of its words on a machine."""
    monkeypatch.chdir(ROOT)
    command, *words = json.loads((folder / f"words-{machine}").read_text())
    assert command == "launch"
    return _validate_launch_command(launch_command_parser().parse_args(words))[0]


def requeued(folder):
    return "requeue 34711" in (folder / "scontrol").read_text().splitlines()


@pytest.mark.parametrize("kind", ["ddp", "fsdp2", "hsdp"])
@pytest.mark.parametrize("machines", [1, 2])
def test_every_machine_launches_its_part(begin, tmp_path, monkeypatch, kind, machines):
    out = tmp_path / "a run"
    run = begin("configs/gameplay.yaml", "--out", out, "train.lr=1e-4", machines=machines, kind=kind)
    assert run.wait(PATIENCE) == 0 and not requeued(tmp_path)
    for machine in range(machines):
        told = understood(tmp_path, machine, monkeypatch)
        assert (told.num_machines, told.machine_rank, told.num_processes) == (machines, machine, 8 * machines)
        assert (told.main_process_ip, told.main_process_port) == ("first", 34711)
        assert told.module and told.training_script == "tpdiff"
        assert told.training_script_args == ["train", "configs/gameplay.yaml", "--out", str(out), "train.lr=1e-4"]
        assert told.use_fsdp == (kind != "ddp") and told.use_parallelism_config == (kind == "hsdp")
        if kind == "hsdp":
            assert told.parallelism_config_dp_replicate_size == machines
            assert told.parallelism_config_dp_shard_size == 8


@pytest.mark.parametrize("said", ["--out {}", "--out={}"])
def test_a_run_that_was_begun_is_resumed(begin, tmp_path, monkeypatch, said):
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").touch()
    words = said.format(out).split()
    assert begin("recipe.yaml", *words, machines=1).wait(PATIENCE) == 0
    assert understood(tmp_path, 0, monkeypatch).training_script_args == ["train", "recipe.yaml", *words, "--resume"]


def test_when_its_time_is_up_it_ends_well_and_asks_for_another_turn(begin, tmp_path):
    assert "\n#SBATCH --signal=B:USR1@120\n" in SCRIPT.read_text()  # to the script itself
    run = begin("recipe.yaml", "--out", tmp_path / "run", lasts=PATIENCE)
    until = time.monotonic() + PATIENCE
    while not all((tmp_path / f"words-{machine}").exists() for machine in range(2)):
        assert time.monotonic() < until and run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGUSR1)
    assert run.wait(PATIENCE) == 1
    assert all((tmp_path / f"told-{machine}").exists() for machine in range(2))
    assert requeued(tmp_path)


def test_what_fails_of_itself_is_not_tried_again(begin, tmp_path):
    assert begin("recipe.yaml", "--out", tmp_path / "run", ends=3).wait(PATIENCE) == 3
    assert not requeued(tmp_path)


def test_a_folder_must_be_said(begin, tmp_path):
    run = begin("recipe.yaml")
    _, said = run.communicate(timeout=PATIENCE)
    assert run.returncode == 2 and said == "say --out FOLDER, on a file system that all machines share\n"
    assert not list(tmp_path.glob("words-*"))
