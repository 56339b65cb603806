"""The demo and its arms, on rendered digits in place of a recorded game."""

import json
import shlex
import signal
import sys
import threading
import time
from itertools import groupby, pairwise

import av
import pytest
import torch

from tpdiff.cli import main
from tpdiff.evaluation import demo
from tpdiff.training.checkpoint import checkpoints

TINY = [
    "data.frames=8",
    "data.height=16",
    "data.width=16",
    "data.fps=8",
    "data.latents=none",
    "model.autoencoder=null",
    "model.patch_size=[1,16,16]",
    "model.temporal_overlap=0",
    "model.hidden_size=24",
    "model.num_layers=1",
    "model.num_attention_heads=2",
    "train.batch_size=4",
    "train.precision='no'",
    "log.every_steps=1",
]


@pytest.fixture
def arms_of(tmp_path, clips):
    return lambda seconds=0.6, *overrides: demo.build_arms(tmp_path / "demo", clips, seconds, [*TINY, *overrides])


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_twins_differ_in_the_method_alone(arms_of):
    trainers = arms_of().trainers
    vanilla, pyramid = trainers["vanilla"], trainers["pyramid"]
    assert list(trainers) == ["vanilla", "pyramid"]
    assert len(vanilla.pyramid) == 1
    assert len(pyramid.pyramid) == 3
    a, b = (t.config.model_dump() for t in trainers.values())
    assert a["train"].pop("method") != b["train"].pop("method")
    assert a == b
    assert same(vanilla.network, pyramid.network)
    assert vanilla.dataset is pyramid.dataset
    for _ in range(4):
        assert torch.equal(vanilla._next_batch()["video"], pyramid._next_batch()["video"])


def test_both_are_warm_before_the_clock_starts(arms_of, monkeypatch):
    warmed = []
    monkeypatch.setattr(demo, "warm_up", warmed.append)
    trainers = arms_of().trainers
    assert warmed == list(trainers.values())


def test_slices_alternate_and_both_get_the_same_seconds(arms_of):
    arms = arms_of(0.6)
    told = []
    arms.run(slice_seconds=0.15, report=lambda name, status: told.append((name, status.seconds, status.step)))
    turns = [(name, list(group)) for name, group in groupby(told, key=lambda entry: entry[0])]
    assert [name for name, _ in turns[:2]] == ["vanilla", "pyramid"]
    for name, trainer in arms.trainers.items():
        own = [list(group) for n, group in turns if n == name]
        seconds = [0.0, *(entry[1] for group in own for entry in group)]
        longest = max(b - a for a, b in pairwise(seconds))
        ends = [0.0, *(group[-1][1] for group in own)]
        assert ends[1] <= 0.15 + longest, "the first turn was a slice, not the whole budget"
        for start, end in pairwise(ends[:-1]):
            assert 0.15 <= end - start <= 0.15 + longest
        assert trainer.done
        assert 0.6 <= trainer.seconds <= 0.6 + longest
        assert trainer.losses[-2][0] < 0.6
        assert trainer.step == own[-1][-1][2]
        assert [p.name for p in checkpoints(trainer.out)] == [f"step-{trainer.step:08d}"]


def test_interrupted_arms_go_on_where_they_were(arms_of):
    arms = arms_of(0.6)
    arms.run(0.1, lambda name, status: arms.request_stop() if name == "pyramid" and status.seconds > 0.05 else None)
    assert not any(trainer.done for trainer in arms.trainers.values())
    before = {name: (trainer.step, trainer.seconds) for name, trainer in arms.trainers.items()}
    again = arms_of(0.6)
    assert {name: (trainer.step, trainer.seconds) for name, trainer in again.trainers.items()} == before
    again.run(0.1)
    for name, trainer in again.trainers.items():
        assert trainer.done
        assert trainer.step > before[name][0]
        assert [point[1] for point in trainer.losses] == list(range(1, trainer.step + 1))


def test_finished_arms_are_left_alone(arms_of):
    arms = arms_of(0.2)
    arms.run(0.1)
    steps = {name: trainer.step for name, trainer in arms.trainers.items()}
    again = arms_of(0.2)
    again.run(0.1)
    assert {name: trainer.step for name, trainer in again.trainers.items()} == steps


def test_arms_that_were_killed_before_a_checkpoint_start_again(arms_of):
    """No checkpoint falls due before the end, so a kill leaves none; the demo must not be stuck then."""
    arms_of()
    again = arms_of()
    assert [trainer.step for trainer in again.trainers.values()] == [0, 0]


