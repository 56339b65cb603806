"""Small real things that many tests share: rendered clips, configurations, encoders of random weights."""

import json
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: tests run side by side

import pytest

LOW, HIGH = "a digit below five moves", "a digit from five up moves"


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps one precision for a process; every test starts without one."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(True)


def two_captions(folder):
    """Give a folder of rendered digits two captions instead of eighty, so that clips share them."""
    path = folder / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["caption"] = LOW if row["digit"] < 5 else HIGH
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory):
    """18 training and 6 test clips, 8 frames of 16 x 16 at 8 frames a second, two captions."""
    from tpdiff.data import render_digits

    made = render_digits(tmp_path_factory.mktemp("clips") / "set", clips=24, frames=8, size=16, seed=1, test_share=0.25)
    return two_captions(made.folder)


@pytest.fixture(scope="session")
def long_clips(tmp_path_factory):
    """10 training and 2 test clips, 17 frames of 32 x 32, two captions."""
    from tpdiff.data import render_digits

    made = render_digits(tmp_path_factory.mktemp("long") / "set", clips=12, frames=17, size=32, seed=2, test_share=0.2)
    return two_captions(made.folder)


@pytest.fixture(scope="session")
def tiny_values(clips):
    """Nested values of a run that takes a moment: `tiny_values()` is a fresh copy."""

    def values():
        return {
            "seed": 5,
            "data": {"path": str(clips), "frames": 8, "height": 16, "width": 16, "fps": 8},
            "model": {"patch_size": [1, 8, 8], "hidden_size": 24, "num_layers": 1, "num_attention_heads": 2},
            "condition": {"kind": "label"},
            "train": {"batch_size": 6, "steps": 4, "precision": "no", "warmup_steps": 0},
            "log": {"trackers": [], "every_steps": 1, "checkpoint_every_steps": None},
        }

    return values


@pytest.fixture(scope="session")
def tiny(tiny_values):
    """`tiny("train.steps=3", ...)`: the configuration of a small run."""
    from tpdiff.training.load_config import build_config

    return lambda *overrides: build_config(tiny_values(), overrides)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A folder with a BERT of random weights, 16 wide, and its tokenizer."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = f"[PAD] [UNK] [CLS] [SEP] [MASK] {LOW} {HIGH}".split()
    words = list(dict.fromkeys(words))
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(str(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def image_vae(tmp_path_factory):
    """A folder with an AutoencoderKL of random weights: 4 channels, a quarter of the size."""
    import torch
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("image_vae")
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 3,
        up_block_types=["UpDecoderBlock2D"] * 3,
        block_out_channels=[4, 4, 8],
        layers_per_block=1,
        norm_num_groups=2,
        latent_channels=4,
        scaling_factor=0.7,
        shift_factor=0.1,
    )
    vae.save_pretrained(str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def video_vae(tmp_path_factory):
    """A folder with a causal video autoencoder of random weights: 1 + 4n frames, an eighth of the size."""
    import torch
    from diffusers import AutoencoderKLWan

    folder = tmp_path_factory.mktemp("video_vae")
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.5, 2.0, 1.5, 1.0],
    )
    vae.save_pretrained(str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def small_vae(tmp_path_factory):
    """A folder with a causal autoencoder of random weights: 1 + 4n frames, an eighth of the size, 4 channels."""
    folder = tmp_path_factory.mktemp("small_vae")
    import torch

    from tpdiff.models.video_autoencoder import VideoAutoencoder

    torch.manual_seed(3)
    vae = VideoAutoencoder(latent_channels=4, hidden_size=8, encoder_layers=1, decoder_layers=1)
    for p in vae.parameters():
        torch.nn.init.normal_(p, std=0.1)
    vae.save_pretrained(str(folder), safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def encoding(tiny, long_clips, small_vae):
    """`encoding("data.stages=pixel")`: 9 frames of 32 x 32 of 17, two stages, captions as classes."""

    def make(*overrides, folder=long_clips):
        size = ("data.frames=9", "data.height=32", "data.width=32", "data.fps=")
        stages = ("pyramid.factors=[[1,1,1],[2,2,2]]", "pyramid.causal_time=true", "model.patch_size=[1,1,1]")
        return tiny(f"data.path={folder}", f"model.autoencoder={small_vae}", *size, *stages, *overrides)

    return make
