"""Every tiny pipeline as a fixture, and the Gaussian that the sampling tests share."""

import logging
import sys
from pathlib import Path

import pytest
from tiny import CASES

from tpdiff.data import render_digits
from tpdiff.training.load_config import build_config

sys.path.append(str(Path(__file__).resolve().parents[1] / "sampling"))

TIME = [[1, 1, 1], [2, 1, 1], [4, 1, 1]]
SHORT = ("max_sequence_length", "prompt_template")


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Each pipeline in turn."""
    return request.param


@pytest.fixture(autouse=True, scope="session")
def quiet():
    """No advice from libraries about random weights."""
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Six clips, long enough for every case."""
    return render_digits(
        tmp_path_factory.mktemp("digits") / "set", clips=6, frames=70, size=32, seed=1, test_share=0.3
    ).folder


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Case -> the folder of its pipeline, written once."""
    root, written = tmp_path_factory.mktemp("stock"), {}

    def folder(case):
        if case.name not in written:
            case.stageable().save_pretrained(root / case.name, safe_serialization=True)
            written[case.name] = root / case.name
        return written[case.name]

    return folder


@pytest.fixture
def tuning(digits, saved):
    """`tuning(case, "train.steps=1", lora={...})`: the configuration of a run from a case's pipeline."""

    def configure(case, *overrides, **pretrained):
        frames, height, width = case.narrow
        told = {"path": str(saved(case)), "options": {k: v for k, v in case.call.items() if k in SHORT}}
        if len(case.networks) > 1:
            told["network"] = case.networks[-1]
        values = {
            "seed": 3,
            "data": {"path": str(digits), "split": None, "frames": frames, "height": height, "width": width},
            "condition": {"dropout": 0},
            "pretrained": told | pretrained,
            "pyramid": {"factors": TIME},
            "train": {"batch_size": 2, "steps": 2, "precision": "no", "lr": 1e-3, "all_stages": True},
            "log": {"every_steps": 1, "checkpoint_every_steps": None},
        }
        return build_config(values, overrides)

    return configure
