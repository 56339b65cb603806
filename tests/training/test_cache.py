"""Shards of latents: what they hold, what is encoded again, what is refused, and the stream that training reads."""

import errno
import json
import multiprocessing
import os
import re
import resource
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load

from tpdiff.cli import main
from tpdiff.data import DataError, ShardDataset, collate, read_clip, to_float, write_video
from tpdiff.data.shard_files import EMPTY_PROMPT, ShardWriter, digest_of_file, unpack
from tpdiff.models.autoencoder import encode_video, load_autoencoder
from tpdiff.models.text import encode_prompts, load_text_encoder
from tpdiff.training import shard_maker
from tpdiff.training.batches import open_batches
from tpdiff.training.cache import make_cache, shard_of
from tpdiff.training.cache_settings import open_buckets, open_source
from tpdiff.training.load_config import ConfigError, dump_config
from tpdiff.training.objective import build_pyramid
from tpdiff.training.pipeline_encoder import open_encoder
from tpdiff.training.shard_maker import ShardMaker, Source

forks = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def made(encoding, tmp_path_factory):
    """`made("data.stages=pixel")`: a cache of the ten clips in four shards, made once."""
    folders = {}

    def make(*overrides):
        if overrides not in folders:
            folders[overrides] = tmp_path_factory.mktemp("cache") / "cache"
            make_cache(encoding("data.starts=2", *overrides), folders[overrides], shards=4)
        return folders[overrides]

    return make


@pytest.fixture
def folder(long_clips, tmp_path):
    """The clips again, to be changed."""
    return shutil.copytree(long_clips, tmp_path / "videos")


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != ".lock"}


def samples(out):
    """(facts, members) of every clip, by (path, start)."""
    found = {}
    for receipt in sorted(out.glob("shard-*.json")):
        shard = receipt.with_suffix(".tar").read_bytes()
        for file in json.loads(receipt.read_text())["files"]:
            for clip in file.get("clips", ()):
                members = unpack(shard[clip["offset"] : clip["offset"] + clip["size"]])[1]
                facts = json.loads(members["json"])
                found[facts["source"]["path"], facts["start"]] = facts, members
    return found


# What shards hold


@pytest.mark.parametrize("stages", ["latent", "pixel"])
def test_shards_hold_each_clip_encoded_by_itself(made, encoding, long_clips, small_vae, bert, stages):
    text = (f"data.stages={stages}", "condition.kind=text", f"condition.encoder={bert}", "condition.max_length=16")
    vae, pyramid = load_autoencoder(str(small_vae)), build_pyramid(encoding())
    encoder, tokenizer = load_text_encoder(str(bert))
    found = samples(made(*text))
    assert {start for _, start in found} == {0, 8} and len(found) == 20
    for (path, start), (facts, members) in found.items():
        frames = read_clip(long_clips / path, start=start / 8, frames=9, fps=8)
        video = to_float(frames.permute(3, 0, 1, 2)[None])
        stored = load(members["latents.safetensors"])
        assert sorted(stored) == ["stage0", "stage1"][: 1 + (stages == "pixel")]
        assert torch.equal(stored["stage0"], encode_video(vae, video)[0])
        if stages == "pixel":
            assert torch.equal(stored["stage1"], encode_video(vae, pyramid.down(video, 1))[0])
            assert stored["stage1"].shape == pyramid.stage_shape((1, 4, 3, 4, 4), 1)[1:]
            resized = pyramid.down(stored["stage0"][None], 1)[0]
            assert (stored["stage1"] - resized).abs().max() > 0.05  # the two kinds do differ
        states = load(members["text.safetensors"])
        told = encode_prompts(encoder, tokenizer, [facts["caption"]], 16)
        length = len(states["prompt_embeds"])
        assert length == int(told.prompt_attention_mask.sum()) < 16
        assert torch.equal(states["prompt_embeds"], told.prompt_embeds[0, :length])
        assert facts["source"]["bytes"] == (long_clips / path).stat().st_size
        assert (facts["frames"], facts["height"], facts["width"], facts["fps"]) == (9, 32, 32, 8)


