"""Studies of conversion: what their files may say, what their pages conclude, and one carried out whole."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from tpdiff.evaluation import machine
from tpdiff.evaluation.budget import steps_within
from tpdiff.evaluation.conversion import load_conversion
from tpdiff.evaluation.conversion_page import improvement, loss_bound, seeds_bound, write_page
from tpdiff.evaluation.conversion_run import FEWER, FREE, ORIGINAL, UNTRAINED, ConversionDesk, run_conversion
from tpdiff.evaluation.judge import Judge, open_judge
from tpdiff.evaluation.study import make_data, read_result, write_result
from tpdiff.evaluation.study_run import Interrupted
from tpdiff.models.video_autoencoder import VideoAutoencoder
from tpdiff.recipes import recipe_path
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.training.checkpoint import write_pipeline
from tpdiff.training.setup import open_dataset
from tpdiff.training.trainer import Trainer

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

TINY = {
    "name": "tiny",
    "title": "A tiny study",
    "data": {"kind": "digits", "clips": 280, "frames": 9},
    "original": {
        "kind": "wan",
        "autoencoder": {"recipe": "wan-autoencoder-doom", "data": {"clips": 8, "frames": 17}},
        "network": {
            "num_attention_heads": 1,
            "attention_head_dim": 12,
            "ffn_dim": 16,
            "num_layers": 1,
            "freq_dim": 16,
            "rope_max_seq_len": 32,
        },
        "overrides": ["train.steps=40"],
    },
    "run": {
        "data": {"path": "data", "frames": 9, "height": 64, "width": 64},
        "condition": {"kind": "text"},
        "pretrained": {"path": "original", "options": {"max_sequence_length": 8}},
        "pyramid": {"factors": [[1, 1, 1], [2, 2, 2]]},
        "train": {"batch_size": 2, "steps": 1, "precision": False, "warmup_steps": 1},
        "log": {"every_steps": 1, "checkpoint_every_steps": None},
    },
    "arms": {
        "converted": [],
        "per stage": ["train.target=per_stage"],
        "LoRA": ["pretrained.lora={rank: 2}"],
        "trained on": ["train.method=vanilla"],
    },
    "budget": 0.3,
    "steps": 4,
    "staged_steps": [2, 2],
    "training_free": {"factors": [[1, 1, 1], [2, 1, 1]], "tolerance": 0.3, "steps": [1, 2]},
    "seeds": [0],
    "clips": 66,
}


def study_of(folder, **changes):
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    return load_conversion(path)


@pytest.mark.parametrize("name", [p.stem for p in recipe_path("demo").parent.glob("conversion-*.yaml")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shipped_studies_are_sound(name, device):
    from originals import ORIGINALS

    study = load_conversion(recipe_path(name), device)
    assert study.original.kind in ORIGINALS
    assert study.budget <= 0.1 and len(study.seeds) >= 3 and study.clips >= 2048
    original = study.original_config(Path("d"), Path("b"), 0)
    configs = [study.arm_config(arm, Path("d"), Path("b"), 0, 7) for arm in study.arms]
    assert original.train.method == "vanilla" and configs[0].train.method == "stagewise"
    assert any(config.train.method == "vanilla" for config in configs)  # the control that only trains on
    assert all(config.train.steps == 7 and config.train.batch_size == original.train.batch_size for config in configs)
    encoded = study.original.autoencoder.config(Path("d")).data  # an autoencoder is of one size
    assert (encoded.height, encoded.width) == (original.data.height, original.data.width) == study.data.size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 1.5}, "budget: .*less than or equal to 1"),
        ({"arm": {}}, "arm: Extra inputs"),
        ({"arms": {"on": ["train.method=vanilla"], "converted": []}}, "the first arm, on, is the one that is claimed"),
        ({"arms": {"converted": ["train.metod=vanilla"]}}, "train.method"),
        ({"clips": 64}, "clips: .*greater than or equal to 65"),
        (
            {"training_free": {"factors": [[1, 1, 1], [2, 1, 1]], "steps": [4, 4, 4]}},
            "training_free: .*steps are for 3 stages, and there are 2",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        study_of(tmp_path, **changes)


def finished_seed(seed, original, converted, spread):
    """A result in which the converted model's distance is known, with bootstrap draws of a given spread."""
    draws = (converted - original + spread * np.linspace(-1, 1, 201)).tolist()
    zero = [0.0] * 201

    def variant(distance, steps=50, **more):
        final = {"distance": distance, "kernel": distance / 10, "clips": 128, "floor": 1.0, "figures": {}}
        return {"steps": steps, "final": final, "sampling_flops": 1e9 * float(np.sum(steps)), **more}

    cost = {"flops": 100, "optimizer_steps": 10}
    return {
        "seed": seed,
        "done": True,
        "made": {"machine": machine.describe(), "created": "2026-01-01"},
        "protocol": {"seed": 0, "floor": {"clips": 64}},
        "early": {"steps": 8, "final": {"distance": 1.25 * original}},
        "variants": {
            ORIGINAL: variant(original, training={"flops": 1000, "optimizer_steps": 100}),
            "converted": variant(converted, [2, 2], training=cost),
            FREE: variant(9 * original, [2, 2]),
        },
        "seconds": {"clips": 8, "rounds": {ORIGINAL: [2.0], "converted": [1.0]}, "ratio": 2.0},
        "paired": {
            ORIGINAL: {
                "converted": {"difference": converted - original, "replicates": draws, "shared": True},
                FREE: {"difference": 8.0, "replicates": zero, "shared": True},
            },
            "converted": {
                ORIGINAL: {"difference": original - converted, "replicates": [-d for d in draws]},
                FREE: {"difference": 9 * original - converted, "replicates": [9 * original - converted] * 201},
            },
        },
    }


