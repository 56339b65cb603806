"""The page of training runs: what their folders hold and nothing else, whether they are finished or not."""

import base64
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from command_line import refused
from pages import CHROMIUM, Page, browse

from tpdiff.cli import main
from tpdiff.evaluation.plots import COLORS
from tpdiff.evaluation.run_curves import Costed, Curves
from tpdiff.evaluation.run_operations import count_training, operations
from tpdiff.evaluation.run_record import read_runs
from tpdiff.evaluation.run_report import write_run_report
from tpdiff.evaluation.study_run import warm_up
from tpdiff.training.load_config import dump_config
from tpdiff.training.trainer import Trainer

VALIDATED = ("validation.every_steps=2", "validation.samples=2", "validation.sample_steps=3", "validation.clips=2")
FLOORED = {"name": "Fréchet distance", "clips": 8, "real": 6, "floor": 0.125}


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def place(tiny, tmp_path_factory):
    """Runs: "pyramid" is finished and validated, "vanilla" stopped after 3 of 40 steps, "begun" has no checkpoint."""
    place = tmp_path_factory.mktemp("runs")
    trainer = Trainer(tiny(*VALIDATED, "validation.quantiles=2", "train.steps=6", "seed=2"), place / "pyramid")
    trainer.run()
    trainer.save()
    path = place / "pyramid" / "validation.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    told = [line | {"distance": FLOORED | {"value": 2.5 / line["step"]}} for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in told) + '{"step": 8, "sec')  # a death cut it short
    trainer = Trainer(tiny("train.method=vanilla", "train.steps=40", "condition.kind=none"), place / "vanilla")
    for _ in range(3):
        trainer.run(seconds=1e-9)
    trainer.save()
    Trainer(tiny(), place / "begun")
    return place


@pytest.fixture(scope="module")
def before(place):
    return tree(place)


