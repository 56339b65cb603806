"""Prompts as a network takes them: nothing, labels, text."""

import json
import shutil

import pytest
import torch
from accelerate import cpu_offload

from tpdiff.models import conditioning
from tpdiff.models.conditioning import LabelCondition, NoCondition, StoredText, TextCondition
from tpdiff.models.kept import KeptConditions
from tpdiff.models.text import (
    encode_prompts,
    load_text_encoder,
    most_places,
    most_tokens,
    text_encoder_path,
    text_identity,
)


def test_no_condition_takes_no_prompt():
    condition = NoCondition()
    assert condition.network_config() == {}
    assert condition.encode([None, None], "cpu") == {}
    condition.check([None])
    with pytest.raises(ValueError, match="takes no prompt"):
        condition.check([None, "a cat"])


def test_labels_are_numbered_in_order_and_none_comes_after_them():
    condition = LabelCondition(["b", "a", "c"])
    assert condition.network_config() == {"num_classes": 3}
    got = condition.encode(["a", None, "c", "b"], "cpu")["class_labels"]
    assert got.tolist() == [1, 3, 2, 0]
    assert got.dtype == torch.int64


def test_an_unknown_label_names_three_nearest():
    labels = ["walks left", "walks right", "jumps", "sleeps", "eats"]
    with pytest.raises(ValueError) as caught:
        LabelCondition(labels).encode(["walk left"], "cpu")
    message = str(caught.value)
    assert "knows 5 captions" in message
    assert message.index("'walks left'") < message.index("'walks right'")
    with pytest.raises(ValueError, match="nearest: "):
        LabelCondition(labels).check([""])


def test_labels_are_needed():
    with pytest.raises(ValueError, match="at least one caption"):
        LabelCondition([])


@pytest.fixture
def text(bert):
    return TextCondition(*load_text_encoder(str(bert)), max_length=10)


def test_text_is_the_encoder_s_token_states(text):
    got = text.encode(["a digit moves", "five"], "cpu")
    states, mask = got["encoder_hidden_states"], got["encoder_attention_mask"]
    assert states.shape == (2, 10, 16)
    assert mask.sum(1).tolist() == [5, 3]  # words between [CLS] and [SEP]
    tokens = text.tokenizer("five", padding="max_length", max_length=10, return_tensors="pt")
    wanted = text.text_encoder(**tokens).last_hidden_state
    torch.testing.assert_close(states[1], wanted[0], rtol=0, atol=1e-6)
    assert text.network_config() == {"text_dim": 16}


def test_no_prompt_is_the_empty_text(text):
    none, empty = text.encode([None], "cpu"), text.encode([""], "cpu")
    assert torch.equal(none["encoder_hidden_states"], empty["encoder_hidden_states"])
    assert none["encoder_attention_mask"].sum() == 2


def test_captions_are_encoded_once_and_never_mixed(text):
    calls = []
    text.text_encoder.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    a = text.encode(["up", "five", "up"], "cpu")["encoder_hidden_states"]
    assert calls == [2]
    b = text.encode(["five", None, "up"], "cpu")["encoder_hidden_states"]
    assert calls == [2, 1]
    assert torch.equal(a[0], a[2])
    assert torch.equal(a[1], b[0])
    assert torch.equal(a[0], b[2])


