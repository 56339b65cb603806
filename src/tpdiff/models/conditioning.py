"""From prompts to what a denoiser takes: nothing, a class label, or text states.

Every conditioner turns a list of prompts, None standing for "no prompt", into keyword arguments of the network's
forward. Training drops prompts to None and guidance asks for None, so both meet the same null condition.
"""

import difflib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from tpdiff.models.kept import KeptConditions
from tpdiff.models.text import encode_prompts, load_text_encoder, token_counts

TOGETHER = 64  # texts that are encoded at once
Prompt = str | None
States = tuple[Tensor, Tensor]  # token states (L, D), and (L,) bool, True where a token stands
Known = Mapping[str, States]  # by text


class Conditioner(Protocol):
    """What training and sampling ask of a conditioner."""

    def network_config(self) -> dict[str, int]:
        """The network's configuration entries that this conditioner fixes."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise ValueError for a prompt that cannot be encoded, before any work."""

    def encode(
        self, prompts: Sequence[Prompt], device: torch.device | str, known: Known | None = None
    ) -> dict[str, Tensor]:
        """Keyword arguments of the network's forward for a batch of prompts; text that is `known` is not encoded."""


class NoCondition:
    """An unconditional model: prompts are refused."""

    def network_config(self) -> dict[str, int]:
        return {}

    def check(self, prompts: Sequence[Prompt]) -> None:
        if any(p is not None for p in prompts):
            raise ValueError("this model was trained without captions and takes no prompt")

    def encode(
        self, prompts: Sequence[Prompt], device: torch.device | str, known: Known | None = None
    ) -> dict[str, Tensor]:
        return {}


class LabelCondition:
    """Each distinct caption of the training set is a class; the class after the last means "no prompt".

    Args:
        labels: the captions, in class order.
    """

    def __init__(self, labels: Sequence[str]):
        if not labels:
            raise ValueError("a label condition needs at least one caption")
        self.labels = list(labels)
        self._index = {label: i for i, label in enumerate(self.labels)}

    def network_config(self) -> dict[str, int]:
        return {"num_classes": len(self.labels)}

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            if prompt is not None and prompt not in self._index:
                nearest = difflib.get_close_matches(prompt, self.labels, n=3, cutoff=0) or self.labels[:3]
                raise ValueError(
                    f"this model knows {len(self.labels)} captions as classes and {prompt!r} is not one of them; "
                    f"nearest: {', '.join(repr(n) for n in nearest)}"
                )

    def encode(
        self, prompts: Sequence[Prompt], device: torch.device | str, known: Known | None = None
    ) -> dict[str, Tensor]:
        self.check(prompts)
        classes = [len(self.labels) if p is None else self._index[p] for p in prompts]
        return {"class_labels": torch.tensor(classes, device=device)}


