"""How cost grows with the frames: the shipped table is sound, and a tiny one is measured, kept and written out."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from tpdiff.evaluation import machine
from tpdiff.evaluation.frame_cost import FrameTable, load_table, take_turn, write_random
from tpdiff.evaluation.study import write_result
from tpdiff.recipes import recipe_path

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
SIZE = {"model": "wan2.1-1.3b", "frames": [17, 33], "height": 64, "width": 64, "layers": 1, "hidden": 128}
TINY = {"name": "tiny", "title": "A tiny table", "steps": 5, "stages": 2, "rounds": 1, "cpu": SIZE, "cuda": SIZE}


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("frame_cost")


def run(benchmark, monkeypatch, folder, **changes):
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    monkeypatch.setattr(sys, "argv", ["frame_cost.py", str(path), "--results", str(folder)])
    return benchmark.main()


def test_the_shipped_table_has_sizes_that_stages_hold():
    table = load_table(recipe_path("frame-cost"))
    assert table.stages == 3 and table.rounds >= 3
    planned = table.plans("cpu")
    assert list(planned) == table.cuda.frames and max(planned) == 129
    growth = {frames: plan.plain.tflops_per_step / plan.plain.tokens for frames, plan in planned.items()}
    assert growth[129] > 2 * growth[17]  # attention outweighs what grows with the tokens alone


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cpu": SIZE | {"frames": [18]}}, "num_frames 18"),
        ({"cpu": SIZE | {"hidden": 100}}, "hidden size 100"),
        ({"cpu": SIZE | {"model": "wan"}}, "unknown model 'wan'"),
        ({"steps": 3}, "steps: Input should be greater"),
        ({"stage": 3}, "stage: Extra inputs"),
    ],
)
def test_what_cannot_be_measured_is_refused(benchmark, monkeypatch, tmp_path, capsys, changes, said):
    assert run(benchmark, monkeypatch, tmp_path, **changes) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "tiny").exists()


def test_a_turn_takes_the_steps_of_every_stage(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    table, folder = FrameTable.model_validate(TINY), tmp_path / "random"
    planned = table.plans("cpu")[17]
    write_random(planned.model, folder)
    before = sorted(tmp_path.rglob("*"))
    turn = take_turn(planned, "pyramid", table.training("pyramid", 17, "cpu", folder), "cpu")
    fine, coarse = turn["stages"]
    assert (fine["size"], fine["tokens"]) == ((5, 8, 8), 80) and (coarse["size"], coarse["tokens"]) == ((3, 8, 8), 48)
    assert turn["training_seconds"] == pytest.approx((fine["seconds"] + coarse["seconds"]) / 2)
    assert turn["sampling_seconds"] > 0  # of this process, which has done else, no figure of memory is true
    assert sorted(tmp_path.rglob("*")) == before


def test_a_table_is_not_continued_on_another_machine(benchmark, monkeypatch, tmp_path, capsys):
    published = recipe_path("frame-cost").parent.parent / "docs" / "results" / "frame-cost" / "cpu"
    table, folder = FrameTable.model_validate(TINY), tmp_path / "tiny" / "cpu"
    settings = table.cpu.model_dump(exclude={"frames"}) | {"steps": table.steps, "stages": table.stages}
    for frames in (17, 33):
        for method in ("plain", "pyramid"):
            row = json.loads(next(published.glob(f"*-{method}.json")).read_text())
            abacus = machine.describe() | {"cpu": "an abacus", "torch": "0", "memory_gib": 0.1}
            write_result(folder / f"{frames}-{method}.json", row | {"asked": settings, "machine": abacus})
    assert run(benchmark, monkeypatch, tmp_path) == 0  # it is whole
    (folder / "33-pyramid.json").unlink()
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(benchmark, "write_random", lambda *args: pytest.fail("measured"))
    capsys.readouterr()
    assert run(benchmark, monkeypatch, tmp_path) == 2
    said = capsys.readouterr().err
    assert f"17-plain.json was measured elsewhere, with cpu 'an abacus' (here {machine.cpu_model()!r})" in said
    assert "torch '0' (here" in said and "--results" in said and "memory" not in said
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept


@pytest.mark.slow
def test_a_tiny_table_is_measured_once(benchmark, monkeypatch, tmp_path, capsys):
    assert run(benchmark, monkeypatch, tmp_path) == 0
    folder = tmp_path / "tiny" / "cpu"
    kept = {path.name: path.read_text() for path in folder.glob("*.json")}
    assert sorted(kept) == ["17-plain.json", "17-pyramid.json", "33-plain.json", "33-pyramid.json"]
    page = (folder / "README.md").read_text()
    for frames, (whole, half) in {17: (80, 48), 33: (144, 80)}.items():  # 4x4 tokens of 5 and 3, 9 and 5 latents
        plain, pyramid = (json.loads(kept[f"{frames}-{method}.json"]) for method in ("plain", "pyramid"))
        steps = [(stage["tokens"], stage["steps"]) for stage in pyramid["plan"]["stages"]]
        assert steps == [(half, 3), (whole, 2)]
        fine, coarse = pyramid["turns"][0]["stages"]
        assert (fine["tokens"], coarse["tokens"]) == (whole, half) and fine["share"] == coarse["share"] == 0.5
        assert [stage["tokens"] for stage in plain["turns"][0]["stages"]] == [whole]
        mean = (fine["seconds"] + coarse["seconds"]) / 2
        assert pyramid["turns"][0]["training_seconds"] == pytest.approx(mean)
        for turn in (*plain["turns"], *pyramid["turns"]):
            assert turn["training_bytes"] > turn["sampling_bytes"] > 1e6
        assert (
            f"| {frames} | {half // 16}x8x8 → {whole // 16}x8x8 | {whole} | {(3 * half + 2 * whole) / 5:.0f} |" in page
        )
        large, small = (stage["tflops_per_step"] for stage in pyramid["plan"]["stages"][::-1])
        limits = 5 * large / (3 * small + 2 * large), 2 * large / (small + large)
        for section, limit in zip(("## A sampling", "## A training"), limits, strict=True):
            row = page.split(section)[1].split(f"\n| {frames} |")[1].split("\n")[0]
            assert f"| {limit:.2f} |" in row
        assert f"\n| {frames} |" in page.split("## Memory")[1]
    assert (folder / "frames.png").stat().st_size > 1000

    changed = json.loads(kept["17-plain.json"])
    changed["turns"][0]["sampling_seconds"] = 1234.5
    (folder / "17-plain.json").write_text(json.dumps(changed))
    (folder / "33-pyramid.json").unlink()
    capsys.readouterr()
    assert run(benchmark, monkeypatch, tmp_path) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if "turn" in line] == ["33 frames, pyramid, turn 1"]
    assert "| 17 | 1234 |" in (folder / "README.md").read_text()
    assert (folder / "33-plain.json").read_text() == kept["33-plain.json"]

    assert run(benchmark, monkeypatch, tmp_path, cpu=SIZE | {"height": 32}) == 2
    assert "17-plain.json was measured with" in capsys.readouterr().err
