"""VideoMAE from a folder: its own metric, named after its weights, and nothing else under that name."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_features import footage
from torch.nn import functional
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification, VideoMAEModel

from tpdiff.metrics import open_features, videomae_features

TINY = {"image_size": 32, "patch_size": 16, "num_frames": 4, "hidden_size": 16, "intermediate_size": 32}
TINY |= {"num_hidden_layers": 2, "num_attention_heads": 2, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1}
TINY |= {"decoder_num_attention_heads": 2, "decoder_intermediate_size": 8, "initializer_range": 0.3}


def tiny(folder, kind=VideoMAEForVideoClassification, seed=0, **options):
    torch.manual_seed(seed)
    kind(VideoMAEConfig(**TINY | options)).eval().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", [VideoMAEModel, VideoMAEForVideoClassification, VideoMAEForPreTraining])
def test_features_are_the_mean_of_the_last_tokens(tmp_path, kind):
    videomae = videomae_features(tiny(tmp_path, kind))
    clips = footage(3)
    vectors = videomae.compute(clips)
    frames = functional.interpolate(clips[1].transpose(0, 1).float(), size=(32, 32), mode="bilinear", antialias=True)
    mean, deviation = (np.array(c)[:, None, None] for c in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    normalised = torch.from_numpy((frames.numpy() / 255 - mean) / deviation).float()
    model = VideoMAEModel.from_pretrained(tmp_path)
    expected = model(normalised[None]).last_hidden_state.mean(1)[0].detach().numpy()
    np.testing.assert_allclose(vectors[1], expected, rtol=1e-4, atol=1e-5)
    assert vectors.shape == (3, 16) and vectors.dtype == np.float32
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    np.testing.assert_array_equal(videomae.compute(clips[2:])[0], vectors[2])


def test_it_is_named_after_its_weights(tmp_path):
    first = open_features(tiny(tmp_path / "first"))
    short = first.digest[:12]
    assert (
        first.distance == f"frechet_distance_videomae_{short}" and first.kernel == f"kernel_distance_videomae_{short}"
    )
    assert short in first.name and first.dimensions is None
    assert "stretched to 32x32, normalised by 0.485 0.456 0.406 / 0.229 0.224 0.225" in first.identity()["resize"]
    shutil.copytree(tmp_path / "first", tmp_path / "moved")
    assert open_features(tmp_path / "moved").identity() == first.identity()
    assert open_features(tiny(tmp_path / "other", seed=1)).distance != first.distance
    assert open_features(tiny(tmp_path / "heads", num_attention_heads=4)).digest != first.digest


def test_the_folder_says_how_colours_are_normalised(tmp_path):
    plain = videomae_features(tiny(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    told = videomae_features(tmp_path)
    assert told.resize.endswith("normalised by 0.5 0.5 0.5 / 0.25 0.25 0.25") and told.digest != plain.digest
    assert np.abs(told.compute(footage(1)) - plain.compute(footage(1))).max() > 1e-3


def test_clips_have_as_many_frames_as_it_was_trained_on(tmp_path):
    videomae = videomae_features(tiny(tmp_path))
    videomae.check_frames(4)
    for frames in (3, 5):
        with pytest.raises(
            ValueError, match=rf"clips of {frames} frames do not suit the features videomae.*nearest: 4"
        ):
            videomae.check_frames(frames)


def test_what_is_no_videomae_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model; what is needed is 'videomae'"):
        open_features(tmp_path)
    tiny(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = "videomae.encoder.layer.1.output.dense.weight"
    save_file({k: v for k, v in weights.items() if k != name}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"1 absent, such as encoder.layer.1.output.dense.weight"):
        open_features(tmp_path)
    save_file(weights | {name: torch.zeros(3, 3)}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="no VideoMAEModel in"):
        open_features(tmp_path)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"no VideoMAEModel in .*header too large"):
        open_features(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="no VideoMAEModel in"):
        open_features(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vivit"}))
    with pytest.raises(ValueError, match="holds 'vivit'; what is needed is 'videomae'"):
        open_features(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not JSON"):
        open_features(tmp_path)