def test_the_bound_is_the_upper_end_of_the_mean_over_seeds():
    seeds = [finished_seed(0, 100.0, 96.0, 10.0), finished_seed(1, 200.0, 202.0, 10.0)]
    # mean difference -1, draws of both seeds reach 10 to either side together: 95 % of them lie below -1 + 9
    assert loss_bound(seeds, "converted") == pytest.approx((-1 + 9) / 150)
    assert loss_bound(seeds[1:], "converted") == pytest.approx((2 + 9) / 200)
    assert improvement(seeds[0]) == pytest.approx(0.2)
    over = -1 + 6.314 * np.std([-4, 2], ddof=1) / np.sqrt(2)  # Student's t of two seeds
    assert seeds_bound(seeds, "converted") == pytest.approx(over / 150, rel=1e-3)
    assert np.isinf(seeds_bound(seeds[1:], "converted"))


@pytest.mark.parametrize(
    ("converted", "verdict"), [(96.0, "**holds in these seeds only**"), (99.0, "**does not hold**")]
)
def test_the_page_says_whether_the_claim_holds(tmp_path, converted, verdict):
    study = study_of(tmp_path, arms={"converted": []}, seeds=[0, 1])
    write_result(tmp_path / "seed-0.json", finished_seed(0, 100.0, converted, 8.0))
    page = write_page(study, tmp_path, "the command").read_text()
    assert verdict in page and "**Still to be run: seed 1.**" in page
    assert "20.0% | no |" in page  # it had not stopped improving
    assert f"| {FREE} | {converted - 900:.3g}" in page and "| better in this seed |" in page
    assert (tmp_path / "distance.png").stat().st_size > 10_000


