"""`tpdiff vbench`: a trained model's videos where VBench looks for them, its script run, its figures read."""

import json
import os
import stat
import subprocess
import sys

import pytest
import yaml
from command_line import call, refused

from tpdiff.data import probe

LOW, HIGH = "a digit below five moves", "a digit from five up moves"
INFO = [
    {"prompt_en": LOW, "dimension": ["overall_consistency", "aesthetic_quality", "imaging_quality"]},
    {"prompt_en": HIGH, "dimension": ["scene", "background_consistency"]},
    {"prompt_en": LOW, "dimension": ["appearance_style"]},
]
QUICK = ("--steps", "1,1,1", "--batch", 4, "--device", "cpu")

# In place of VBench's evaluate.py: it takes the arguments, and writes the files, that the true one does.
EVALUATE = """
import argparse, json, os
parser = argparse.ArgumentParser()
for name in ("dimension", "videos_path", "output_path", "full_json_dir", "mode", "prompt_file"):
    parser.add_argument(f"--{name}")
told = parser.parse_args()
if told.dimension == "scene" and not os.path.exists("repaired"):
    raise SystemExit("no weights")
names = os.listdir(told.videos_path)
assert all(name.endswith(".mp4") for name in names), names
known = json.load(open(told.full_json_dir or told.prompt_file))
prompts = known.values() if told.prompt_file else {e["prompt_en"] for e in known if told.dimension in e["dimension"]}
assert {name[:-6] for name in names} == set(prompts) or told.prompt_file and set(known) == set(names)
os.makedirs(told.output_path)
rows = [{"video_path": os.path.join(told.videos_path, name), "video_results": 0.5} for name in names]
with open(os.path.join(told.output_path, "results_now_eval_results.json"), "w") as file:
    json.dump({told.dimension: [0.5, rows]}, file)
"""


@pytest.fixture(scope="module")
def run(tiny_values, tmp_path_factory):
    """A trained model that knows two captions."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_values()))
    code, _, err = call("train", folder / "tiny.yaml", "train.steps=2", "--out", folder / "run")
    assert code == 0, err
    return folder / "run"


@pytest.fixture(scope="module")
def info(tmp_path_factory):
    """A file as VBench's, with the model's captions."""
    path = tmp_path_factory.mktemp("info") / "info.json"
    path.write_text(json.dumps(INFO))
    return path


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """What stands in for VBench: its evaluate.py, and a `python` to run it."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "evaluate.py").write_text(EVALUATE)
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    return folder


