"""Moving digits: they stay in the canvas, go where the caption says, and bounce."""

import json

import numpy as np
import pytest
import torch

from tpdiff.data import DataError, read_video, render_digits
from tpdiff.data.digits import DIRECTIONS, _handwriting, render_bounce


def centroids(folder, row):
    """(T, 2): the centre of light of each frame, x and y in pixels."""
    frames = read_video(folder / row["file_name"])[..., 0].double()
    total = frames.sum(dim=(1, 2))
    x = (frames.sum(dim=1) * torch.arange(frames.shape[2])).sum(dim=1) / total
    y = (frames.sum(dim=2) * torch.arange(frames.shape[1])).sum(dim=1) / total
    return torch.stack([x, y], dim=1)


def test_a_clip_has_the_geometry_asked_for(digits, rows):
    assert digits.splits == {"test": 6, "train": 18} and digits.written == 24
    for row in rows:
        frames = read_video(digits.folder / row["file_name"])
        assert frames.shape == (16, 32, 32, 3)
        assert frames[0, 0, 0].max() < 24 and frames.max() > 180  # white on black
        assert row["split"] == row["file_name"].split("/")[0] and row["fps"] == 8


def test_the_caption_tells_digit_and_first_direction(digits, rows):
    assert digits.captions == tuple(sorted({row["caption"] for row in rows})) and len(digits.captions) > 15
    for row in rows:
        assert row["caption"] == f"the digit {row['digit']} moves {row['direction']}"
        step = centroids(digits.folder, row)[:4].diff(dim=0).mean(dim=0)
        for way, moved in zip(DIRECTIONS[row["direction"]], step.tolist(), strict=True):
            assert way * moved > 1 if way else abs(moved) < 0.25


def test_every_digit_bounces_and_stays_whole(digits, rows):
    for row in rows:
        places = centroids(digits.folder, row)
        axis = 0 if DIRECTIONS[row["direction"]][0] else 1
        steps = places[:, axis].diff()
        assert steps.min() < -0.5 and steps.max() > 0.5  # it came back
        assert places.min() > 6 and places.max() < 26
        light = read_video(digits.folder / row["file_name"])[..., 0].double().sum(dim=(1, 2))
        assert light.min() > 0.9 * light.max()  # nothing was cut off at a wall


def test_even_pixels_move_with_constant_speed():
    glyph = torch.zeros(8, 8)
    glyph[3:5, 3:5] = 1
    frames = render_bounce(glyph, (0.0, 0.5), (0.05, 0.0), 12, 32)[..., 0].double()
    x = (frames.sum(dim=1) * torch.arange(32)).sum(dim=1) / frames.sum(dim=(1, 2))
    expected = [7.5 + min(1.6 * t, 32 - 1.6 * t) for t in range(12)]  # the free way is 16 pixels
    assert x.tolist() == pytest.approx(expected, abs=0.05)


def test_the_splits_share_no_handwriting(tmp_path):
    from sklearn.datasets import load_digits

    pools = _handwriting(0)[1]
    for train, test in zip(pools["train"], pools["test"], strict=True):
        assert not set(train) & set(test) and len(test) > 30
    made = render_digits(tmp_path / "set", clips=160, frames=1, test_share=0.5)
    rows = [json.loads(line) for line in (made.folder / "metadata.jsonl").read_text().splitlines()]
    samples = {split: {row["sample"] for row in rows if row["split"] == split} for split in ("train", "test")}
    assert not samples["train"] & samples["test"] and min(map(len, samples.values())) > 40
    assert all(load_digits().target[row["sample"]] == row["digit"] for row in rows)
    assert {(row["digit"], row["direction"]) for row in rows[:80]} == {(d, w) for d in range(10) for w in DIRECTIONS}


def test_same_seed_same_clips_and_a_killed_run_goes_on(digits, rows, tmp_path):
    def stop(done, total):
        if done == 10:
            raise KeyboardInterrupt

    options = {"clips": 24, "test_share": 0.25, "seed": 3}
    with pytest.raises(KeyboardInterrupt):
        render_digits(tmp_path / "set", progress=stop, **options)
    assert not (tmp_path / "set/metadata.jsonl").exists()
    assert render_digits(tmp_path / "set", **options).written == 14
    assert render_digits(tmp_path / "set", **options).written == 0
    for row in rows:
        first, second = (read_video(folder / row["file_name"]) for folder in (digits.folder, tmp_path / "set"))
        assert torch.equal(first, second)
    assert (tmp_path / "set/metadata.jsonl").read_text() == (digits.folder / "metadata.jsonl").read_text()
    other = render_digits(tmp_path / "other", **(options | {"seed": 4}))
    assert np.mean([row["caption"] in other.captions for row in rows]) < 1


def test_refusals(digits, tmp_path):
    with pytest.raises(DataError, match=r"holds another set \(seed 3, asked 5\)"):
        render_digits(digits.folder, clips=24, test_share=0.25, seed=5)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty and was not made by this command"):
        render_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    for options, message in [
        ({"size": 33}, "size 33 is not an even number of at least 16; nearest: 32"),
        ({"size": 8}, "nearest: 16"),
        ({"clips": 0}, "clips 0"),
        ({"frames": 0}, "frames 0"),
        ({"fps": 0}, "fps 0"),
        ({"test_share": 0.9}, r"test_share 0\.9 is outside 0 ... 0\.5; nearest: 0\.5"),
    ]:
        with pytest.raises(ValueError, match=message):
            render_digits(tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()
