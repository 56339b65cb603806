"""Caches of real pipelines with tiny random weights: what trains on them, with which weights, and what is refused."""

import json
import shutil

import pytest
import torch
from in_order import InOrderOf
from safetensors.torch import load_file, save_file
from test_tuning import LORA, USUAL, moved, parts, trained
from tiny import CASES, find_case

from tpdiff.data import ShardDataset
from tpdiff.data.buckets import Bucket
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.sampling.stock import is_hollow
from tpdiff.training.cache import make_cache
from tpdiff.training.dry_run import dry_run
from tpdiff.training.pipeline_encoder import PipelineEncoder, open_encoder
from tpdiff.training.trainer import Trainer

NEED_THE_VIDEOS = [case.name for case in CASES if "picture" in case.name]
PAIRS = [(name, "latent") for name in USUAL] + [("wan", "pixel"), ("animatediff", "pixel")]
REST = [(c.name, "latent") for c in CASES if c.name not in (*USUAL, *NEED_THE_VIDEOS)]
ONE_CLIP = ("data.starts=1", "data.split=", "train.batch_size=3")


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    """`cached(config)`: a cache of a configuration's clips, made once, and the configuration that trains on it."""
    made = {}

    def make(config, *, videos=False):
        key = config.pretrained.path, config.data.stages
        if key not in made:
            made[key] = tmp_path_factory.mktemp("cached") / "shards"
            make_cache(config, made[key], shards=2)
        data = {"shards": str(made[key])} | ({} if videos else {"path": ""})
        return config.model_copy(update={"data": config.data.model_copy(update=data)})

    return make


def losses(run):
    """The losses of a run, without its times."""
    return [point[1:] for point in run.losses]


def dropout(case):
    """Some captions are dropped; HunyuanVideo's plain template leaves no token of an empty one."""
    return "condition.dropout=0" if case.name == "hunyuan" else "condition.dropout=0.4"


SLOW = [pytest.param(*one, marks=pytest.mark.slow) for one in REST]


@pytest.mark.parametrize(("name", "stages"), [*PAIRS, *SLOW])
def test_shards_train_a_pipeline_as_its_videos_do(name, stages, tuning, cached, tmp_path):
    case = find_case(name)
    config = tuning(case, *ONE_CLIP, dropout(case), f"data.stages={stages}")
    of_shards = cached(config)
    order = ShardDataset(of_shards.data.shards, seed=config.seed, window=config.data.shuffle).grouped(3)
    of_videos = trained(config, tmp_path / "videos", dataset=InOrderOf(config, order))
    run = trained(of_shards, tmp_path / "shards")
    assert [one[:2] for one in losses(run)] == [one[:2] for one in losses(of_videos)]
    assert [one[2] for one in losses(run)] == pytest.approx([one[2] for one in losses(of_videos)], rel=1e-5)
    encoders = {n for n, p in parts(run.trainee.pipe).items() if n not in case.networks and n != "motion_adapter"}
    assert {n for n, p in parts(run.trainee.pipe).items() if is_hollow(p)} == encoders >= {"vae", "text_encoder"}


def test_what_trained_on_shards_is_resumed_saved_and_sampled(tuning, cached, tmp_path):
    config = cached(tuning(find_case("wan"), *ONE_CLIP, dropout(find_case("wan")), **LORA))
    whole = trained(config, tmp_path / "whole")
    first = config.model_copy(update={"train": config.train.model_copy(update={"steps": 1})})
    trained(first, tmp_path / "cut").save()
    again = trained(config, tmp_path / "cut", resume=True)
    assert losses(whole) == losses(again)
    assert not moved(whole.network.state_dict(), again.network.state_dict())
    with pytest.raises(ValueError, match="opened without what encodes and decodes"):
        whole.pipeline()("a", num_inference_steps=[1, 1, 1])
    loaded = PyramidPipeline.from_pretrained(whole.save())
    assert loaded("a", num_inference_steps=[1, 1, 1], output_type="pt").frames.isfinite().all()


def test_shards_are_opened_once(tuning, cached, tmp_path, monkeypatch):
    config, opened = cached(tuning(find_case("wan"), *ONE_CLIP)), []

    def watched(dataset, url, *, begin=ShardDataset.__init__, **options):
        opened.append(url)
        begin(dataset, url, **options)

    monkeypatch.setattr(ShardDataset, "__init__", watched)
    run = Trainer(config, tmp_path / "run")
    assert opened == [config.data.shards]
    assert (run.dataset.seed, run.dataset.window) == (config.seed, config.data.shuffle)