@pytest.fixture(scope="module")
def html(place, before, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "deep" / "report.html"
    write_run_report([place / n for n in ("pyramid", "vanilla", "begun")], out, "tpdiff report <b>")
    return out.read_text("utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_is_one_file_and_the_runs_stay_as_they_are(place, before, html, page):
    assert tree(place) == before
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
    assert not re.search(r"url\((?!#)|@import|https?://", html)
    assert "tpdiff report &lt;b&gt;" in html
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_tables_show_what_was_written_down(place, page):
    records = read_runs([place / "pyramid", place / "vanilla"])
    data = [float(attributes["value"]) for attributes in page.of("data")]
    wanted = []
    for run in records:
        assert run.state["step"] == {"pyramid": 6, "vanilla": 3}[run.label]
        spent, reason = operations(run)
        assert reason == "" and spent[0] > 0
        wanted += [run.state["step"], run.state["seconds"], run.state["samples"], run.state["tokens"], spent[-1]]
        for k in range(run.stages):
            at = run.losses[run.losses[:, 2] == k, 3]
            wanted += [at[-1]] if len(at) else []
    last = records[0].validations[-1]
    wanted += [6, last["seconds"], *(last["loss"][str(k)] for k in range(3)), 2.5 / 6, 0.125, 8]
    assert data == pytest.approx(wanted)
    assert len(records[0].validations) == 3  # the line that was cut short is none


def test_what_a_folder_lacks_is_said(html):
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    assert " finished, step 6," in text
    assert "unfinished: 8 % of its budget, step 3," in text
    assert "unfinished: 0 % of its budget, step 0," in text
    assert "No complete checkpoint yet; training losses are written with checkpoints." in text
    assert text.count("No validation: neither validation.every_steps nor validation.every_seconds is set.") == 2
    assert "begun is not in the plots against operations: there is no checkpoint yet" in re.sub(" +", " ", text)


def test_real_against_real_is_not_said_to_be_of_as_many_clips(html):
    """Eight samples stand against six real clips, so that no eight others were there."""
    assert "Dotted: real clips against real ones, at as many clips, or at all that there are where these are" in html


def test_a_plot_for_every_stage_against_every_cost(place, html, page):
    """Other stages are other targets: the vanilla run's losses stand in plots of their own."""
    labels = [a["aria-label"] for a in page.of("figure") if a.get("role") == "img"]
    (pyramid,) = read_runs([place / "pyramid"])
    trained = [k for k in (2, 1, 0) if k in pyramid.losses[:, 2]]
    ends = {0: " (finest)", 1: "", 2: " (coarsest)"}
    wanted = [f"Stage {k}{ends[k]}, loss: pyramid from" for k in trained] + ["One stage, loss: vanilla from"]
    wanted += [f"Stage {k}{ends[k]}, held-out loss: pyramid from" for k in (2, 1, 0)]
    wanted += ["Fréchet distance, 8 samples against 6 real clips, distance: pyramid from 1.25 to 0.4167 at step 6"]
    assert len(labels) == len(wanted)
    assert all(label.startswith(start) for label, start in zip(labels, wanted, strict=True)), labels
    assert html.count("<svg") == 3 * len(wanted) and "operations are not known" not in html
    assert COLORS[0] in html and COLORS[1] in html


def test_runs_of_the_same_targets_share_plots(place, tmp_path):
    """Where only the learning rate differs, a stage is one plot of two runs."""
    shutil.copytree(place / "pyramid", tmp_path / "other")
    config = read_runs([place / "pyramid"])[0].config
    train = config.train.model_copy(update={"lr": 0.5})
    (tmp_path / "other" / "config.yaml").write_text(dump_config(config.model_copy(update={"train": train})))
    runs = [Costed(run, *operations(run)) for run in read_runs([place / "pyramid", tmp_path / "other"])]
    curves = Curves(runs)
    assert all(row.labels == ["pyramid", "other"] for row in [*curves.losses(), *curves.held_out()])
    shifted = train.model_copy(update={"alignment": "none"})
    (tmp_path / "other" / "config.yaml").write_text(dump_config(config.model_copy(update={"train": shifted})))
    curves = Curves([runs[0], replace(runs[1], run=read_runs([tmp_path / "other"])[0])])
    assert all(len(row.labels) == 1 for row in curves.losses())  # aligned noise makes other targets
    assert all(len(row.labels) == 2 for row in curves.held_out())  # validation aligns nothing


def test_other_clips_are_other_quantities(place):
    """Neither distances to other real clips nor losses on other shards share a plot."""
    (run,) = read_runs([place / "pyramid"])

    def rows(**data):
        config = run.config.model_copy(update={"data": run.config.data.model_copy(update=data)})
        curves = Curves([Costed(one, None, "") for one in (run, replace(run, label="other", config=config))])
        return [[row.labels for row in kind] for kind in (curves.losses(), curves.distances())]

    alone, together = [["pyramid"], ["other"]], [["pyramid", "other"]]
    assert rows(workers=1)[1] == together and all(labels == together[0] for labels in rows(workers=1)[0])
    for data in ({"path": "elsewhere"}, {"height": 32}):
        assert rows(**data)[1] == alone
    sharded = run.config.data.model_copy(update={"path": "", "shards": "some"})
    run = replace(run, config=run.config.model_copy(update={"data": sharded}))
    assert all(len(labels) == 1 for labels in rows(shards="others")[0])
    assert all(len(labels) == 1 for labels in rows(buckets=[(8, 16, 16), (1, 16, 16)])[0])
    run = replace(run, config=run.config.model_copy(update={"data": sharded.model_copy(update={"path": "videos"})}))
    assert all(len(labels) == 2 for labels in rows(shards="moved")[0])  # shards of the same videos


def test_samples_are_embedded_whole(place, page):
    embedded = [
        base64.b64decode(attributes["src"].removeprefix("data:video/mp4;base64,")) for attributes in page.of("video")
    ]
    assert embedded == [
        (place / "pyramid" / "validation" / f"step-{step:08d}" / f"{i:04d}.mp4").read_bytes()
        for i in range(2)
        for step in (2, 4, 6)
    ]
    assert [a["aria-label"].split(":")[0] for a in page.of("video")][:2] == ["pyramid, step 2", "pyramid, step 4"]


def test_fewer_moments_keep_the_last_and_a_lost_video_leaves_a_gap(place, tmp_path):
    run = tmp_path / "pyramid"
    shutil.copytree(place / "pyramid", run)
    (run / "validation" / "step-00000006" / "0001.mp4").unlink()
    (shown,) = write_run_report([run], tmp_path / "page.html", moments=1)
    assert [record["step"] for record in shown.moments] == [6]
    assert [len(row.videos) for row in shown.samples] == [1, 1]
    assert shown.samples[1].videos == [None]
    assert "No file for 1 of the sample videos that it recorded." in shown.lacks
    (bare,) = write_run_report([run], tmp_path / "page.html", moments=0)
    assert bare.samples == [] and "<video" not in (tmp_path / "page.html").read_text()


def test_only_what_differs_is_highlighted(html):
    rows = re.findall(r'<tr class="differs"><th scope="row">([^<]+)</th>', html)
    assert {"train.method", "train.steps", "seed", "condition.kind"} <= set(rows)
    assert "train.lr" not in rows


@pytest.mark.parametrize(
    "overrides",
    [[], ["train.token_budget=96"], ["train.all_stages=true", "train.accumulation=2"], ["{text}"]],
    ids=["label", "token budget", "all stages", "text"],
)
def test_operations_are_those_that_training_takes(tiny, bert, tmp_path, overrides):
    """Counted from shapes alone, against passes that were run on clips."""
    text = ["condition.kind=text", f"condition.encoder={bert}", "model.gradient_checkpointing=true"]
    alone = ("train.steps=3", "train.alignment=none")  # whose distances are not the network's
    trainer = Trainer(tiny(*alone, *(text if overrides == ["{text}"] else overrides)), tmp_path / "run")
    trainer.run()
    trainer.save()
    (run,) = read_runs([tmp_path / "run"])
    mix, counts = count_training(run.checkpoint, run.config)
    assert counts == warm_up(trainer)
    spent, reason = operations(run)
    assert reason == "" and len(spent) == len(run.losses)
    clips = np.array(mix.clips)[run.losses[:, 2].astype(int)]
    assert spent[-1] == (clips * np.array(counts)[run.losses[:, 2].astype(int)]).sum()


def test_operations_are_not_told_where_they_are_not_known(place, tiny, tmp_path):
    (run,) = read_runs([place / "pyramid"])
    spent, reason = operations(replace(run, state=run.state | {"tokens": 2 * run.state["tokens"]}))
    assert spent is None and "not all of the configured size" in reason
    tuned = tmp_path / "tuned"
    shutil.copytree(place / "vanilla", tuned)
    config = run.config.model_dump(mode="json")
    del config["model"], config["diffusion"]
    config |= {"pretrained": {"path": "a/pipeline"}, "condition": {"kind": "none"}}
    config["train"]["method"] = "vanilla"
    (tuned / "config.yaml").write_text(json.dumps(config))
    (shown,) = write_run_report([tuned], tmp_path / "page.html")
    assert shown.operations is None
    assert "No operations: the network of a pretrained pipeline is not counted." in shown.lacks
    html = (tmp_path / "page.html").read_text()
    assert html.count("operations are not known") == 1 and html.count("<svg") == 2


def test_validations_beyond_the_checkpoint_have_no_operations(place):
    (run,) = read_runs([place / "pyramid"])
    spent, _ = operations(run)
    early = run.losses[run.losses[:, 1] <= 4]
    costs = Costed(replace(run, losses=early), spent[: len(early)], "").costs(np.array([0, 2, 4, 6]), np.zeros(4))
    there = run.losses[:, 1] <= 2
    assert costs["operations"].tolist() == pytest.approx(
        [np.nan, spent[there][-1], spent[len(early) - 1], np.nan], nan_ok=True
    )


def test_long_runs_are_thinned_out(place):
    (run,) = read_runs([place / "vanilla"])
    steps = np.arange(1, 200_001)
    values = 2 + np.random.default_rng(0).normal(size=len(steps))
    losses = np.stack([steps * 0.1, steps, np.zeros(len(steps)), values], axis=1)
    state = run.state | {"step": 200_000, "seconds": 20_000.0}
    (row,) = Curves([Costed(replace(run, losses=losses, state=state), steps * 1e12, "")]).losses()
    assert max(map(len, row.svgs)) < 40_000
    assert re.search(r"vanilla from (2|2\.0\d+|1\.9\d+) to \S+ at step 200000", row.description)
    assert "training hours" in row.svgs[1] and "PFLOP" in row.svgs[2]


def test_refusals_say_what_to_type(place, tmp_path):
    def no_page(*arguments):
        message = refused("report", *arguments, "--out", tmp_path / "page.html")
        assert not (tmp_path / "page.html").exists()
        return message

    (tmp_path / "empty").mkdir()
    assert "does not exist; a run is what" in no_page(place / "pyramid", tmp_path / "absent")
    assert "holds no config.yaml; a run is what `tpdiff train RECIPE --out runs/NAME`" in no_page(tmp_path / "empty")
    assert f"type: tpdiff report {place / 'begun'} {place / 'pyramid'} {place / 'vanilla'}" in no_page(place)
    checkpoint = place / "pyramid" / "checkpoints" / "step-00000006"
    assert f"type: tpdiff report {place / 'pyramid'}" in no_page(checkpoint)
    assert "is given twice" in no_page(place / "pyramid", place / "begun" / ".." / "pyramid")
    (tmp_path / "empty" / "config.yaml").write_text("autoencoder: {}\n")
    assert "is a run of an autoencoder" in no_page(tmp_path / "empty")
    (tmp_path / "empty" / "config.yaml").write_text("nothing: 1\n")
    assert "is not a run's configuration: unknown key nothing" in no_page(tmp_path / "empty")
    with pytest.raises(ValueError, match="lies in the run"):
        write_run_report([place / "pyramid"], place / "pyramid" / "report.html")
    with pytest.raises(ValueError, match=r"nearest: .*page\.html"):
        write_run_report([place / "pyramid"], tmp_path / "page.pdf")


def test_the_command_writes_the_page_and_says_what_is_not_there(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["report", str(place / "vanilla"), str(place / "begun")])
    assert stop.value.code == 0
    said = capsys.readouterr()
    assert re.fullmatch(r"report: report\.html \(\d+\.\d\d MB\)\n", said.out)
    assert "begun: No complete checkpoint yet" in said.err and "vanilla: No validation" in said.err
    assert f"tpdiff report {place / 'vanilla'} {place / 'begun'} --out report.html" in (
        tmp_path / "report.html"
    ).read_text("utf-8")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_it_without_complaint(html, tmp_path):
    probe = """<script>addEventListener("load", () => setTimeout(() => {
      const state = [...document.querySelectorAll("video")].map((v) => `${v.videoWidth}x${v.videoHeight}:${v.error}`);
      document.body.setAttribute("data-state", state.join(" "));
      document.body.setAttribute("data-plots", [...document.querySelectorAll("svg")].every(
        (s) => s.getBoundingClientRect().height > 100));
      document.body.setAttribute("data-wide", document.documentElement.scrollWidth > innerWidth);
    }, 600))</script>"""
    strict, probed = browse(html, probe, tmp_path)
    body = dict(Page(probed).tags)["body"]
    assert body["data-state"].split() == ["16x16:null"] * 6
    assert (body["data-plots"], body["data-wide"]) == ("true", "false")
    assert "Pause all clips" in strict


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_long_names_widen_no_page(place, tmp_path):
    names = [f"{'a_long_name_' * 12}{n}" for n in range(2)]
    for name in names:
        shutil.copytree(place / "vanilla", tmp_path / name)
    write_run_report([tmp_path / name for name in names], tmp_path / "page.html")
    probe = """<script>addEventListener("load", () => document.body.setAttribute(
      "data-wide", document.documentElement.scrollWidth > innerWidth))</script>"""
    _, probed = browse((tmp_path / "page.html").read_text("utf-8"), probe, tmp_path)
    assert dict(Page(probed).tags)["body"]["data-wide"] == "false"