def test_its_tables_show_the_figures_of_every_variant(tmp_path):
    study, result = study_of(tmp_path, arms={"converted": []}, seeds=[0]), finished_seed(0, 100.0, 96.0, 8.0)
    moved, told = {"motion_magnitude": {"real": 1.5, "made": 2.5}}, {"digit": {"real": 0.75, "made": 0.5}}
    result["variants"]["converted"]["final"] |= {"figures": moved, "accuracy": told}
    write_result(tmp_path / "seed-0.json", result)
    page = write_page(study, tmp_path, "the command").read_text()
    for said in (
        " 12.5 times fewer operations and 2 times less time (8 clips at once, medians of 1 rounds in turns)",
        f"| {ORIGINAL} | 50 | 50 | 100 |  | 100 |  | 10 |",
        "| converted | 2-2 | 4 | 10 | 10.0% | 96 | +3.2% | 9.6 |",
        f"| {ORIGINAL} | -4 | [-11.6, 3.6] | [-∞, ∞] | -4 |",
        "| 0 | 8 of 100 | 125 | 100 | 20.0% | no |",
        "| converted | 0 | digit 0.50 (real 0.75) | 2.50 (real 1.50) |",
    ):
        assert said in page


def with_arm(result, name, like="converted"):
    """The result of a seed with one more arm."""
    pairs = {base: found | {name: found.get(like, found[FREE])} for base, found in result["paired"].items()}
    return result | {"variants": result["variants"] | {name: result["variants"][like]}, "paired": pairs}


def test_the_page_shows_what_all_finished_seeds_have(tmp_path):
    study = study_of(tmp_path, arms={"converted": [], "LoRA": [], "later": []}, seeds=[0, 1, 2])
    first, second = (finished_seed(seed, 100.0, 96.0, 8.0) for seed in (0, 1))
    for with_lora, without in ((0, 1), (1, 0)):
        results = {with_lora: with_arm((first, second)[with_lora], "LoRA"), without: (first, second)[without]}
        for seed, result in results.items():
            write_result(tmp_path / f"seed-{seed}.json", result)
        page = write_page(study, tmp_path, "the command").read_text()
        assert f"**Still to be run: LoRA (seed {without}), later (seed 0), later (seed 1), seed 2.**" in page
        assert "| converted |" in page and "| LoRA |" not in page
    for seed, result in enumerate((first, second)):
        write_result(tmp_path / f"seed-{seed}.json", with_arm(result, "LoRA"))
    page = write_page(study, tmp_path, "the command").read_text()
    assert "**Still to be run: later (seed 0), later (seed 1), seed 2.**" in page and page.count("| LoRA |") == 4


def test_a_page_needs_the_claimed_arm_in_all_finished_seeds(tmp_path):
    study = study_of(tmp_path, arms={"LoRA": [], "converted": []}, seeds=[0, 1])
    result = with_arm(finished_seed(0, 100.0, 96.0, 8.0), "LoRA")
    pairs = result["paired"] | {"LoRA": result["paired"]["converted"]}
    write_result(tmp_path / "seed-0.json", result | {"paired": pairs})
    for other in (finished_seed(1, 100.0, 96.0, 8.0), result | {"seed": 1}):  # no such arm, or not the claimed one
        write_result(tmp_path / "seed-1.json", other)
        with pytest.raises(ValueError, match=r"seed-1\.json compares nothing with LoRA, the arm that"):
            write_page(study, tmp_path, "the command")
    assert not (tmp_path / "README.md").exists() and not (tmp_path / "distance.png").exists()


def test_what_is_half_done_is_not_continued_by_another_judge(tmp_path):
    judge = Judge(SimpleNamespace(protocol={"features": {"version": 2}}), None)
    desk = ConversionDesk(study_of(tmp_path), tmp_path / "data", tmp_path / "work", tmp_path, judge, None)
    kept = {"seed": 0, "variants": {}, "protocol": {"features": {"version": 1}}}
    write_result(tmp_path / "seed-0.json", kept)
    with pytest.raises(ValueError, match=r"seed-0\.json was judged with features\.version=1 \(now 2\); remove it"):
        run_conversion(desk, 0)
    assert read_result(tmp_path / "seed-0.json") == kept
    done = {"done": True, "variants": {arm: {"steps": 4} for arm in desk.study.arms}}
    write_result(tmp_path / "seed-0.json", kept | done)
    assert run_conversion(desk, 0)["done"]
    desk.study = study_of(tmp_path, arms=TINY["arms"] | {"later": []})
    with pytest.raises(ValueError, match=r"seed-0\.json is finished without later, and the original's weights are not"):
        run_conversion(desk, 0)
    assert read_result(tmp_path / "seed-0.json") == kept | done


