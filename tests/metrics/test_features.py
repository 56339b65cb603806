"""Feature sets: the default network is wired as its weights expect, and only I3D makes the figure called FVD."""

import hashlib
import zipfile

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import nn
from torch.nn import functional

from tpdiff.metrics import efficientnet_features, fit_projection, i3d_features, open_features
from tpdiff.metrics.efficientnet import EfficientNetLite0, load_efficientnet, weights_path

# ImageNet classes that the sample pictures show: a dahlia (next to it in the list: daisy), a Chinese temple.
FLOWER, TEMPLE = {985}, {698, 442}  # daisy; palace, bell cote


@pytest.fixture(scope="module")
def features():
    return efficientnet_features()


def photo(name, side):
    """uint8 (3, side, side): the middle of a real photograph."""
    picture = torch.from_numpy(load_sample_image(name).copy()).permute(2, 0, 1)
    cut = min(picture.shape[1:])
    top, left = (picture.shape[1] - cut) // 2, (picture.shape[2] - cut) // 2
    picture = picture[:, top : top + cut, left : left + cut]
    return functional.interpolate(picture[None], size=(side, side), mode="bicubic", antialias=True)[0]


def footage(count, frames=4, height=24, width=32):
    """uint8 (B, 3, T, H, W): windows that wander over a photograph."""
    whole = photo("china.jpg", 96)
    places = torch.randint(0, 64 - frames, (count, 2), generator=torch.Generator().manual_seed(1)).tolist()
    clips = [[whole[:, y + t : y + t + height, x + t : x + t + width] for t in range(frames)] for y, x in places]
    return torch.stack([torch.stack(clip, dim=1) for clip in clips])


@pytest.mark.parametrize(("name", "classes"), [("flower.jpg", FLOWER), ("china.jpg", TEMPLE)])
def test_the_network_names_real_photographs(name, classes):
    """Any weight in a wrong place, padding on a wrong side or another normalisation shows here."""
    picture = (photo(name, 224).float() - 127) / 128
    scores = load_efficientnet()(picture[None]).softmax(dim=1)[0]
    assert int(scores.argmax()) in classes
    assert scores[sorted(classes)].sum() > 0.2


