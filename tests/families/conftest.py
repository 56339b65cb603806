"""Every tiny pipeline as a fixture, and the Gaussian that the sampling tests share."""

import logging
import sys
from pathlib import Path

import pytest
from tiny import CASES

sys.path.append(str(Path(__file__).resolve().parents[1] / "sampling"))


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Each pipeline in turn."""
    return request.param


@pytest.fixture(autouse=True, scope="session")
def quiet():
    """No advice from libraries about random weights."""
    for library in ("diffusers", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
