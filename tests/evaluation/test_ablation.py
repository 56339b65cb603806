"""Ablations: what their files may say, other jumps against their formulas, and one carried out whole."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from tpdiff.data import ClipDataset
from tpdiff.data.clips import Geometry
from tpdiff.evaluation import machine
from tpdiff.evaluation.ablation import load_ablation
from tpdiff.evaluation.ablation_page import draw, finished, write_page
from tpdiff.evaluation.ablation_run import AblationDesk, run_variant, stages_of
from tpdiff.evaluation.judge import Judge, open_judge
from tpdiff.evaluation.jumps import JUMPS
from tpdiff.evaluation.samples import Sampling, sample_batch, sampler
from tpdiff.evaluation.study import make_data, write_result
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, measure_spectrum
from tpdiff.pyramid.spectral import spectral_pyramid
from tpdiff.recipes import recipe_path
from tpdiff.shipped import shipped_autoencoder
from tpdiff.training.latents import Latents
from tpdiff.training.trainer import Trainer

FACTORS = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
TINY = {
    "name": "tiny",
    "title": "A tiny ablation",
    "recipe": "digits-flow",
    "overrides": [
        "data.frames=4",
        f"model.autoencoder={shipped_autoencoder()}",
        "model.patch_size=[1,2,2]",
        "model.hidden_size=24",
        "model.num_layers=1",
        "model.num_attention_heads=2",
        "train.batch_size=4",
        "train.precision=no",
    ],
    "data": {"kind": "digits", "clips": 280, "frames": 4},
    "variants": {
        "pyramid": {},
        "vanilla": {"overrides": ["train.method=vanilla"]},
        "plain jumps": {"of": "pyramid", "jump": "plain"},
        "told nothing": {"against": "vanilla", "overrides": ["condition.kind=none", "train.method=vanilla"]},
        "untrained": {"of": "vanilla", "spectral": [[1, 1, 1], [2, 1, 1]]},
    },
    "operations": 0.004,
    "steps": [3, 6],
    "seeds": [0],
    "clips": 66,
}


def ablation_of(folder, **changes):
    path = folder / "ablation.yaml"
    path.write_text(yaml.safe_dump(TINY | changes, sort_keys=False))
    return load_ablation(path)


@pytest.mark.parametrize("name", [p.stem for p in recipe_path("demo").parent.glob("ablation-*.yaml")])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_shipped_ablations_are_sound(name, device):
    study = load_ablation(recipe_path(name), device)
    assert len(study.seeds) >= 3 and len(study.seeds) * study.clips >= 2048
    configs = [study.config(variant, Path("d"), 0, 9) for variant in study.trained]
    assert all(config.train.steps == 9 and config.train.seconds is None for config in configs)
    assert all(config.data == configs[0].data for config in configs)


def test_alignments_are_compared_at_their_batch_size():
    study = load_ablation(recipe_path("ablation-alignment"))
    trains = {name: study.config(name, Path("d"), 0, 9).train for name in study.variants}
    kinds = {(train.alignment, train.align_within_condition) for train in trains.values()}
    assert kinds == {("none", False), ("assignment", False), ("assignment", True), ("knn", False)}
    assert {train.batch_size for train in trains.values()} == {8, 64, 256}
    assert {study.told(name) for name in study.variants} == {True, False}
    pairs = [(trains[name], trains[base]) for name in trains if (base := study.base(name)) and base != "none, 8"]
    assert all(one.batch_size == base.batch_size and one.lr == base.lr for one, base in pairs)
    assert all(base.alignment == "none" for _, base in pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": {}}}, "variants: .*at least 2"),
        ({"variants": {"a": {}, "b": {"of": "c"}}}, "b samples of 'c', which is not trained; choose a"),
        ({"variants": {"a": {}, "b": {"of": "a", "overrides": ["train.lr=1"]}}}, "b is not trained"),
        ({"variants": {"a": {"against": "b"}, "b": {}}}, "a is compared with 'b', which is not before it; choose none"),
        ({"variants": {"a": {}, "b": {"jump": "high"}}}, "variants.b.jump"),
        ({"variants": {"a": {}, "b": {"overrides": ["train.metod=vanilla"]}}}, "train.method"),
        ({"overrides": []}, "untrained: a spectral pyramid follows from latents"),
        ({"operations": 0}, "operations: .*greater than 0"),
    ],
)
def test_an_ablation_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        ablation_of(tmp_path, **changes)


def test_other_jumps_are_what_they_are_called():
    right = Pyramid(FlowMatchingSchedule(), FACTORS)
    plain, printed = (JUMPS[name].from_config(right.config()) for name in ("plain", "printed"))
    x, draw = torch.randn(2, 3, 4, 5, 6), [torch.Generator().manual_seed(s) for s in (1, 1)]
    entered = right.jump(x, 1, generator=draw[0])
    lifted = right.resizer.up(x, right.ratio(1))
    c = right.jump_coefficient(1)
    torch.testing.assert_close(plain.jump(x, 1), c * lifted)
    start, end = right.stages[1].start_level, right.stages[2].end_level
    wrong = math.sqrt(2) * start.alpha / (start.sigma + math.sqrt(2) * start.alpha)
    assert wrong == pytest.approx(end.alpha)  # the slip: it is the clean end's own level
    torch.testing.assert_close(printed.jump(x, 1, generator=draw[1]) - entered, (wrong - c) * lifted)
    assert abs(wrong - c) > 0.01


def test_samples_are_made_where_training_is_though_averages_wait_on_the_cpu(tmp_path):
    study = ablation_of(tmp_path, data={"kind": "digits", "clips": 8, "frames": 4})
    data = make_data(study.data, tmp_path / "data")
    config = study.config("vanilla", data, 0, 1)
    config = config.model_copy(update={"train": config.train.model_copy(update={"ema_device": "cpu"})})
    trainer = Trainer(config, tmp_path / "run")
    trainer.device = torch.device("meta")
    assert sampler(trainer).transformer.device == trainer.device
    assert next(trainer.ema.network.parameters()).device.type == "cpu"


def test_untrained_stages_follow_the_spectrum_of_what_the_network_sees(tmp_path):
    study = ablation_of(tmp_path, data={"kind": "digits", "clips": 8, "frames": 4})
    data = make_data(study.data, tmp_path / "data")
    desk = AblationDesk(study, data, tmp_path / "work", tmp_path / "results", None)
    config = study.config("vanilla", data, 0, 1)
    pipeline = sampler(Trainer(config, tmp_path / "run"))
    dataset = ClipDataset(data, frames=4, height=32, width=32, fps=8, split="train", cache="none")
    seen = Latents(config, pipeline.pyramid, torch.device("cpu"))
    spectrum = measure_spectrum(seen(dataset[i]["video"][None]) for i in range(len(dataset)))
    variant = study.variants["untrained"]
    wanted = spectral_pyramid(spectrum, FlowMatchingSchedule(), variant.spectral, variant.tolerance)
    assert len(pipeline.pyramid) == 1
    pipeline.pyramid = stages_of(desk, pipeline, variant)
    found = pipeline.pyramid.config()
    assert found["factors"] == [list(factors) for factors in variant.spectral] and found["resize"] == "dct"
    for name in ("ends", "starts"):
        assert found[name] == pytest.approx(wanted.config()[name], rel=1e-5)
    captions = [dataset[0]["caption"]] * 2
    assert sample_batch(pipeline, captions, Sampling(4)).shape == (2, 3, 4, 32, 32)


def test_the_page_names_the_best_for_every_budget(tmp_path):
    study = ablation_of(tmp_path, steps=[3, 6], seeds=[0, 1, 2, 3], variants={name: {} for name in "abcd"})
    seeds = {"a": [0, 1], "b": [0, 1], "c": [0], "d": [0, 2]}  # whoever lacks a seed of the first's is not ranked
    judged = {  # (GFLOP, distance by seed) at either number of steps
        "a": [(2, [50, 70]), (4, [40, 40])],
        "b": [(1, [90, 90]), (3, [61, 61])],
        "c": [(1, [1, 1]), (2, [1, 1])],
        "d": [(1, [1, 1, 1]), (2, [1, 1, 1])],
    }
    rest = {"clips": 66, "floor": 1, "figures": {}, "accuracy": {}}
    for name, points in judged.items():
        for seed in seeds[name]:
            verdicts = {
                str(steps): {"sampling_flops": g * 1e9, "distance": d[seed]} | rest
                for steps, (g, d) in zip(study.steps, points, strict=True)
            }
            made = {"machine": machine.describe(), "created": "2000-01-01"}
            result = {"seed": seed, "made": made, "judged": verdicts, "done": True}
            result["protocol"] = {"floor": {"clips": 64}}
            file = tmp_path / "results" / f"seed-{seed}" / f"{name}.json"
            write_result(file, result | {"training": {"optimizer_steps": 1}})
    lines = write_page(study, tmp_path / "results", "command").read_text().splitlines()
    absent = "a (seed 2), b (seed 2), c (seed 1), c (seed 2), d (seed 1), seed 3"
    assert f"**Still to be run: {absent}.**" in lines
    start = lines.index("## The best by budget")
    assert lines[start + 4 : start + 8] == [
        "| 1 | b | 3 | 90 | 90 / 90 |",
        "| 2 | a | 3 | 60 | 50 / 70 |",
        "| 4 | a | 6 | 40 | 40 / 40 |",
        "",
    ]
    assert "## What follows" not in lines
    (tmp_path / "results" / "conclusion.md").write_text("Take a.\n")
    lines = write_page(study, tmp_path / "results", "command").read_text().splitlines()
    start = lines.index("## What follows")
    assert lines[start + 1 : start + 5] == ["", "Take a.", "", "## Differences, at 6 steps"]


def test_variants_of_one_number_of_steps_are_drawn_by_name(tmp_path, monkeypatch):
    study = ablation_of(tmp_path, steps=[6], seeds=[0, 1], variants={"a": {}, "b": {}})
    drawn = {}
    monkeypatch.setattr("tpdiff.evaluation.ablation_page.distance_strip", lambda path, names: drawn.update(names))
    found = {
        name: [{"judged": {"6": {"distance": d, "sampling_flops": 1}}} for d in distances]
        for name, distances in (("a", [3.0, 5.0]), ("b", [4.0]))
    }
    draw(study, found, tmp_path / "fronts.png")
    assert drawn == {"a": [3.0, 5.0], "b": [4.0]}
    monkeypatch.undo()
    draw(study, found, tmp_path / "fronts.png")
    assert (tmp_path / "fronts.png").read_bytes().startswith(b"\x89PNG")


def test_variants_are_compared_by_one_judge(tmp_path):
    reference = SimpleNamespace(protocol={"features": {"version": 2}}, geometry=Geometry(4, 32, 32))
    judge = Judge(reference, None)
    desk = AblationDesk(ablation_of(tmp_path), tmp_path / "data", tmp_path / "work", tmp_path / "results", judge)
    judged = {"3": {"judge": judge.key}, "6": {"judge": "another"}}
    write_result(desk.file(0, "pyramid"), {"judged": judged, "done": True})
    for steps in desk.study.steps:
        (desk.rows(0, "pyramid", steps) / judge.key).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"samples at 6 steps are not in .*; remove .*pyramid\.json, and"):
        run_variant(desk, 0, "vanilla")
    assert not desk.file(0, "vanilla").exists()
    write_result(desk.file(0, "vanilla"), {"judged": {}, "protocol": {"features": {"version": 1}}})
    with pytest.raises(ValueError, match=r"vanilla\.json was judged with features\.version=1 \(now 2\); remove it"):
        run_variant(desk, 0, "vanilla")


def test_what_another_judge_found_is_judged_anew(tmp_path, monkeypatch):
    class Asked(Judge):
        def verdict(self, pipeline, count, sampling, seed, keep, told=True):
            return {"judge": self.key, "distance": 1.0}

    reference = SimpleNamespace(protocol={"features": {"version": 1}}, geometry=Geometry(4, 32, 32))
    said, judge = [], Asked(reference, None)
    study = ablation_of(tmp_path, steps=[3, 6, 9])
    desk = AblationDesk(study, tmp_path / "data", tmp_path / "work", tmp_path / "results", judge, said.append)
    pipeline = SimpleNamespace(pyramid=Pyramid(FlowMatchingSchedule(), FACTORS))
    monkeypatch.setattr("tpdiff.evaluation.ablation_run._trained", lambda *args: (pipeline, {}))
    monkeypatch.setattr("tpdiff.evaluation.ablation_run.clip_flops", lambda *args: 1)
    by = {"3": "another", "6": judge.key, "9": judge.key}
    write_result(desk.file(0, "pyramid"), {"judged": {steps: {"judge": key} for steps, key in by.items()}})
    (desk.rows(0, "pyramid", 6) / judge.key).mkdir(parents=True)  # those of 9 steps are lost
    result = run_variant(desk, 0, "pyramid")
    assert said == ["seed 0: pyramid at 3 steps: 1.0", "seed 0: pyramid at 9 steps: 1.0"]
    assert result["done"] and {verdict["judge"] for verdict in result["judged"].values()} == {judge.key}


def test_a_result_depends_on_what_it_is_compared_with(tmp_path):
    desk = AblationDesk(ablation_of(tmp_path), tmp_path / "data", tmp_path / "work", tmp_path / "results", None)
    kept = {"done": True, "made": {"asked": desk.study.settings(0, "vanilla")}}
    write_result(desk.file(0, "vanilla"), kept)

    def with_base(**base):
        desk.study = ablation_of(tmp_path, variants=TINY["variants"] | {"pyramid": base})
        return run_variant(desk, 0, "vanilla")

    assert with_base() == kept
    with pytest.raises(ValueError, match=r"vanilla\.json was made with base\.config\.train\.lr=\S+ \(now 0\.25\)"):
        with_base(overrides=["train.lr=0.25"])
    with pytest.raises(
        ValueError, match=r"vanilla\.json was made with base\.variant\.jump='corrected' \(now 'plain'\)"
    ):
        with_base(jump="plain")
    with pytest.raises(ValueError, match=r"vanilla\.json was made with base\.variant\.jump"):
        finished(desk.study, desk.results)
    del kept["made"]["asked"]["base"]  # of before it was compared
    write_result(desk.file(0, "vanilla"), kept)
    assert with_base(jump="plain") == kept


def test_nothing_is_compared_with_or_sampled_from_what_another_study_made(tmp_path):
    judge = Judge(SimpleNamespace(protocol={}, geometry=Geometry(4, 32, 32)), None)
    desk = AblationDesk(ablation_of(tmp_path), tmp_path / "data", tmp_path / "work", tmp_path / "results", judge)
    kept = {"done": True, "judged": {}, "made": {"asked": desk.study.settings(0, "pyramid")}}
    write_result(desk.file(0, "pyramid"), kept)
    desk.study = ablation_of(tmp_path, overrides=[*TINY["overrides"], "train.ema_decay=0.5"])
    for name in ("vanilla", "plain jumps"):
        with pytest.raises(ValueError, match=r"pyramid\.json was made with config\.train\.ema_decay=\S+ \(now 0\.5\)"):
            run_variant(desk, 0, name)
        assert not desk.file(0, name).exists()


def test_committed_results_are_of_their_study(tmp_path):
    committed = Path(__file__).resolve().parents[2] / "docs" / "results" / "ablation-jumps"
    study = load_ablation(recipe_path("ablation-jumps"))
    desk = AblationDesk(study, tmp_path / "data", tmp_path / "work", committed, None)
    for seed in study.seeds:
        for name in study.variants:
            assert run_variant(desk, seed, name)["done"]


@pytest.mark.slow
def test_a_whole_ablation(tmp_path):
    study = ablation_of(tmp_path)
    data = make_data(study.data, tmp_path / "data")
    judge = open_judge(study.config("pyramid", data, 0, 1), tmp_path / "cache")
    desk = AblationDesk(study, data, tmp_path / "work", tmp_path / "results", judge, say=lambda text: None)
    for name, why in (("plain jumps", "samples from pyramid"), ("vanilla", "is compared with pyramid")):
        with pytest.raises(ValueError, match=f"{name} {why}, which is not finished for seed 0"):
            run_variant(desk, 0, name)
    pyramid, vanilla, plain, untold, untrained = (run_variant(desk, 0, name) for name in study.variants)
    for result in (pyramid, vanilla):
        assert 0.75 < result["training"]["flops"] / (study.operations * 1e12) <= 1
    assert pyramid["training"]["optimizer_steps"] > vanilla["training"]["optimizer_steps"]
    costs = [result["judged"]["6"]["sampling_flops"] for result in (pyramid, vanilla, plain, untrained)]
    assert costs[0] == costs[2] < costs[3] < costs[1]
    assert plain["judged"]["6"]["distance"] != pyramid["judged"]["6"]["distance"]
    pair = plain["judged"]["6"]["paired"]["difference"]
    assert pair == pytest.approx(plain["judged"]["6"]["distance"] - pyramid["judged"]["6"]["distance"], rel=1e-6)
    assert untrained["pyramid"]["factors"] == [[1, 1, 1], [2, 1, 1]] and vanilla["pyramid"]["factors"] == [[1, 1, 1]]
    assert untrained["judged"]["6"]["distance"] != vanilla["judged"]["6"]["distance"]
    assert run_variant(desk, 0, "plain jumps") == plain
    desk.file(0, "plain jumps").unlink()
    (tmp_path / "work" / "seed-0" / "rows" / "pyramid" / "6").rename(tmp_path / "apart")
    with pytest.raises(ValueError, match=r"compared with pyramid, but the figures of its samples at 6 steps are no"):
        run_variant(desk, 0, "plain jumps")
    (tmp_path / "apart").rename(tmp_path / "work" / "seed-0" / "rows" / "pyramid" / "6")
    assert run_variant(desk, 0, "plain jumps")["judged"] == plain["judged"]
    desk.study = ablation_of(tmp_path, operations=0.003)
    with pytest.raises(ValueError, match=r"vanilla\.json was made with operations=0\.004 \(now 0\.003\); remove it"):
        run_variant(desk, 0, "vanilla")
    desk.study = study
    assert list(finished(study, tmp_path / "results")) == list(study.variants)
    page = write_page(study, tmp_path / "results", "command").read_text()
    assert set(vanilla["judged"]["6"]["accuracy"]) == {"digit", "direction"} and untold["judged"]["6"]["accuracy"] == {}
    away = untold["judged"]["6"]["distance"] - vanilla["judged"]["6"]["distance"]
    assert untold["judged"]["6"]["paired"]["difference"] == pytest.approx(away, rel=1e-6)
    assert "| told nothing | vanilla |" in page and "none: it is told no caption" in page
    assert "| plain jumps | from pyramid |" in page and "| untrained | from vanilla |" in page
    assert "Still to be run" not in page
