"""The page of what a model takes by its frames: the figures in its tables, against turns worked out by hand."""

import pytest

from tpdiff.evaluation import machine
from tpdiff.evaluation.frame_cost import FrameTable
from tpdiff.evaluation.frame_cost_page import FrameCost, write_page

SIZE = {"model": "wan2.1-1.3b", "frames": [17], "height": 64, "width": 64}
TABLE = FrameTable.model_validate({"name": "t", "title": "T", "steps": 5, "stages": 2, "cpu": SIZE, "cuda": SIZE})
COARSE = {"stage": 1, "latent": [3, 8, 8], "tokens": 48, "steps": 3, "tflops_per_step": 0.5}
FINE = {"stage": 0, "latent": [5, 8, 8], "tokens": 80, "steps": 2, "tflops_per_step": 1.0}
FULL = FINE | {"steps": 5}
PLAN = {"title": "Wan", "size": [17, 64, 64], "stages": [COARSE, FINE], "plain": FULL, "speedup": 5 / 3.5}


def row(sampling, training, sampling_gib, training_gib, stages):
    """What three turns of a method took: seconds, GiB, and those of a step at each stage, finest first."""
    parts = [
        [{"stage": k, "share": (0.25, 0.75)[k], "memory": gib * 2**30} for k, gib in enumerate(turn)] for turn in stages
    ]
    names = ("sampling_seconds", "training_seconds", "sampling_bytes", "training_bytes", "stages")
    sizes = ([gib * 2**30 for gib in memory] for memory in (sampling_gib, training_gib))
    turns = [dict(zip(names, turn, strict=True)) for turn in zip(sampling, training, *sizes, parts, strict=True)]
    asked = SIZE | {"batch": 1}
    kept = {"asked": asked, "plan": PLAN, "turns": turns, "machine": machine.describe(), "created": "2026-01-01"}
    return kept | {"device": "cpu", "dtype": "float32"}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    plain = row([6, 30, 9], [3, 4, 40], [2, 3, 9], [6, 8, 20], [[8], [8], [8]])
    pyramid = row([4, 20, 5], [2, 2.5, 50], [1, 2, 8], [4, 5, 30], [[4, 1], [3, 2], [1, 9]])
    return write_page(TABLE, [FrameCost(plain, pyramid)], tmp_path_factory.mktemp("page"), "command").read_text()


@pytest.mark.parametrize(
    ("section", "cells"),
    [
        ("A network call", "3x8x8 → 5x8x8 | 80 | 61 | 1 | 0.7 | 1.43"),
        ("A sampling of 5 steps", "9 | 5 | 1.80 (1.50 / 1.50 / 1.80) | 1.43 | 126.0%"),
        ("A training step", "4 | 2.5 | 1.60 (1.50 / 1.60 / 0.80) | 1.60 | 100.0%"),
        ("Memory", "3 | 2 | 1.50 | 8 | 5 | 1.60 | 3 / 2"),
    ],
)
def test_its_tables_show_medians_and_plain_over_pyramid(page, section, cells):
    assert f"\n| 17 | {cells} |\n" in page.split(f"## {section}\n")[1].split("\n## ")[0] + "\n"


def test_memory_that_a_system_does_not_tell_is_unknown(tmp_path):
    told = row([6], [3], [2], [6], [[8, 4]])
    for turn in told["turns"]:
        turn |= {"sampling_bytes": None, "training_bytes": None}
        turn["stages"] = [stage | {"memory": None} for stage in turn["stages"]]
    page = write_page(TABLE, [FrameCost(told, told)], tmp_path, "command").read_text()
    assert f"\n| 17 |{' unknown |' * 6} unknown / unknown |\n" in page + "\n"
