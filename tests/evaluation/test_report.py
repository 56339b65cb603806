import base64
import io
import re
import shutil
from dataclasses import replace

import av
import pytest
import torch
from pages import CHROMIUM, Page, browse
from rich.console import Console

from tpdiff.data import write_video
from tpdiff.evaluation.plots import smooth
from tpdiff.evaluation.report import print_table, video_rows, write_report
from tpdiff.evaluation.results import ArmResult, Comparison, LatencyRow, LossPoint, ShippedClips, StageView

EVIL = '<script>document.title="owned"</script> "onerror="alert(1) {{ 7 * 7 }} \'&'
CAPTIONS = ["a ball falls", EVIL]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison")
    for index, name in enumerate(("real", "vanilla", "pyramid")):
        for clip in range(2):
            frames = torch.full((4, 48, 64, 3), 60 * index + 30 * clip, dtype=torch.uint8)
            write_video(folder / f"{name}/{clip}.mp4", frames, 8)
    for stage, frames in ((1, 2), (0, 4)):
        write_video(folder / f"stages/{stage}.mp4", torch.zeros(frames, 24, 32, 3, dtype=torch.uint8), 8)
    return folder


@pytest.fixture(scope="module")
def comparison():
    def arm(name, factors, seconds, steps, stages):
        config = {"train": {"lr": 0.0003, "batch": 16}, "pyramid": {"factors": factors}}
        losses = [LossPoint(float(i), i + 1, i % max(1, len(stages)), 1 / (i + 1)) for i in range(40)]
        videos = [f"{name}/0.mp4", f"{name}/1.mp4"]
        return ArmResult(name, f"The {name}", config, seconds, steps, 7654321, losses, videos, CAPTIONS, stages, 1234)

    views = [
        StageView(1, (2, 1, 1), 2, 24, 32, "stages/1.mp4", 1.0, 0.5),
        StageView(0, (1, 1, 1), 4, 24, 32, "stages/0.mp4", 0.7071, 0.0),
    ]
    return Comparison(
        title="Two ways & a title",
        command='tpdiff demo --caption "<b>"',
        created="2025-01-01 12:00",
        minutes=2.5,
        machine={"cpu": "A & B", "gpus": []},
        data={"clips": 64},
        real=["real/0.mp4", "real/1.mp4"],
        real_captions=CAPTIONS,
        arms=[
            arm("vanilla", [[1, 1, 1]], 600.0, 812, []),
            arm("pyramid", [[1, 1, 1], [2, 1, 1]], 601.0, 1490, views),
        ],
        latency=[
            LatencyRow("vanilla", "30", [11.0, 12.0, 13.0], 4_000_000_000_000, False),
            LatencyRow("pyramid", "15-15", [6.0, 5.0, 4.0], 1_600_000_000_000, False),
        ],
        notes=["See https://example.org for <more>."],
    )


@pytest.fixture(scope="module")
def html(comparison, folder, tmp_path_factory):
    return write_report(comparison, folder, tmp_path_factory.mktemp("out") / "deep" / "report.html").read_text("utf-8")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_results_survive_json(comparison, tmp_path):
    assert Comparison.load(comparison.save(tmp_path / "new" / "comparison.json")) == comparison
    (tmp_path / "bad.json").write_text('{"title": "t", "surprise": 1}')
    with pytest.raises(ValueError, match=r"bad\.json.*surprise"):
        Comparison.load(tmp_path / "bad.json")
    with pytest.raises(ValueError):
        replace(comparison, minutes=float("nan")).save(tmp_path / "nan.json")
    assert not (tmp_path / "nan.json").exists()