@pytest.mark.parametrize(("minutes", "seconds"), [(15, 350), (5, 50)])
def test_training_gets_what_the_rest_leaves(minutes, seconds):
    assert demo.training_seconds(minutes) == seconds


@pytest.mark.parametrize("minutes", [3.6, 1, 0, -2])
def test_too_few_minutes_are_refused(minutes):
    with pytest.raises(ValueError, match="leave no time to train; nearest: ") as caught:
        demo.training_seconds(minutes)
    assert demo.training_seconds(float(str(caught.value).split()[-1])) > 0


def frames_of(path):
    with av.open(str(path)) as container:
        return [(frame.height, frame.width) for frame in container.decode(video=0)]


@pytest.fixture
def quick(monkeypatch, clips):
    """The command with digits for the game and a moment for training."""
    monkeypatch.setattr(demo, "record", lambda out, progress=None: clips)
    monkeypatch.setattr(demo, "training_seconds", lambda minutes: minutes / 10)
    monkeypatch.setattr(demo, "STEPS", 4)


def tpdiff(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code or 0


def test_the_command_ends_in_a_report(quick, tmp_path, capsys):
    out = tmp_path / "demo"
    assert tpdiff("demo", "--minutes", 4, "--out", out, "--json", *TINY) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((out / "comparison.json").read_text())
    assert [arm["name"] for arm in said["arms"]] == ["vanilla", "pyramid"]
    for arm in said["arms"]:
        assert 0.4 <= arm["seconds"] < 2
        assert arm["steps"] == arm["losses"][-1]["step"]
        assert arm["clips"] == arm["steps"] * 4
        assert len(arm["videos"]) == len(arm["captions"]) == 2
        for video in arm["videos"]:
            assert frames_of(out / video) == [(16, 16)] * 8
    views = said["arms"][1]["stages"]
    assert [(v["stage"], v["frames"]) for v in views] == [(2, 2), (1, 4), (0, 8)]
    assert [len(frames_of(out / v["video"])) for v in views] == [2, 4, 8]
    assert said["arms"][0]["stages"] == []
    assert [(row["name"], row["decode"]) for row in said["latency"]] == [
        ("vanilla", False),
        ("pyramid", False),
        ("vanilla", True),
        ("pyramid", True),
    ]
    assert {row["steps"] for row in said["latency"]} == {"4", "2-1-1"}
    assert said["latency"][0]["flops"] > said["latency"][1]["flops"] > 0
    assert len(said["real"]) == len(said["real_captions"]) == 2
    page = (out / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html>")
    assert page.count("data:video/mp4;base64,") >= 9
    for caption in said["real_captions"]:
        assert caption in page
    # A second call trains no more and reports again.
    assert tpdiff("demo", "--minutes", 4, "--out", out, "--json", *TINY) == 0
    again = json.loads(capsys.readouterr().out)
    assert [arm["steps"] for arm in again["arms"]] == [arm["steps"] for arm in said["arms"]]


def test_an_interrupted_command_says_how_to_go_on(quick, tmp_path, capsys):
    out, before = tmp_path / "my demo", signal.getsignal(signal.SIGINT)

    def interrupt():
        end = time.monotonic() + 60
        while signal.getsignal(signal.SIGINT) is before and time.monotonic() < end:
            time.sleep(0.01)  # until training has begun
        time.sleep(0.5)
        signal.raise_signal(signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert tpdiff("demo", "--minutes", 600, "--out", out, *TINY) == 130
    said = capsys.readouterr().out
    assert all(checkpoints(out / name) for name in ("vanilla", "pyramid"))
    assert not (out / "report.html").exists()
    (line,) = said.splitlines()
    assert shlex.split(line.split("continue with: ")[1]) == [
        *("tpdiff", "demo", "--minutes", "600", "--out", str(out)),
        *TINY,
    ]


def test_every_stage_keeps_its_share_of_the_points():
    """Where a step goes through all stages in turn, no stride falls on one of them alone."""
    losses = [(0.1 * n, n // 3 + 1, n % 3, 1.0) for n in range(3 * 3 * demo.POINTS)]
    kept = demo.thinned(losses)
    assert len(kept) == demo.POINTS and kept == sorted(kept)
    assert [sum(stage == k for _, _, stage, _ in kept) for k in range(3)] == [demo.POINTS // 3] * 3


def test_a_fresh_start_forgets_the_old_one(quick, tmp_path):
    out = tmp_path / "demo"
    assert tpdiff("demo", "--minutes", 1, "--out", out, *TINY) == 0
    assert tpdiff("demo", "--minutes", 1, "--out", out, *TINY, "train.lr=2e-3") == 2
    assert tpdiff("demo", "--minutes", 1, "--out", out, "--fresh", *TINY, "train.lr=2e-3") == 0


def test_nothing_but_a_demo_is_removed(quick, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    for name in ("thesis.txt", "data/notes.txt", "report.html"):
        (tmp_path / name).write_text("mine")
    assert tpdiff("demo", "--minutes", 1, "--out", tmp_path, "--fresh", *TINY) == 2
    said = capsys.readouterr().err
    assert f"error: {tmp_path} does not say that it is a demo's (it has no demo.json), so nothing is removed" in said
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["data", "notes.txt", "report.html", "thesis.txt"]


def test_a_demo_needs_a_folder(quick, tmp_path, capsys):
    (tmp_path / "film.mp4").write_text("mine")
    assert tpdiff("demo", "--minutes", 1, "--out", tmp_path / "film.mp4", *TINY) == 2
    assert f"error: {tmp_path / 'film.mp4'} is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "film.mp4").read_text() == "mine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.method=vanilla", "train.method is what a demo compares, vanilla and stagewise; leave it out"),
        ("data.path=mine", "data.path: a demo records its videos; for yours: tpdiff train text-to-video"),
    ],
)
def test_what_a_demo_compares_is_not_an_option(quick, tmp_path, capsys, override, said):
    assert tpdiff("demo", "--minutes", 1, "--out", tmp_path / "demo", *TINY, override) == 2
    assert f"error: {said}" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_demo_is_kept_where_a_fresh_one_cannot_be(quick, tmp_path, capsys):
    demo.begin(tmp_path)
    (tmp_path / "report.html").write_text("made in an hour")
    assert tpdiff("demo", "--minutes", 1, "--out", tmp_path, "--fresh", *TINY, "train.learning_rate=1") == 2
    assert "unknown key train.learning_rate" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "made in an hour"


def test_a_demo_is_kept_where_no_other_can_be_recorded(monkeypatch, tmp_path, capsys):
    demo.begin(tmp_path)
    (tmp_path / "report.html").write_text("made in an hour")
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    assert tpdiff("demo", "--minutes", 5, "--out", tmp_path, "--fresh", *TINY) == 2
    assert 'recording gameplay needs VizDoom: pip install "tpdiff[games]"' in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text() == "made in an hour"


def test_a_fresh_start_leaves_what_lies_beside_a_demo(tmp_path):
    out, elsewhere = tmp_path / "demo", tmp_path / "elsewhere"
    demo.begin(out)
    for name in ("latents/a.npy", "vanilla/config.yaml", "samples/real/0.mp4", "report.html", "mine/notes.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("made")
    elsewhere.mkdir()
    (elsewhere / "clip.mp4").write_text("kept")
    (out / "data").symlink_to(elsewhere)
    demo.begin(out)
    assert (out / "report.html").exists()
    demo.begin(out, fresh=True)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*")) == ["demo.json", "mine", "mine/notes.txt"]
    assert (elsewhere / "clip.mp4").exists()


def test_too_few_minutes_leave_nothing(tmp_path, capsys):
    assert tpdiff("demo", "--minutes", 2, "--out", tmp_path / "demo") == 2
    assert capsys.readouterr().err == "error: 2 minutes leave no time to train; nearest: 4\n"
    assert not (tmp_path / "demo").exists()


def test_arms_stop_at_a_time_of_the_clock_and_go_on(arms_of):
    arms = arms_of(0.6)
    arms.run(slice_seconds=0.05, until=0.2, save_slices=True)
    trainers = list(arms.trainers.values())
    assert all(0.2 <= t.seconds < 0.5 and not t.done for t in trainers)
    assert all([p.name for p in checkpoints(t.out)][-1] == f"step-{t.step:08d}" for t in trainers)
    assert all(len(checkpoints(t.out)) == 2 for t in trainers), "a checkpoint after every slice, the newest kept"
    arms.run(slice_seconds=0.05)
    assert all(t.done for t in trainers)
