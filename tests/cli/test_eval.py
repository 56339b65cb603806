"""`tpdiff eval`: the same figures every time and under any names, and a line with exit code 2 for what cannot be."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from command_line import call, refused

from tpdiff.data import read_video, render_digits, write_video
from tpdiff.evaluation.made import folder_clips, folder_geometry, model_geometry, open_model
from tpdiff.metrics import Reference
from tpdiff.metrics.clips import choose_clips, find_sources
from tpdiff.sampling.pipeline import PyramidPipeline


@pytest.fixture(scope="module")
def real(clips):
    """18 training and 6 test clips of two captions, 8 frames of 16 x 16."""
    return clips


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """10 clips of the same geometry without captions."""
    folder = tmp_path_factory.mktemp("made")
    rendered = render_digits(folder / "set", clips=10, frames=8, size=16, seed=9, test_share=0)
    for path in sorted((rendered.folder / "train").iterdir()):
        shutil.copy(path, folder / path.name)
    shutil.rmtree(rendered.folder)
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(tiny_values, tmp_path_factory):
    """A trained model."""
    folder = tmp_path_factory.mktemp("model")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tiny_values()))
    code, _, err = call("train", folder / "tiny.yaml", "train.steps=2", "--out", folder / "run")
    assert code == 0, err
    return folder / "run"


@pytest.fixture(scope="module")
def captioned(real, tmp_path_factory):
    """The real clips with a column that captions determine."""
    folder = tmp_path_factory.mktemp("captioned") / "set"
    shutil.copytree(real, folder)
    rewrite(folder, lambda row: row | {"size": "low" if "below" in row["caption"] else "high"})
    return folder


def rewrite(folder, change):
    """Change every line of a folder's metadata."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def real_clips(folder, geometry, count):
    return choose_clips(find_sources(folder, geometry, "test"), geometry, count, 0)


def figures(*arguments):
    code, out, err = call("eval", *arguments, "--rounds", 20, "--no-classify", "--json")
    assert code == 0, err
    return json.loads(out), out


def test_a_folder_of_videos(real, made, cache, tmp_path):
    values, text = figures(real, made, "--cache-dir", cache, "--out", tmp_path / "deep" / "figures.json")
    assert json.loads((tmp_path / "deep" / "figures.json").read_text()) == values
    distance = values["frechet_distance"]
    assert "FVD" not in values and 0 <= distance["low"] < distance["value"] < distance["high"]
    assert values["floor"] > 0 and (values["clips"], values["real_clips"], values["floor_clips"]) == (10, 6, 6)
    assert values["warning"].startswith("6 clips are too few even for the demo (256 are the least)")
    assert set(values["figures"]) == {"flicker", "motion_magnitude", "motion_acceleration", "warping_error", "cuts"}
    protocol = values["protocol"]
    assert (protocol["frames"], protocol["resolution"], protocol["seed"]) == (8, "16x16", 0)
    assert protocol["real"]["split"] == "test" and protocol["fit"]["split"] == "train"
    assert len(protocol["features"]["digest"]) == 64 and protocol["made"]["clips"] == 10

    assert figures(real, made, "--cache-dir", cache)[1] == text  # from what was kept
    (tmp_path / "renamed" / "below").mkdir(parents=True)
    for number, path in enumerate(sorted(made.iterdir())):
        shutil.copy(path, tmp_path / "renamed" / ("below" if number % 3 else ".") / f"{97 * number % 10}z.mp4")
    renamed, _ = figures(real, tmp_path / "renamed", "--cache-dir", tmp_path / "other")  # all anew
    assert {**renamed, "made": None} == {**values, "made": None}


def test_the_table_shows_floor_protocol_and_warning(real, made, cache):
    code, out, err = call("eval", real, made, "--cache-dir", cache, "--rounds", 20, "--no-classify")
    assert code == 0, err
    for part in ("frechet distance", "(floor)", "kernel distance", "flicker", "warping error", "protocol", "features:"):
        assert part in out, part
    assert "warning: 6 clips are too few even for the demo" in out
    assert "FVD" not in out


