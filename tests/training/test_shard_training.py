"""Training from shards: the losses of training from the folder, clip for clip, and resumed anywhere."""

import shutil

import pytest
import torch
from in_order import InOrderOf

from tpdiff.data import ShardDataset
from tpdiff.models import conditioning
from tpdiff.training.cache import make_cache
from tpdiff.training.clean import clean_pair
from tpdiff.training.load_config import ConfigError
from tpdiff.training.objective import build_pyramid
from tpdiff.training.trainer import Trainer


@pytest.fixture(scope="module")
def recipes(encoding, bert, tmp_path_factory):
    """`recipes("pixel", ...)`: the configuration of a run from the folder, and that of one from shards of it."""
    shards = {}

    def make(stages, *overrides):
        text = ("condition.kind=text", f"condition.encoder={bert}", "condition.max_length=16", "condition.dropout=0.3")
        shared = ("data.starts=2", f"data.stages={stages}", *text, "train.steps=9", "train.batch_size=6")
        if stages not in shards:
            shards[stages] = tmp_path_factory.mktemp("shards") / stages
            make_cache(encoding(*shared), shards[stages], shards=3)
        of_shards = encoding(*shared, f"data.shards={shards[stages]}", "data.shuffle=8", "data.path=", *overrides)
        return encoding(*shared, *overrides), of_shards

    return make


def trained(config, out, **options):
    trainer = Trainer(config, out, **options)
    trainer.run()
    return trainer


def losses(trainer):
    return [point[1:] for point in trainer.losses]


def assert_same(a, b):
    assert losses(a) == losses(b)
    first, second = a.network.state_dict(), b.network.state_dict()
    assert [n for n in first if not torch.equal(first[n], second[n])] == []


@pytest.mark.parametrize("stages", ["latent", "pixel"])
def test_shards_train_as_their_folder_does(recipes, tmp_path, monkeypatch, stages):
    of_folder, of_shards = recipes(stages)
    order = ShardDataset(of_shards.data.shards, seed=of_shards.seed, window=8).grouped(6)
    kept = {"data": of_folder.data.model_copy(update={"latents": "disk", "cache_dir": str(tmp_path / "kept")})}
    if stages == "latent":
        of_folder = of_folder.model_copy(update=kept)
    folder = trained(of_folder, tmp_path / "folder", dataset=InOrderOf(of_folder, order))
    monkeypatch.setattr(conditioning, "load_text_encoder", None)  # what shards hold need not be encoded
    shards = trained(of_shards, tmp_path / "shards")
    assert len({stage for _, stage, _ in losses(shards)}) == 2
    assert [loss[:2] for loss in losses(folder)] == [loss[:2] for loss in losses(shards)]
    for one, other in zip(losses(folder), losses(shards), strict=True):
        assert one[2] == pytest.approx(other[2], rel=1e-6)  # captions were encoded together there, one by one here
    assert folder.latents.identity == shards.latents.identity


def test_stages_of_a_pixel_pyramid_are_their_own(recipes):
    _, config = recipes("pixel")
    pyramid = build_pyramid(config)
    stages = [torch.randn(2, 4, 3, 4, 4), torch.randn(2, 4, 2, 2, 2)]
    assert clean_pair(pyramid, stages, 0) == (stages[0], stages[1])
    assert clean_pair(pyramid, stages, 1) == (stages[1], None)
    fine, coarse = clean_pair(pyramid, stages[0], 0)
    assert torch.equal(fine, stages[0]) and torch.equal(coarse, pyramid.down(stages[0], 1))


def test_a_run_is_resumed_in_the_middle_of_an_epoch(recipes, tmp_path):
    _, config = recipes("pixel", "data.workers=1")
    whole = trained(config, tmp_path / "whole")
    first = config.model_copy(update={"train": config.train.model_copy(update={"steps": 4})})
    trained(first, tmp_path / "cut").save()
    assert_same(whole, trained(config, tmp_path / "cut", resume=True))


def test_other_shards_are_no_way_to_resume(recipes, encoding, long_clips, tmp_path):
    _, config = recipes("latent", "train.steps=1")
    out = shutil.copytree(config.data.shards, tmp_path / "moved")
    trained(config, tmp_path / "run").save()
    moved = (f"data.shards={out}", f"data.path={long_clips}", "validation.every_steps=1", "validation.samples=0")
    assert Trainer(recipes("latent", "train.steps=1", *moved)[1], tmp_path / "run", resume=True).done
    videos = shutil.copytree(long_clips, tmp_path / "videos")
    rows = (videos / "metadata.jsonl").read_text().splitlines()
    (videos / "metadata.jsonl").write_text("\n".join(rows[:-1]) + "\n")
    make_cache(config.model_copy(update={"data": config.data.model_copy(update={"path": str(videos)})}), out)
    other = config.model_copy(update={"data": config.data.model_copy(update={"shards": str(out)})})
    with pytest.raises(ValueError, match=r"was trained on other shards than those of .*/moved"):
        Trainer(other, tmp_path / "run", resume=True)
    shutil.rmtree(config.data.shards)
    shutil.copytree(out, config.data.shards)
    with pytest.raises(ValueError, match="was trained on other shards"):
        Trainer(config, tmp_path / "run", resume=True)


def test_validation_measures_pixel_stages(recipes, long_clips, tmp_path):
    validation = (f"data.path={long_clips}", "validation.every_steps=2", "validation.samples=0", "train.steps=2")
    trainer = trained(recipes("pixel", *validation)[1], tmp_path / "run")
    assert sorted(trainer.validation.losses) == [0, 1]


def test_what_shards_need(recipes):
    with pytest.raises(ConfigError, match=r"set model.autoencoder"):
        recipes("latent", "model.autoencoder=")
    with pytest.raises(ConfigError, match=r"validation needs the videos themselves"):
        recipes("latent", "validation.every_steps=2")
