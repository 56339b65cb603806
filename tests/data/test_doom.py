"""Recorded gameplay: the caption's action is what the pictures do."""

import builtins
import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tpdiff.data import DataError, read_video, record_doom
from tpdiff.data import doom as doom_module

needs_game = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("vizdoom") is None, reason="VizDoom is not installed"
)
OPTIONS = {"clips": 20, "frames": 9, "size": (48, 64), "seed": 1, "test_share": 0.25}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return record_doom(tmp_path_factory.mktemp("doom") / "set", **OPTIONS)


@pytest.fixture(scope="module")
def rows(made):
    return [json.loads(line) for line in (made.folder / "metadata.jsonl").read_text().splitlines()]


def shift(frames):
    """Mean movement of the picture to the right, in pixels a frame, by the best match of neighbouring frames."""
    grey = frames.float().mean(dim=3)[:, 12:36]
    moves = []
    for first, second in pairwise(grey):
        errors = {}
        for step in range(-14, 15):
            a, b = (first[:, : 64 - step], second[:, step:]) if step >= 0 else (first[:, -step:], second[:, :step])
            errors[step] = float((a - b).abs().mean())
        moves.append(min(errors, key=errors.get))
    return sum(moves) / len(moves)


@needs_game
def test_geometry_captions_and_splits(made, rows):
    assert made.splits == {"test": 5, "train": 15} and made.written == 20
    assert len(made.captions) == 5 and "a marine turns left in a maze of coloured rooms" in made.captions
    episodes = {split: {row["episode"] for row in rows if row["split"] == split} for split in ("train", "test")}
    assert not episodes["train"] & episodes["test"] and len(episodes["train"] | episodes["test"]) == 20
    assert len({(row["action"], row["caption"]) for row in rows}) == 5
    for split in ("train", "test"):
        assert {row["action"] for row in rows if row["split"] == split} == set(
            doom_module.SCENARIOS["my_way_home"].actions
        )
    for row in rows:
        assert read_video(made.folder / row["file_name"]).shape == (9, 48, 64, 3)
        assert (row["fps"], row["scenario"]) == (17.5, "my_way_home")


@needs_game
def test_pictures_move_against_the_turn(made, rows):
    for action, sign in (("turn_left", 1), ("turn_right", -1)):
        moves = [shift(read_video(made.folder / row["file_name"])) for row in rows if row["action"] == action]
        assert len(moves) == 4 and all(move * sign > 0.5 for move in moves), (action, moves)


@needs_game
def test_pace_is_the_speed_of_the_camera(tmp_path):
    ways = {}
    for pace in (1.0, 0.5):
        made = record_doom(tmp_path / str(pace), pace=pace, clips=10, frames=9, size=(48, 64), scenario="basic", seed=3)
        lines = (made.folder / "metadata.jsonl").read_text().splitlines()
        turns = [row for row in map(json.loads, lines) if row["action"].startswith("turn")]
        ways[pace] = sum(abs(shift(read_video(made.folder / row["file_name"]))) for row in turns) / len(turns)
    assert ways[1.0] == pytest.approx(2 * ways[0.5], rel=0.3)
    with pytest.raises(DataError, match="pace"):
        record_doom(tmp_path / "1.0", pace=0.9, clips=10, frames=9, size=(48, 64), scenario="basic", seed=3)


@needs_game
def test_places_vary_and_no_clip_stands_still(made, rows):
    clips = [read_video(made.folder / row["file_name"]).float() for row in rows]
    firsts = torch.stack([clip[0] for clip in clips])
    apart = torch.cdist(firsts.flatten(1), firsts.flatten(1), p=1) / firsts[0].numel()
    assert apart[~torch.eye(len(clips), dtype=torch.bool)].min() > 3
    assert all((clip[-1] - clip[-3]).abs().mean() > 1 for clip in clips)