def evaluate(folder, checkout):
    env = os.environ | {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"}
    return subprocess.run(
        ["sh", folder / "evaluate.sh", checkout], env=env, capture_output=True, text=True, timeout=300, check=False
    )


def videos(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.mp4"))}


@pytest.fixture(scope="module")
def made(run, info, tmp_path_factory):
    """A set for all dimensions of the file."""
    folder = tmp_path_factory.mktemp("sets") / "whole"
    code, out, err = call("vbench", "make", run, "--info", info, "--out", folder, *QUICK, "--json")
    assert code == 0, err
    assert json.loads(out)["videos"] == json.loads(out)["made"] == 10
    return folder


def test_videos_are_where_they_belong(made):
    found = videos(made)
    assert set(found) == {
        *(f"{place}/{LOW}-{i}.mp4" for i in range(5) for place in ("overall_consistency", "appearance_style")),
        *(f"scene/{HIGH}-{i}.mp4" for i in range(5)),
    }
    assert found[f"overall_consistency/{LOW}-3.mp4"] == found[f"appearance_style/{LOW}-3.mp4"]
    assert len(set(found.values())) == 10
    shown = probe(made / f"scene/{HIGH}-0.mp4", decode=True)
    assert (shown.frames, shown.height, shown.width, shown.fps) == (8, 16, 16, 8)
    told = json.loads((made / "vbench.json").read_text())
    assert [video["seed"] for video in told["videos"]] == [*range(10)]
    assert told["sampling"]["steps"] == [1, 1, 1] and len(told["sampling"]["weights"]) == 64


def test_what_was_killed_goes_on_and_ends_the_same(run, info, made, tmp_path, monkeypatch):
    from tpdiff.evaluation import vbench_make

    stored, store = [], vbench_make._store

    def dies(*arguments):
        if len(stored) == 6:
            raise KeyboardInterrupt
        stored.append(store(*arguments))

    monkeypatch.setattr(vbench_make, "_store", dies)
    asked = ("vbench", "make", run, "--info", info, "--out", tmp_path / "set", *QUICK, "--json")
    assert call(*asked)[0] == 130
    monkeypatch.undo()
    assert 6 <= len(videos(tmp_path / "set")) < 15
    (tmp_path / "set" / ".unfinished.77.part.mp4").write_text("half")
    code, out, err = call(*asked)
    assert code == 0, err
    assert json.loads(out)["made"] == 4
    assert videos(tmp_path / "set") == videos(made)
    assert "seed is 0 there and 1 here" in refused(*asked, "--seed", 1)
    assert json.loads(call(*asked)[1])["made"] == 0


def test_vbench_is_run_and_read(made, checkout):
    assert "no results of VBench" in refused("vbench", "read", made)
    done = evaluate(made, checkout)
    assert done.returncode == 1 and "scene failed" in done.stderr, done.stderr
    values = json.loads(call("vbench", "read", made, "--json")[1])
    assert values["missing"]["scene"] == "no results" and values["missing"]["color"] == "not in this set"
    before = {path: path.stat()[stat.ST_MTIME] for path in made.rglob("*_eval_results.json")}
    assert len(before) == 5
    (checkout / "repaired").touch()
    assert evaluate(made, checkout).returncode == 0
    assert {path: path.stat()[stat.ST_MTIME] for path in before} == before
    code, out, err = call("vbench", "read", made, "--out", made.parent / "figures.json")
    assert code == 0, err
    assert "overall_consistency" in out and "5 of 5" in out and "no total score" in out
    values = json.loads((made.parent / "figures.json").read_text())
    assert values["dimensions"]["scene"]["normalised"] == pytest.approx(0.5 / 0.8222)
    assert values["totals"] == {} and "subject_consistency: not in this set" in values["withheld"]["quality score"]
    path = next((made / "results" / "scene").iterdir())
    path.write_text(path.read_text().replace(f"{HIGH}-2", f"{HIGH}-5"))
    assert f"scene was measured on other videos than those of this set in {made / 'scene'}" in refused(
        "vbench", "read", made
    )


def test_prompts_of_ones_own(run, checkout, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{HIGH}\n{LOW}\n")
    asked = ("vbench", "make", run, "--prompts", tmp_path / "prompts.txt", "--num-videos", 1, *QUICK)
    own = tmp_path / "my own"
    code, out, err = call(*asked, "--dimension", "imaging_quality", "--out", own)
    assert code == 0, err
    assert f"sh '{own}/evaluate.sh' CHECKOUT; then: tpdiff vbench read '{own}'" in out
    assert "2 videos for VBench (custom_input), 2 made now" in out
    assert set(videos(own)) == {"videos/0000-0.mp4", "videos/0001-0.mp4"}
    assert evaluate(own, checkout).returncode == 0
    values = json.loads(call("vbench", "read", own, "--json")[1])
    assert values["dimensions"]["imaging_quality"]["value"] == 0.5
    assert values["dimensions"]["imaging_quality"]["normalised"] is None
    assert values["totals"] == values["withheld"] == values["missing"] == {}


def test_refusals(run, info, tmp_path):
    there = ("--out", tmp_path / "set", "--device", "cpu")
    assert "give either --info" in refused("vbench", "make", run, *there)
    assert "leave out --num-videos" in refused("vbench", "make", run, "--info", info, "--num-videos", 2, *there)
    assert "'colour' is no dimension" in refused("vbench", "make", run, "--info", info, "--dimension", "colour", *there)
    assert "no model in" in refused("vbench", "make", tmp_path, "--info", info, *there)
    assert "cannot fill 3 stages" in refused("vbench", "make", run, "--info", info, "--steps", 2, *there)
    assert "is not a multiple of" in refused("vbench", "make", run, "--info", info, "--size", "17x16", *there)
    assert "without guidance nothing leads away" in refused(
        "vbench", "make", run, "--info", info, "--negative-prompt", LOW, "--steps", 3, *there
    )
    (tmp_path / "prompts.txt").write_text("a cat\n")
    assert "'a cat' is not one of them" in refused("vbench", "make", run, "--prompts", tmp_path / "prompts.txt", *there)
    assert "no set of videos in" in refused("vbench", "read", tmp_path)
    assert not (tmp_path / "set").exists()


def test_a_folder_of_other_things_is_left_alone(info, tmp_path):
    (tmp_path / "unfinished.mp4").write_bytes(b"precious")
    asked = ("vbench", "make", tmp_path / "no-model", "--info", info, "--out")
    for place, why in ((tmp_path, "is not empty and no set of videos"), (tmp_path / "unfinished.mp4", "is a file")):
        assert refused(*asked, place) == f"{place} {why}; give a folder that is new or empty"
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"precious"]


@pytest.mark.parametrize("command", [[], ["make"], ["read"]])
def test_help(command):
    code, out, err = call("vbench", *command, "--help")
    assert code == 0 and err == "" and "Usage: tpdiff vbench" in out