def desk_of_a_finished_seed(folder, *arms):
    """A desk of a study with these arms, whose seed 0 was finished with the arm "converted" alone."""
    judge = Judge(SimpleNamespace(protocol={"seed": 0}), None)
    study = study_of(folder, arms={arm: [] for arm in arms})
    (folder / "work" / "seed-0").mkdir(parents=True)
    finished = finished_seed(0, 100.0, 96.0, 8.0)
    write_result(folder / "seed-0.json", finished)
    return ConversionDesk(study, folder / "data", folder / "work", folder, judge, None), finished


def test_a_finished_seed_stays_as_it_is_until_its_new_arm_is_whole(tmp_path, monkeypatch):
    """Of an arm that was added nothing is shown, and nothing counts as done, before all is compared with it."""

    def trained(desk, seed, arm, out, result, keep):
        result["variants"][arm] = {"steps": 4, "final": {"distance": 1.0}}
        keep()

    def stopped(*_):
        raise Interrupted

    for name, does in {"_train_original": lambda *_: None, "_train_arm": trained, "_open": stopped}.items():
        monkeypatch.setattr(f"tpdiff.evaluation.conversion_run.{name}", does)
    desk, finished = desk_of_a_finished_seed(tmp_path, "converted", "later")
    for _ in range(2):  # the second call goes on
        with pytest.raises(Interrupted):
            run_conversion(desk, 0)
        assert read_result(tmp_path / "seed-0.json") == finished
    assert "**Still to be run: later (seed 0).**" in write_page(desk.study, tmp_path, "the command").read_text()


def test_a_finished_seed_is_not_continued_for_another_claim(tmp_path):
    """Its seconds and what is sampled at as many operations are of the arm that it was finished for."""
    desk, finished = desk_of_a_finished_seed(tmp_path, "later", "converted")
    with pytest.raises(ValueError, match=r"seed-0\.json compares nothing with later, the arm that the claim is about"):
        run_conversion(desk, 0)
    assert read_result(tmp_path / "seed-0.json") == finished


def test_an_autoencoder_of_another_recipe_or_of_other_clips_is_not_taken(tmp_path):
    from conversion import MADE, QUALITY, _autoencoder

    part = study_of(tmp_path).original.autoencoder
    out = tmp_path / "autoencoder"
    write_result(out / MADE, {"made": {"asked": part.settings}})
    write_result(out / QUALITY, {})
    assert _autoencoder(part, tmp_path, None) == str(out)
    more = part.model_copy(update={"data": part.data.model_copy(update={"clips": part.data.clips + 4})})
    with pytest.raises(ValueError, match=r"autoencoder was made with data\.clips=\d+ \(now \d+\); remove it"):
        _autoencoder(more, tmp_path, None)


def test_an_autoencoder_can_be_of_another_size_than_its_recipe(tmp_path):
    part = study_of(tmp_path).original.autoencoder
    small = part.model_copy(update={"overrides": ["data.height=32", "data.width=32"]})
    assert (part.config(tmp_path).data.height, small.config(tmp_path).data.height) == (64, 32)
    assert small.settings != part.settings


def test_a_page_needs_a_finished_seed(tmp_path):
    with pytest.raises(ValueError, match="no seed is finished"):
        write_page(study_of(tmp_path), tmp_path, "command")