def test_clips_asked_for(made):
    geometry = folder_geometry(made)
    drawn = [folder_clips(made, geometry, 5, seed) for seed in (0, 0, 3)]
    assert [one.count for one in drawn] == [5, 5, 5]
    assert drawn[0].source == drawn[1].source != drawn[2].source
    assert torch.equal(drawn[0].load(1, 4), folder_clips(made, geometry).load(1, 4))


def test_a_model_is_sampled(real, run, cache, tmp_path):
    asked = ("--clips", 6, "--steps", "6", "--batch", 4)
    values, text = figures(real, run, *asked, "--cache-dir", cache)
    made = values["protocol"]["made"]
    assert (made["kind"], made["clips"], made["steps"], made["first_seed"]) == ("samples", 6, 6, 0)
    assert (made["guidance_scale"], made["dtype"], made["solver"]) == (1.0, "float32", "euler")
    assert set(values["protocol"]["software"]) == {"tpdiff", "torch", "diffusers"}
    assert figures(real, run, *asked, "--cache-dir", tmp_path / "fresh")[1] == text
    more, _ = figures(real, run, *asked, "--cache-dir", cache, "--guidance-scale", 2)
    assert more["frechet_distance"] != values["frechet_distance"]
    assert more["figures"]["flicker"]["real"] == values["figures"]["flicker"]["real"]


def test_a_model_is_sampled_in_the_precision_that_is_asked_for(real, run):
    geometry = model_geometry(run)
    clips = Reference.fit(real, **geometry._asdict()).clips
    told, lower = (open_model(run, geometry, steps=6, dtype=dtype) for dtype in (None, torch.bfloat16))
    assert (told.source["dtype"], lower.source["dtype"]) == ("float32", "bfloat16")
    assert {p.dtype for p in lower.pipeline.transformer.parameters()} == {torch.bfloat16}
    a, b = (one.clips(clips, 4).load(0, 4).int() for one in (told, lower))
    assert 0 < (a - b).abs().float().mean() < 3


def test_a_model_says_its_clips_wherever_it_lies(run, tmp_path, monkeypatch):
    """Its run's configuration is read from where a run keeps it, and from nowhere else."""
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    shutil.copytree(checkpoint, tmp_path / "here" / "exported")
    (tmp_path / "here" / "config.yaml").write_text("other: 1\n")
    (tmp_path / "config.yaml").write_text("other: 1\n")
    monkeypatch.chdir(tmp_path / "here")
    assert model_geometry("exported") == (8, 16, 16, 8.0, "crop")
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["data"] |= {"fps": 4, "resize": "stretch"}
    shutil.copytree(checkpoint, tmp_path / "run" / "checkpoints" / "step-00000002")
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path / "run" / "checkpoints")
    for path in ("step-00000002", tmp_path / "run"):
        assert model_geometry(path) == (8, 16, 16, 4, "stretch")


