"""A video autoencoder trained on real clips: it learns, resumes exactly, and leaves a folder that others load."""

import json
import shutil

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from tpdiff.cli import app, main
from tpdiff.models.autoencoder import compression, decode_video, encode_video, load_autoencoder
from tpdiff.models.video_autoencoder import VideoAutoencoder
from tpdiff.training.autoencoder import AutoencoderTrainer
from tpdiff.training.autoencoder_config import AutoencoderConfig, AutoencoderTrainConfig, load_recipe
from tpdiff.training.checkpoint import STATE, checkpoints
from tpdiff.training.config import Config
from tpdiff.training.load_config import ConfigError, build
from tpdiff.training.reconstruction import SMOOTH, measure, psnr_of, reconstruction_loss

TINY = {"latent_channels": 4, "hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture
def values(clips):
    return {
        "seed": 3,
        "data": {"path": str(clips), "frames": 5, "height": 16, "width": 16},
        "autoencoder": TINY,
        "train": {"batch_size": 3, "steps": 6, "warmup_steps": 2, "lr": 5e-3},
        "held_out": {"clips": 3},
        "statistics_clips": 6,
        "log": {"every_steps": 2, "checkpoint_every_steps": None},
    }


@pytest.fixture
def tiny_recipe(values):
    return lambda *overrides: build(AutoencoderConfig, values, overrides)


def trained(config, out, **options):
    trainer = AutoencoderTrainer(config, out, **options)
    trainer.run()
    return trainer


def states(trainer):
    moments = {f"{i}.{k}": v for i, s in enumerate(trainer.optimizer.state.values()) for k, v in s.items()}
    return trainer.network.state_dict() | {f"ema.{n}": t for n, t in trainer.ema.network.state_dict().items()} | moments


def assert_same(a, b):
    assert [point[1:] for point in a.losses] == [point[1:] for point in b.losses]
    first, second = states(a), states(b)
    assert first.keys() == second.keys()
    assert [n for n in first if not torch.equal(torch.as_tensor(first[n]), torch.as_tensor(second[n]))] == []


def rendered(frames, seed=0):
    return torch.rand(1, 3, frames, 32, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return VideoAutoencoder(**TINY).eval()


def test_the_loss_is_its_formula(network):
    clean = rendered(5)
    train = AutoencoderTrainConfig(steps=1, kl_weight=0.3, square_weight=1.1, edge_weight=0.7, motion_weight=0.9)
    with torch.no_grad():
        loss = reconstruction_loss(network, clean, train, torch.Generator().manual_seed(7))
        posterior = network.encode(clean).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(7))
        error = (network.decode(posterior.mean + posterior.std * noise).sample - clean).double().numpy()
        normal = torch.distributions.Normal(posterior.mean.double(), posterior.std.double())
        kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).mean()
    pixels = ((error**2 + SMOOTH**2) ** 0.5).mean() - SMOOTH
    down = abs(error[..., 1:, :] - error[..., :-1, :]).mean()
    across = abs(error[..., 1:] - error[..., :-1]).mean()
    motion = abs(error[:, :, 1:] - error[:, :, :-1]).mean()
    wanted = pixels + 1.1 * (error**2).mean() + 0.7 * (down + across) / 2 + 0.9 * motion + 0.3 * float(kl)
    assert float(loss.total) == pytest.approx(wanted, rel=1e-5)
    assert loss.psnr == pytest.approx(psnr_of((error**2).mean()), rel=1e-5)
    assert float(loss.kl) == pytest.approx(float(kl), rel=1e-5)


def test_a_picture_is_a_clip_of_one_frame(network):
    train = AutoencoderTrainConfig(steps=1)
    assert torch.isfinite(reconstruction_loss(network, rendered(1), train, torch.Generator()).total)


def test_the_loss_falls(tiny_recipe, tmp_path):
    trainer = trained(tiny_recipe("train.steps=120", "train.batch_size=4"), tmp_path / "run")
    losses, psnr = ([point[i] for point in trainer.losses] for i in (2, 3))
    assert sum(losses[-18:]) < 0.9 * sum(losses[:18])
    assert sum(psnr[-18:]) / 18 > sum(psnr[:18]) / 18 + 0.7


