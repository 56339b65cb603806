"""What the commands of studies share: how they stop, and how they end."""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch

from tpdiff.data import DataError
from tpdiff.evaluation.study_run import Interrupted

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
import ablations
import study_command
import training_comparison
from study_command import carry_out, heed, size_of, stop_with

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Run:
    asked = 0

    def request_stop(self):
        self.asked += 1


@pytest.fixture
def handlers():
    before = [signal.getsignal(number) for number in SIGNALS]
    heed()
    yield
    study_command._asked.clear()
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_the_run_and_a_second_one_all(handlers, capsys, number):
    run = Run()
    stop_with(run)
    os.kill(os.getpid(), number)
    assert run.asked == 1 and "once more" in capsys.readouterr().err
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
    later = Run()
    stop_with(later)  # the next run of the study
    assert later.asked == 1, "the stop was asked for"
    with pytest.raises(Interrupted):
        heed()


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (Interrupted(), 130, "stopped; continue with: "),
        (KeyboardInterrupt(), 130, "stopped; continue with: "),
        (ValueError("no variant"), 2, "error: no variant\n"),
        (DataError("no clips"), 2, "error: no clips\n"),
        (OSError("full"), 2, "error: full\n"),
    ],
)
def test_how_a_command_ends(capsys, error, status, said):
    def work():
        raise error

    assert carry_out(work) == status
    assert said in capsys.readouterr().err
    assert carry_out(lambda: Path("page.md")) == 0
    assert capsys.readouterr().err == "page: page.md\n"


def test_the_size_for_a_gpu_needs_one():
    assert size_of(argparse.Namespace(device="cpu")) == "cpu"
    if torch.cuda.is_available():
        assert size_of(argparse.Namespace(device="cuda")) == "cuda"
    else:
        with pytest.raises(ValueError, match="there is no CUDA device here; use cpu"):
            size_of(argparse.Namespace(device="cuda"))


@pytest.mark.parametrize(
    ("command", "name", "title"),
    [
        (training_comparison, "study-gameplay-tubelets", "# Vanilla and temporal-pyramid training"),
        (ablations, "ablation-jumps", "# How a stage is entered"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_of_what_is_finished_only_the_page_is_made(command, name, title, monkeypatch, tmp_path):
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "docs" / "results" / name, tmp_path / "results" / name)
    (tmp_path / "results" / name / "README.md").unlink()
    asked = [root / "configs" / f"{name}.yaml", "--results", tmp_path / "results", "--work", tmp_path / "work"]
    monkeypatch.setattr(sys, "argv", [f"{command.__name__}.py", *map(str, asked)])
    monkeypatch.setattr(command, "make_data", lambda *_: pytest.fail("clips were made"))
    assert command.main() == 0
    assert title in (tmp_path / "results" / name / "README.md").read_text()
    assert not (tmp_path / "work").exists()