class TextCondition:
    """Token states of a text encoder; "no prompt" is the empty text. What was encoded is kept, within bounds.

    Args:
        text_encoder: a frozen Hugging Face encoder.
        tokenizer: its tokenizer.
        max_length: tokens a caption is padded or cut to.
    """

    def __init__(self, text_encoder: nn.Module, tokenizer: PreTrainedTokenizerBase, max_length: int = 32):
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._kept = KeptConditions()

    def network_config(self) -> dict[str, int]:
        config: Any = self.text_encoder.config
        return {"text_dim": getattr(config, "hidden_size", None) or config.d_model}

    def check(self, prompts: Sequence[Prompt]) -> None:
        _check_text(prompts)

    def warn_of_cut(self, prompts: Sequence[Prompt]) -> None:
        """Warn of prompts that have more tokens than the network is told."""
        counts = token_counts(self.tokenizer, {p for p in prompts if p is not None})
        cut = sum(count > self.max_length for count in counts)
        if cut:
            warnings.warn(
                f"{cut} of {len(counts)} prompts have more than the {self.max_length} tokens that this model is told "
                "(condition.max_length of its training): the rest is cut",
                stacklevel=2,
            )

    def encode(
        self, prompts: Sequence[Prompt], device: torch.device | str, known: Known | None = None
    ) -> dict[str, Tensor]:
        self.check(prompts)
        texts, known = [p or "" for p in prompts], known or {}
        found = {text: known[text] for text in texts if text in known}
        found |= {text: _states(self._kept[text]) for text in texts if text not in found and text in self._kept}
        for batch in _batches(set(texts) - found.keys()):
            found |= self._encode(batch)
        return _stacked([found[text] for text in texts], device)

    def encode_ahead(self, prompts: Iterable[Prompt]) -> None:
        """Encode as many prompts as are kept, so that no step of training pays for them."""
        for batch in _batches({p or "" for p in prompts} - self._kept.keys()):
            if self._kept.full:
                return
            self._encode(batch)

    def _encode(self, texts: Sequence[str]) -> dict[str, States]:
        """States of texts, on the CPU, from now on kept."""
        encoded = encode_prompts(self.text_encoder, self.tokenizer, texts, self.max_length)
        parts = encoded.prompt_embeds.cpu(), encoded.prompt_attention_mask.cpu()
        rows = [(states.clone(), mask.clone()) for states, mask in zip(*parts, strict=True)]  # each to be freed alone
        found = dict(zip(texts, rows, strict=True))
        self._kept.update({text: {"states": states, "mask": mask} for text, (states, mask) in found.items()})
        return found


class StoredText:
    """Token states that were encoded elsewhere; the encoder is loaded for a prompt that is not among them.

    Args:
        source: the encoder, as `tpdiff.models.text.load_text_encoder` takes it.
        max_length: tokens a caption is padded or cut to.
        empty: states of the empty text, which "no prompt" is.
    """

    def __init__(self, source: str, max_length: int, empty: States):
        self.source, self.max_length = source, max_length
        self._empty: Known = {"": empty}
        self._rest: TextCondition | None = None

    def network_config(self) -> dict[str, int]:
        return {"text_dim": self._empty[""][0].shape[-1]}

    def check(self, prompts: Sequence[Prompt]) -> None:
        _check_text(prompts)

    def encode(
        self, prompts: Sequence[Prompt], device: torch.device | str, known: Known | None = None
    ) -> dict[str, Tensor]:
        self.check(prompts)
        texts, stored = [p or "" for p in prompts], {**(known or {}), **self._empty}
        if stored.keys() >= set(texts):
            return _stacked([stored[text] for text in texts], device)
        if self._rest is None:
            encoder, tokenizer = load_text_encoder(self.source)
            self._rest = TextCondition(encoder.to(device), tokenizer, self.max_length)
        return self._rest.encode(prompts, device, stored)


def padded(text: Mapping[str, Tensor], length: int) -> States:
    """States as `tpdiff cache` keeps them, up to the last token, at their length for the network."""
    states, mask = text["prompt_embeds"], text["prompt_attention_mask"]
    rest = length - len(mask)
    return functional.pad(states, (0, 0, 0, rest)), functional.pad(mask, (0, rest))


def _states(kept: Mapping[str, Tensor]) -> States:
    return kept["states"], kept["mask"]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Texts as they are encoded together, in an order of their own."""
    ordered = sorted(texts)
    return (ordered[i : i + TOGETHER] for i in range(0, len(ordered), TOGETHER))


def _check_text(prompts: Sequence[Prompt]) -> None:
    for prompt in prompts:
        if prompt is not None and not isinstance(prompt, str):
            raise ValueError(f"a prompt must be text, got {type(prompt).__name__}")


def _stacked(rows: Sequence[States], device: torch.device | str) -> dict[str, Tensor]:
    states, masks = zip(*rows, strict=True)
    return {
        "encoder_hidden_states": torch.stack(states).to(device),
        "encoder_attention_mask": torch.stack(masks).to(device),
    }
