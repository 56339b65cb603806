"""The real side: which clips, kept where, the same whatever files are called; and memory that does not grow."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from tpdiff.data import DataError, render_digits, write_video
from tpdiff.data.clips import Geometry
from tpdiff.metrics import Reference, efficientnet_features, frechet_distance
from tpdiff.metrics.clips import choose_clips, find_sources, load_clips

SIZE = {"frames": 4, "height": 16, "width": 16}


@pytest.fixture(scope="module")
def features():
    """The default network with few directions, so that few clips suffice."""
    return replace(efficientnet_features(), dimensions=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """18 training and 6 test clips, 8 frames of 16 x 16: two windows of 4 frames each."""
    out = tmp_path_factory.mktemp("real") / "set"
    return render_digits(out, clips=24, frames=8, size=16, seed=1, test_share=0.25).folder


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def reference(folder, kept, features):
    return Reference.fit(folder, **SIZE, cache_dir=kept, features=features)


def unusable(features):
    """The same set, which must not be computed any more."""

    def compute(videos):
        raise AssertionError("computed anew")

    return replace(features, compute=compute)


def counted(features, log):
    def compute(videos):
        log.append(len(videos))
        return features.compute(videos)

    return replace(features, compute=compute)


def test_what_it_holds(reference, folder, features):
    assert reference.real.shape == (12, 4) and reference.real.dtype == np.float64
    videos = load_clips(reference.clips, reference.geometry)
    assert videos.shape == (12, 3, 4, 16, 16) and videos.dtype == torch.uint8
    np.testing.assert_array_equal(reference.project(videos), reference.real)
    np.testing.assert_array_equal(reference.project(videos[5:6])[0], reference.real[5])
    assert reference.floor == frechet_distance(reference.real, reference.held) > 0
    assert reference.floor_at(5) == frechet_distance(reference.real, reference.held[:5])
    splits = {"real": "test", "fit": "train", "floor": "train"}
    for part, split in splits.items():
        assert reference.protocol[part]["split"] == split
    assert reference.protocol["features"] == features.identity() | {"dimensions": 4}
    json.dumps(reference.protocol, allow_nan=False)
    keys = {
        "frames",
        "resolution",
        "fps",
        "stride",
        "resize",
        "seed",
        "clip_choice",
        "features",
        "real",
        "fit",
        "floor",
    }
    assert set(reference.protocol) == keys


def test_no_video_serves_two_purposes(folder, features, kept):
    geometry = Geometry(4, 16, 16)
    reference = Reference.fit(folder, **SIZE, cache_dir=kept, features=features)
    used = {
        "real": {clip.source.entry.path for clip in reference.clips},
        "fit": {clip.source.entry.path for clip in reference.train},
    }
    assert len(used["real"]) == 6 and len(used["fit"]) == reference.protocol["fit"]["videos"] == 12
    assert reference.protocol["floor"]["videos"] == 6 and len(reference.held) == 12
    assert not used["real"] & used["fit"]
    train = {source.entry.path for source in find_sources(folder, geometry, "train")}
    assert used["fit"] < train


def test_kept_features_are_used_and_equal(reference, folder, kept, features):
    again = Reference.fit(folder, **SIZE, cache_dir=kept, features=unusable(features))
    np.testing.assert_array_equal(again.real, reference.real)
    np.testing.assert_array_equal(again.held, reference.held)
    assert again.protocol == reference.protocol
    fresh = Reference.fit(folder, **SIZE, features=features)
    np.testing.assert_array_equal(fresh.real, reference.real)
    np.testing.assert_array_equal(fresh.projection.directions, reference.projection.directions)


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"clips": 7}, {"height": 12}, {"frames": 3}, {"fps": 4.0}, {"resize": "stretch", "width": 8}],
)
def test_kept_features_of_another_protocol_are_not_used(reference, folder, kept, features, change):
    with pytest.raises(AssertionError, match="computed anew"):
        Reference.fit(folder, **SIZE | change, cache_dir=kept, features=unusable(features))


def test_kept_features_of_another_network_are_not_used(reference, folder, kept, features):
    for change in ({"version": 2}, {"digest": "0" * 64}, {"dimensions": 3}):
        with pytest.raises(AssertionError, match="computed anew"):
            Reference.fit(folder, **SIZE, cache_dir=kept, features=replace(unusable(features), **change))


@pytest.mark.parametrize(("kind", "harm"), [("features", "flip"), ("features", "empty"), ("projection", "cut")])
def test_a_damaged_file_is_made_again(reference, folder, kept, features, tmp_path, kind, harm):
    shutil.copytree(kept, tmp_path / "kept")
    files = sorted(p for p in (tmp_path / "kept").rglob("*.npy") if str(p.relative_to(tmp_path)).count(f"{kind}-"))
    assert files
    for path in files:
        data = bytearray(path.read_bytes())
        if harm == "flip":
            data[-30] ^= 1
        path.write_bytes({"flip": bytes(data), "cut": bytes(data[: len(data) // 2]), "empty": b""}[harm])
    log = []
    again = Reference.fit(folder, **SIZE, cache_dir=tmp_path / "kept", features=counted(features, log))
    assert log
    np.testing.assert_array_equal(again.real, reference.real)
    Reference.fit(folder, **SIZE, cache_dir=tmp_path / "kept", features=unusable(features))


def test_a_call_that_was_interrupted_goes_on(folder, features, tmp_path, reference):
    log = []

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Reference.fit(folder, **SIZE, cache_dir=tmp_path, features=counted(features, log), progress=stop)
    done = sum(log)
    assert done > 0
    again = Reference.fit(folder, **SIZE, cache_dir=tmp_path, features=counted(features, log))
    np.testing.assert_array_equal(again.real, reference.real)
    assert sum(log) == len(reference.train) + len(reference.real) + len(reference.held)  # nothing twice
    assert not [p for p in tmp_path.rglob("*") if p.name.endswith(".part")]


def test_names_and_order_of_files_do_not_matter(reference, folder, features, tmp_path):
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (tmp_path / "set").mkdir()
    for number, row in enumerate(reversed(rows)):
        name = f"{(number * 7) % 24:02d}-renamed.mp4"
        shutil.copy(folder / row["file_name"], tmp_path / "set" / name)
        row["file_name"] = name
    (tmp_path / "set" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    renamed = Reference.fit(tmp_path / "set", **SIZE, features=features)
    np.testing.assert_array_equal(renamed.real, reference.real)
    assert renamed.protocol == reference.protocol


def test_windows_do_not_overlap_and_are_counted(folder):
    geometry = Geometry(3, 16, 16)
    sources = find_sources(folder, geometry, "test")
    clips = choose_clips(sources, geometry, None, seed=0)
    assert len(clips) == 12 and len({clip.source.digest for clip in clips[:6]}) == 6
    for source in sources:
        first, second = sorted(clip.start for clip in clips if clip.source == source)
        assert first >= 0 and second >= first + 3 and second + 3 <= 8
    assert choose_clips(sources, geometry, 5, seed=0) == clips[:5]
    assert [c.start for c in choose_clips(sources, geometry, None, seed=1)] != [c.start for c in clips]
    with pytest.raises(ValueError, match=r"13 clips .* 6 videos hold 12 windows of 3 frames .*nearest: 12"):
        choose_clips(sources, geometry, 13, seed=0)
    with pytest.raises(ValueError, match="clips 0 is below 1"):
        choose_clips(sources, geometry, 0, seed=0)


def test_it_says_which_video_a_clip_is_of(reference):
    assert sorted(reference.videos) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    of = {(number, clip.source.entry.path) for number, clip in zip(reference.videos, reference.clips, strict=True)}
    assert len(of) == 6


def test_a_folder_without_splits(folder, features, tmp_path):
    for number, path in enumerate(sorted((folder / "train").iterdir())[:12]):
        shutil.copy(path, tmp_path / f"{number}.mp4")
    with pytest.raises(DataError, match=r"has no splits.*metadata\.jsonl"):
        Reference.fit(tmp_path, **SIZE, features=features)
    halves = Reference.fit(tmp_path, **SIZE, split=None, fit_split=None, features=features)
    assert [halves.protocol[part]["videos"] for part in ("real", "floor", "fit")] == [6, 3, 3]
    real = {clip.source.digest for clip in halves.clips}
    assert real.isdisjoint(clip.source.digest for clip in halves.train)


def test_copies_of_a_video_serve_one_purpose(folder, features, tmp_path):
    for number, path in enumerate(sorted((folder / "train").iterdir())[:12]):
        for copy in "ab":
            shutil.copy(path, tmp_path / f"{number}{copy}.mp4")
    halves = Reference.fit(tmp_path, **SIZE, split=None, fit_split=None, features=features)
    digests = [{clip.source.digest for clip in part} for part in (halves.clips, halves.held_clips, halves.train)]
    assert [len(part) for part in digests] == [6, 3, 3] and len(set.union(*digests)) == 12


def test_how_many_may_be_unusable(folder, features, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    for path in sorted((tmp_path / "set" / "train").iterdir())[:4]:
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"max_bad_share 0\.1 allows"):
        Reference.fit(tmp_path / "set", **SIZE, features=features)
    fitted = Reference.fit(tmp_path / "set", **SIZE, features=features, max_bad_share=0.5)
    assert fitted.protocol["fit"]["videos"] + fitted.protocol["floor"]["videos"] == 14


def test_refusals(reference, folder, features, tmp_path):
    with pytest.raises(ValueError, match=r"have 4 frames of 16x16"):
        reference.project(torch.zeros(2, 3, 5, 16, 16, dtype=torch.uint8))
    with pytest.raises(DataError, match="split 'val' is not in"):
        Reference.fit(folder, **SIZE, split="val", features=features)
    with pytest.raises(ValueError, match="frames 0 is below 1"):
        Reference.fit(folder, **SIZE | {"frames": 0}, features=features)
    for split, count in (("train", 3), ("test", 3)):
        for number in range(count):
            clip = torch.full((4, 16, 16, 3), 60 * number + 8 * len(split), dtype=torch.uint8)
            write_video(tmp_path / split / f"{number}.mp4", clip, 8)
    with pytest.raises(DataError, match="3 training videos are too few"):
        Reference.fit(tmp_path, **SIZE, features=features)


PEAK = """
import resource, sys
import numpy as np
from tpdiff.evaluation.made import folder_clips
from tpdiff.evaluation.quality import evaluate
from tpdiff.metrics import FeatureSet, Reference

