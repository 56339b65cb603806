"""How like their captions clips are: CLIP's own cosines, and its name after the weights."""

import numpy as np
import pytest
import torch
from test_features import footage
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from tpdiff.metrics.captions import CaptionSimilarity

CAPTIONS = ["a temple", "red flowers in the wind", "a" * 200]
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_clip(folder, seed=0):
    """CLIP of random weights, whose words are letters."""
    torch.manual_seed(seed)
    text = TOWER | {"vocab_size": 54, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision = TOWER | {"image_size": 24, "patch_size": 8}
    options = {"text_config": text, "vision_config": vision, "projection_dim": 8}
    CLIPModel(CLIPConfig(**options, initializer_factor=20.0)).save_pretrained(folder)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]).save_pretrained(folder)
    return folder


def test_it_is_the_mean_cosine_of_clip(tmp_path):
    similarity = CaptionSimilarity.load(tiny_clip(tmp_path))
    clips = footage(3, height=24, width=32)
    found = similarity(clips, CAPTIONS)
    model, tokenizer = CLIPModel.from_pretrained(tmp_path), CLIPTokenizer.from_pretrained(tmp_path)
    processor = CLIPImageProcessor(size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24})
    for value, clip, caption in zip(found, clips, CAPTIONS, strict=True):
        pixels = processor(list(clip.transpose(0, 1).numpy()), return_tensors="pt", input_data_format="channels_first")
        tokens = tokenizer([caption], truncation=True, max_length=77, return_tensors="pt")
        with torch.no_grad():
            scores = model(**tokens, **pixels).logits_per_text / model.logit_scale.exp()
        assert value == pytest.approx(float(scores.mean()), abs=1e-4)
    assert found.dtype == np.float64 and np.ptp(found) > 0.01
    assert similarity(clips[1:2], CAPTIONS[1:2])[0] == found[1]
    assert similarity(clips[:1], CAPTIONS[1:2])[0] != pytest.approx(found[0], abs=1e-3)


def test_it_is_named_after_its_weights(tmp_path):
    first, other = (CaptionSimilarity.load(tiny_clip(tmp_path / str(seed), seed)) for seed in (0, 1))
    assert first.name == f"clip_similarity_{first.digest[:12]}" != other.name
    assert CaptionSimilarity.load(tmp_path / "0").name == first.name


def test_what_is_no_clip_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no model; what is needed is 'clip'"):
        CaptionSimilarity.load(tmp_path)
    similarity = CaptionSimilarity.load(tiny_clip(tmp_path))
    with pytest.raises(ValueError, match="1 captions for 2 clips"):
        similarity(footage(2), ["one"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match="no tokenizer in"):
        CaptionSimilarity.load(tmp_path)
