"""Captions that are longer than what is encoded of them, which nobody would notice: it is said before training."""

import os
import warnings
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any

from tpdiff.models.text import UNBOUNDED, most_tokens, token_counts
from tpdiff.sampling.asking import Asker

OWN, PIPELINE = "condition.max_length", "pretrained.options.max_sequence_length"


def warn_of_cut(captions: Iterable[str | None], text_encoder: Any, tokenizer: Any, limit: int) -> None:
    """Warn where captions are cut that a new network is told: how many are, and what would hold them.

    Args:
        captions: the same one twice counts once.
        text_encoder: what encodes them.
        tokenizer: its tokenizer.
        limit: tokens that are encoded, `condition.max_length`.
    """

    def nearest(counts: list[int]) -> str:
        most = most_tokens(text_encoder, tokenizer)
        if most is None or max(counts) <= most:
            return f"nearest that holds all: {OWN}={max(counts)}"
        if limit >= most:
            return "the encoder takes no more"
        return f"nearest: {OWN}={most}, the most that the encoder takes, which cuts {_above(counts, most)}"

    _warn(captions, tokenizer, OWN, limit, nearest)


def warn_of_cut_by_pipeline(captions: Iterable[str | None], asker: Asker) -> None:
    """Warn where a pretrained pipeline cuts captions: as an argument of its call says, or as it or its tokenizer is."""
    pipe, tokenizer = asker.pipe, getattr(asker.pipe, "tokenizer", None)
    if tokenizer is None:
        return
    told = asker.text_options.get("max_sequence_length")
    if told is not None:
        hint = "nearest that holds all, if the network takes so many"
        _warn(captions, tokenizer, PIPELINE, told, lambda counts: f"{hint}: {PIPELINE}={max(counts)}")
        return
    key = "tokenizer_max_length" if hasattr(pipe, "tokenizer_max_length") else "tokenizer.model_max_length"
    limit = attrgetter(key)(pipe)
    if limit < UNBOUNDED:
        _warn(captions, tokenizer, key, limit, lambda counts: "this pipeline takes no more")


def _warn(
    captions: Iterable[str | None], tokenizer: Any, key: str, limit: int, nearest: Callable[[list[int]], str]
) -> None:
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes the main one says it
    counts = token_counts(tokenizer, {caption for caption in captions if caption is not None})
    cut = _above(counts, limit)
    if cut:
        warnings.warn(
            f"{cut} of {len(counts)} captions ({100 * cut / len(counts):.3g}%) have more tokens than {key}={limit}, "
            f"and the rest is cut; the longest has {max(counts)}; {nearest(counts)}",
            stacklevel=3,
        )


def _above(counts: list[int], limit: int) -> int:
    return sum(count > limit for count in counts)