def long_vectors(videos):  # as long as those of the default set are at 20 frames, and quick
    small = videos.numpy().reshape(len(videos), -1)[:, :500].astype(np.float32)
    return np.concatenate([small * (1 + i / 100) for i in range(100)], axis=1)

features = FeatureSet("long", 1, "0", "none", 8, "frechet_distance", long_vectors)
real, made, cache = sys.argv[1:]
reference = Reference.fit(real, frames=4, height=32, width=32, cache_dir=cache, features=features)
quality = evaluate(reference, folder_clips(made, reference.geometry), cache, rounds=10)
print(quality.real_clips, quality.clips, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_peak_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    """Vectors of 0.2 MB: four times the clips would be 80 MB more if those of fit and made clips were held."""
    peaks = []
    for count in (64, 256):
        real = render_digits(tmp_path / f"real{count}", clips=12, frames=count, size=32, test_share=1 / 3).folder
        made = render_digits(tmp_path / f"made{count}", clips=count // 2, frames=4, size=32, seed=1, test_share=0)
        command = [sys.executable, "-c", PEAK, str(real), str(made.folder), str(tmp_path / f"cache{count}")]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, check=False)
        assert done.returncode == 0, done.stderr
        real_clips, made_clips, peak = done.stdout.split()
        assert (int(real_clips), int(made_clips)) == (count, count // 2)
        peaks.append(float(peak))
    assert peaks[1] < peaks[0] + 20, peaks
