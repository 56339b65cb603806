"""Captions that a pretrained pipeline cuts are told of, where an argument of its call decides how long they may be."""

import pytest
from tiny import find_case

from tpdiff.training.cache import make_cache
from tpdiff.training.trainer import Trainer

KEY = "pretrained.options.max_sequence_length"


def told(recwarn):
    return [str(warning.message) for warning in recwarn if "and the rest is cut" in str(warning.message)]


@pytest.mark.parametrize("name", ["ltx", "wan", "hunyuan"])
def test_a_run_says_what_it_cuts(name, tuning, tmp_path, recwarn):
    config = tuning(find_case(name))
    trainer = Trainer(config, tmp_path / "run")
    counts = [len(ids) for ids in trainer.trainee.pipe.tokenizer(trainer.dataset.captions)["input_ids"]]
    cut = sum(count > 8 for count in counts)
    (said,) = told(recwarn)
    assert cut > 0 and said.startswith(f"{cut} of {len(counts)} captions") and f"than {KEY}=8," in said
    assert said.endswith(f"if the network takes so many: {KEY}={max(counts)}")
    longer = config.pretrained.options | {"max_sequence_length": max(counts)}
    Trainer(tuning(find_case(name), options=longer), tmp_path / "longer")
    Trainer(tuning(find_case(name), "condition.kind=none"), tmp_path / "none")
    assert told(recwarn) == [said]


@pytest.mark.parametrize(("kind", "lines"), [("text", 1), ("none", 0)])
def test_a_cache_says_what_it_cuts(kind, lines, tuning, tmp_path, recwarn):
    make_cache(tuning(find_case("ltx"), f"condition.kind={kind}"), tmp_path / "cache", shards=1)
    assert len(told(recwarn)) == lines


def test_where_nothing_can_be_asked_for_nothing_is_said(tuning, tmp_path, recwarn):
    Trainer(tuning(find_case("animatediff")), tmp_path / "run")
    assert told(recwarn) == []