def test_webdataset_reads_them(made):
    """WebDataset itself where it is installed."""
    webdataset = pytest.importorskip("webdataset")
    out = made()
    shards = [str(path) for path in sorted(out.glob("shard-*.tar"))]
    read = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert {sample["__key__"] for sample in read} == {key_of(facts) for facts, _ in samples(out).values()}
    assert all(load(sample["latents.safetensors"])["stage0"].shape == (4, 3, 4, 4) for sample in read)


def key_of(facts):
    from tpdiff.data.shard_files import digest_of

    return f"{digest_of(facts['source']['path'].encode())[:16]}-{facts['start']:06d}"


def test_the_number_of_workers_changes_nothing(made, encoding, tmp_path):
    make_cache(encoding("data.starts=2", "data.stages=pixel"), tmp_path / "cache", workers=3, shards=4)
    assert contents(tmp_path / "cache") == contents(made("data.stages=pixel"))


def test_sizes_and_pictures_go_to_their_buckets(encoding, tmp_path):
    videos, generator = tmp_path / "videos", torch.Generator().manual_seed(0)
    sizes = {"long": (20, 32, 64), "tall": (9, 64, 32), "short": (5, 32, 32), "single": (1, 40, 40), "tiny": (9, 8, 8)}
    for name, (frames, height, width) in sizes.items():
        picture = torch.randint(0, 256, (frames, height, width, 3), generator=generator, dtype=torch.uint8)
        write_video(videos / f"{name}.mp4", picture, 8)
        (videos / f"{name}.txt").write_text("a digit")
    from PIL import Image

    Image.new("RGB", (70, 36), "red").save(videos / "picture.png")
    (videos / "picture.txt").write_text("red")
    config = encoding("data.split=", "data.max_bad_share=0.2", "data.buckets=9x32x64,9x64x32,1x32x32", folder=videos)
    done = make_cache(config, tmp_path / "chosen", shards=2)
    assert done.buckets == {"1x32x32": 3, "9x32x64": 3, "9x64x32": 1} and done.bad == ()
    assert {path: facts["height"] for (path, _), (facts, _) in samples(tmp_path / "chosen").items()} == {
        "long.mp4": 32,
        "tall.mp4": 64,
        "tiny.mp4": 32,
        "short.mp4": 32,
        "single.mp4": 32,
        "picture.png": 32,
    }
    config = encoding("data.split=", "data.max_bad_share=0.2", "data.buckets=auto", folder=videos)
    done = make_cache(config, tmp_path / "auto", shards=2)
    assert done.buckets == {"1x16x32": 1, "1x32x32": 2, "9x16x32": 2, "9x32x16": 1}
    assert [(str(file.path), file.reason) for file in done.bad] == [
        ("tiny.mp4", "has 9 frames of 8x8, too few or too small")
    ]


# What is done again


def test_a_finished_cache_is_left_as_it_is(made, encoding, tmp_path):
    out = shutil.copytree(made(), tmp_path / "cache")
    assert make_cache(encoding("data.starts=2"), out).encoded == 0
    assert contents(out) == contents(made())