@pytest.fixture
def desk(tmp_path):
    """A study in which only the judge is missing."""
    from originals import wan

    vae = VideoAutoencoder(4, 8, 1, 1, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    vae.save_pretrained(tmp_path / "autoencoder", safe_serialization=True)
    study = study_of(tmp_path)
    data = make_data(study.data, tmp_path / "data")

    def build(seed, folder):
        write_pipeline(folder, wan(study.original.network, str(tmp_path / "autoencoder"), seed))

    return ConversionDesk(study, data, tmp_path / "work", tmp_path / "results", None, build, say=lambda text: None)


def test_guidance_is_of_every_sample_and_told_on_the_page(desk, tmp_path):
    results = tmp_path / "results"
    write_result(results / "seed-0.json", finished_seed(0, 100.0, 96.0, 8.0))
    assert "captions, without guidance." in write_page(desk.study, results, "command").read_text()
    desk.study = study_of(tmp_path, guidance_scale=3.0)
    assert desk.plain.guidance_scale == desk.staged.guidance_scale == 3.0
    assert desk.study.settings(0)["guidance_scale"] == 3.0
    assert "captions, with guidance of 3." in write_page(desk.study, results, "command").read_text()


def test_a_budget_is_spent_to_the_last_step_that_fits(desk, tmp_path):
    desk.build(0, tmp_path / "base")
    config = desk.study.arm_config("converted", desk.data, tmp_path / "base", 0, 1)
    dataset = open_dataset(config)
    _, (fine, coarse) = steps_within(config, tmp_path / "run", 1e8, dataset)
    assert coarse < fine / 2
    mix = Trainer(config, tmp_path / "run", dataset=dataset, dry=True).mix

    def cost(steps):
        drawn = [stage for step in range(steps) for stage in mix.stages(step, 0)]
        return sum(config.train.batch_size * (fine, coarse)[stage] for stage in drawn)

    for budget in (9 * fine, cost(5)):
        steps, _ = steps_within(config, tmp_path / "run", budget, dataset)
        assert cost(steps) <= budget < cost(steps + 1)
    with pytest.raises(ValueError, match="one step costs"):
        steps_within(config, tmp_path / "run", coarse, dataset)


@pytest.mark.slow
def test_a_whole_study_stopped_and_continued(desk, tmp_path):
    config = desk.study.original_config(desk.data, tmp_path, 0)
    desk.judge = open_judge(config, tmp_path / "cache")
    trainers = []
    desk.on_trainer = trainers.append

    def stop(name, status):
        if name == "LoRA":
            trainers[-1].request_stop()

    desk.tell = stop
    with pytest.raises(Interrupted):
        run_conversion(desk, 0)
    half = read_result(tmp_path / "results" / "seed-0.json")
    assert list(half["variants"]) == [ORIGINAL, "converted", "per stage"]
    desk.tell = None
    desk.study = study_of(tmp_path, arms={name: arm for name, arm in TINY["arms"].items() if name != "trained on"})
    assert "trained on" not in run_conversion(desk, 0)["variants"]
    desk.study = study_of(tmp_path)  # with an arm more, which is now trained
    result = run_conversion(desk, 0)
    assert run_conversion(desk, 0) == result == json.loads((tmp_path / "results" / "seed-0.json").read_text())
    assert set(result["variants"]) == {ORIGINAL, "converted", "per stage", "LoRA", "trained on", FEWER, UNTRAINED, FREE}
    assert result["variants"]["converted"] == half["variants"]["converted"] | {
        "sampling_flops": result["variants"]["converted"]["sampling_flops"]
    }
    spent = {name: row["training"]["flops"] for name, row in result["variants"].items() if "training" in row}
    assert all(0.2 < spent[arm] / spent[ORIGINAL] <= 0.3 for arm in desk.study.arms)
    costs = {name: row["sampling_flops"] for name, row in result["variants"].items()}
    assert costs["converted"] == costs[UNTRAINED] < costs[ORIGINAL] == costs["trained on"] > costs[FREE]
    assert abs(costs[FEWER] / costs[UNTRAINED] - 1) < 0.5  # of four steps
    assert result["early"]["steps"] == 32
    pipeline = PyramidPipeline.from_pretrained(tmp_path / "work" / "seed-0" / "per stage")
    assert pipeline.pipe.scheduler.config.per_stage_target
    page = write_page(desk.study, tmp_path / "results", "command").read_text()
    assert all(f"| {name} |" in page for name in result["variants"])
