"""The default distance grows with every corruption of recorded footage, the more the more clips are corrupted."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional

from tpdiff.data import record_doom
from tpdiff.metrics import Reference, frechet_distance
from tpdiff.metrics.clips import load_clips

pytest.importorskip("vizdoom")
SHARES = (0, 0.25, 0.5, 0.75, 1)


def blurred(clip, generator):
    """Each frame under a Gaussian of 2 pixels."""
    place = torch.arange(-6.0, 7.0)
    weights = torch.softmax(-(place**2) / 8, dim=0)
    frames = functional.pad(clip.flatten(0, 1)[:, None].float(), (6, 6, 6, 6), mode="replicate")
    frames = functional.conv2d(functional.conv2d(frames, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return frames.view(clip.shape).round().to(torch.uint8)


def noisy(clip, generator):
    noise = 25 * torch.randn(clip.shape, generator=generator)
    return (clip.float() + noise).round().clamp(0, 255).to(torch.uint8)


def shuffled(clip, generator):
    return clip[:, torch.randperm(clip.shape[1], generator=generator)]


def frozen(clip, generator):
    return clip[:, :1].expand_as(clip)


def reversed_in_time(clip, generator):
    return clip.flip(1)


CORRUPTIONS = (blurred, noisy, shuffled, frozen, reversed_in_time)


def distances(reference, features, videos, corrupt):
    """Distances to the real clips when the first 0, ¼, ½, ¾ and all of some clips are corrupted."""
    generator = torch.Generator().manual_seed(0)
    bad = reference.project(torch.stack([corrupt(clip, generator) for clip in videos]))
    cuts = [round(share * len(bad)) for share in SHARES]
    return [frechet_distance(reference.real, np.concatenate([bad[:cut], features[cut:]])) for cut in cuts]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """16 real clips of 8 frames, every action of the maze."""
    size = {"frames": 8, "size": (24, 32), "frame_skip": 4}
    made = record_doom(tmp_path_factory.mktemp("doom") / "set", clips=48, seed=1, test_share=1 / 3, **size)
    return Reference.fit(made.folder, frames=8, height=24, width=32)


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_corrupting_real_clips_takes_them_away(reference, corrupt):
    """Nothing corrupted: distance 0. Then farther with every quarter of them."""
    videos = load_clips(reference.clips, reference.geometry)
    found = distances(reference, reference.real, videos, corrupt)
    assert found[0] < 1e-6 * found[-1]
    assert np.diff(found).min() > 0, found


def footage(folder, clips):
    """So many recorded clips, a third of them real ones."""
    return record_doom(folder / "set", clips=clips, frames=16, size=(48, 64), seed=1, test_share=1 / 3).folder


def only_action(folder, action):
    """List those clips alone that show an action."""
    path = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["action"] == action))


def beyond_the_floor(folder, corruptions, cache):
    """Made clips are recordings that neither the real set nor the projection has seen, as a model's samples are."""
    reference = Reference.fit(folder, frames=16, height=48, width=64, cache_dir=cache)
    videos = load_clips(reference.held_clips, reference.geometry)
    for corrupt in corruptions:
        found = distances(reference, reference.held, videos, corrupt)
        assert found[0] == pytest.approx(reference.floor)
        assert np.diff(found).min() > 0, (corrupt.__name__, found)


@pytest.mark.slow
def test_corrupting_other_clips_takes_them_beyond_the_floor(tmp_path):
    beyond_the_floor(footage(tmp_path, 768), CORRUPTIONS[:4], tmp_path)


@pytest.mark.slow
def test_reversing_other_clips_takes_them_beyond_the_floor(tmp_path):
    """Backwards, a turn to the left is a turn to the right and both are in the set, so that time has an arrow only
    where the marine walks forward. There are 153 such clips; fifty are too few to tell.
    """
    folder = footage(tmp_path, 2304)
    only_action(folder, "forward")
    beyond_the_floor(folder, (reversed_in_time,), tmp_path)
