"""Studies: what their files may say, that finished parts are kept, and one carried out whole."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from tpdiff.evaluation.judge import Judge, open_judge
from tpdiff.evaluation.kept import own_work
from tpdiff.evaluation.study import load_study, make_data, read_result, write_result
from tpdiff.evaluation.study_page import write_page
from tpdiff.evaluation.study_run import Desk, Interrupted, best_rates, run_seed, run_trial
from tpdiff.recipes import recipe_path

TINY = {
    "name": "tiny",
    "title": "A tiny study",
    "recipe": "digits-flow",
    "overrides": [
        "data.frames=4",
        "model.hidden_size=24",
        "model.num_layers=1",
        "model.num_attention_heads=2",
        "train.batch_size=4",
        "train.precision=no",
    ],
    "arms": {"vanilla": ["train.method=vanilla", "train.alignment=none"], "pyramid": ["train.method=stagewise"]},
    "data": {"kind": "digits", "clips": 280, "frames": 4},
    "learning_rates": [5e-4, 1e-3, 2e-3],
    "sweep_seconds": 0.2,
    "seeds": [0],
    "seconds": 0.6,
    "slice_seconds": 0.1,
    "evaluations": 3,
    "clips": 66,
    "final_clips": 66,
    "steps": 3,
}


def study_of(folder: Path, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    return load_study(path)


def desk_of(folder: Path, judge=None, **changes):
    return Desk(study_of(folder, **changes), folder / "data", folder / "work", folder / "results", judge)


@pytest.mark.parametrize("name", [p.stem for p in recipe_path("demo").parent.glob("study-*.yaml")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shipped_studies_are_sound(name, device):
    study = load_study(recipe_path(name), device)
    assert study.slice_seconds <= 20
    assert study.seconds >= 1800 and len(study.seeds) >= 3 and len(study.learning_rates) >= 3
    vanilla, *others = (study.config(arm, Path("d"), 0, 1e-3, 1.0) for arm in study.arms)
    assert vanilla.train.method == "vanilla"
    for other in others:
        own = (
            {} if "overlap" not in name else {"temporal_overlap": vanilla.model.temporal_overlap}
        )  # each its best tokens
        model = other.model.model_copy(update=own)
        assert (model, other.data, other.diffusion) == (vanilla.model, vanilla.data, vanilla.diffusion)


def test_a_gpu_has_a_size_of_its_own(tmp_path):
    with pytest.raises(ValueError, match="has no section cuda"):
        study_of(tmp_path)
        load_study(tmp_path / "study.yaml", "cuda")
    changes = {"cuda": {"seconds": 7, "data": {"clips": 44}, "overrides": TINY["overrides"][:1]}}
    small = study_of(tmp_path, **changes)
    large = load_study(tmp_path / "study.yaml", "cuda")
    assert (large.name, large.seconds, large.data.clips) == (f"{small.name}-cuda", 7, 44)
    assert large.data.size == small.data.size and large.overrides == small.overrides[:1] != small.overrides
    assert large.arms == small.arms


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slice_seconds": 21}, "slice_seconds: .*less than or equal to 20"),
        ({"learning_rates": [1e-3, 2e-3]}, "learning_rates: .*at least 3"),
        ({"seeds": [1, 100]}, "sweep_seed 100 is also one of the seeds"),
        ({"clip": 100}, "clip: Extra inputs"),
        ({"arms": {"a": ["train.metod=vanilla"], "b": []}}, "train.method"),
        ({"final_clips": 64}, "final_clips: .*greater than or equal to 65"),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        study_of(tmp_path, **changes)


def trial(lr, vanilla, pyramid):
    rows = {"vanilla": {"distance": vanilla, "steps": 1}, "pyramid": {"distance": pyramid, "steps": 1}}
    return {"lr": lr, "arms": rows, "done": True}


def test_each_arm_keeps_its_best_rate_and_all_trials_must_be_there(tmp_path):
    desk = desk_of(tmp_path)
    write_result(desk.trial_file(5e-4), trial(5e-4, 3.0, 9.0))
    write_result(desk.trial_file(1e-3), trial(1e-3, 5.0, 7.0))
    with pytest.raises(ValueError, match=r"learning rate 0\.002 are not finished"):
        best_rates(desk)
    with pytest.raises(ValueError, match="not finished"):
        run_seed(desk, 0)
    write_result(desk.trial_file(2e-3), trial(2e-3, 4.0, 8.0))
    assert best_rates(desk) == {"vanilla": 5e-4, "pyramid": 1e-3}


def test_what_is_finished_is_not_redone(tmp_path):
    desk = desk_of(tmp_path)  # there is neither data nor a judge: training would fail
    kept = trial(5e-4, 3.0, 9.0)
    write_result(desk.trial_file(5e-4), kept)
    assert run_trial(desk, 5e-4) == kept
    whole = {"done": True, "seed": 0, "arms": {"vanilla": {"lr": 5e-4}, "pyramid": {"lr": 1e-3}}}
    write_result(desk.seed_file(0), whole)
    assert run_seed(desk, 0) == whole
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"final_clips": 67}, "final_clips=66 (now 67)"),
        ({"seconds": 9.0}, "arms.pyramid.train.seconds=0.6 (now 9.0), arms.vanilla.train.seconds=0.6 (now 9.0)"),
        ({"overrides": [*TINY["overrides"], "model.num_layers=3"]}, "arms.pyramid.model.num_layers=1 (now 3)"),
        ({"arms": TINY["arms"] | {"third": []}}, "names=['vanilla', 'pyramid'] (now ['vanilla', 'pyramid', 'third'])"),
        ({"title": "another", "seeds": [0, 7], "learning_rates": [5e-4, 1e-3, 2e-3, 4e-3]}, None),
    ],
)
def test_what_is_kept_of_another_study_is_refused(tmp_path, change, named):
    desk = desk_of(tmp_path)
    rates = {"vanilla": 5e-4, "pyramid": 1e-3}
    asked = desk.study.seed_settings(0, rates)
    arms = {arm: {"lr": lr} for arm, lr in rates.items()}
    write_result(desk.seed_file(0), {"done": True, "seed": 0, "arms": arms, "made": {"asked": asked}})
    kept = run_seed(desk, 0)
    assert kept["done"]
    later = desk_of(tmp_path, **change)
    if named is None:
        assert run_seed(later, 0) == kept
    else:
        for use in (lambda: run_seed(later, 0), lambda: write_page(later.study, later.results, "command")):
            with pytest.raises(ValueError, match=rf"seed-0\.json was made with .*{re.escape(named)}.*; remove it"):
                use()


def test_rates_are_chosen_by_trials_of_this_study(tmp_path):
    desk = desk_of(tmp_path)
    for lr in desk.study.learning_rates:
        kept = trial(lr, 3.0, 9.0) | {"made": {"asked": desk.study.trial_settings(lr)}}
        write_result(desk.trial_file(lr), kept)
    assert best_rates(desk) == {"vanilla": 5e-4, "pyramid": 5e-4}
    assert best_rates(desk_of(tmp_path, final_clips=67))  # which no trial depends on
    with pytest.raises(
        ValueError, match=r"trial-0\.0005\.json was made with steps=3 \(now 4\); remove it, or work else"
    ):
        run_seed(desk_of(tmp_path, steps=4), 0)


def test_weights_belong_to_one_folder_of_results(tmp_path):
    work, mine, others = (tmp_path / name for name in ("work", "mine", "others"))
    for _ in range(2):
        own_work(work, mine)
    with pytest.raises(ValueError, match=r"work holds the weights behind the results in .*mine; give others a --work"):
        own_work(work, others)
    (work / "results.txt").unlink()
    own_work(work, others)


def test_results_from_before_settings_were_kept_are_compared_by_their_study(tmp_path):
    desk = desk_of(tmp_path)
    rates = {"vanilla": 5e-4, "pyramid": 1e-3}
    configs = {arm: desk.study.config(arm, desk.data, 0, lr, desk.study.seconds) for arm, lr in rates.items()}
    arms = {arm: {"lr": rates[arm], "config": config.model_dump(mode="json")} for arm, config in configs.items()}
    made = {"study": desk.study.model_dump(mode="json")}
    write_result(desk.seed_file(0), {"done": True, "seed": 0, "arms": arms, "made": made})
    assert run_seed(desk, 0)["done"]
    with pytest.raises(ValueError, match=r"seed-0\.json was made with arms\.pyramid\.train\.seconds=0\.6 \(now 9\.0\)"):
        run_seed(desk_of(tmp_path, seconds=9.0), 0)


def test_what_is_half_done_is_not_continued_by_another_judge(tmp_path):
    judge = Judge(SimpleNamespace(protocol={"resize": "crop", "features": {"version": 2}, "real": {"clips": 9}}), None)
    desk = desk_of(tmp_path, judge)
    arms = {arm: {"lr": 1e-3, "evaluations": []} for arm in desk.study.arms}
    kept = {"seed": 0, "arms": arms, "protocol": {"resize": "crop", "features": {"version": 1}}}
    write_result(desk.seed_file(0), kept)
    with pytest.raises(ValueError, match=r"seed-0\.json was judged with features\.version=1 \(now 2\); remove it"):
        run_seed(desk, 0)
    assert not desk.work.exists()
    write_result(desk.seed_file(0), kept | {"done": True})
    assert run_seed(desk, 0)["done"]


@pytest.mark.parametrize("name", ["study-gameplay-flow", "study-gameplay-overlap", "study-gameplay-tubelets"])
def test_committed_results_are_of_their_study(tmp_path, name):
    committed = Path(__file__).resolve().parents[2] / "docs" / "results" / name
    desk = Desk(load_study(recipe_path(name)), tmp_path / "data", tmp_path / "work", committed, None)
    assert all(run_trial(desk, lr)["done"] for lr in desk.study.learning_rates)
    finished = [seed for seed in desk.study.seeds if desk.seed_file(seed).is_file()]
    assert all(run_seed(desk, seed)["done"] for seed in finished)


def test_a_page_needs_a_finished_seed(tmp_path):
    with pytest.raises(ValueError, match="no seed is finished"):
        write_page(study_of(tmp_path), tmp_path, "command")


@pytest.mark.slow
def test_a_whole_study_stopped_and_continued(tmp_path):
    desk = desk_of(tmp_path, seeds=[0, 1])
    study = desk.study
    make_data(study.data, desk.data)
    config = study.config("vanilla", desk.data, 0, 1e-3, 1.0)
    desk.judge = open_judge(config, tmp_path / "cache")
    for lr in study.learning_rates:
        rows = run_trial(desk, lr)["arms"]
        assert all(row["steps"] > 0 and 0.2 <= row["seconds"] < 1.5 for row in rows.values())
    told, arms_seen = [], []
    desk.on_arms = arms_seen.append

    def stop_at_half(name, status):
        told.append(name)
        if name == "pyramid" and status.seconds > 0.3:
            arms_seen[-1].request_stop()

    desk.tell = stop_at_half
    lost = desk.work / "seed-0" / "vanilla" / "config.yaml"  # of a run whose record is gone
    lost.parent.mkdir(parents=True)
    lost.write_text("seed: 7")
    with pytest.raises(Interrupted):
        run_seed(desk, 0)
    half = read_result(desk.seed_file(0))
    assert not half.get("done")
    assert [e["seconds"] >= s for e, s in zip(half["arms"]["vanilla"]["evaluations"], (0, 0.2), strict=False)]
    desk.tell = None
    result = run_seed(desk, 0)
    again = read_result(desk.seed_file(0))
    assert again == json.loads(json.dumps(result)) and again["done"]
    for name, arm in result["arms"].items():
        kept = half["arms"][name]["evaluations"]
        assert arm["evaluations"][: len(kept)] == kept
        assert len(arm["evaluations"]) == study.evaluations + 1
        assert arm["evaluations"][0]["flops"] == 0 and arm["evaluations"][-1]["flops"] > 0
        assert arm["final"]["warning"]
        assert set(arm["final"]["accuracy"]) == {"digit", "direction"}
    costs = {name: arm["flops"] for name, arm in result["arms"].items()}
    assert len(costs["vanilla"]) == 1 and len(costs["pyramid"]) == 3
    assert costs["pyramid"][0] == pytest.approx(costs["vanilla"][0], rel=0.05)  # the pairing counts too
    assert costs["vanilla"][0] > 1.8 * costs["pyramid"][1] > 3 * costs["pyramid"][2]
    base = result["arms"]["vanilla"]["final"]["distance"]
    paired = result["paired"]["pyramid"]
    assert paired["difference"] == pytest.approx(result["arms"]["pyramid"]["final"]["distance"] - base)
    desk.tell = stop_at_half
    with pytest.raises(Interrupted):
        run_seed(desk, 1)
    shutil.rmtree(desk.work / "seed-1")  # its weights are lost: what was measured of them does not count
    written = read_result(desk.seed_file(1))["arms"]["vanilla"]["evaluations"]
    desk.tell, desk.say = None, lambda words: arms_seen[-1].request_stop()
    with pytest.raises(Interrupted):
        run_seed(desk, 1)
    anew = read_result(desk.seed_file(1))["arms"]["vanilla"]["evaluations"]
    assert len(written) > len(anew) == 1 and anew[0]["steps"] == 0
    page = write_page(study, desk.results, "a command").read_text()
    assert "Still to be run: seed 1" in page and "| pyramid |" in page
    assert page.count("Warning: 66 clips are too few even for the demo") == 1
    assert (desk.results / "distance.png").stat().st_size > 5000