def test_a_loss_that_is_no_number_ends_the_run(tiny_recipe, tmp_path):
    trainer = AutoencoderTrainer(tiny_recipe("train.lr=1e30", "train.max_grad_norm=null"), tmp_path / "run")
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d\. .*a lower train\.lr"):
        trainer.run()
    assert checkpoints(tmp_path / "run") == []


@pytest.mark.parametrize("overrides", [[], ["data.workers=2", "train.precision=bf16", "train.lr_schedule=linear"]])
def test_a_resumed_run_is_the_uninterrupted_one(tiny_recipe, tmp_path, overrides):
    whole = trained(tiny_recipe(*overrides), tmp_path / "whole")
    config = tiny_recipe("log.checkpoint_every_steps=3", *overrides)
    trained(config, tmp_path / "run")
    assert [p.name for p in checkpoints(tmp_path / "run")] == ["step-00000003"]
    resumed = AutoencoderTrainer(config, tmp_path / "run", resume=True)
    assert resumed.step == 3
    resumed.run()
    assert_same(whole, resumed)


def test_a_stop_leaves_a_run_that_continues_exactly(tiny_recipe, tmp_path):
    whole = trained(tiny_recipe(), tmp_path / "whole")
    trainer = AutoencoderTrainer(tiny_recipe(), tmp_path / "run")
    trainer.run(report=lambda status: trainer.request_stop())
    assert (trainer.step, trainer.done) == (2, False)
    trainer.save()
    assert_same(whole, trained(tiny_recipe(), tmp_path / "run", resume=True))