@needs_game
def test_one_action_is_held_and_no_clip_crosses_an_episode(monkeypatch, tmp_path):
    log = []

    class Spy:
        def __init__(self, game):
            self.game = game

        def __getattr__(self, name):
            def call(*arguments):
                result = getattr(self.game, name)(*arguments)
                log.append((name, arguments, result))
                return result

            return call

    clip = doom_module._clip
    monkeypatch.setattr(doom_module, "_clip", lambda game, *rest: clip(Spy(game), *rest))
    record_doom(tmp_path / "set", clips=2, frames=137, size=(24, 32), scenario="basic", test_share=0)
    starts = [place for place, entry in enumerate(log) if entry[0] == "new_episode"]
    assert len(starts) > 2  # an episode has 300 steps: some ended too soon and were dropped
    kept = 0
    for first, last in zip(starts, [*starts[1:], len(log)], strict=True):
        part = log[first:last]
        if sum(name == "get_state" for name, _, _ in part) < 137:
            continue
        kept += 1
        begin = next(place for place, entry in enumerate(part) if entry[0] == "get_state")
        presses = [arguments for name, arguments, _ in part[begin:] if name == "make_action"]
        assert len(presses) == 136 and all(press == presses[0] for press in presses)
        assert sum(amount != 0 for amount in presses[0][0]) == 1 and presses[0][1] == 2
        assert not any(result for name, _, result in part if name == "is_episode_finished")
    assert kept == 2


@needs_game
def test_same_seed_same_frames_even_after_a_kill(made, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def stop(done, total):
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record_doom("set", progress=stop, **OPTIONS)
    assert not Path("set/metadata.jsonl").exists()
    assert record_doom("set", **OPTIONS).written == 13
    assert record_doom("set", **OPTIONS).written == 0
    for row in rows:
        assert torch.equal(read_video(made.folder / row["file_name"]), read_video(Path("set") / row["file_name"]))
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # the engine leaves nothing behind


@needs_game
def test_a_complete_set_needs_no_game(made, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*.mp4")}
    monkeypatch.setattr(doom_module, "require_vizdoom", lambda: pytest.fail("the game was started"))
    again = record_doom(made.folder, **OPTIONS)
    assert again.written == 0 and again.splits == made.splits and again.captions == made.captions
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*.mp4")} == before


@needs_game
@pytest.mark.parametrize("scenario", sorted(doom_module.SCENARIOS))
def test_every_scenario_records(scenario, tmp_path):
    actions = doom_module.SCENARIOS[scenario].actions
    made = record_doom(tmp_path / "set", clips=len(actions), frames=5, size=(48, 64), scenario=scenario, test_share=0)
    assert len(made.captions) == len(actions)
    assert all(doom_module.SCENARIOS[scenario].place in caption for caption in made.captions)


@needs_game
def test_a_clip_longer_than_any_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(doom_module, "ATTEMPTS", 2)
    with pytest.raises(DataError, match=r"2 episodes gave no clip of 400 frames \(800 game steps\)"):
        record_doom(tmp_path / "set", clips=1, frames=400, size=(48, 64), scenario="basic")


def test_refusals(tmp_path, monkeypatch):
    for options, message in [
        ({"scenario": "my_way_hone"}, "'my_way_hone' is unknown; did you mean my_way_home"),
        ({"scenario": "nope"}, "'nope' is unknown. Known: "),
        ({"frames": 0}, "frames 0 is below 1"),
        ({"frame_skip": 0}, "frame_skip 0 is below 1"),
        ({"pace": 0.0}, r"pace 0.0 is not in \(0, 2\]"),
        ({"size": (0, 64)}, r"size \(0, 64\)"),
        ({"fps": 0.0}, r"fps 0\.0 is not above 0"),
        ({"clips": 0}, "clips 0 is below 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            record_doom(tmp_path / "set", **options)
    real = builtins.__import__

    def without(name, *rest, **more):
        if name == "vizdoom":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r'pip install "tpdiff\[games\]"'):
        record_doom(tmp_path / "set")
    assert not (tmp_path / "set").exists()
