"""While a run's videos are read, it tells how many."""

import pytest

from tpdiff.training.autoencoder import AutoencoderTrainer
from tpdiff.training.autoencoder_config import AutoencoderConfig
from tpdiff.training.dry_run import dry_run
from tpdiff.training.load_config import build
from tpdiff.training.trainer import Trainer

READ = [(number, 18) for number in range(1, 19)]


@pytest.mark.parametrize(("cache", "times"), [("none", 1), ("memory", 2)])
def test_a_run_tells_of_the_videos_it_reads(tiny, tmp_path, cache, times):
    told = []
    Trainer(tiny(f"data.cache={cache}"), tmp_path / "run", progress=lambda *call: told.append(call))
    assert told == READ * times


def test_a_dry_run_does(tiny, tmp_path):
    told = []
    dry_run(tiny("data.cache=none"), tmp_path / "run", rounds=1, progress=lambda *call: told.append(call))
    assert told == READ


def test_the_training_of_an_autoencoder_does(tiny_values, tmp_path):
    data = tiny_values()["data"] | {"frames": 5, "cache": "none"}
    network = {"latent_channels": 4, "hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1}
    values = {"data": data, "autoencoder": network, "train": {"steps": 1}, "held_out": {"split": None}}
    config = build(AutoencoderConfig, values | {"statistics_clips": 2})
    told = []
    AutoencoderTrainer(config, tmp_path / "run", progress=lambda *call: told.append(call))
    assert told == READ