def scalars(run):
    """name -> [(step, value), ...] of a run's TensorBoard files."""
    accumulator = EventAccumulator(str(run / "tpdiff"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {name: [(p.step, p.value) for p in accumulator.Scalars(name)] for name in accumulator.Tags()["scalars"]}


def test_tensorboard_follows_a_run_through_its_death(tiny_recipe, tmp_path):
    config = tiny_recipe("log.trackers=[tensorboard]", "log.checkpoint_every_steps=3")
    died = AutoencoderTrainer(config, tmp_path / "run")
    died.run(report=lambda status: died.request_stop() if status.step == 4 else None)  # saved at 3, gone after 4
    died.close()
    resumed = trained(config, tmp_path / "run", resume=True)
    quality = resumed.quality()
    resumed.close()
    found = scalars(tmp_path / "run")
    assert {name: [step for step, _ in points] for name, points in found.items() if "held_out" not in name} == {
        name: [2, 4, 6] for name in ("loss", "psnr", "kl", "lr", "clips_per_second", "training_seconds")
    }
    for name, column in (("loss", 2), ("psnr", 3), ("kl", 4)):
        for step, value in found[name]:
            wanted = [point[column] for point in resumed.losses if step - 2 < point[1] <= step]
            assert value == pytest.approx(sum(wanted) / 2, rel=1e-5), (name, step)
    assert found["training_seconds"][-1][1] == pytest.approx(resumed.seconds, rel=1e-5)
    assert found["held_out/psnr"] == [(6, pytest.approx(quality.psnr, rel=1e-5))]
    assert_same(trained(tiny_recipe(), tmp_path / "plain"), resumed)


def test_an_unknown_tracker_is_refused_before_the_first_step(tiny_recipe, tmp_path):
    with pytest.raises(
        ValueError, match=r"log.trackers: 'abacus' is unknown or not installed; installed: .*tensorboard"
    ):
        AutoencoderTrainer(tiny_recipe("log.trackers=[abacus]"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_seconds_end_a_run(tiny_recipe, tmp_path):
    trainer = trained(tiny_recipe("train.steps=null", "train.seconds=1e-6"), tmp_path / "run")
    assert trainer.step == 1
    assert trainer.done


def test_a_checkpoint_is_an_autoencoder_with_unit_latents(tiny_recipe, tmp_path):
    trainer = trained(tiny_recipe("train.steps=20", "statistics_clips=18", "data.starts=1"), tmp_path / "run")
    folder = trainer.save()
    vae = load_autoencoder(str(folder))
    assert [n for n, t in vae.state_dict().items() if not torch.equal(t, trainer.ema.network.state_dict()[n])] == []
    assert compression(vae) == (4, (4, 8, 8))
    video = torch.stack([trainer.dataset[i]["video"] for i in range(18)])
    latents = encode_video(vae, video / 127.5 - 1)
    mean, deviation = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4), correction=0)
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(deviation, torch.ones(4), rtol=0, atol=1e-3)
    assert decode_video(vae, latents).shape == video.shape


def test_the_newest_checkpoint_of_a_run_is_taken(tiny_recipe, tmp_path):
    trainer = trained(tiny_recipe("log.checkpoint_every_steps=2", "log.keep_checkpoints=3"), tmp_path / "run")
    newest = trainer.save()
    assert len(checkpoints(tmp_path / "run")) == 3
    a, b = load_autoencoder(str(tmp_path / "run")).state_dict(), load_autoencoder(str(newest)).state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a)


def test_quality_is_that_of_held_out_clips(tiny_recipe, tmp_path):
    trainer = trained(tiny_recipe("train.steps=1"), tmp_path / "run")
    quality = trainer.quality()
    assert {video.entry.path for video in trainer.held_out.videos}.isdisjoint(
        {video.entry.path for video in trainer.dataset.videos}
    )
    vae, wanted = trainer.ema.network, []
    for i in range(3):
        clean = trainer.held_out[i]["video"][None] / 127.5 - 1
        decoded = decode_video(vae, encode_video(vae, clean)).clamp(-1, 1)
        wanted.append(psnr_of(float((decoded - clean).square().mean())))
    assert quality.psnr == pytest.approx(sum(wanted) / 3, abs=0.02)
    assert quality.clips == 3
    assert 0 < quality.ssim < 1
    assert quality.still_psnr > 10
    assert json.loads((tmp_path / "run" / "quality.json").read_text())["psnr"] == quality.psnr


def test_a_clip_without_a_difference_counts_as_100_decibels(tiny_recipe, tmp_path):
    trainer = trained(tiny_recipe("train.steps=1"), tmp_path / "run")
    moving = trainer.held_out[0]["video"]
    still = moving[:, :1].expand_as(moving).contiguous()
    one, two = (measure(trainer.ema.network, clips, trainer.device) for clips in ([moving], [moving, still]))
    assert two.still_psnr == pytest.approx((one.still_psnr + 100) / 2)
    assert 0 < two.psnr < 100


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.frames=6", "nearest: 5"),
        ("data.height=20", "nearest: 16"),
        ("data.width=3", "nearest: 8"),
        ("autoencoder.latent_channels=17", "nearest: 16"),
        ("autoencoder.hidden_width=3", "did you mean autoencoder.hidden_size"),
        ("model.hidden_size=8", "unknown key model"),
        ("autoencoder.time_patch=3", "autoencoder.time_patch"),
        ("train.kl_weight=-1", "train.kl_weight"),
        ("train.precision=fp16", "train.precision"),
        ("train.steps=null", "train.steps or train.seconds"),
    ],
)
def test_a_bad_recipe_is_refused(tiny_recipe, override, words):
    with pytest.raises(ConfigError, match=r".") as caught:
        tiny_recipe(override)
    assert words in str(caught.value)