def test_many_captions_are_encoded_in_batches(text):
    calls = []
    text.text_encoder.register_forward_pre_hook(
        lambda m, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    text.encode([f"five {'up ' * n}" for n in range(1, 7)] + [f"{n} up" for n in range(94)], "cpu")
    assert calls == [64, 36]


def test_long_captions_are_cut(text):
    got = text.encode(["a digit " * 40], "cpu")
    assert got["encoder_hidden_states"].shape == (1, 10, 16)
    assert got["encoder_attention_mask"].all()


def test_a_prompt_must_be_text(text):
    with pytest.raises(ValueError, match="must be text, got int"):
        text.check(["a", 3])


def test_captions_are_kept_within_bounds(text, monkeypatch):
    words = ["a", "digit", "below", "five", "moves", "from", "up"]
    wanted = text.encode(words, "cpu")
    asked, encoder = [], conditioning.encode_prompts
    monkeypatch.setattr(conditioning, "encode_prompts", lambda *args: asked.extend(args[2]) or encoder(*args))
    monkeypatch.setattr(conditioning, "TOGETHER", 1)
    text._kept = KeptConditions(limit=3 * (10 * 16 * 4 + 10))  # three texts of 10 tokens, each with its mask
    text.encode_ahead([None, *words])
    assert asked == ["", "a", "below"]
    got = text.encode(words, "cpu")
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert sorted(asked[3:]) == ["digit", "five", "from", "moves", "up"] and len(text._kept) == 3


def test_encoders_are_frozen_and_carry_no_dropout(bert):
    encoder, tokenizer = load_text_encoder(str(bert))
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    a, b = (encode_prompts(encoder, tokenizer, ["five"], 6).prompt_embeds for _ in range(2))
    assert torch.equal(a, b)


def test_only_the_encoder_of_a_pair_is_used(tmp_path, bert):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=20, d_model=12, d_kv=6, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5", safe_serialization=True)
    for path in bert.iterdir():
        if "token" in path.name or path.name == "vocab.txt":
            (tmp_path / "t5" / path.name).write_bytes(path.read_bytes())
    encoder, tokenizer = load_text_encoder(str(tmp_path / "t5"))
    assert TextCondition(encoder, tokenizer, 4).network_config() == {"text_dim": 12}
    assert encode_prompts(encoder, tokenizer, ["five"], 4).prompt_embeds.shape == (1, 4, 12)


def test_more_tokens_than_its_tokenizer_says_are_encoded_where_an_encoder_has_places(tmp_path, bert):
    folder = shutil.copytree(bert, tmp_path / "short")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_max_length": 10}))
    encoder, tokenizer = load_text_encoder(str(folder), 20)
    assert (most_tokens(encoder, tokenizer), most_places(encoder.config)) == (10, 32)
    assert encode_prompts(encoder, tokenizer, ["a digit " * 40], 20).prompt_attention_mask.all()
    with pytest.raises(ValueError, match="has places for 32 tokens, not 33; nearest: 32"):
        load_text_encoder(str(folder), 33)


def test_an_offloaded_encoder_encodes_where_it_works(bert):
    """Its weights come to the CPU layer by layer, and are nowhere between."""
    encoder, tokenizer = load_text_encoder(str(bert))
    wanted = encode_prompts(encoder, tokenizer, ["five"], 6).prompt_embeds
    cpu_offload(encoder, torch.device("cpu"))
    assert next(encoder.parameters()).is_meta
    torch.testing.assert_close(encode_prompts(encoder, tokenizer, ["five"], 6).prompt_embeds, wanted)


def test_a_missing_encoder_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ValueError) as caught:
        load_text_encoder(str(tmp_path / "nothing"))
    assert "no text encoder in" in str(caught.value)
    assert "does not exist" in str(caught.value)


def test_pickled_weights_are_not_loaded(tmp_path, bert):
    for path in bert.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    encoder, _ = load_text_encoder(str(bert))
    torch.save(encoder.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no text encoder"):
        load_text_encoder(str(tmp_path))


def test_the_packaged_encoder_tells_left_from_right():
    assert text_encoder_path("some/folder") == "some/folder"
    condition = TextCondition(*load_text_encoder("minilm"), max_length=8)
    assert condition.network_config() == {"text_dim": 384}
    got = condition.encode(["it moves left", "it moves right"], "cpu")["encoder_hidden_states"]
    assert got.shape == (2, 8, 384)
    assert torch.isfinite(got).all()
    assert (got[0, 3] - got[1, 3]).norm() > 0.1 * got[0, 3].norm()


def rows(condition, *texts):
    got = condition.encode(texts, "cpu")
    return dict(zip(texts, zip(*got.values(), strict=True), strict=True))


def test_stored_text_is_not_encoded_again(text, bert, monkeypatch):
    known, empty = rows(text, "up", "five"), rows(text, "")[""]
    stored = StoredText(str(bert), 10, empty)
    assert stored.network_config() == text.network_config()
    loaded = []
    monkeypatch.setattr(
        conditioning, "load_text_encoder", lambda source: loaded.append(source) or load_text_encoder(source)
    )
    got = stored.encode(["five", None, "up"], "cpu", known)
    assert loaded == []
    for key, values in text.encode(["five", None, "up"], "cpu").items():
        assert torch.equal(got[key], values)
    got = stored.encode(["a digit", "up", None], "cpu", {"up": (known["up"][0] + 1, known["up"][1])})
    assert loaded == [str(bert)]
    wanted = text.encode(["a digit", "up", None], "cpu")["encoder_hidden_states"]
    torch.testing.assert_close(got["encoder_hidden_states"], wanted + torch.tensor([0, 1, 0])[:, None, None])
    with pytest.raises(ValueError, match="a prompt must be text, got int"):
        stored.encode([3], "cpu")


def test_an_encoder_is_known_by_its_weights_and_its_words(bert):
    encoder, tokenizer = load_text_encoder(str(bert))
    identity = text_identity(encoder, tokenizer)
    tokenizer(["up"], padding="max_length", truncation=True, max_length=4)
    assert text_identity(*load_text_encoder(str(bert))) == text_identity(encoder, tokenizer) == identity
    tokenizer.add_tokens(["Überholen"])
    assert text_identity(encoder, tokenizer) != identity
    encoder, tokenizer = load_text_encoder(str(bert))
    next(iter(encoder.parameters())).data.view(-1)[0] += 1e-3
    assert text_identity(encoder, tokenizer) != identity