def test_a_pipeline_that_does_not_say_its_clips_is_refused(real, tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    assert "holds a WanPipeline, which does not say what it was trained on; give a folder" in refused(
        "eval", real, tmp_path
    )


def test_samples_follow_captions_and_seeds(real, run):
    """Clip i has the caption of real clip i and seed i; which clips are asked for together changes little."""
    geometry = model_geometry(run)
    assert geometry == (8, 16, 16, 8.0, "crop")
    reference = Reference.fit(real, **geometry._asdict())
    made = open_model(run, geometry, steps=6, batch=4).clips(reference.clips, 8)
    captions = [clip.source.entry.caption for clip in reference.clips]
    assert [fact["caption"] for fact in made.facts] == [*captions, *captions[:2]]
    whole, part = made.load(0, 4), made.load(2, 4)
    assert whole.shape == (4, 3, 8, 16, 16) and whole.dtype == torch.uint8
    assert (whole[2:].int() - part.int()).abs().max() <= 1
    assert (whole[0].int() - whole[1].int()).abs().max() > 10


def test_sampling_that_was_interrupted_goes_on(real, run, tmp_path, monkeypatch):
    sampled, call_pipeline = [], PyramidPipeline.__call__

    def counted(self, prompts, **options):
        if len(sampled) == 2:
            raise KeyboardInterrupt
        sampled.append(len(prompts))
        return call_pipeline(self, prompts, **options)

    monkeypatch.setattr(PyramidPipeline, "__call__", counted)
    asked = (real, run, "--clips", 6, "--steps", "6", "--batch", 2, "--cache-dir", tmp_path)
    assert call("eval", *asked, "--rounds", 20, "--no-classify", "--json")[0] == 130
    assert sampled == [2, 2]
    sampled.insert(0, None)
    assert figures(*asked)[0]["clips"] == 6
    assert sampled == [None, 2, 2, 2]
    figures(*asked)
    assert sampled == [None, 2, 2, 2]
    monkeypatch.setattr("tpdiff.evaluation.quality.__version__", "another")  # which may sample otherwise
    figures(*asked)
    assert sampled == [None, 2, 2, 2, 2, 2, 2]


def test_a_model_that_is_told_no_captions_is_not_judged_by_them(captioned, untold, cache, tmp_path):
    geometry = model_geometry(untold)
    made = open_model(untold, geometry, steps=2).clips(real_clips(captioned, geometry, 2), 3)
    assert made.facts == ({}, {}, {}) and made.load(0, 1).shape == (1, 3, 8, 16, 16)
    asked = ("--clips", 2, "--steps", "2", "--cache-dir", cache, "--rounds", 20)
    code, out, err = call("eval", captioned, untold, *asked)
    assert code == 0 and "motion magnitude" in out and "recognized" not in out, err
    said = refused("eval", captioned, untold, *asked, "--guidance-scale", 4)
    assert "this model is told nothing that guidance could lead towards" in said
    said = refused("eval", captioned, untold, *asked, "--clip", tiny_clip(tmp_path))
    assert "--clip compares clips with their captions, and the model in" in said


@pytest.mark.slow
def test_captions_are_judged(captioned, cache, run):
    """Attributes of the metadata that captions determine; here there is one, and a classifier of few clips."""
    asked = ("--clips", 6, "--steps", "6", "--cache-dir", cache, "--rounds", 20, "--json")
    code, out, err = call("eval", captioned, run, *asked)
    assert code == 0, err
    accuracy = json.loads(out)["accuracy"]
    assert set(accuracy) == {"size"}
    assert set(accuracy["size"]) == {"real", "made", "guess"}
    assert accuracy["size"]["guess"] >= 0.5 and 0 <= accuracy["size"]["made"] <= 1


@pytest.mark.parametrize(
    ("videos", "columns", "why"),
    [(1, ["size"], "size: all training clips have"), (4096, [], "captions determine no column")],
)
def test_without_anything_to_tell_apart_there_is_no_classifier(captioned, cache, monkeypatch, videos, columns, why):
    monkeypatch.setattr("tpdiff.metrics.classifier.VIDEOS", videos)
    monkeypatch.setattr("tpdiff.metrics.classifier.find_attributes", lambda entries: columns)
    code, out, err = call("eval", captioned, captioned, "--cache-dir", cache, "--rounds", 20, "--json")
    assert code == 0 and json.loads(out)["accuracy"] == {}, err
    assert f"no classifier: nothing to tell apart in the training clips ({why}" in err


def tiny_clip(folder):
    """CLIP of random weights, whose words are letters."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    options = {"text_config": text, "vision_config": tower | {"image_size": 16, "patch_size": 8}, "projection_dim": 8}
    CLIPModel(CLIPConfig(**options, initializer_factor=20.0)).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]).save_pretrained(folder)
    return folder


class Scores(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.spread = torch.nn.Linear(24, 400)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spread(torch.nn.functional.adaptive_avg_pool3d(x, (2, 2, 2)).flatten(1))


def test_only_i3d_is_called_fvd(real, made, cache, tmp_path):
    torch.manual_seed(0)
    torch.jit.script(Scores()).save(str(tmp_path / "i3d.pt"))
    values, _ = figures(real, made, "--features", tmp_path / "i3d.pt", "--cache-dir", cache)
    assert "frechet_distance" not in values
    assert values["protocol"]["features"]["dimensions"] == 400
    assert np.isfinite(values["FVD"]["value"]) and np.isfinite(values["kernel_distance_i3d"])
    assert "kernel_distance" not in values


def videomae(folder, frames):
    """A tiny one of random weights."""
    from transformers import VideoMAEConfig, VideoMAEModel

    torch.manual_seed(0)
    sizes = {"image_size": 32, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    VideoMAEModel(VideoMAEConfig(num_frames=frames, num_attention_heads=2, **sizes)).save_pretrained(folder)
    return folder


def test_videomae_has_its_own_name(real, made, cache, tmp_path):
    values, _ = figures(real, made, "--features", videomae(tmp_path, 8), "--cache-dir", cache)
    features = values["protocol"]["features"]
    name = f"videomae_{features['digest'][:12]}"
    assert {"FVD", "frechet_distance", "kernel_distance"}.isdisjoint(values) and features["dimensions"] == 16
    assert np.isfinite([values[f"frechet_distance_{name}"]["value"], values[f"kernel_distance_{name}"]]).all()
    code, out, err = call("eval", real, made, "--features", tmp_path, "--cache-dir", cache, "--rounds", 20)
    assert code == 0, err
    assert out.partition("protocol")[0].count(features["digest"][:12]) == 2


def test_clips_are_compared_with_their_captions(real, made, cache, tmp_path):
    """Real clips against themselves are as like their captions; without captions nothing is compared."""
    clip = ("--clip", tiny_clip(tmp_path / "clip"), "--cache-dir", cache)
    shutil.copytree(real / "test", tmp_path / "made")
    rows = [json.loads(line) for line in (real / "metadata.jsonl").read_text().splitlines()]
    rows = [row | {"file_name": row["file_name"].removeprefix("test/")} for row in rows if "test/" in row["file_name"]]
    told = tmp_path / "made" / "metadata.jsonl"
    told.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values, _ = figures(real, tmp_path / "made", *clip)
    name = f"clip_similarity_{values['protocol']['captions']['digest'][:12]}"
    shown = values["figures"][name]
    assert shown["real"] == pytest.approx(shown["made"], abs=1e-6) and -1 < shown["made"] < 1
    told.write_text("".join(json.dumps(row | {"caption": "nothing of the kind"}) + "\n" for row in rows))
    other, _ = figures(real, tmp_path / "made", *clip)
    assert other["figures"][name]["made"] != pytest.approx(shown["made"], abs=1e-4)
    assert other["figures"][name]["real"] == shown["real"]
    assert "10 of 10 made clips have no caption" in refused("eval", real, made, *clip)


def test_refusals(real, made, run, cache, tmp_path):
    there = ("--cache-dir", cache)
    assert "is 16x16, clips of 16x24 are compared" in refused("eval", real, made, "--size", "16x24", *there)
    assert "has 8 frames, clips of 7 are compared" in refused("eval", real, made, "--frames", 7, *there)
    assert "11 clips were asked for" in refused("eval", real, made, "--clips", 11, *there)
    assert "nearest: 6" in refused("eval", real, made, "--clips", 9, *there)
    assert "no such folder" in refused("eval", tmp_path / "absent", made, *there)
    assert "no such folder" in refused("eval", real, tmp_path / "absent", *there)
    assert "split 'val' is not in" in refused("eval", real, made, "--split", "val", *there)
    assert "cannot fill 3 stages" in refused("eval", real, run, "--steps", "2", *there)
    assert "neither a number" in refused("eval", real, run, "--steps", "many", *there)
    assert "no I3D file" in refused("eval", real, made, "--features", tmp_path / "absent.pt", *there)
    assert "clips of 8 frames do not suit" in refused(
        "eval", real, made, "--features", videomae(tmp_path / "mae", 4), *there
    )
    assert "holds no model" in refused("eval", real, made, "--features", made, *there)
    (tmp_path / "text.pt").write_text("no weights")
    assert "neither TorchScript nor" in refused("eval", real, made, "--features", tmp_path / "text.pt", *there)
    assert "size '16' is not HEIGHTxWIDTH" in refused("eval", real, made, "--size", "16", *there)
    shutil.copytree(made, tmp_path / "broken")
    whole = (tmp_path / "broken" / "00004.mp4").read_bytes()
    (tmp_path / "broken" / "00004.mp4").write_bytes(whole[: len(whole) // 2])
    write_video(tmp_path / "broken" / "odd.mp4", torch.zeros(5, 16, 16, 3, dtype=torch.uint8), 8)
    message = refused("eval", real, tmp_path / "broken", *there)
    assert "2 of 11 videos" in message and "00004.mp4: " in message and "odd.mp4: has 5 frames" in message


def test_clips_of_two_rates_are_compared_at_one(real, made, cache, tmp_path):
    for path in made.glob("*.mp4"):
        write_video(tmp_path / "slow" / path.name, read_video(path)[:4], 4)
    there = ("--cache-dir", cache)
    said = refused("eval", real, tmp_path / "slow", *there)
    assert "the made videos have 4 frames a second, the real ones 8: give --fps" in said and "nearest: --fps 4" in said
    values, _ = figures(real, tmp_path / "slow", *there, "--fps", 4)
    assert values["protocol"]["fps"] == 4
    for path in made.glob("*.mp4"):
        write_video(tmp_path / "fast" / path.name, read_video(path), 16)
    assert "the real ones 8: give --fps" in refused("eval", real, tmp_path / "fast", *there)
    protocol = figures(real, tmp_path / "fast", *there, "--fps", 8)[0]["protocol"]
    assert (protocol["fps"], protocol["frames"]) == (8, 4)  # as many as the videos have at that rate
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "metadata.jsonl").write_text('{"file_name": "absent.mp4"}\n')
    assert "holds no video: absent.mp4: listed in metadata.jsonl" in refused("eval", real, tmp_path / "none", *there)


def test_a_model_and_the_file_are_checked_before_the_real_clips_are_looked_at(real, made, run, tmp_path):
    absent, there = tmp_path / "absent", ("--cache-dir", tmp_path / "cache")
    for options, message in {
        ("--steps", "2"): "cannot fill 3 stages",
        ("--size", "17x16"): "height 17 is not a multiple of 8",
        ("--solver", "rk4"): "unknown solver 'rk4'; known: euler, ddim, heun",
        ("--device", "gpu"): "device 'gpu' is neither cpu nor cuda",
        ("--dtype", "int8"): "dtype 'int8' is none of float32, bfloat16, float16",
        ("--out", tmp_path): f"{tmp_path} is a folder; name a file in it",
        ("--out", real / "metadata.jsonl" / "figures.json"): "metadata.jsonl is a file",
    }.items():
        assert message in refused("eval", absent, run, *options, *there)
    shutil.copytree(real, tmp_path / "others")
    rewrite(tmp_path / "others", lambda row: row | {"caption": "nothing of the kind"})
    assert "'nothing of the kind' is not one of them" in refused("eval", tmp_path / "others", run, *there)
    clip = ("--clip", tiny_clip(tmp_path / "clip"))
    assert "10 of 10 made clips have no caption" in refused("eval", absent, made, *clip, *there)
    assert not (tmp_path / "cache").exists()


def test_help():
    code, out, err = call("eval", "--help")
    assert code == 0 and err == "" and "--guidance-scale" in out


def test_one_clip_is_too_few_before_anything_is_fitted(real, made, tmp_path):
    shutil.copytree(real, tmp_path / "one")
    rows = [json.loads(line) for line in (real / "metadata.jsonl").read_text().splitlines()]
    tested = sorted(row["file_name"] for row in rows if row["file_name"].startswith("test/"))
    kept = [row for row in rows if row["file_name"] not in tested[1:]]
    (tmp_path / "one" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    for name in tested[1:]:
        (tmp_path / "one" / name).unlink()
    said = refused("eval", tmp_path / "one", made, "--cache-dir", tmp_path / "cache")
    assert f"the real clips (split 'test' of {tmp_path / 'one'}) are 1, and a distance needs at least 2; give" in said
    (tmp_path / "sample").mkdir()
    shutil.copy(min(made.glob("*.mp4")), tmp_path / "sample")
    said = refused("eval", real, tmp_path / "sample", "--cache-dir", tmp_path / "cache")
    assert f"1 clip is in {tmp_path / 'sample'}; a distance needs at least 2" in said
    assert not (tmp_path / "cache").exists()
