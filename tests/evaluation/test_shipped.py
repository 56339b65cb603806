"""The models that come along: small, whole, with a card, and shown by the demo."""

import json
import shlex
from pathlib import Path

import pytest
import torch

from tpdiff.data import write_video
from tpdiff.evaluation import demo
from tpdiff.evaluation.made import is_model, model_geometry
from tpdiff.metrics.clips import choose_clips, find_sources, load_clips
from tpdiff.models.autoencoder import compression, load_autoencoder
from tpdiff.recipes import recipe_path
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.sampling.trained import newest_checkpoint
from tpdiff.shipped import CARD, card, or_shipped, shipped_models
from tpdiff.training.config import Config
from tpdiff.training.load_config import load_config

LARGEST = 20e6  # bytes, all weights together


def test_the_pair_is_there_and_small():
    models = shipped_models()
    assert {"gameplay-vanilla", "gameplay-pyramid"} <= set(models)
    files = [path for path in next(iter(models.values())).parent.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt")]
    assert sum(path.stat().st_size for path in files if path.suffix == ".safetensors") <= LARGEST


def test_both_were_trained_by_one_recipe_for_the_same_time():
    made = {name: card(folder) for name, folder in shipped_models().items() if name.startswith("gameplay")}
    for facts in made.values():
        assert facts["command"].startswith("tpdiff train configs/latent-doom.yaml")
        assert facts["figures"]["clips"] >= 2048
        assert facts["figures"]["frechet_distance"]["value"] > facts["figures"]["floor"] > 0
    vanilla, pyramid = made["gameplay-vanilla"], made["gameplay-pyramid"]
    assert vanilla["seconds"] == pytest.approx(pyramid["seconds"], rel=0.01)
    own = ("method", "alignment", "stage_weights")  # what TPDiff adds
    methods = [[facts["config"]["train"].pop(name) for name in own] for facts in (vanilla, pyramid)]
    assert methods == [["vanilla", "none", None], ["stagewise", "assignment", [1, 2, 1]]]
    assert vanilla["config"] == pyramid["config"]


@pytest.mark.parametrize("name", ["gameplay-vanilla", "gameplay-pyramid"])
def test_the_command_on_its_card_is_the_recipe_it_was_trained_by(name):
    facts = card(shipped_models()[name])
    told = shlex.split(facts["command"])
    assert told[:2] == ["tpdiff", "train"]
    config = load_config(recipe_path(Path(told[2]).stem), [*told[3:], f"seed={facts['seed']}"])
    kept = Config.model_validate(facts["config"])
    for section in ("model", "condition", "diffusion", "pyramid", "train", "seed"):
        assert getattr(config, section) == getattr(kept, section)
    sizes = ("frames", "height", "width", "fps", "starts", "resize", "stages")
    assert all(getattr(config.data, name) == getattr(kept.data, name) for name in sizes)


def test_both_show_the_action_that_they_are_told():
    for name in ("gameplay-vanilla", "gameplay-pyramid"):
        action = card(shipped_models()[name])["figures"]["accuracy"]["action"]
        assert action["real"] > 0.95  # what the classifier makes of real clips
        assert action["made"] > 0.6 and action["guess"] < 0.21


@pytest.mark.parametrize("name", ["gameplay-vanilla", "gameplay-pyramid"])
def test_they_are_compared_with_clips_of_their_rate(name, tmp_path):
    """Of the game's 35 frames a second those are the files' own, which the figures on their cards were taken with."""
    geometry = model_geometry(shipped_models()[name])
    assert geometry == (16, 48, 64, 35.0, "crop")
    pixels = torch.randint(0, 256, (40, 48, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    write_video(tmp_path / "test" / "0.mp4", pixels, 35)
    own, same = (
        load_clips(choose_clips(find_sources(tmp_path, one, "test"), one, None, 0), one)
        for one in (geometry._replace(fps=None), geometry)
    )
    assert own.shape == (2, 3, 16, 48, 64) and torch.equal(own, same)


def test_the_autoencoder_keeps_every_frame_and_is_no_model():
    (folder,) = {path.parent / "frame-autoencoder" for path in shipped_models().values()}
    assert folder.name not in shipped_models()
    assert compression(load_autoencoder(str(folder))) == (16, (1, 8, 8))
    facts = card(folder)
    assert facts["command"].startswith("tpdiff train") and facts["figures"]["psnr"] > facts["figures"]["still_psnr"]


@pytest.mark.parametrize("form", ["{}", "pretrained/{}"])
def test_what_comes_along_is_known_by_its_name_anywhere(form, tmp_path, monkeypatch):
    """Recipes say `pretrained/frame-autoencoder`, and installed they have no such folder beside them."""
    monkeypatch.chdir(tmp_path)
    for name, folder in shipped_models().items():
        assert newest_checkpoint(Path(form.format(name))) == folder
        assert is_model(form.format(name)) and model_geometry(form.format(name)) == model_geometry(folder)
    assert compression(load_autoencoder(form.format("frame-autoencoder"))) == (16, (1, 8, 8))


def test_a_folder_of_one_s_own_comes_before_what_comes_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gameplay-pyramid").mkdir()
    for path in ("gameplay-pyramid", "runs/gameplay-vanilla", "../gameplay-vanilla", "gameplay"):
        assert or_shipped(path) == Path(path)
        with pytest.raises(FileNotFoundError, match="no model in"):
            newest_checkpoint(Path(path))


@pytest.mark.parametrize("name", ["gameplay-vanilla", "gameplay-pyramid"])
def test_each_samples(name):
    pipeline = PyramidPipeline.from_pretrained(shipped_models()[name])
    assert len(pipeline.pyramid) == (1 if name.endswith("vanilla") else 3)
    video = pipeline(
        [pipeline.config.labels[0]], num_inference_steps=3, generator=torch.Generator().manual_seed(0)
    ).frames
    frames, height, width = pipeline.config.default_size
    assert video.shape == (1, frames, height, width, 3)


def test_the_demo_shows_the_models_that_know_its_captions(clips, tmp_path, monkeypatch):
    arms = demo.build_arms(
        tmp_path / "demo",
        clips,
        0.2,
        ["data.frames=8", "data.height=16", "data.width=16", "data.fps=8", "model.hidden_size=24", "model.num_layers=1"]
        + [
            "model.patch_size=[1,2,2]",
            "model.temporal_overlap=0",
            "model.num_attention_heads=2",
            "train.batch_size=4",
            "train.precision='no'",
        ],
    )
    arms.run()
    captions = arms.dataset.captions[: demo.SHOWN]
    folder = tmp_path / "pretrained" / "tiny"
    arms.trainers["pyramid"].pipeline().save_pretrained(folder)
    (folder / CARD).write_text(json.dumps({"label": "Tiny", "summary": "in no time"}))
    monkeypatch.setattr(demo, "shipped_models", lambda: {"tiny": folder, **shipped_models()})
    (shown,) = demo._shipped_clips(captions, tmp_path / "demo")  # those that play the game do not know digits
    assert (shown.label, shown.captions) == ("Tiny, shipped", captions)
    assert shown.made == "not trained here: in no time"
    assert all((tmp_path / "demo" / path).stat().st_size > 0 for path in shown.videos)


def test_the_shipped_pair_knows_the_demo_s_captions():
    labels = {name: PyramidPipeline.from_pretrained(folder).config.labels for name, folder in shipped_models().items()}
    from tpdiff.data.doom import PRESSES, SCENARIOS

    scene = SCENARIOS[demo.SCENARIO]
    captions = {f"a marine {PRESSES[action][2]} in {scene.place}" for action in scene.actions}
    assert all(captions <= set(labels[name]) for name in ("gameplay-vanilla", "gameplay-pyramid"))