def test_folded_weights_are_the_same_function():
    folded, plain = load_efficientnet(), EfficientNetLite0().eval()
    stored = torch.load(weights_path(), weights_only=True)
    ours = [p for p in plain.state_dict() if not p.endswith("num_batches_tracked")]
    theirs = [p for p in stored if not p.endswith("num_batches_tracked")]
    assert len(ours) == len(theirs)
    with torch.no_grad():
        for name, value in plain.state_dict().items():  # both list their layers from the first to the last
            if name in ours:
                value.copy_(stored[theirs[ours.index(name)]])
        picture = torch.randn(2, 3, 65, 64, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(folded.pooled(picture), plain.pooled(picture), atol=1e-4, rtol=1e-4)


def test_a_clip_is_its_frames_and_their_differences(features):
    clip = footage(1)
    vector = features.compute(clip)
    assert vector.shape == (1, (4 + 3) * 1280) and vector.dtype == np.float32
    frames, steps = vector[0, : 4 * 1280].reshape(4, 1280), vector[0, 4 * 1280 :].reshape(3, 1280)
    np.testing.assert_array_equal(steps, frames[1:] - frames[:-1])
    for t in range(4):
        alone = features.compute(clip[:, :, t : t + 1])[0]
        np.testing.assert_allclose(alone, frames[t], atol=1e-4)
    assert np.abs(steps).max() > 0.01


def test_a_clip_does_not_depend_on_its_neighbours(features):
    clips = footage(5)
    together = features.compute(clips)
    for i in (0, 3):
        np.testing.assert_array_equal(features.compute(clips[i : i + 1])[0], together[i])
    np.testing.assert_array_equal(features.compute(clips.flip(0)), together[::-1])


def test_a_gpu_convolves_by_cudnn_without_tf32(features, monkeypatch):
    found, cudnn, plain = set(), torch.backends.cudnn, nn.Conv2d._conv_forward

    def seen(*arguments):
        found.add((cudnn.enabled, cudnn.deterministic, cudnn.allow_tf32))
        return plain(*arguments)

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", seen)
    features.compute(footage(1))
    assert found == {(True, True, False)}


def test_a_set_says_what_it_is(features):
    assert features.digest == hashlib.sha256(weights_path().read_bytes()).hexdigest()
    assert features.identity() == {
        "name": "efficientnet-lite0 pooled frames + frame differences",
        "version": 1,
        "digest": features.digest,
        "resize": "antialiased bicubic, stretched to 128x128",
    }
    assert features.distance == "frechet_distance" and features.dimensions == 64
    assert open_features().name == features.name


def test_what_is_not_video_is_refused(features):
    for bad in (torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 1, 2, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"videos must be uint8 \(B, 3, T, H, W\)"):
            features.compute(bad)


# I3D


class Scores(nn.Module):
    """Means over eight parts of a clip, spread over as many scores as asked."""

    def __init__(self, width: int):
        super().__init__()
        self.spread = nn.Linear(24, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spread(functional.adaptive_avg_pool3d(x, (2, 2, 2)).flatten(1))


class Circulating(Scores):
    """With the arguments of the file that is passed around."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        if rescale or resize or not return_features:
            return x.flatten(1)[:, :3]
        return self.spread(functional.adaptive_avg_pool3d(x, (2, 2, 2)).flatten(1))


def script(path, module):
    torch.manual_seed(0)
    torch.jit.script(module).save(str(path))
    return path


@pytest.mark.parametrize("kind", [Scores, Circulating])
def test_i3d_from_torchscript_makes_fvd(tmp_path, kind):
    module = kind(400)
    i3d = i3d_features(script(tmp_path / "i3d.pt", module))
    clips = footage(3)
    vectors = i3d.compute(clips)
    assert vectors.shape == (3, 400)
    frames = functional.interpolate(
        clips[1].transpose(0, 1).float(), size=(224, 224), mode="bilinear", antialias=True
    ).transpose(0, 1)
    expected = Scores.forward(module, frames[None] / 127.5 - 1)
    np.testing.assert_allclose(vectors[1], expected.detach().numpy()[0], atol=1e-5)
    assert i3d.distance == "FVD" and i3d.dimensions is None
    assert i3d.digest == hashlib.sha256((tmp_path / "i3d.pt").read_bytes()).hexdigest()


def broken_script(path):
    """The bytes of an archive that has lost its code."""
    aside = path.with_suffix(".aside")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(aside, "w") as kept:
        for name in whole.namelist():
            if not name.endswith(".py"):
                kept.writestr(name, whole.read(name))
    return aside.read_bytes()


def test_another_network_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"it returns \(1, 512\) for one clip, not \(1, 400\)"):
        i3d_features(script(tmp_path / "other.pt", Scores(512)))
    (tmp_path / "broken.pt").write_bytes(broken_script(tmp_path / "other.pt"))
    with pytest.raises(ValueError, match=r"broken\.pt is not a TorchScript file"):
        i3d_features(tmp_path / "broken.pt")
    with pytest.raises(ValueError, match="no I3D file"):
        open_features(tmp_path / "absent.pt")


# The projection


def parts_of(rows, size):
    return lambda: [rows[i : i + size] for i in range(0, len(rows), size)]


def test_the_projection_is_principal_component_analysis():
    rng = np.random.default_rng(0)
    rows = (rng.normal(size=(40, 300)) * np.logspace(1, -1, 300)).astype(np.float32)
    projection = fit_projection(parts_of(rows, 16), 6)
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(projection.directions @ directions[:6].T), np.eye(6), atol=1e-5)
    np.testing.assert_allclose(projection(rows).var(axis=0), values[:6] ** 2 / 40, rtol=1e-4)
    largest = np.abs(projection.directions).argmax(axis=1)
    assert (projection.directions[np.arange(6), largest] > 0).all()
    again = fit_projection(parts_of(rows, 16), 6)
    np.testing.assert_array_equal(again.directions, projection.directions)
    np.testing.assert_array_equal(projection(rows[7:8])[0], projection(rows)[7])


def test_fewer_clips_than_dimensions_give_fewer_dimensions():
    rows = np.random.default_rng(0).normal(size=(5, 50)).astype(np.float32)
    assert fit_projection(parts_of(rows, 2), 64).directions.shape == (4, 50)
    with pytest.raises(ValueError, match="all have the same features"):
        fit_projection(parts_of(np.ones((5, 50), dtype=np.float32), 2), 64)
    with pytest.raises(ValueError, match="at least 2 clips"):
        fit_projection(parts_of(rows[:1], 2), 64)
