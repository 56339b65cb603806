"""Captions that a pretrained pipeline cuts are told of, as well where no argument of its call decides of that."""

import pytest
import torch
from tiny import find_case

from tpdiff.sampling.asking import Asker
from tpdiff.training.cache import make_cache
from tpdiff.training.captions import warn_of_cut_by_pipeline
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


@pytest.mark.parametrize(
    ("name", "bound"),
    [
        ("animatediff", "tokenizer.model_max_length=77"),
        ("modelscope", "tokenizer.model_max_length=77"),
        ("hunyuan15", "tokenizer_max_length=8"),
    ],
)
def test_what_a_pipeline_cuts_by_itself_is_said_too(name, bound, recwarn):
    """At its limit, where two captions that differ behind it are encoded alike."""
    asker, limit = Asker(find_case(name).pipe()), int(bound.partition("=")[2])
    tokens = len(asker.pipe.tokenizer("")["input_ids"])  # at the ends
    full = " ".join(["a"] * (limit - tokens))
    one, other, shorter, shorter_other = asker.encode([f"{full} a", f"{full} b", full, f"{full[:-1]}b"])
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not all(torch.equal(shorter[key], shorter_other[key]) for key in one)
    warn_of_cut_by_pipeline([full, None], asker)
    assert told(recwarn) == []
    warn_of_cut_by_pipeline([full, f"{full} a", f"{full} a", None], asker)
    (said,) = told(recwarn)
    assert said.startswith("1 of 2 captions (50%)") and f"than {bound}, and the rest is cut" in said
    assert said.endswith(f"the longest has {limit + 1}; this pipeline takes no more")
