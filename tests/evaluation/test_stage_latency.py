"""The table of sampling times: the shipped one is sound, and a tiny one is made, kept and written out."""

import importlib
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tpdiff.evaluation import machine
from tpdiff.evaluation.study import write_result
from tpdiff.families.models import find_published

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))
TINY = {
    "name": "tiny",
    "title": "A tiny table",
    "steps": 4,
    "stages": [2],
    "cpu": {"wan2.1-1.3b": {"size": [17, 64, 64], "layers": 1, "hidden": 128}},
    "cuda": {},
}


@pytest.fixture(scope="module")
def benchmark():
    return importlib.import_module("stage_latency")


def test_the_shipped_table_names_models_at_sizes_that_they_have(benchmark):
    table = benchmark.Table.model_validate(yaml.safe_load((ROOT / "configs" / "stage-latency.yaml").read_text()))
    assert table.steps == 30 and max(table.stages) == 4 and table.cpu.keys() == table.cuda.keys()
    for name, size in table.cpu.items():
        find_published(name).resized(size.layers, size.hidden)


def run(benchmark, monkeypatch, folder, **changes):
    path = folder / "table.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    monkeypatch.setattr(sys, "argv", ["stage_latency.py", str(path), "--results", str(folder)])
    return benchmark.main()


def layout(page):
    """The heads of its tables, and how many headings it has of which rank."""
    lines = page.splitlines()
    heads = [line for line, below in pairwise(lines) if below.startswith("| ---")]
    return heads, [line.split()[0] for line in lines if line.startswith("#")]


def keys(result, of=("rows", "stages", "machine")):
    """The names in a result, those inside some of its parts too."""
    inside = {part: sorted(result[part][0] if isinstance(result[part], list) else result[part]) for part in of}
    return sorted(result), inside


def test_a_tiny_table_is_made_once(benchmark, monkeypatch, tmp_path, capsys):
    assert run(benchmark, monkeypatch, tmp_path) == 0
    kept = tmp_path / "tiny" / "cpu" / "wan2.1-1.3b-2.json"
    made = json.loads(kept.read_text())
    assert len(made["speedup_by_round"]) == 3 and made["steps"] == [2, 2]
    page = (tmp_path / "tiny" / "cpu" / "README.md").read_text()
    assert f"| wan2.1-1.3b | 2 | 2-2 | {made['plain_seconds_per_step']:.3g} |" in page
    published = ROOT / "docs" / "results" / "stage-latency" / "cpu"
    assert layout(page) == layout((published / "README.md").read_text())
    for path in published.glob("*.json"):
        assert keys(made) == keys(json.loads(path.read_text())), path
    kept.write_text(json.dumps(made | {"speedup": 9.5}))  # what is kept is not timed anew
    assert run(benchmark, monkeypatch, tmp_path) == 0
    assert "| 9.50 (" in (tmp_path / "tiny" / "cpu" / "README.md").read_text()
    assert run(benchmark, monkeypatch, tmp_path, rounds=2) == 2
    assert "rounds" in capsys.readouterr().err
    assert run(benchmark, monkeypatch, tmp_path, steps=6) == 2
    assert "was measured with" in (said := capsys.readouterr().err) and "'steps': 6" in said


def test_a_table_is_not_continued_on_another_machine(benchmark, monkeypatch, tmp_path, capsys):
    published = ROOT / "docs" / "results" / "stage-latency" / "cpu"
    row = json.loads(next(published.glob("*.json")).read_text())
    row["asked"] = {"size": [17, 64, 64], "layers": 1, "hidden": 128, "steps": 4, "rounds": 3}
    row["machine"] = machine.describe() | {"cpu": "an abacus", "gpus": ["beads"], "memory_gib": 0.1}
    kept = tmp_path / "tiny" / "cpu" / "wan2.1-1.3b-2.json"
    write_result(kept, row)
    assert run(benchmark, monkeypatch, tmp_path) == 0  # it is whole
    (kept.parent / "README.md").unlink()
    monkeypatch.setattr(benchmark, "bench", lambda *args, **options: pytest.fail("measured"))
    assert run(benchmark, monkeypatch, tmp_path, stages=[3, 2]) == 2
    said = capsys.readouterr().err
    assert f"{kept} was measured elsewhere, with cpu 'an abacus' (here {machine.cpu_model()!r}), gpus ['bea" in said
    assert "--results" in said and "memory" not in said and list(kept.parent.iterdir()) == [kept]


def test_its_row_shows_medians_limit_and_what_was_reached(benchmark, tmp_path):
    sizes = {"network": "N", "config": {}, "size": [17, 64, 64], "machine": machine.describe(), "created": "2026-01-01"}
    times = {"rows": [{"median": 8.0}, {"median": 5.0}], "plain_seconds_per_step": 2.5, "speedup": 1.6}
    limits = {"speedup_by_round": [1.5, 1.75], "planned_speedup": 2.0, "reached": 0.8}
    row = {"model": "wan", "stages": [{}, {}], "steps": [3, 1]} | sizes | times | limits
    page = benchmark._page(benchmark.Table.model_validate(TINY), [row], tmp_path, "command").read_text()
    heads = "model | stages | steps | full-size step, s | plain, s | pyramid, s | speed-up (by round) | limit | reached"
    assert f"| {heads} |" in page and "| wan | 2 | 3-1 | 2.5 | 8 | 5 | 1.60 (1.50 / 1.75) | 2.00 | 80.0% |" in page