def test_a_dry_run_and_a_validation_read_shards_too(tuning, cached, tmp_path):
    case = find_case("wan")
    config = cached(tuning(case, *ONE_CLIP))
    assert [stage.clips for stage in dry_run(config, tmp_path / "dry", rounds=1).stages] == [3, 3, 3]
    validated = ("validation.every_steps=2", "validation.clips=1", "validation.samples=1", "validation.sample_steps=3")
    split = ("data.split=train", "validation.split=test")
    config = tuning(case, *ONE_CLIP[::2], *split, *validated)
    make_cache(config, tmp_path / "train", shards=1)
    run = trained(
        config.model_copy(update={"data": config.data.model_copy(update={"shards": str(tmp_path / "train")})}),
        tmp_path / "run",
    )
    record = run.validation.records[-1]
    assert set(record["loss"]) == {"0", "1", "2"} and (tmp_path / "run" / record["samples"][0]).is_file()


def test_only_the_processes_that_encode_read_weights(tuning, tmp_path, monkeypatch):
    """The empty caption is theirs as well, whatever captions there are."""
    opened, config = [], tuning(find_case("wan"), "data.starts=1", "data.split=", "condition.kind=none")

    def watched(*arguments):
        opened.append(open_encoder(*arguments))
        return opened[-1]

    monkeypatch.setattr("tpdiff.training.cache.open_encoder", watched)
    make_cache(config, tmp_path / "shards", shards=1)
    (encoder,) = opened
    assert all(is_hollow(part) for part in parts(encoder.asker.pipe).values())
    kept = ShardDataset(str(tmp_path / "shards")).empty_prompt
    (wanted,) = PipelineEncoder(config).asker.encode([""])
    assert kept.keys() == wanted.keys() and all(torch.equal(kept[name], wanted[name]) for name in kept)


# What is refused


def other_weights(folder, part):
    """Every weight of a component a little larger."""
    path = next((folder / part).glob("*.safetensors"))
    save_file({name: 1.01 * value for name, value in load_file(path).items()}, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        ("vae", "model.autoencoder: cache"),
        ("text_encoder", "condition.encoder: cache"),
        ("tokenizer", "condition.encoder: cache"),
        ("transformer", None),
        ("dtype", "pretrained.dtype: cache float32, run bfloat16"),
        ("length", r"pretrained.options: cache {.*'max_sequence_length': 8}, run {.*'max_sequence_length': 16}"),
        ("stages", "data.stages: cache latent, run pixel"),
        ("frames", "data.buckets: cache .'17x16x16'., run .'33x16x16'."),
    ],
)
def test_a_cache_of_something_else_is_refused_with_what_differs(change, differs, tuning, cached, saved, tmp_path):
    case = find_case("wan")
    told = cached(tuning(case, *ONE_CLIP)).model_dump()
    folder = shutil.copytree(saved(case), tmp_path / "other")
    told["pretrained"]["path"] = str(folder)
    if change == "dtype":
        told["pretrained"]["dtype"], told["train"]["precision"] = "bfloat16", "bf16"
    elif change == "length":
        told["pretrained"]["options"] = {"max_sequence_length": 16}
    elif change == "stages":
        told["data"]["stages"] = "pixel"
    elif change == "frames":
        told["data"]["frames"] = 33
    elif change == "tokenizer":
        path = folder / "tokenizer" / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 5}))
    else:
        other_weights(folder, change)
    config = type(tuning(case)).model_validate(told)
    if differs is None:
        assert Trainer(config, tmp_path / "run").latents.identity
        return
    with pytest.raises(ValueError, match=f"was made for other runs: .*{differs}"):
        Trainer(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cache_for_a_new_network_is_no_pipeline_s(tuning, encoding, tmp_path):
    make_cache(encoding(), tmp_path / "shards", shards=1)
    with pytest.raises(ValueError, match=r"model.autoencoder: cache \w+, run \w+;.* pretrained.dtype: cache None, run"):
        Trainer(tuning(find_case("wan"), f"data.shards={tmp_path / 'shards'}"), tmp_path / "run")


def test_a_pipeline_of_pictures_needs_the_videos(tuning, tmp_path):
    with pytest.raises(ValueError, match=r"starts from pictures, which shards do not keep: train it on the videos"):
        make_cache(tuning(find_case("wan-picture"), "data.starts=1"), tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


# Sizes


def test_sizes_are_those_that_the_network_can_hold(tuning):
    encoder = PipelineEncoder(tuning(find_case("animatediff"), "data.buckets=auto"), None)
    assert all(is_hollow(part) for part in parts(encoder.asker.pipe).values())
    most = encoder.asker.pipe.unet.config.motion_max_seq_length
    assert encoder.largest(Bucket(most + 40, 67, 40)) == Bucket(most // 4 * 4, 64, 32)
    assert encoder.largest(Bucket(3, 67, 40)) is None
    with pytest.raises(ValueError, match="nearest"):
        encoder.check([Bucket(most + 1, 16, 16)])
