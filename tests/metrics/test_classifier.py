"""A judge trained on rendered digits: what it knows of held-out ones, and that it can be trusted to stay the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tpdiff.data import DataError, Entry, read_video, render_digits, scan, write_video
from tpdiff.data.clips import Geometry
from tpdiff.data.stream import epoch_order
from tpdiff.metrics import classifier as classifier_module
from tpdiff.metrics.attributes import caption_labels, find_attributes, labels_of
from tpdiff.metrics.classifier import STRETCH, Classifier, NothingToTellApart, _stretch
from tpdiff.metrics.clip_network import ClipNet, drift, fewer_pixels, network_input, thin, thinning
from tpdiff.metrics.clips import choose_clips, find_sources, load_clips

GEOMETRY = Geometry(8, 16, 16)
DRIFTS = {"to the right": (0.15, 0), "to the left": (-0.15, 0), "down": (0, 0.15), "up": (0, -0.15)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """800 training and 80 test clips of 8 frames of 16 x 16; the splits share no handwriting."""
    out = tmp_path_factory.mktemp("judge") / "set"
    return render_digits(out, clips=880, frames=8, size=16, test_share=1 / 11, seed=3).folder


@pytest.fixture(scope="module")
def train(digits):
    return find_sources(digits, GEOMETRY, "train")


@pytest.fixture(scope="module")
def held_out(digits):
    """Clips (B, 3, T, H, W) of the test split and their entries."""
    clips = choose_clips(find_sources(digits, GEOMETRY, "test"), GEOMETRY, None, 0)
    return load_clips(clips, GEOMETRY), [clip.source.entry for clip in clips]


@pytest.fixture(scope="module")
def judge(train):
    return Classifier.fit(train, GEOMETRY, steps=300)


def weights(classifier):
    return classifier.network.state_dict()


def equal(a, b):
    return weights(a).keys() == weights(b).keys() and all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())


def test_held_out_clips_are_recognized(judge, held_out):
    videos, entries = held_out
    figures = judge.accuracy(videos, labels_of(entries, judge.values))
    assert list(figures) == ["digit", "direction"]
    assert [len(judge.values[name]) for name in figures] == [10, 8]
    assert figures["digit"].clips == figures["direction"].clips == 80
    assert figures["digit"].guess < 0.2 and figures["direction"].guess < 0.2
    assert figures["digit"].value > 0.35  # chance is 0.1; 0.5 was measured on these smallest of pictures
    assert figures["direction"].value > 0.9
    assert figures["digit"].value == pytest.approx(figures["digit"].hits.sum().item() / 80)


def test_a_clip_run_backwards_moves_the_other_way_and_shows_the_same_digit(judge, held_out):
    videos, entries = held_out
    labels = labels_of(entries, judge.values)
    mirrored = [" ".join(OPPOSITE.get(word, word) for word in name.split()) for name in labels["direction"]]
    backwards = videos.flip(2)
    assert judge.accuracy(backwards, labels)["direction"].value < 0.1
    seen = judge.accuracy(backwards, labels | {"direction": mirrored})
    assert seen["direction"].value > 0.7
    assert seen["digit"].value > 0.25


def test_without_its_motion_a_clip_tells_no_direction(judge, held_out):
    videos, entries = held_out
    still = videos[:, :, :1].expand_as(videos)
    assert judge.accuracy(still, labels_of(entries, judge.values))["direction"].value < 0.3


def texture(seed, size, velocity, frames):
    """uint8 (T, H, W, 3): waves of 10 pixels and longer, all moving by (x, y) pixels a frame."""
    lines, columns, t = np.mgrid[: size[0], : size[1], :frames]
    x, y = columns - velocity[0] * t, lines - velocity[1] * t
    across, down, phase = np.random.default_rng(seed).uniform([-0.6, -0.6, 0], [0.6, 0.6, 6.28], (20, 3)).T
    total = sum(np.cos(a * x + b * y + c) for a, b, c in zip(across, down, phase, strict=True))
    video = torch.from_numpy((128 + 12 * total).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
    return video[..., None].repeat(1, 1, 1, 3)


@pytest.fixture(scope="module")
def drifting(tmp_path_factory):
    """Textures of 48 x 64, each another, that drift by 0.15 pixels a frame: 160 to train, 40 to test."""
    out, rows = tmp_path_factory.mktemp("judge") / "drifting", []
    for number in range(200):
        way, velocity = list(DRIFTS.items())[number % 4]
        split = "test" if number >= 160 else "train"
        write_video(out / split / f"{number}.mp4", texture(number, (48, 64), velocity, 12), 12, preset="veryfast")
        rows.append({"file_name": f"{split}/{number}.mp4", "caption": f"drifts {way}", "split": split, "way": way})
    (out / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_motion_far_below_a_pixel_is_recognized(drifting):
    geometry = Geometry(12, 48, 64)
    judge = Classifier.fit(find_sources(drifting, geometry, "train"), geometry, steps=40)
    clips = choose_clips(find_sources(drifting, geometry, "test"), geometry, None, 0)
    figures = judge.accuracy(
        load_clips(clips, geometry), labels_of([clip.source.entry for clip in clips], judge.values)
    )
    assert figures["way"].clips == 40
    assert figures["way"].value > 0.9  # chance is 0.25; 0.33 was measured without the flow


@pytest.mark.parametrize("size", [(16, 20), (48, 64), (144, 160)], ids=str)
def test_drift_is_the_flow_of_the_parts_of_the_picture(size):
    video = texture(0, size, (0.5, 0), 5).permute(3, 0, 1, 2)
    factor = 1 if size[0] < 128 else 2  # flow is counted in pixels of at most 128 x 128
    for lag in (1, 2):
        moved = drift(video, lag)
        assert moved.shape == (2, 5, 4, 4) and not moved[:, :lag].any()
        inner = moved[:, lag:, 1:3, 1:3].mean((1, 2, 3)).tolist()
        assert inner == pytest.approx([0.5 * lag / factor, 0], abs=0.08 * lag)
    assert not drift(video[:, :1]).any()


@pytest.mark.parametrize("fps", [None, 12, 24, 7])
@pytest.mark.parametrize("size", [(48, 64), (16, 20)], ids=str)
def test_of_a_long_video_only_the_stretch_is_read(fps, size, tmp_path):
    """The very frames that a whole reading begins with, and no memory for the others."""
    for number, length in enumerate((40, 11)):
        write_video(tmp_path / f"{number}.mp4", texture(number, (48, 64), (0.5, 0.2), length), 12)
    geometry = Geometry(4, *size, fps)
    for source in find_sources(tmp_path, geometry):
        whole = read_video(source.entry.path, fps=fps, size=size)[: STRETCH * geometry.frames].permute(3, 0, 1, 2)
        read, drifts = _stretch(source, geometry)
        assert torch.equal(read, fewer_pixels(whole))
        assert torch.equal(drifts, drift(whole, thinning(geometry.frames)))
        assert read.untyped_storage().nbytes() == read.nbytes


def test_batches_are_judged_as_the_whole(judge, held_out):
    videos, entries = held_out
    whole = judge.predict(videos)
    assert judge.predict(videos[i : i + 7] for i in range(0, 80, 7)) == whole
    labels = labels_of(entries, judge.values)
    parts = judge.accuracy(iter(videos.split(30)), labels)
    assert torch.equal(parts["digit"].hits, judge.accuracy(videos, labels)["digit"].hits)


def test_training_again_gives_the_same_bits_whatever_the_files_are_called(train, tmp_path):
    few = train[:40]
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    first = Classifier.fit(few, GEOMETRY, ["digit"], steps=6)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    renamed = []
    for number, source in enumerate(few):
        path = tmp_path / f"{40 - number}.mp4"
        shutil.copy(source.entry.path, path)
        video = replace(source.video, entry=replace(source.entry, path=path))
        renamed.append(replace(source, video=video))
    again = Classifier.fit(renamed[::-1], GEOMETRY, ["digit"], steps=6)
    assert again.key == first.key and equal(again, first)
    other = Classifier.fit(few, GEOMETRY, ["digit"], steps=6, seed=1)
    assert other.key != first.key and not equal(other, first)


def test_what_was_trained_is_kept_and_used(train, tmp_path):
    few = train[:40]

    def fit(**changes):
        done = []
        given = {"steps": 3, "cache_dir": tmp_path, "progress": lambda n, total: done.append((n, total))} | changes
        return Classifier.fit(few, GEOMETRY, given.pop("attributes", ["digit"]), **given), done

    first, done = fit()
    assert done == [(1, 3), (2, 3), (3, 3)]
    (path,) = tmp_path.iterdir()
    assert path.name == f"classifier-{first.key[:32]}.safetensors"
    kept, done = fit()
    assert done == [] and equal(kept, first)
    assert (kept.key, kept.values, kept.left_out) == (first.key, first.values, first.left_out)
    assert fit(steps=4)[0].key != first.key
    assert fit(attributes=["direction"])[0].key != first.key
    whole = path.read_bytes()
    for broken in (whole[:500], b"", b"no safetensors at all"):
        path.write_bytes(broken)
        mended, done = fit()
        assert len(done) == 3 and equal(mended, first)
        assert path.read_bytes() == whole


def test_an_attribute_of_one_value_is_left_out_by_name(train):
    classifier = Classifier.fit(train[:20], GEOMETRY, ["fps", "digit"], steps=1)
    assert list(classifier.values) == ["digit"]
    assert classifier.left_out == {"fps": "all training clips have '8'"}
    with pytest.raises(DataError, match=r"nothing to tell apart .*fps: all training clips have '8'"):
        Classifier.fit(train[:20], GEOMETRY, ["fps"])
    with pytest.raises(DataError, match="no column 'digits'; did you mean 'digit'"):
        Classifier.fit(train[:20], GEOMETRY, ["digits"])


def test_attributes_are_chosen_from_all_videos_and_learnt_from_those_that_are_held(train, monkeypatch):
    few = sorted(train[:20], key=lambda source: source.digest)
    first, *_, last = epoch_order(0, 0, len(few))
    extras = [{"parity": f"{i % 2}", "kind": "strange" if i == last else f"{i % 2}"} for i in range(len(few))]
    entries = [replace(s.entry, caption=e["parity"], extra=e) for s, e in zip(few, extras, strict=True)]
    told = [replace(s, video=replace(s.video, entry=e)) for s, e in zip(few, entries, strict=True)]
    monkeypatch.setattr(classifier_module, "VIDEOS", 19)
    classifier = Classifier.fit(told, GEOMETRY, steps=1)
    assert list(classifier.values) == ["parity"]
    assert caption_labels(entries, classifier.values) == {"0": {"parity": "0"}, "1": {"parity": "1"}}
    monkeypatch.setattr(classifier_module, "VIDEOS", 1)
    with pytest.raises(NothingToTellApart, match=f"parity: all training clips have '{first % 2}'"):
        Classifier.fit(told, GEOMETRY)


def test_what_cannot_be_judged_is_refused(judge, held_out, train):
    videos, entries = held_out
    labels = labels_of(entries, judge.values)
    with pytest.raises(ValueError, match=r"uint8 in \[0, 255\], got torch.float32"):
        judge.predict(videos.float())
    with pytest.raises(ValueError, match=r"\(B, 3, 8, 16, 16\) were learnt, got \(80, 3, 7, 16, 16\)"):
        judge.predict(videos[:, :, :7])
    with pytest.raises(ValueError, match="digit 'x' is in none of the training clips; known: 0, 1"):
        judge.accuracy(videos[:1], {"digit": ["x"], "direction": ["up"]})
    with pytest.raises(ValueError, match="no labels for 'direction'; given: digit"):
        judge.accuracy(videos, {"digit": labels["digit"]})
    with pytest.raises(ValueError, match="80 labels of digit for 79 clips"):
        judge.accuracy(videos[:79], labels)
    with pytest.raises(ValueError, match="0 labels of digit for 0 clips"):
        judge.accuracy([], {"digit": [], "direction": []})
    with pytest.raises(ValueError, match="steps 0 is below 1; nearest: 1"):
        Classifier.fit(train, GEOMETRY, steps=0)
    with pytest.raises(DataError, match="no training videos"):
        Classifier.fit([], GEOMETRY)


def test_attributes_are_what_captions_tell_apart(digits):
    entries = scan(digits).entries
    assert find_attributes(entries) == ("digit", "direction")  # not sample, which captions leave open, nor fps
    known = caption_labels(entries, ("digit", "direction"))
    assert known["the digit 3 moves up and to the left"] == {"digit": "3", "direction": "up and to the left"}
    rows = [json.loads(line) for line in (digits / "metadata.jsonl").read_text().splitlines()]
    assert known == {row["caption"]: {k: str(row[k]) for k in ("digit", "direction")} for row in rows}
    with pytest.raises(DataError, match="stands for sample"):
        caption_labels(entries, ["sample"])
    alone = [Entry(Path(f"{n}.mp4"), f"caption {n}", extra={"episode": n}) for n in range(5)]
    assert find_attributes(alone) == () and find_attributes([]) == ()
    told_apart = [Entry(Path(f"{n}.mp4"), f"caption {n}", extra={"license": "ab"[n % 2]}) for n in range(20)]
    assert find_attributes(told_apart) == ()  # no caption says which
    assert find_attributes([*told_apart, *told_apart]) == ("license",)


def test_the_network_is_small_and_takes_any_clip():
    assert sum(p.numel() for p in ClipNet([10, 8]).parameters()) < 300_000
    for shape in ((1, 3, 1, 8, 8), (2, 3, 33, 48, 64), (1, 3, 5, 120, 160)):
        video = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        small = fewer_pixels(thin(video))
        assert small.shape[2] <= 32 and small.shape[3] * small.shape[4] <= 1024
        moved = torch.stack([drift(clip) for clip in thin(video)])
        answers = ClipNet([2, 3]).eval()(network_input(small), moved)
        assert [a.shape for a in answers] == [(shape[0], 2), (shape[0], 3)]
    picture = torch.zeros(3, 1, 48, 64, dtype=torch.uint8)
    picture[:, :, ::2] = 100
    assert fewer_pixels(picture).shape == (3, 1, 24, 32)
    assert fewer_pixels(picture).unique().tolist() == [50]
    assert thin(torch.arange(33)[:, None, None]).flatten().tolist() == list(range(0, 33, 2))
    assert (
        network_input(torch.full((1, 3, 2, 8, 8), 255, dtype=torch.uint8)).amax((0, 2, 3, 4)).tolist()
        == [1] * 3 + [0] * 3
    )


@pytest.mark.slow
def test_the_demo_s_digits_are_recognized(tmp_path):
    """32 x 32 and 16 frames, the full training."""
    geometry = Geometry(16, 32, 32)
    folder = render_digits(tmp_path / "set", clips=1200, frames=16, size=32, test_share=1 / 6, seed=5).folder
    classifier = Classifier.fit(find_sources(folder, geometry, "train"), geometry)
    clips = choose_clips(find_sources(folder, geometry, "test"), geometry, None, 0)
    labels = labels_of([clip.source.entry for clip in clips], classifier.values)
    figures = classifier.accuracy(load_clips(clips, geometry), labels)
    assert figures["digit"].clips == 200
    assert figures["digit"].value > 0.75  # 0.855 was measured
    assert figures["direction"].value > 0.95
