"""Which Python `make` takes, and what it says where there is none that will do."""

import shutil
import subprocess
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(MAKE is None, reason="needs make")


def make(folder, *arguments):
    """Run in an environment where the programs of one folder alone are found."""
    command = [MAKE, "--makefile", str(MAKEFILE), *arguments]
    return subprocess.run(
        command, cwd=MAKEFILE.parent, env={"PATH": str(folder)}, capture_output=True, text=True, check=False
    )


def fake(folder, name, new=True):
    """A Python that is new enough, or not, and can do nothing else."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n[ {int(new)} = 1 ]\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["python3"], "python3"),
        (["python3", "python3.13"], "python3.13"),
        (["python3", "python3.13", "python3.12"], "python3.12"),
        (["python3", "python3.13", "python3.12", "python3.11"], "python3.11"),
        ([], "python3"),
    ],
)
def test_the_python_that_is_tested_most_is_taken(tmp_path, there, taken):
    for name in there:
        fake(tmp_path, name)
    ask = ["--eval", "which: ; @: $(info $(PYTHON))", "which"]
    assert Path(make(tmp_path, *ask).stdout.strip()).name == taken
    assert make(tmp_path, *ask, "PYTHON=mine").stdout.strip() == "mine"


@pytest.mark.parametrize("there", [["python3"], []])
def test_a_python_that_is_too_old_is_refused_in_a_line(tmp_path, there):
    for name in there:
        fake(tmp_path, name, new=False)
    place = tmp_path / "venv"
    told = make(tmp_path, f"VENV={place}", f"{place}/.installed")
    first, *rest = told.stderr.splitlines()
    assert first == "Python 3.11 or newer is needed, and 'python3' is none; give one: make PYTHON=/path/to/python3.11"
    assert told.returncode == 2 and len(rest) == 1 and not place.exists()  # make's own line
