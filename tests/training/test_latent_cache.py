"""Kept latents: the same training with and without, files that are checked, sizes that are refused."""

import os

import pytest
import torch

from tpdiff.data import ClipDataset, collate
from tpdiff.models.autoencoder import encode_video, fingerprint, load_autoencoder
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.training import latent_cache
from tpdiff.training.latents import Latents
from tpdiff.training.load_config import ConfigError
from tpdiff.training.setup import open_dataset
from tpdiff.training.trainer import Trainer

CPU = torch.device("cpu")
SMALL = (
    "data.frames=5",
    "pyramid.factors=[[1,1,1],[1,2,2]]",
    "pyramid.causal_time=true",
    "model.patch_size=[1,1,1]",
    "data.starts=2",
    "train.steps=8",
    "train.batch_size=5",
)


@pytest.fixture
def latent(tiny, video_vae, tmp_path):
    """`latent("memory")`: the configuration of a small run on latents kept there."""

    def make(kept, *overrides):
        where = [f"data.latents={kept}", f"model.autoencoder={video_vae}"]
        where += [f"data.cache_dir={tmp_path / 'cache'}"] if kept == "disk" else []
        return tiny(*SMALL, *where, *overrides)

    return make


def files(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.npy"))


def trained(config, out, **options):
    trainer = Trainer(config, out, **options)
    trainer.run()
    return trainer


def assert_same(a, b):
    assert [point[1:] for point in a.losses] == [point[1:] for point in b.losses]
    first, second = a.network.state_dict(), b.network.state_dict()
    assert [n for n in first if not torch.equal(first[n], second[n])] == []


def opened(config):
    dataset = open_dataset(config)
    return dataset, Latents(config, Pyramid(FlowMatchingSchedule(), [(1, 1, 1), (1, 2, 2)]), CPU, dataset)


def batch_of(dataset, *indices):
    samples = [dataset[i] for i in indices]
    return {
        "video": torch.stack([s["video"] for s in samples]),
        "path": [s["path"] for s in samples],
        "start": [s["start"] for s in samples],
    }


@pytest.mark.parametrize("kept", ["memory", "disk"])
def test_training_is_the_same_with_and_without(latent, tmp_path, kept):
    plain = trained(latent("none"), tmp_path / "plain")
    cached = trained(latent(kept), tmp_path / "cached")
    assert_same(plain, cached)
    assert_same(plain, trained(latent(kept), tmp_path / "again"))


def test_a_run_may_be_resumed_with_another_cache(latent, tmp_path):
    plain = trained(latent("none"), tmp_path / "plain")
    trained(latent("none", "train.steps=3"), tmp_path / "run").save()
    assert_same(plain, trained(latent("disk"), tmp_path / "run", resume=True))


def test_a_clip_is_encoded_once(latent, monkeypatch):
    dataset, latents = opened(latent("memory"))
    first = latents.of_batch(batch_of(dataset, 0, 1))
    monkeypatch.setattr(latents.autoencoder, "encode", None)
    again = latents.of_batch(batch_of(dataset, 1, 0))
    assert torch.equal(again, first.flip(0))
    with pytest.raises(TypeError):
        latents.of_batch(batch_of(dataset, 2))


@pytest.mark.parametrize("kept", ["memory", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
def test_clips_whose_latents_are_kept_are_not_decoded(latent, tmp_path, monkeypatch, kept, workers):
    decoded = tmp_path / "decoded"  # a line a clip, also of loader processes
    decoded.touch()
    clip = ClipDataset.clip

    def noted(self, number, start):
        with decoded.open("a") as notes:
            notes.write(f"{number} {start}\n")
        return clip(self, number, start)

    monkeypatch.setattr(ClipDataset, "clip", noted)
    config = latent(
        kept, "train.steps=2", "train.batch_size=6", "data.cache=none", "data.starts=1", f"data.workers={workers}"
    )
    trainer = Trainer(config, tmp_path / "run")
    trainer.latents.encode_ahead(trainer.dataset)
    once = len(trainer.dataset)
    assert len(decoded.read_text().splitlines()) == once
    trainer.run()
    assert len(decoded.read_text().splitlines()) == once


def test_a_batch_may_have_kept_latents_and_clips_that_have_none(latent):
    dataset, latents = opened(latent("memory"))
    wanted = latents(batch_of(dataset, 0, 1, 2)["video"])
    latents.of_batch(batch_of(dataset, 1))
    spared = latents.spared(dataset)
    batch = collate([spared[i] for i in (0, 1, 2)])
    assert [video is None for video in batch["video"]] == [False, True, False]
    assert [kept is None for kept in batch["latents"]] == [True, False, True]
    assert torch.equal(latents.of_batch(batch), wanted)
    assert "video" not in collate([spared[i] for i in (0, 1, 2)])


@pytest.mark.parametrize(("kept", "starts", "each"), [("memory", "1", 1), ("disk", "3", 3), ("memory", "null", 4)])
def test_nothing_is_left_to_encode_after_encoding_ahead(latent, monkeypatch, kept, starts, each):
    dataset, latents = opened(latent(kept, f"data.starts={starts}"))  # 8 frames, clips of 5
    encoded, encode = [], Latents._encode
    monkeypatch.setattr(Latents, "_encode", lambda self, clip: (encoded.append(clip), encode(self, clip))[1])
    latents.encode_ahead(dataset)
    batch = batch_of(dataset, *range(3 * len(dataset)))
    assert len(set(batch["start"])) == each
    found = latents.of_batch(batch)
    latents.encode_ahead(dataset)
    assert len(encoded) == each * len(dataset)
    assert torch.equal(found[-4:], latents(batch["video"][-4:]))


def test_latents_are_the_scaled_encoding(latent):
    dataset, latents = opened(latent("disk", "model.latent_scale=0.5"))
    batch = batch_of(dataset, 0, 1, 2)
    wanted = 0.5 * encode_video(latents.autoencoder, batch["video"] / 127.5 - 1)
    for _ in range(2):
        torch.testing.assert_close(latents.of_batch(batch), wanted, rtol=0, atol=1e-5)
        assert torch.equal(latents.of_batch(batch), latents(batch["video"]))


def test_clips_of_one_video_are_told_apart_by_their_start(latent):
    dataset, latents = opened(latent("disk"))
    by_clip = {}
    for i in range(3 * len(dataset)):
        batch = batch_of(dataset, i)
        by_clip.setdefault((batch["path"][0], batch["start"][0]), latents.of_batch(batch))
        assert torch.equal(by_clip[batch["path"][0], batch["start"][0]], latents(batch["video"]))
    assert len({path for path, _ in by_clip}) == len(dataset)
    assert {start for _, start in by_clip} == {0, 3}


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other shape", "partial"])
def test_a_damaged_file_is_written_anew(latent, tmp_path, damage):
    dataset, latents = opened(latent("disk"))
    batch = batch_of(dataset, 0)
    wanted = latents.of_batch(batch)
    (path,) = files(tmp_path)
    good = path.read_bytes()
    if damage == "cut":
        path.write_bytes(good[:-9])
    if damage == "flip":
        path.write_bytes(good[:200] + bytes([good[200] ^ 1]) + good[201:])
    if damage == "empty":
        path.write_bytes(b"")
    if damage == "other shape":
        latent_cache.store_array(path, wanted[0, :, :1].numpy())
    if damage == "partial":
        path.rename(path.with_suffix(".17-3.part"))
    _, fresh = opened(latent("disk"))
    assert torch.equal(fresh.of_batch(batch), wanted)
    assert path.read_bytes() == good


def test_another_autoencoder_geometry_or_file_has_other_places(latent, tmp_path, video_vae):
    dataset, latents = opened(latent("disk"))
    batch = batch_of(dataset, 0)
    latents.of_batch(batch)
    vae = load_autoencoder(str(video_vae))
    next(vae.parameters()).data.view(-1)[0] += 1
    vae.save_pretrained(tmp_path / "other", safe_serialization=True)
    dataset, other = opened(latent("disk", f"model.autoencoder={tmp_path / 'other'}"))
    assert not torch.equal(other.of_batch(batch), latents.of_batch(batch))
    assert len(files(tmp_path)) == 2
    dataset, shorter = opened(latent("disk", "data.frames=1", "pyramid.factors=[[1,1,1]]"))
    shorter.of_batch(batch_of(dataset, 0))
    assert len(files(tmp_path)) == 3
    os.utime(batch["path"][0], ns=(1, 1))
    _, touched = opened(latent("disk"))
    assert torch.equal(touched.of_batch(batch), latents.of_batch(batch))
    assert len(files(tmp_path)) == 4


def test_the_fingerprint_is_of_the_contents(video_vae, tmp_path):
    vae = load_autoencoder(str(video_vae))
    before = fingerprint(vae)
    vae.save_pretrained(tmp_path / "moved", safe_serialization=True)
    assert fingerprint(load_autoencoder(str(tmp_path / "moved"))) == before
    vae.register_to_config(latents_std=[1.0] * 4)
    assert fingerprint(vae) != before
    assert fingerprint(load_autoencoder(str(video_vae)).bfloat16()) != before


def test_a_run_is_resumed_by_other_versions_and_not_on_another_autoencoder(latent, tmp_path, video_vae, monkeypatch):
    vae = load_autoencoder(str(video_vae))
    vae.save_pretrained(tmp_path / "vae", safe_serialization=True)
    config = latent("none", f"model.autoencoder={tmp_path / 'vae'}", "train.steps=2")
    trained(config, tmp_path / "run").save()
    with monkeypatch.context() as patched:
        patched.setattr("tpdiff.models.autoencoder.diffusers", "99.0")
        assert Trainer(config, tmp_path / "run", resume=True).done
    next(vae.parameters()).data.view(-1)[0] += 1
    vae.save_pretrained(tmp_path / "vae", safe_serialization=True)
    with pytest.raises(ValueError, match="another autoencoder"):
        Trainer(config, tmp_path / "run", resume=True)


def test_what_does_not_fit_is_refused_with_what_would(latent, monkeypatch):
    one = 4 * 4 * 2 * 2 * 2  # bytes: float32, channels, t, h, w
    videos = len(open_dataset(latent("none")))
    monkeypatch.setattr(latent_cache, "MEMORY_BUDGET", one * videos * 2)
    opened(latent("memory"))
    with pytest.raises(ValueError, match=r"nearest: data.starts=2 .*or data.latents=disk"):
        opened(latent("memory", "data.starts=null"))
    monkeypatch.setattr(latent_cache, "MEMORY_BUDGET", one)
    with pytest.raises(ValueError, match=r"nearest: data.latents=disk"):
        opened(latent("memory"))


def test_a_full_disk_is_refused_beforehand_unless_the_files_are_there(latent, monkeypatch):
    dataset, latents = opened(latent("disk", "data.starts=1"))
    usage = latent_cache.shutil.disk_usage
    monkeypatch.setattr(latent_cache.shutil, "disk_usage", lambda path: usage(path)._replace(free=4096))
    with pytest.raises(ValueError, match=r"more than the disk of .*; nearest: data.latents=none"):
        opened(latent("disk", "data.starts=1"))
    for i in range(len(dataset)):
        latents.of_batch(batch_of(dataset, i))
    opened(latent("disk", "data.starts=1"))


def test_a_disk_that_fills_up_ends_no_run(latent, monkeypatch):
    dataset, latents = opened(latent("disk"))

    def full(path, values):
        raise OSError("no space left on device")

    monkeypatch.setattr(latent_cache, "store_array", full)
    with pytest.warns(UserWarning, match="no longer kept: no space left"):
        first = latents.of_batch(batch_of(dataset, 0))
    assert torch.equal(latents.of_batch(batch_of(dataset, 0)), first)


@pytest.mark.parametrize("starts", [None, 1, 2, 3, 4, 9])
def test_starts_are_spread_from_first_to_last(latent, starts):
    dataset = open_dataset(latent("none", f"data.starts={'null' if starts is None else starts}"))
    seen = {dataset[i]["start"] for i in range(12 * len(dataset))}  # 8 frames, clips of 5: starts 0 ... 3
    assert seen == {None: {0, 1, 2, 3}, 1: {0}, 2: {0, 3}, 3: {0, 1, 3}, 4: {0, 1, 2, 3}, 9: {0, 1, 2, 3}}[starts]
    assert all(sorted(dataset.starts_of(video)) == sorted(seen) for video in dataset.videos)


def test_what_makes_no_sense_is_refused(tiny, latent):
    with pytest.raises(ConfigError, match=r"keeps what model.autoencoder encodes"):
        tiny("data.latents=memory")
    with pytest.raises(ConfigError, match=r"needs data.cache_dir"):
        latent("disk", "data.cache_dir=null")
    with pytest.raises(ConfigError, match=r"data\.starts"):
        latent("none", "data.starts=0")