def test_nothing_outside_the_file_is_referred_to(html, page):
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "poster", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value[:80])
    assert not page.of("link") and not page.of("iframe")
    assert not re.search(r"url\((?!#)|@import", html)
    assert re.findall(r"https?://[\w./-]+", html) == ["https://example.org"]  # the note's text
    policy = next(m["content"] for m in page.of("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_every_video_is_embedded_whole(page, folder):
    videos = [attributes["src"] for attributes in page.of("video")]
    assert len(videos) == 8
    embedded = [base64.b64decode(source.removeprefix("data:video/mp4;base64,")) for source in videos]
    assert set(embedded) == {path.read_bytes() for path in folder.glob("*/*.mp4")}
    sizes = set()
    for content in embedded:
        with av.open(io.BytesIO(content)) as container:
            frames = list(container.decode(video=0))
            sizes.add((len(frames), frames[0].height, frames[0].width))
    assert sizes == {(4, 48, 64), (2, 24, 32), (4, 24, 32)}
    for attributes in page.of("video"):
        assert {"autoplay", "loop", "muted", "playsinline", "controls"} <= attributes.keys()
        assert attributes["aria-label"]


def test_a_malicious_caption_is_only_text(html, page):
    assert EVIL in page.headings
    assert len(page.of("script")) == 1
    assert '<script>document.title="owned"' not in html
    assert all("onerror" not in attributes for _, attributes in page.tags)
    assert any(attributes["aria-label"] == f"Real: {EVIL}" for attributes in page.of("video"))


def test_rows_pair_captions_and_leave_gaps(comparison):
    first, second = comparison.arms
    uneven = replace(first, videos=["a.mp4", "b.mp4", "c.mp4"], captions=["x", "a ball falls", "x"])
    rows = video_rows(replace(comparison, arms=[uneven, second]))
    assert [(row.caption, row.videos) for row in rows] == [
        ("a ball falls", ["real/0.mp4", "b.mp4", "pyramid/0.mp4"]),
        (EVIL, ["real/1.mp4", None, "pyramid/1.mp4"]),
        ("x", [None, "a.mp4", None]),
        ("x", [None, "c.mp4", None]),
    ]


def test_only_differing_keys_are_highlighted(html):
    rows = re.findall(r'<tr( class="differs")?><th scope="row">([^<]+)</th>((?:<td>[^<]*</td>)+)</tr>', html)
    marked = {key: bool(differs) for differs, key, _ in rows}
    assert marked == {"train.lr": False, "train.batch": False, "pyramid.factors": True}
    assert "<td>[[1, 1, 1]]</td><td>[[1, 1, 1], [2, 1, 1]]</td>" in html


def test_tables_show_the_data(page, html):
    raw = [float(attributes["value"]) for attributes in page.of("data")]
    training = [600.0, 812, 1234, 7654321, 601.0, 1490, 1234, 7654321]
    assert raw == training + [12.0, 4e12, 1.0, 5.0, 1.6e12, 2.4, 2.5, 0.96]
    row = page.cells.index("15-15")
    shown = ["without", "5", "4–6", "1,600", "2.40×", "1.83–3.25", "2.50×", "96 %"]
    assert page.cells[row + 1 : row + 9] == shown
    row = page.cells.index("The pyramid", page.cells.index("Optimizer steps"))
    assert page.cells[row + 1 : row + 6] == ["601", "1,490", "1,234", "7,654,321", "2.48"]
    assert "2 frames of 32×24 pixels, 1/2 of the frame rate" in html and "t from 0.707 to 0.000" in html


def test_one_plot_for_every_stage_of_every_arm(page, html):
    labels = [a["aria-label"] for a in page.of("figure") if a.get("role") == "img"]
    starts = ["The vanilla", "The pyramid, stage 1 (coarsest)", "The pyramid, stage 0 (finest)"]
    assert [label.split(": ")[0] for label in labels] == starts
    assert html.count("<svg") == 3 and "#010203" not in html and "currentColor" in html
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(ids)


def test_smoothing_is_a_centred_mean():
    assert smooth([0, 3, 6, 0, 0], 3).tolist() == [1.5, 3, 3, 2, 0]
    assert smooth([5.0], 9).tolist() == [5.0]


def test_an_empty_comparison_still_makes_a_page(tmp_path):
    empty = Comparison("Nothing yet", "", "", 0, {}, {})
    assert "Nothing yet" in write_report(empty, tmp_path, tmp_path / "report.html").read_text("utf-8")


@pytest.mark.parametrize("path", ["../outside.mp4", "real/../../outside.mp4", "{outside}", "clip.avi", "missing.mp4"])
def test_bad_video_paths_are_refused_before_writing(comparison, folder, tmp_path, path):
    outside = folder.parent / "outside.mp4"
    shutil.copy(folder / "real/0.mp4", outside)
    shutil.copy(folder / "real/0.mp4", folder / "clip.avi")
    path = path.format(outside=outside)
    bad = replace(comparison, real=[path], real_captions=["x"])
    with pytest.raises(FileNotFoundError if "missing" in path else ValueError, match=re.escape(repr(path))):
        write_report(bad, folder, tmp_path / "report.html")
    assert not any(tmp_path.iterdir())


def test_terminal_table_holds_the_figures(comparison):
    console = Console(file=io.StringIO(), width=120)
    hostile = replace(comparison.arms[0], label="[red]x[/nope]")
    print_table(replace(comparison, arms=[hostile, *comparison.arms[1:]]), console)
    text = console.file.getvalue()
    for figure in ("[red]x[/nope]", "1,490", "7,654,321", "15-15", "2.40×", "2.50×", "96%", "1,600"):
        assert figure in text


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_plays_it_without_complaint(html, tmp_path):
    # The browser's clock runs ahead of its decoders: real time passes while the probe counts.
    probe = """<script>addEventListener("load", () => setTimeout(function look(turn = 0) {
      const clips = [...document.querySelectorAll("video")];
      if (turn < 300 && clips.some((v) => v.readyState < 2)) {
        for (let i = 0; i < 5e6; i++) Math.sqrt(i);
        return setTimeout(look, 10, turn + 1);
      }
      const state = clips.map((v) => `${v.videoWidth}x${v.videoHeight}:`
        + `${v.readyState >= 2}:${v.error}:${v.getBoundingClientRect().width >= 150}`);
      document.body.setAttribute("data-state", state.join(" "));
      document.body.setAttribute("data-button", document.getElementById("toggle").textContent);
      document.body.setAttribute("data-plots", [...document.querySelectorAll("svg")].every(
        (s) => s.getBoundingClientRect().height > 100));
    }, 100))</script>"""
    strict, probed = browse(html, probe, tmp_path)
    body = dict(Page(probed).tags)["body"]
    state = body["data-state"].split()
    assert sorted(set(state)) == ["32x24:true:null:true", "64x48:true:null:true"] and len(state) == 8
    assert body["data-plots"] == "true"
    # Under its own policy the page's script ran: it named the button and took the controls off the clips.
    clips = Page(strict).of("video")
    assert "Pause all clips" in strict and all("controls" not in attributes for attributes in clips)


def test_shipped_clips_stand_beside_the_others_and_say_what_they_are(comparison, folder, tmp_path):
    clips = ShippedClips("Shipped <b>vanilla</b>", "trained beforehand for 30 minutes", ["real/1.mp4"], CAPTIONS[:1])
    whole = replace(comparison, shipped=[clips])
    assert Comparison.load(whole.save(tmp_path / "comparison.json")) == whole
    page = write_report(whole, folder, tmp_path / "report.html").read_text()
    assert "Shipped &lt;b&gt;vanilla&lt;/b&gt;" in page and "trained beforehand for 30 minutes" in page
    row = next(row for row in video_rows(whole) if row.caption == CAPTIONS[0])
    assert row.videos[-1] == "real/1.mp4" and len(row.videos) == 2 + len(comparison.arms)
    absent = replace(whole, shipped=[replace(clips, videos=["real/9.mp4"])])
    with pytest.raises(FileNotFoundError, match=r"real/9\.mp4"):
        write_report(absent, folder, tmp_path / "other.html")