def test_only_what_changed_is_encoded_again(encoding, folder, tmp_path):
    config, out = encoding("data.starts=2", folder=folder), tmp_path / "cache"
    assert make_cache(config, out, shards=4).encoded == 20
    before = contents(out)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    train = [row for row in rows if row["split"] == "train"]
    changed, gone, told, touched = (train[i]["file_name"] for i in (0, 3, 5, 7))
    write_video(folder / changed, torch.zeros(17, 32, 32, 3, dtype=torch.uint8), 8)
    os.utime(folder / touched, (1, 1))
    train[5]["caption"] = "something else"
    rows = [row for row in rows if row["file_name"] != gone]
    shutil.copy(folder / train[1]["file_name"], folder / "new.mp4")
    rows.append({"file_name": "new.mp4", "caption": "new", "split": "train"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert make_cache(config, out).encoded == 4  # two clips each of the changed and of the new
    after = contents(out)
    concerned = {shard_of(name, 4) for name in (changed, gone, told, "new.mp4")}
    assert {n for n in before | after if n.endswith("tar") and after.get(n) != before.get(n)} == concerned
    make_cache(config, tmp_path / "fresh", shards=4)
    assert after == contents(tmp_path / "fresh")


def test_shards_without_videos_go(encoding, folder, tmp_path):
    config, out = encoding(folder=folder), tmp_path / "cache"
    make_cache(config, out, shards=4)
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    kept = [row for row in rows if shard_of(row["file_name"], 4) != "shard-00000.tar"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    (out / ".shard-00001.tar.77.part").write_text("left by a killed process")
    before = contents(out)
    gone = sum(row["split"] == "train" for row in rows) - sum(row["split"] == "train" for row in kept)
    with pytest.raises(DataError, match=rf"^{gone} of the 10 videos in .*cache are not among those of .*--prune"):
        make_cache(config, out)
    assert contents(out) == before
    assert make_cache(config, out, prune=True).encoded == 0
    assert not list(out.glob("*00000*")) and not list(out.glob(".*.part"))
    make_cache(config, tmp_path / "fresh", shards=4)
    assert contents(out) == contents(tmp_path / "fresh")


@pytest.mark.parametrize("way", ["cut", "altered", "missing", "receipt", "listing"])
def test_what_is_damaged_is_made_again(made, encoding, tmp_path, way):
    out = shutil.copytree(made(), tmp_path / "cache")
    shard = sorted(out.glob("*.tar"))[1]
    damage(out, shard, way)
    assert 0 <= make_cache(encoding("data.starts=2"), out).encoded < 20
    assert contents(out) == contents(made())


def damage(out, shard, way):
    content = bytearray(shard.read_bytes())
    if way == "cut":
        shard.write_bytes(content[:-700])
    elif way == "altered":
        content[1000] ^= 1
        shard.write_bytes(content)
    elif way == "missing":
        shard.unlink()
    elif way == "receipt":
        shard.with_suffix(".json").write_text("{}")
    else:
        listing = json.loads((out / "cache.json").read_text())
        (out / "cache.json").write_text(json.dumps(listing | {"complete": False, "shards": []}))


def test_bad_files_are_skipped_until_they_are_too_many(encoding, folder, tmp_path):
    rows = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
    names = [row["file_name"] for row in rows if row["split"] == "train"]
    (folder / names[0]).write_bytes(b"")
    (folder / names[1]).write_text("no video at all")
    config = encoding("data.max_bad_share=0.2", folder=folder)
    done = make_cache(config, tmp_path / "cache", shards=2)
    assert [(str(file.path), file.reason.split(" (")[0]) for file in done.bad] == [
        (names[0], "the file is empty"),
        (names[1], "not a video"),
    ]
    assert done.encoded == 8 and sum(done.buckets.values()) == 8
    assert [str(file.path) for file in ShardDataset(str(tmp_path / "cache")).bad] == names[:2]
    assert make_cache(config, tmp_path / "cache").bad == done.bad
    with pytest.raises(DataError, match=r"2 of 10 videos cannot be used, more than max_bad_share 0.1 allows:\n.*empty"):
        make_cache(encoding(folder=folder), tmp_path / "strict", shards=2)


def test_a_video_that_is_listed_twice_is_refused(encoding, folder, tmp_path):
    metadata = folder / "metadata.jsonl"
    first = next(line for line in metadata.read_text().splitlines() if json.loads(line)["split"] == "train")
    metadata.write_text(metadata.read_text() + json.dumps(json.loads(first) | {"caption": "the same again"}) + "\n")
    with pytest.raises(DataError, match=r"\.mp4 is listed 2 times; shards hold a video once"):
        make_cache(encoding(folder=folder), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.fixture
def maker(encoding, tmp_path):
    config = encoding("data.starts=2")
    encoder = open_encoder(config)
    (tmp_path / "cache").mkdir()
    buckets = open_buckets(config, encoder)
    return ShardMaker(config.data, lambda: encoder, buckets, tmp_path / "cache", lambda files, clips: None)


@pytest.fixture
def sources(long_clips):
    return [Source(path.name, path, "a digit") for path in sorted(long_clips.glob("train/*.mp4"))[:2]]


def test_where_nothing_is_new_no_model_is_opened(maker, sources):
    def opened():
        raise AssertionError("opened")

    assert maker.make("shard-00001.tar", sources) == 4
    again = ShardMaker(maker.data, opened, maker.buckets, maker.out, maker.tick)
    assert again.make("shard-00001.tar", sources) == 0
    with pytest.raises(AssertionError, match="opened"):
        again.make("shard-00002.tar", sources)


@pytest.mark.parametrize("way", ["gone", "altered", "cut", "altered before the end"])
def test_an_empty_caption_that_is_damaged_is_encoded_again(encoding, bert, tmp_path, way):
    config = encoding("condition.kind=text", f"condition.encoder={bert}", "condition.max_length=16")
    out = tmp_path / "cache"
    make_cache(config, out, shards=1)
    whole, path = contents(out), out / EMPTY_PROMPT
    content = whole[EMPTY_PROMPT]
    path.unlink()
    if way != "gone":
        path.write_bytes(content[:-1] if way == "cut" else content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=f"{EMPTY_PROMPT} is damaged; run tpdiff cache again"):
            ShardDataset(str(out))
    if way == "altered before the end":
        head = {key: json.loads(whole["cache.json"])[key] for key in ("settings", "count")}
        (out / "cache.json").write_text(json.dumps({"complete": False, **head}))
    assert make_cache(config, out).encoded == 0
    assert contents(out) == whole
    assert ShardDataset(str(out)).empty_prompt is not None


def test_an_empty_caption_that_is_whole_is_not_encoded_again(encoding, bert, tmp_path):
    config = encoding("condition.kind=text", f"condition.encoder={bert}", "condition.max_length=16")
    make_cache(config, tmp_path / "cache", shards=1)
    path = tmp_path / "cache" / EMPTY_PROMPT
    os.utime(path, (1, 1))
    make_cache(config, tmp_path / "cache")
    assert path.stat().st_mtime == 1


def test_what_could_not_be_read_is_tried_again(maker, sources, monkeypatch):
    """Though the file is of the same time and length as before."""
    assert maker.make("shard-00001.tar", sources) == 4
    whole = (maker.out / "shard-00001.tar").read_bytes()

    def failing(path):
        if path == sources[0].file:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return digest_of_file(path)

    monkeypatch.setattr(shard_maker, "digest_of_file", failing)
    assert maker.make("shard-00000.tar", sources) == 2
    first = shard_maker.read_receipt(maker.out, "shard-00000.tar")["files"][0]
    assert first["reason"] == "cannot be read: Input/output error" and first["digest"] is None
    monkeypatch.undo()
    assert maker.make("shard-00000.tar", sources) == 2
    assert (maker.out / "shard-00000.tar").read_bytes() == whole


def test_a_disk_that_is_full_for_a_moment_makes_no_video_bad(maker, sources, monkeypatch):
    failed = []

    def failing(shard, content, write=ShardWriter._write):
        if not failed:
            failed.append(True)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(shard, content)

    monkeypatch.setattr(ShardWriter, "_write", failing)
    with pytest.raises(OSError, match="No space left"):
        maker.make("shard-00000.tar", sources)
    assert list(maker.out.iterdir()) == []


def test_a_stop_keeps_what_is_done(made, encoding, tmp_path):
    out = tmp_path / "cache"
    first = make_cache(encoding("data.starts=2"), out, shards=4, stop=lambda: True)
    assert not first.complete and len(list(out.glob("*.tar"))) == 1
    with pytest.raises(DataError, match="is unfinished"):
        ShardDataset(str(out))
    second = make_cache(encoding("data.starts=2"), out)
    assert second.complete and first.encoded + second.encoded == 20 and first.encoded > 0
    assert contents(out) == contents(made())


# What is refused


def test_another_cache_is_not_written_over(made, encoding, image_vae, tmp_path):
    out = shutil.copytree(made(), tmp_path / "cache")
    with pytest.raises(
        DataError, match=r"another cache \(data.fps: cache None, asked 4.0; data.starts: cache 2, asked N"
    ):
        make_cache(encoding("data.fps=4"), out)
    with pytest.raises(DataError, match=r"shards: cache 4, asked 5"):
        make_cache(encoding("data.starts=2"), out, shards=5)
    with pytest.raises(DataError, match=r"model.autoencoder: cache \w{32}, asked \w{32}\)"):
        make_cache(encoding("data.starts=2", f"model.autoencoder={image_vae}", "data.frames=9"), out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="is not empty and no cache"):
        make_cache(encoding(), tmp_path / "mine")
    assert contents(out) == contents(made())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.buckets=9x32x32,8x32x32", r"num_frames 8 is not 1 \+ a multiple of 8 .*nearest: 1 or 9"),
        ("data.buckets=9x32", "'9x32' is not FRAMESxHEIGHTxWIDTH"),
        ("model.autoencoder=", "set model.autoencoder"),
        ("data.shards=somewhere", "data.path is required"),
        ("data.max_bad_share=2", "max_bad_share"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(encoding, tmp_path, override, message):
    path = ["data.path="] if override.startswith("data.shards") else []
    with pytest.raises(ValueError, match=message):
        make_cache(encoding(override, *path), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_pixel_stages_need_what_they_need(encoding, tmp_path):
    with pytest.raises(ValueError, match=r"nearest: pyramid.causal_time=true, or data.stages=latent"):
        make_cache(encoding("data.stages=pixel", "pyramid.causal_time=false", "data.frames=13"), tmp_path / "cache")
    with pytest.raises(ConfigError, match="kept by tpdiff cache only"):
        encoding("data.stages=pixel", "data.latents=memory")


@pytest.mark.parametrize("way", ["cut", "altered", "missing", "receipt", "listing"])
def test_a_damaged_cache_is_refused_by_name(made, tmp_path, way):
    out = shutil.copytree(made(), tmp_path / "cache")
    shard = sorted(out.glob("*.tar"))[1]
    damage(out, shard, way)
    messages = {
        "cut": rf"{shard.name} is damaged: \d+ bytes of \d+",
        "altered": rf"{shard.name} is damaged \(sample at byte 0\)",
        "missing": f"{shard.name} is missing",
        "receipt": f"{shard.stem}.json is damaged",
        "listing": "is unfinished; run tpdiff cache again",
    }
    with pytest.raises(DataError, match=messages[way]):
        data = ShardDataset(str(out))
        [data[i] for i in range(len(data))]


def test_a_cache_of_something_else_is_refused_with_what_differs(made, encoding, image_vae, bert):
    pixel, latent = made("data.stages=pixel"), made()

    def opened(shards, *overrides):
        return open_source(encoding("data.starts=2", f"data.shards={shards}", *overrides))

    assert len(opened(latent)) == len(opened(pixel, "data.stages=pixel")) == 20
    assert opened(latent, "pyramid.factors=[[1,1,1],[1,2,2]]")  # its stages follow from the full size
    assert opened(pixel, "data.stages=pixel", "train.method=vanilla")
    with pytest.raises(DataError, match=r"data.fps: cache None, run 4.0; data.resize: cache crop, run stretch$"):
        opened(latent, "data.fps=4", "data.resize=stretch")
    with pytest.raises(DataError, match=r"data.stages: cache latent, run pixel; pyramid.factors: cache None, run \[\["):
        opened(latent, "data.stages=pixel")
    with pytest.raises(DataError, match=r"pyramid.factors: cache .*2, 2, 2.*, run .*1, 2, 2"):
        opened(pixel, "data.stages=pixel", "pyramid.factors=[[1,1,1],[1,2,2]]")
    with pytest.raises(DataError, match=r"pyramid.resize: cache haar, run linear"):
        opened(pixel, "data.stages=pixel", "pyramid.resize=linear")
    with pytest.raises(DataError, match=r"model.autoencoder: cache \w{32}, run \w{32}$"):
        opened(latent, f"model.autoencoder={image_vae}")
    with pytest.raises(
        DataError, match=r"condition.kind: cache label, run text; condition.encoder: cache None, run \w"
    ):
        opened(latent, "condition.kind=text", f"condition.encoder={bert}", "condition.max_length=16")
    with pytest.raises(DataError, match=r"holds no cache.json"):
        opened(encoding().data.path)


# The stream


def seen(batches, count):
    return [(b["index"].tolist(), b["path"], b["start"]) for b in (next(batches) for _ in range(count))]


@pytest.fixture
def mixed(encoding, folder, tmp_path):
    """A cache of 20 short clips and 10 pictures."""
    config = encoding("data.starts=2", "data.buckets=[[9,32,32],[1,32,32]]", folder=folder)
    for number in range(10):
        write_video(folder / f"still{number}.mp4", torch.zeros(1, 32, 32, 3, dtype=torch.uint8), 8)
    stills = [
        json.dumps({"file_name": f"still{n}.mp4", "caption": "still", "split": "train"}) + "\n" for n in range(10)
    ]
    with (folder / "metadata.jsonl").open("a") as file:
        file.writelines(stills)
    make_cache(config, tmp_path / "cache", shards=4)
    return str(tmp_path / "cache")


def test_a_place_in_the_stream_is_a_number(mixed):
    data = ShardDataset(mixed, seed=1, window=6)
    whole = seen(open_batches(data, 5, 0), 12)
    assert seen(open_batches(data, 5, 0, start=35), 5) == whole[7:]  # in the middle of an epoch
    assert seen(open_batches(data, 5, 2, start=10), 10) == whole[2:]  # whoever reads
    assert seen(open_batches(ShardDataset(mixed, seed=2, window=6), 5, 0), 12) != whole


def test_processes_share_batches_of_one_size(mixed):
    data = ShardDataset(mixed, seed=1, window=6)
    whole = open_batches(data, 4, 0)
    halves = [open_batches(data, 2, 0, rank=rank, processes=2) for rank in range(2)]
    shapes = []
    for _ in range(14):
        one, (left, right) = next(whole), map(next, halves)
        both = sorted(zip(left["index"].tolist() + right["index"].tolist(), left["path"] + right["path"], strict=True))
        assert both == list(zip(one["index"].tolist(), one["path"], strict=True))
        assert left["stage0"].shape == right["stage0"].shape
        shapes.append(one["stage0"].shape[2:])
    assert set(shapes) == {(3, 4, 4), (1, 4, 4)}


def test_every_clip_comes_once_an_epoch(mixed):
    data = ShardDataset(mixed, seed=1, window=7).grouped(5)
    clips = [(data[i]["path"], data[i]["start"]) for i in range(30)]
    assert len(data) == 30 and len(set(clips)) == 30 and data.fps == 8
    assert data.captions[-1] == "still" and data.bad == ()
    batch = collate([data[i] for i in range(5)])
    assert batch["stage0"].shape[:2] == (5, 4) and batch["index"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("scheme", ["file://", "memory://"])
def test_shards_lie_wherever_fsspec_reads(made, scheme):
    out = made()
    url = f"file://{out}"
    if scheme == "memory://":
        url = "memory://somewhere/cache"
        for name, content in contents(out).items():
            fsspec.filesystem("memory").pipe_file(f"/somewhere/cache/{name}", content)
    here, there = ShardDataset(str(out), seed=4), ShardDataset(url, seed=4)
    for i in range(25):
        one, other = here[i], there[i]
        assert torch.equal(one.pop("stage0"), other.pop("stage0")) and one == other


@pytest.fixture
def unsized(made, monkeypatch):
    """A cache on a file system whose listings tell no sizes."""
    files = fsspec.filesystem("memory")
    for name, content in contents(made()).items():
        files.pipe_file(f"/unsized/{name}", content)
    listing = type(files).ls
    monkeypatch.setattr(
        type(files), "ls", lambda *args, **options: [e | {"size": None} for e in listing(*args, **options)]
    )
    yield files
    files.rm("/unsized", recursive=True)


def test_files_are_asked_for_their_lengths_where_listings_do_not_tell(unsized):
    assert len(ShardDataset("memory://unsized")) == 20
    shard = sorted(unsized.glob("/unsized/*.tar"))[0]
    unsized.pipe_file(shard, unsized.cat_file(shard)[:-1])
    with pytest.raises(DataError, match=r"is damaged: \d+ bytes of \d+"):
        ShardDataset("memory://unsized")
    unsized.rm_file(shard)
    with pytest.raises(DataError, match=r"\.tar is missing"):
        ShardDataset("memory://unsized")


class Web(SimpleHTTPRequestHandler):
    """Files over HTTP; a part of one where asked for it, if `ranges`."""

    ranges = True

    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not (wanted and self.ranges):
            return super().do_GET()
        first, last = map(int, wanted.groups())
        part = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def list_directory(self, path):
        self.send_error(403)

    def log_message(self, *args):
        pass


@pytest.fixture
def web(made):
    """The URL of a cache behind a web server that lists no folders."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Web, directory=made())) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_shards_lie_behind_a_web_server(made, web, monkeypatch):
    pytest.importorskip("aiohttp")
    here, there = ShardDataset(str(made()), seed=4), ShardDataset(web, seed=4)
    assert seen(open_batches(there, 5, 1), 6) == seen(open_batches(here, 5, 0), 6)
    with pytest.raises(DataError, match=r"holds no cache\.json"):
        ShardDataset(f"{web}/elsewhere")
    monkeypatch.setattr(Web, "ranges", False)
    with pytest.raises(DataError, match=r"sends all of shard-\d+\.tar where a part is asked for"):
        there[0]


def test_a_url_without_its_package_says_what_to_install():
    with pytest.raises(DataError, match=r"oci://bucket/clips cannot be opened: Install ocifs"):
        ShardDataset("oci://bucket/clips")


def test_the_command_says_what_it_did_and_refuses_with_two(encoding, tmp_path, capsys):
    path, out = tmp_path / "encoding.yaml", tmp_path / "cache"
    path.write_text(dump_config(encoding("data.starts=2")))
    command = ["cache", str(path), "--out", str(out), "--workers", "1"]
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--json"])
    figures = json.loads(capsys.readouterr().out)
    assert figures["complete"] and figures["encoded"] == 20 and figures["clips"] == {"9x32x32": 20}
    with pytest.raises(SystemExit, match="0"):
        main(command)
    assert f"{out}: 20 clips (20 of 9x32x32) in 1 shards\n0 encoded now" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*command, "data.fps=4"])
    assert "data.fps: cache None, asked 4.0" in capsys.readouterr().err
    plain = [
        f"data.path={encoding().data.path}",
        f"model.autoencoder={encoding().model.autoencoder}",
        "condition.kind=none",
    ]
    stages = ["pyramid.factors=[[1,1,1]]", "model.patch_size=[1,1,1]", "--buckets", "5x32x32", "--shards", "2"]
    with pytest.raises(SystemExit, match="0"):
        main(["cache", *plain, *stages, "--out", str(tmp_path / "plain"), "--json"])
    assert json.loads(capsys.readouterr().out)["clips"] == {"5x32x32": 30}


def peak(encoding, folder, out, starts):
    """The most memory, in MiB, that a process needs which makes a shard of so many clips."""
    config = encoding(f"data.starts={starts}", "data.height=128", "data.width=128", "data.split=", folder=folder)
    reader, writer = forks.Pipe(duplex=False)
    process = forks.Process(target=make_one, args=(config, folder, out, writer))
    process.start()
    value = reader.recv()
    process.join()
    return value


def make_one(config, folder, out, pipe):
    torch.set_num_threads(1)
    out.mkdir()
    encoder = open_encoder(config)
    maker = ShardMaker(config.data, lambda: encoder, open_buckets(config, encoder), out, lambda files, clips: None)
    assert maker.make("shard-00000.tar", [Source("long.mp4", folder / "long.mp4", "a")]) == config.data.starts
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_clips(encoding, tmp_path):
    (tmp_path / "videos").mkdir()
    frames = torch.randint(0, 256, (80, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames = frames.repeat_interleave(16, 1).repeat_interleave(16, 2)
    write_video(tmp_path / "videos" / "long.mp4", frames, 8, preset="ultrafast")
    few, many = (peak(encoding, tmp_path / "videos", tmp_path / f"out{n}", n) for n in (4, 72))
    kept = 68 * 9 * 128 * 128 * 3 / 2**20  # the frames of the further clips, as bytes
    assert many - few < kept / 2


def test_held_out_videos_that_are_encoded_are_told(encoding, folder, tmp_path):
    with pytest.warns(UserWarning, match=r"the split test are trained on, too; nearest: data\.split=train"):
        make_cache(encoding("data.split=", folder=folder), tmp_path / "cache", shards=1)
