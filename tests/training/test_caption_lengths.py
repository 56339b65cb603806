"""Captions that are cut are told of, once, before any step: how many, how long the longest is, what would hold all."""

import pytest

from tpdiff.models.text import load_text_encoder
from tpdiff.training.cache import make_cache
from tpdiff.training.captions import warn_of_cut
from tpdiff.training.trainer import Trainer

CAPTIONS = ["a digit below five moves", "a digit from five up moves", "five"]  # 7, 8 and 3 tokens with their ends


def told(recwarn):
    return [str(warning.message) for warning in recwarn if "and the rest is cut" in str(warning.message)]


def texts(bert, length):
    return "condition.kind=text", f"condition.encoder={bert}", f"condition.max_length={length}"


def test_a_run_says_what_it_cuts(tiny, bert, tmp_path, recwarn):
    Trainer(tiny("train.steps=1", *texts(bert, 8)), tmp_path / "long enough")
    assert told(recwarn) == []
    Trainer(tiny("train.steps=1", *texts(bert, 7)), tmp_path / "too short").run()
    assert told(recwarn) == [
        "1 of 2 captions (50%) have more tokens than condition.max_length=7, and the rest is cut; the longest has 8; "
        "nearest that holds all: condition.max_length=8"
    ]


def test_of_several_processes_the_main_one_says_it(tiny, bert, tmp_path, recwarn, monkeypatch):
    encoder = load_text_encoder(str(bert))
    for rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("RANK", rank)
        warn_of_cut(CAPTIONS, *encoder, 7)
        assert len(told(recwarn)) == lines


@pytest.mark.parametrize(
    ("limit", "nearest"),
    [(20, "condition.max_length=32, the most that the encoder takes, which cuts 1"), (32, "the encoder takes no more")],
)
def test_more_than_the_encoder_takes_is_not_asked_for(bert, recwarn, limit, nearest):
    warn_of_cut(["up " * 23, "five " * 40, None, "five " * 40], *load_text_encoder(str(bert)), limit)
    (said,) = told(recwarn)
    assert said.startswith("2 of 2" if limit == 20 else "1 of 2") and said.endswith(nearest) and "has 42" in said


@pytest.mark.parametrize(("kind", "lines"), [("text", 1), ("label", 0)])
def test_a_cache_says_what_it_cuts(encoding, bert, tmp_path, recwarn, kind, lines):
    make_cache(encoding(*texts(bert, 7), f"condition.kind={kind}"), tmp_path / "cache", shards=1)
    assert len(told(recwarn)) == lines
    assert all(said.startswith("1 of 2 captions (50%)") for said in told(recwarn))


def test_more_places_than_the_encoder_has_are_refused(tiny, encoding, bert, tmp_path):
    message = "has places for 32 tokens, not 33; nearest: 32"
    with pytest.raises(ValueError, match=message):
        Trainer(tiny("train.steps=1", *texts(bert, 33)), tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        make_cache(encoding(*texts(bert, 33)), tmp_path / "cache")
