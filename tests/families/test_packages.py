"""What a saved pipeline needs beside diffusers is known before its weights are read."""

import importlib.util
import json
import shutil
import sys

import pytest
import torch
from tiny import find_case

from tpdiff.families.base import packages_for
from tpdiff.sampling.stock import load_stock, missing_packages

SENTENCES = ["a small red cat runs", "the blue ball falls left", "a red kite over the sea"]
READS_MODELS = ("sentencepiece", "protobuf")


@pytest.fixture
def spiece(saved, tmp_path):
    """A saved pipeline whose T5 tokenizer is a spiece.model alone, as on the hub; an empty one without the trainer."""
    folder = shutil.copytree(saved(find_case("ltx")), tmp_path / "ltx")
    shutil.rmtree(folder / "tokenizer")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "T5Tokenizer"]}))
    (folder / "tokenizer" / "spiece.model").touch()
    return folder


def train_model(path):
    """A real model of at most 30 pieces."""
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "hard_vocab_limit": False}
    with path.open("wb") as file:
        pytest.importorskip("sentencepiece").SentencePieceTrainer.train(
            sentence_iterator=iter(3 * SENTENCES), model_writer=file, vocab_size=30, minloglevel=2, **special
        )


def test_a_tokenizer_of_a_model_file_alone_is_read(spiece):
    train_model(spiece / "tokenizer" / "spiece.model")
    pipe = load_stock(str(spiece))
    tokens = pipe.tokenizer(SENTENCES[0]).input_ids
    assert tokens[-1] == 1 and len(tokens) > 5 and 2 not in tokens
    assert (
        pipe.encode_prompt(SENTENCES[0], max_sequence_length=16, do_classifier_free_guidance=False)[0].isfinite().all()
    )


@pytest.mark.parametrize("absent", [("sentencepiece",), ("google.protobuf",), ("sentencepiece", "google.protobuf")])
def test_what_reads_it_is_named_where_it_is_missing(spiece, absent, monkeypatch):
    there = {"sentencepiece": torch, "google": torch, "google.protobuf": torch}  # whatever is installed here
    for module, real in there.items():
        monkeypatch.setitem(sys.modules, module, None if module in absent else real)
    names = [module.rpartition(".")[2] for module in absent]
    message = (
        rf"^the pipeline in .* needs {' and '.join(names)}: pip install {' '.join(names)}, or 'tpdiff\[pipelines\]'$"
    )
    with pytest.raises(ValueError, match=message):
        load_stock(str(spiece))
    shutil.copy(spiece / "model_index.json", spiece / "tokenizer" / "tokenizer.json")
    assert missing_packages(str(spiece)) == []


def test_a_part_of_a_missing_package_is_missing(spiece, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", torch)
    monkeypatch.delitem(sys.modules, "google.protobuf", raising=False)
    monkeypatch.setitem(sys.modules, "google", None)
    assert missing_packages(str(spiece)) == ["protobuf"]


def test_a_pipeline_that_cleans_prompts_by_a_package(saved, monkeypatch):
    folder = str(saved(find_case("wan-picture")))
    assert missing_packages(folder) == []
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert importlib.util.find_spec("ftfy") is None
    with pytest.raises(ValueError, match=r"^the pipeline in .*wan-picture' needs ftfy: pip install ftfy, or "):
        load_stock(folder, hollow=lambda name: True)
    assert missing_packages(str(saved(find_case("wan")))) == []  # cleans prompts only where it can


def test_a_pipeline_of_no_family_needs_nothing():
    assert packages_for("SomeonesPipeline") == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("PyramidPipeline", "it holds a PyramidPipeline, which tpdiff made; what is wanted here is a pipeline of"),
        ("WonPipeline", "it holds a WonPipeline, which diffusers .* does not have$"),
    ],
)
def test_a_pipeline_of_no_class_of_diffusers(tmp_path, name, message):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    for hollow in (None, lambda component: True):
        with pytest.raises(ValueError, match=f"^no diffusers pipeline in '{tmp_path}': {message}"):
            load_stock(str(tmp_path), hollow=hollow)
