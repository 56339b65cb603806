"""I3D from its weights: the function that the public weights were published with, and no other weights than these."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_features import footage

from tpdiff.metrics import i3d_features, open_features
from tpdiff.metrics.i3d import I3D, load_i3d

# First scores, mean and deviation of all 400 over `draw_weights()`, from the published network itself.
CLIP = [53.7322, -252.1797, 116.0822, 99.0235, -125.7598, -265.4845], 15.34104, 169.39466
NOISE = [203.005, -647.5585, 236.1042, 414.2924, -289.6585, -730.2877], 38.56470, 455.34860


def draw_weights(seed=0):
    """A state dict by the names of the public weights, in which every part has its say."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in I3D().state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: _draw(name, shape, generator) for name, shape in sorted(shapes.items())}


def _draw(name, shape, generator):
    if name.endswith("num_batches_tracked"):
        return torch.tensor(7)
    drawn = torch.randn(shape, generator=generator)
    if name.endswith("conv3d.weight"):
        return drawn * (2 / shape[1:].numel()) ** 0.5
    return drawn.abs() + 0.5 if name.endswith(("running_var", "bn.weight")) else drawn * 0.1


@pytest.fixture(scope="module")
def weights():
    return draw_weights()


@pytest.fixture(scope="module")
def stored(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "rgb.safetensors"
    save_file(weights, path)
    return path


def assert_scores(found, expected):
    first, mean, deviation = expected
    np.testing.assert_allclose(found[:6], first, rtol=1e-4, atol=1e-4 * deviation)
    assert found.mean() == pytest.approx(mean, abs=1e-4 * deviation)
    assert found.std(ddof=1) == pytest.approx(deviation, rel=1e-4)


def test_features_are_the_scores_of_the_published_network(stored):
    i3d = i3d_features(stored)
    vectors = i3d.compute(footage(1, frames=9))
    assert vectors.shape == (1, 400) and vectors.dtype == np.float32
    assert_scores(vectors[0].astype(np.float64), CLIP)
    digest = hashlib.sha256(stored.read_bytes()).hexdigest()
    assert (i3d.distance, i3d.kernel, i3d.dimensions) == ("FVD", "kernel_distance_i3d", None)
    assert i3d.identity() == {
        "name": f"i3d class scores, file {digest[:12]}",
        "version": 1,
        "digest": digest,
        "resize": "antialiased bilinear, stretched to 224x224, scaled to [-1, 1]",
    }


def test_odd_sizes_and_longer_clips(stored):
    """Two places in time are averaged; T and H are odd at several layers, so windows overhang by other amounts."""
    clip = torch.rand(1, 3, 17, 195, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        scores = load_i3d(stored)(clip)
    assert_scores(scores[0].double().numpy(), NOISE)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "as in 2017"])
def test_a_state_dict_of_torch_is_the_same(stored, weights, tmp_path, zipped):
    kept = {name: value for name, value in weights.items() if "num_batches_tracked" not in name}
    torch.save(kept, tmp_path / "rgb.pt", _use_new_zipfile_serialization=zipped)
    ours, theirs = load_i3d(tmp_path / "rgb.pt").state_dict(), load_i3d(stored).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) and torch.equal(ours[name], kept[name]) for name in kept)
    assert open_features(tmp_path / "rgb.pt").distance == "FVD"


def test_frames_that_it_cannot_take_are_refused(stored):
    i3d = i3d_features(stored)
    i3d.check_frames(9), i3d.check_frames(64)
    with pytest.raises(ValueError, match=r"clips of 8 frames do not suit the features i3d class scores.*nearest: 9"):
        i3d.check_frames(8)


def without(weights, name):
    return {key: value for key, value in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: without(w, "Mixed_4d.b2b.bn.running_var"), "1 absent, such as Mixed_4d.b2b.bn.running_var"),
        (lambda w: {f"module.{k}": v for k, v in w.items()}, "287 absent, such as Conv3d_1a_7x7.bn.bias"),
        (lambda w: w | {"Mixed_6a.b0.bn.bias": torch.zeros(2)}, "1 unknown, such as Mixed_6a.b0.bn.bias"),
        (
            lambda w: w | {"logits.conv3d.bias": torch.zeros(157)},
            r"1 reshaped, such as logits.conv3d.bias: \(157,\), not \(400,\)",
        ),
        (
            lambda w: w | {"Conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 2, 7, 7, 7)},
            r"1 reshaped, such as Conv3d_1a_7x7.conv3d.weight: \(64, 2, 7, 7, 7\), not \(64, 3, 7, 7, 7\)",
        ),
        (lambda w: {"state_dict": w}, "no state dict"),
        (lambda w: [1, 2], "no state dict"),
    ],
    ids=["absent", "prefixed", "more", "Charades", "flow", "nested", "list"],
)
def test_other_weights_are_refused(weights, tmp_path, change, words):
    torch.save(change(weights), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=f"does not hold I3D's weights: .*{words}"):
        i3d_features(tmp_path / "other.pt")


class Code:
    """Something that unpickling would run."""

    def __reduce__(self):
        return (print, ("unpickled",))


def test_what_is_neither_is_refused(stored, tmp_path, capsys):
    torch.save({"a": Code()}, tmp_path / "code.pt")
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "cut.pt").write_bytes(stored.read_bytes()[:999])
    for name in ("code", "text", "empty", "cut"):
        with pytest.raises(ValueError, match=f"{name}.pt is neither TorchScript nor a state dict of tensors"):
            open_features(tmp_path / f"{name}.pt")
    assert "unpickled" not in capsys.readouterr().out
    (tmp_path / "cut.safetensors").write_bytes(stored.read_bytes()[:999])
    with pytest.raises(ValueError, match=r"cut.safetensors is not a safetensors file"):
        open_features(tmp_path / "cut.safetensors")
