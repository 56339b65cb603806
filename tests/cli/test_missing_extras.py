"""Commands on an installation that lacks an extra: those that can do without it do, the others name it in a line."""

import sys

import pytest
from command_line import refused_in_a_line

from tpdiff.cli import _missing
from tpdiff.shipped import shipped_models

NEED_OPENCV = ("metrics.motion", "metrics.clip_network", "metrics.classifier")
NEED_OPENCV += tuple(f"evaluation.{name}" for name in ("gauges", "made", "quality", "judge"))


@pytest.fixture
def model():
    return shipped_models()["gameplay-pyramid"]


@pytest.fixture
def no_opencv(monkeypatch):
    """Its modules as if nobody had asked for them yet, and without OpenCV."""
    for name in NEED_OPENCV:
        monkeypatch.delitem(sys.modules, f"tpdiff.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "cv2", None)


def test_an_evaluation_asks_for_opencv(no_opencv, model, tmp_path):
    said = refused_in_a_line("eval", tmp_path, model)
    assert said == 'optical flow needs OpenCV: pip install "tpdiff[metrics]"'


def test_videos_for_vbench_need_no_opencv(no_opencv, model, tmp_path):
    """What is refused is found out when the model is open."""
    (tmp_path / "prompts.txt").write_text("a marine\n")
    asked = ("--prompts", tmp_path / "prompts.txt", "--out", tmp_path / "set", "--device", "cpu")
    assert "cannot fill 3 stages" in refused_in_a_line("vbench", "make", model, *asked, "--steps", 2)


def test_a_picture_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for command in (("bench", "wan2.1-14b", "--plot", tmp_path / "a.png"), ("demo", "--out", tmp_path / "demo")):
        assert refused_in_a_line(*command) == 'plots need matplotlib: pip install "tpdiff[report]"'
    assert list(tmp_path.iterdir()) == []


def test_an_extra_is_named_by_what_it_brings():
    error = ModuleNotFoundError("No module named 'jinja2.ext'", name="jinja2.ext")
    assert _missing(error) == 'jinja2 is not installed: pip install "tpdiff[report]"'
    broken = ModuleNotFoundError("No module named 'tpdiff.nothing'", name="tpdiff.nothing")
    with pytest.raises(ModuleNotFoundError, match=r"tpdiff\.nothing"):
        _missing(broken)
