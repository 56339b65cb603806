"""Sets for VBench: names, counts and seeds by its file, totals as its own script has them, and its results read."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from tpdiff.evaluation.vbench import VBENCH, VBENCH2
from tpdiff.evaluation.vbench_results import read_results
from tpdiff.evaluation.vbench_set import continued, custom_set, read_set, standard_set, write_set

LONG = "a river runs " * 20  # 260 characters
ONE = [
    {"prompt_en": "a cat", "dimension": ["overall_consistency", "aesthetic_quality"]},
    {"prompt_en": "a red cat", "dimension": ["color"], "auxiliary_info": {"color": "red"}},
    {"prompt_en": "a still life", "dimension": ["temporal_flickering"]},
    {"prompt_en": "a dog", "dimension": ["overall_consistency", "aesthetic_quality"]},
    {"prompt_en": "a cat", "dimension": ["appearance_style"]},
]
TWO = [
    {"prompt_en": LONG, "dimension": ["Complex_Plot"], "auxiliary_info": ["runs"]},
    {"prompt_en": LONG, "dimension": ["Diversity"]},
    {"prompt_en": "a cup falls", "dimension": ["Mechanics"]},
]


def info(folder, entries, name="info.json"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    return path


def test_names_and_counts_are_those_that_vbench_looks_for(tmp_path):
    made = standard_set(info(tmp_path, ONE), seed=7)
    places = [f"{place}/{video.name}" for video in made.videos for place in video.folders]
    assert Counter(place.split("/")[0] for place in places) == {
        "overall_consistency": 10,
        "color": 5,
        "temporal_flickering": 25,
        "appearance_style": 5,
    }
    assert "temporal_flickering/a still life-24.mp4" in places
    cat = [video for video in made.videos if video.prompt == "a cat"]
    assert [video.name for video in cat] == [f"a cat-{i}.mp4" for i in range(5)]
    assert {video.folders for video in cat} == {("overall_consistency", "appearance_style")}
    assert [video.seed for video in made.videos] == [*range(7, 7 + 5 + 5 + 25 + 5)]
    assert made.dimensions["aesthetic_quality"] == "overall_consistency"


def test_names_of_the_second_hold_180_characters(tmp_path):
    made = standard_set(info(tmp_path, TWO))
    river = [video for video in made.videos if video.prompt == LONG]
    assert [video.name for video in river] == [f"{LONG[:180]}-{i}.mp4" for i in range(20)]
    assert [video.folders for video in river] == [("Complex_Plot", "Diversity")] * 3 + [("Diversity",)] * 17
    assert Counter(place for video in made.videos for place in video.folders)["Mechanics"] == 3


def test_chosen_dimensions_keep_their_seeds(tmp_path):
    path = info(tmp_path, ONE)
    every, some = standard_set(path), standard_set(path, ["appearance_style", "color"])
    assert list(some.dimensions) == ["color", "appearance_style"]
    seeds = {video.name: video.seed for video in every.videos}
    assert {video.name: video.seed for video in some.videos} == {
        name: seed for name, seed in seeds.items() if name.startswith(("a red cat", "a cat"))
    }
    assert {place for video in some.videos for place in video.folders} == {"color", "appearance_style"}


def test_a_checkout_is_looked_through(tmp_path):
    info(tmp_path, ONE, VBENCH.info)
    info(tmp_path / "VBench-2.0", TWO, VBENCH2.info)
    assert standard_set(tmp_path).suite == "VBench"
    assert standard_set(tmp_path / "VBench-2.0").suite == "VBench-2.0"
    with pytest.raises(ValueError, match=r"no file .*absent, nor .*VBench_full_info.json or .*VBench2_full_info.json"):
        standard_set(tmp_path / "absent")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"prompts": []}, "holds no list of prompts"),
        ([], "holds no list of prompts"),
        ([{"prompt": "a cat", "dimension": ["color"]}], "entry 0 is not"),
        ([*ONE, {"prompt_en": "a cat", "dimension": "color"}], "entry 5 is not"),
        ([*ONE, {"prompt_en": "a cat", "dimension": ["colour"]}], "'colour' is no dimension of VBench; nearest: color"),
        ([*ONE, TWO[0]], "'Complex_Plot' is no dimension of VBench;"),
        ([*ONE, {"prompt_en": "a hen", "dimension": ["scene", "color"]}], "entry 5 puts color beside scene"),
        ([{"prompt_en": "a cat/dog", "dimension": ["color"]}], "'a cat/dog-4.mp4', .* it holds '/'; .*--prompts"),
        ([{"prompt_en": LONG, "dimension": ["color"]}], "it is of 266 bytes, at most 255"),
        ([TWO[0], TWO[0] | {"prompt_en": LONG + "dry"}], "two prompts have videos of the same name"),
    ],
)
def test_files_that_cannot_be_served(tmp_path, entries, message):
    with pytest.raises(ValueError, match=message):
        standard_set(info(tmp_path, entries))


def test_prompts_of_ones_own(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat/dog\n\n" + LONG + "\n")
    made = custom_set(path, videos=2, seed=5)
    assert [(v.name, v.prompt, v.seed) for v in made.videos] == [
        ("0000-0.mp4", "a cat/dog", 5),
        ("0000-1.mp4", "a cat/dog", 7),
        ("0001-0.mp4", LONG.strip(), 6),
        ("0001-1.mp4", LONG.strip(), 8),
    ]
    write_set(made, tmp_path / "set", b"")
    told = json.loads((tmp_path / "set" / "prompts.json").read_text())
    assert told == {video.name: video.prompt for video in made.videos}
    assert read_set(tmp_path / "set") == made
    assert len(custom_set(path, ["Diversity"]).videos) == 40
    with pytest.raises(ValueError, match="19 videos of a prompt are too few for Diversity; nearest: 20"):
        custom_set(path, ["Diversity"], videos=19)
    with pytest.raises(ValueError, match="'color' is no dimension that VBench measures on other prompts"):
        custom_set(path, ["color"])
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no prompt"):
        custom_set(path)


def test_a_set_may_be_given_dimensions_but_not_changed(tmp_path):
    path = info(tmp_path, ONE)
    write_set(standard_set(path, ["color"]), tmp_path / "set", path.read_bytes())
    both = continued(tmp_path / "set", lambda names: standard_set(path, names), ["temporal_flickering"])
    assert set(both.dimensions) == {"color", "temporal_flickering"}
    with pytest.raises(ValueError, match="holds another set: steps is None there and 3 here"):
        continued(tmp_path / "set", lambda names: replace(standard_set(path, names), sampling={"steps": 3}), ())
    info(tmp_path, ONE[:2])
    with pytest.raises(ValueError, match="holds another set: prompts is"):
        continued(tmp_path / "set", lambda names: standard_set(path, names), ())


@pytest.mark.parametrize(
    ("suite", "totals"),  # what scripts/cal_final_score.py of each prints for these scores
    [
        (VBENCH, [0.21850740822246806, 0.9293290777152016, 0.3606717421210147]),
        (VBENCH2, [0.4085, 0.7030000000000001, 0.4682857142857143, 0.5479999999999999, 0.7495, 0.5754571428571429]),
    ],
)
def test_totals_are_those_of_their_script(suite, totals):
    scores = {d: round(0.3 + 0.031 * i, 3) for i, d in enumerate(sorted(suite.dimensions))}
    assert list(suite.totals(scores).values()) == pytest.approx(totals, rel=1e-14)
    first, *_, last = suite.groups
    del scores[suite.groups[last][0]]
    assert first in suite.totals(scores) and {last, "total score"}.isdisjoint(suite.totals(scores))


def measured(folder, dimension, figure=0.5, names=None, place=None, unjudged=0):
    """A file as VBench writes it, of all videos of a dimension unless others are named, the first ones not judged."""
    made = read_set(folder)
    place = place or folder / made.measured_in(dimension)
    names = names or made.listed(dimension)
    each = [-1] * unjudged + [0.1] * (len(names) - unjudged)
    rows = [{"video_path": f"{place}/{n}", "video_results": value} for n, value in zip(names, each, strict=True)]
    path = folder / "results" / dimension / "results_2026-01-01-00:00:00_eval_results.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({dimension: [figure, rows]}))
    return path


@pytest.fixture
def whole(tmp_path):
    """A set of VBench-2.0 with a prompt a dimension, and results of all."""
    folder = tmp_path / "set"
    path = info(tmp_path, [{"prompt_en": f"a {d}", "dimension": [d]} for d in VBENCH2.dimensions])
    write_set(replace(standard_set(path), sampling={"steps": 3}), folder, path.read_bytes())
    for number, dimension in enumerate(VBENCH2.dimensions):
        measured(folder, dimension, number / 20)
    return folder


def test_results_of_all_dimensions_have_totals(whole):
    read = read_results(whole)
    assert list(read.dimensions) == list(VBENCH2.dimensions)
    assert read.dimensions["Diversity"].value == 1 / 20 and read.dimensions["Diversity"].of == 1
    assert read.dimensions["Mechanics"].of == 3
    assert read.totals["creativity score"] == pytest.approx(1 / 40)
    assert len(read.totals) == 6 and read.missing == {} and read.withheld == {}
    assert read.protocol["sampling"] == {"steps": 3} and len(read.protocol["results"]) == 18
    moved = whole.rename(whole.parent / "copy")
    with pytest.raises(ValueError, match=r"was measured on other videos than those of this set in .*copy/"):
        read_results(moved)


def test_what_is_missing_is_said_and_not_counted(whole):
    (whole / "results/Material").rename(whole.parent / "aside")
    measured(whole, "Composition", names=["a Composition-0.mp4", "a Composition-2.mp4"])
    read = read_results(whole)
    assert read.missing == {"Material": "no results"}
    assert read.dimensions["Composition"].absent == ("a Composition-1.mp4",)
    assert {"creativity score", "physics score", "total score"}.isdisjoint(read.totals)
    assert read.withheld == {
        "creativity score": "Composition: missing a Composition-1.mp4",
        "physics score": "Material: no results",
        "total score": "needs creativity score and physics score",
    }
    assert len(read.totals) == 3


def test_a_figure_is_of_those_that_were_judged(whole):
    measured(whole, "Mechanics", 1.0, unjudged=2)
    measured(whole, "Motion_Order_Understanding", 1.0, unjudged=2)
    measured(whole, "Composition", unjudged=2)  # where -1 would be a figure like others
    read = read_results(whole)
    for dimension in ("Mechanics", "Motion_Order_Understanding"):
        assert (read.dimensions[dimension].videos, read.dimensions[dimension].of) == (1, 3)
    assert read.dimensions["Composition"].videos == 3
    assert "physics score" in read.totals and read.dimensions["Mechanics"].absent == ()


def test_results_that_are_not_the_sets(whole, tmp_path):
    other = measured(whole, "Material", names=["a Material-0.mp4", "another-0.mp4"])
    with pytest.raises(ValueError, match=r"Material was measured on other videos .*another-0\.mp4"):
        read_results(whole)
    measured(whole, "Material", place="/elsewhere/other/Material")
    with pytest.raises(ValueError, match=r"Material was measured on other videos .*/elsewhere/other/Material"):
        read_results(whole)
    measured(whole, "Material", place="Material")  # VBench was run in the folder
    assert "physics score" in read_results(whole).totals
    measured(whole, "Material", float("nan"))
    with pytest.raises(ValueError, match="the figure of Material is nan, no number"):
        read_results(whole)
    other.write_text('{"Material": 0.5}')
    with pytest.raises(ValueError, match=r"Material is not .figure"):
        read_results(whole)
    other.write_text("[]")
    with pytest.raises(ValueError, match="holds no figures by dimension"):
        read_results(whole)
    other.write_text('{"color": [0.5, []]}')
    with pytest.raises(ValueError, match="color is not measured on this set"):
        read_results(whole)
    other.write_text((whole / "results/Mechanics" / other.name).read_text())
    with pytest.raises(ValueError, match=r"Mechanics is in .*Material.* and in .*Mechanics"):
        read_results(whole)
    with pytest.raises(ValueError, match="no results of VBench"):
        read_results(whole, [tmp_path / "absent"])
    with pytest.raises(ValueError, match="no set of videos in"):
        read_results(tmp_path)


def test_flicker_is_that_of_filtered_videos(tmp_path):
    path, folder = info(tmp_path, ONE), tmp_path / "set"
    write_set(standard_set(path, ["temporal_flickering", "color"]), folder, path.read_bytes())
    measured(folder, "temporal_flickering", 0.9, names=["a still life-0.mp4"])
    measured(folder, "color", 0.9, names=["a red cat-3.mp4"])
    read = read_results(folder)
    assert (read.dimensions["temporal_flickering"].videos, read.dimensions["temporal_flickering"].of) == (1, 5)
    assert read.dimensions["temporal_flickering"].normalised == pytest.approx((0.9 - 0.6293) / (1 - 0.6293))
    assert read.missing["scene"] == "not in this set"
    assert read.withheld["quality score"].startswith("subject_consistency: not in this set")
    measured(folder, "temporal_flickering", 0.9, place=folder / "temporal_flickering")
    with pytest.raises(ValueError, match=r"other videos than those of this set in .*filtered/filtered_videos"):
        read_results(folder)