def test_what_cannot_work_is_refused_before_the_first_step(tiny_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"held_out.split 'exam'"):
        AutoencoderTrainer(tiny_recipe("held_out.split=exam"), tmp_path / "split")
    with pytest.raises(ValueError, match="nothing to resume"):
        AutoencoderTrainer(tiny_recipe(), tmp_path / "none", resume=True)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_keeps_its_configuration(tiny_recipe, tmp_path):
    trained(tiny_recipe("train.steps=1"), tmp_path / "run").save()
    with pytest.raises(ValueError, match=r"train.kl_weight: 0.0001 -> 0.5"):
        AutoencoderTrainer(tiny_recipe("train.kl_weight=0.5"), tmp_path / "run", resume=True)
    assert trained(tiny_recipe("train.steps=3"), tmp_path / "run", resume=True).step == 3


@pytest.fixture
def nothing_decodes(monkeypatch):
    def decoded(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr("tpdiff.data.clips.inspect", decoded)


def test_what_costs_nothing_to_find_is_found_before_a_video_is_decoded(tiny_recipe, tmp_path, request):
    trained(tiny_recipe("train.steps=1"), tmp_path / "run").save()
    request.getfixturevalue("nothing_decodes")
    with pytest.raises(AssertionError, match="decoded"):
        AutoencoderTrainer(tiny_recipe(), tmp_path / "other")
    with pytest.raises(ValueError, match=r"held_out\.split 'exam': split 'exam' is not in .*; null leaves"):
        AutoencoderTrainer(tiny_recipe("held_out.split=exam"), tmp_path / "other")
    with pytest.raises(ValueError, match=r"train\.kl_weight: 0\.0001 -> 0\.5"):
        AutoencoderTrainer(tiny_recipe("train.kl_weight=0.5"), tmp_path / "run", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_goes_on_with_its_videos_alone_wherever_they_lie(tiny_recipe, clips, tmp_path):
    folder = shutil.copytree(clips, tmp_path / "clips")
    trained(tiny_recipe("train.steps=1", f"data.path={folder}"), tmp_path / "run").save()
    folder = folder.rename(tmp_path / "moved")
    assert trained(tiny_recipe("train.steps=2", f"data.path={folder}"), tmp_path / "run", resume=True).step == 2
    gone = sorted(folder.glob("train/*.mp4"))[0]
    gone.unlink()
    with pytest.raises(ValueError, match=rf"other videos than those of .*moved now \(gone .*: train/{gone.name} \("):
        AutoencoderTrainer(tiny_recipe(f"data.path={folder}"), tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "override",
    ["data.latents=memory", "data.stages=pixel", "data.shards=some", "data.shuffle=9", "data.buckets=auto"],
)
def test_keys_that_it_does_not_heed_are_refused(tiny_recipe, tmp_path, override):
    key = override.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{key}: only the training of a diffusion model .* so leave it out$"):
        AutoencoderTrainer(tiny_recipe(override), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_had_such_keys_goes_on_without_them(tiny_recipe, tmp_path):
    folder = trained(tiny_recipe("train.steps=1"), tmp_path / "run").save()
    state = json.loads((folder / STATE).read_text())
    state["config"]["data"] |= {"shuffle": 9, "stages": "pixel"}
    (folder / STATE).write_text(json.dumps(state))
    assert trained(tiny_recipe("train.steps=2"), tmp_path / "run", resume=True).step == 2


def test_one_command_trains_either_kind(values, tiny_values, tmp_path):
    for name, content in (("auto", values), ("model", tiny_values())):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    assert isinstance(load_recipe(tmp_path / "auto.yaml"), AutoencoderConfig)
    assert isinstance(load_recipe(tmp_path / "model.yaml"), Config)
    done = CliRunner().invoke(
        app, ["train", str(tmp_path / "auto.yaml"), "train.steps=2", "--out", str(tmp_path / "run")]
    )
    assert done.exit_code == 0, done.output
    assert "3 held-out clips: PSNR" in done.output
    assert "PSNR" in done.stderr
    load_autoencoder(str(tmp_path / "run"))


def test_a_bad_recipe_ends_the_command_with_two(values, tmp_path, capsys):
    (tmp_path / "auto.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tmp_path / "auto.yaml"), "data.frames=4", "--out", str(tmp_path / "run")])
    assert caught.value.code == 2
    assert "nearest: 5" in capsys.readouterr().err
