"""Spectra measured on a folder of videos, and what they advise."""

import itertools
import json

import numpy as np
import pytest
import torch

from tpdiff.cli import main
from tpdiff.data import ClipDataset, collate, to_float
from tpdiff.evaluation.spectra import TOLERANCES, advise, load_spectrum, measure_folder, save_spectrum
from tpdiff.models.autoencoder import encode_video, load_autoencoder
from tpdiff.models.video_autoencoder import VideoAutoencoder
from tpdiff.pyramid import FlowMatchingSchedule, measure_spectrum
from tpdiff.pyramid.spectrum import Spectrum

SIZE = (8, 16, 16)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae")
    VideoAutoencoder(
        latent_channels=3, hidden_size=8, encoder_layers=1, decoder_layers=1, time_patch=1
    ).save_pretrained(folder)
    return str(folder)


def tpdiff(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    return stop.value.code or 0


def test_a_folders_spectrum_is_that_of_its_latents(clips, autoencoder, tmp_path):
    seen = []
    found = measure_folder(clips, autoencoder, SIZE, clips=5, seed=3, progress=lambda *n: seen.append(n))
    dataset = ClipDataset(clips, frames=8, height=16, width=16, seed=3, cache="none", require_captions=False)
    videos = (to_float(collate([dataset[i]])["video"]) for i in range(5))
    wanted = measure_spectrum(encode_video(load_autoencoder(autoencoder), video) for video in videos)
    assert np.allclose(found.power, wanted.power, rtol=1e-5)
    assert (found.clips, found.size, found.causal_time) == (5, (8, 2, 2), False)
    assert seen == [(n, 5) for n in range(1, 6)]
    assert found.description["autoencoder"] == "VideoAutoencoder"
    assert found.description["size"] == list(SIZE)
    save_spectrum(found, tmp_path / "spectrum.json")
    again = load_spectrum(tmp_path / "spectrum.json")
    assert np.allclose(again.power, found.power, rtol=1e-5)
    assert again.description == found.description


def test_a_size_that_the_autoencoder_cannot_hold(clips, autoencoder):
    with pytest.raises(ValueError, match=r"8x20x16 does not suit the autoencoder: .*multiples of 8 and 8"):
        measure_folder(clips, autoencoder, (8, 20, 16))


@pytest.mark.parametrize("text", ["", "{}", '{"version": 99}', '{"version": 1}'])
def test_no_spectrum(tmp_path, text):
    path = tmp_path / "spectrum.json"
    if text:
        path.write_text(text)
    with pytest.raises(ValueError, match="spectrum"):
        load_spectrum(path)


def test_stages_are_advised_where_bands_hide():
    """Power that falls along time: the smaller the tolerance, the noisier the coarse stages end."""
    bands = np.arange(1, 25.0)
    power = np.broadcast_to((2 / bands)[:, None, None] ** 2, (24, 24, 24)).copy()
    spectrum = Spectrum(power, None, (24, 24, 24), 1)
    factors = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
    advice = advise(spectrum, FlowMatchingSchedule(), factors)
    ends = [[stage["end"] for stage in found["stages"]] for found in advice["training_free"]]
    assert [found["tolerance"] for found in advice["training_free"]] == list(TOLERANCES)
    assert all(a < b for loose, tight in itertools.pairwise(ends) for a, b in zip(loose, tight[:-1], strict=False))
    assert 0 < advice["uniform"][0]["power_lost"] < 1
    flat = Spectrum(np.full((24, 24, 24), 1e6), None, (24, 24, 24), 1)
    refused = advise(flat, FlowMatchingSchedule(), factors)["training_free"]
    assert "power_lost" not in refused[0]


def test_the_command_measures_and_reads(clips, autoencoder, tmp_path, capsys):
    size = ("--frames", 8, "--height", 64, "--width", 64, "--axes", "T", "--json")
    out = tmp_path / "measured.json"
    measured = ("--spectrum", clips, "--vae", autoencoder, "--clips", 3, "--spectrum-out", out)
    assert tpdiff("plan", "animatediff", *size, *measured) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["spectrum"]["file"] == str(out)
    assert load_spectrum(out).clips == 3
    assert load_spectrum(out).description["fps"] == 8  # the model's
    assert tpdiff("plan", "animatediff", *size, "--spectrum", out) == 0
    assert json.loads(capsys.readouterr().out)["spectrum"] == said["spectrum"]
    assert tpdiff("plan", "animatediff", *size, "--spectrum", clips) == 2
    assert "needs --vae" in capsys.readouterr().err


def test_the_command_measures_at_the_rate_asked_for_and_shows_how_far_it_is(clips, autoencoder, tmp_path, capsys):
    options = ("--frames", 8, "--height", 64, "--width", 64, "--stages", 2, "--clips", 2, "--fps", 16)
    measured = ("--spectrum", clips, "--vae", autoencoder)
    assert tpdiff("plan", "animatediff", *options, *measured, "--spectrum-out", tmp_path / "at-16.json") == 0
    assert load_spectrum(tmp_path / "at-16.json").description["fps"] == 16
    err = capsys.readouterr().err
    assert "measuring" in err and "2/2" in err
    assert tpdiff("plan", "animatediff", *options, *measured, "--spectrum-out", tmp_path) == 2
    assert f"{tmp_path} is a folder; name a file in it" in capsys.readouterr().err
    assert tpdiff("plan", "animatediff", *measured, "--device", "tpu") == 2
    assert "device 'tpu' is neither cpu nor cuda" in capsys.readouterr().err
