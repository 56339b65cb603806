"""Encoded prompts are kept within bounds."""

import torch

from tpdiff.models.kept import KeptConditions


def encoded(value):
    """100 bytes."""
    return {"prompt_embeds": torch.full((1, 4, 6), float(value)), "prompt_attention_mask": torch.ones(1, 4, dtype=bool)}


def test_what_was_not_used_for_longest_goes_first():
    kept = KeptConditions(limit=300)
    kept.update({None: encoded(0), "a": encoded(1), "b": encoded(2), "c": encoded(3)})
    assert kept["a"]["prompt_embeds"].unique() == 1
    kept["d"] = encoded(4)
    assert list(kept) == [None, "c", "a", "d"]
    kept["c"] = encoded(5)  # the place of the former is free again
    assert list(kept) == [None, "a", "d", "c"]
    kept["e"] = {"prompt_embeds": torch.zeros(1, 25, 2)}
    assert list(kept) == [None, "c", "e"]


def test_no_prompt_stays_and_counts_for_nothing():
    kept = KeptConditions(limit=99)
    kept[None] = encoded(0)
    kept["a"] = encoded(1)
    assert list(kept) == [None] and "a" not in kept
