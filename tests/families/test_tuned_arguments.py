"""The arguments that a tuned pipeline takes, and what docs/python.md says of them."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from recording import evaluations
from tiny import CASES, find_case

from tpdiff.pyramid import Pyramid
from tpdiff.sampling.asking import Asker
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.sampling.trained import Tuned
from tpdiff.sampling.tuned import TunedPipeline
from tpdiff.schedulers import schedule_of

FACTORS = [(1, 1, 1), (2, 1, 1)]

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
SENTENCE = re.search(r"A tuned pipeline takes the same arguments, but no (.*?)\.", PAGE, re.DOTALL)[1]


def takes(kind):
    return {*inspect.signature(kind.__call__).parameters}


def lacks(case):
    """Of the arguments of `PyramidPipeline`, those that a pipeline of this case does not take once it is tuned."""
    return takes(PyramidPipeline) - takes(TunedPipeline) - takes(type(case.pipe()))


def test_the_page_names_all_that_a_tuned_pipeline_does_not_take():
    never, sometimes = ({*re.findall(r"`(\w+)`", part)} for part in SENTENCE.split(", and ", 1))
    lacking = [lacks(case) for case in CASES]
    assert never == set.intersection(*lacking)
    assert sometimes == set.union(*lacking) - never


def tuned(case, factors):
    """A pipeline as it comes out of training, with random weights."""
    pipe = case.stageable()
    pyramid = Pyramid(schedule_of(pipe.scheduler), factors, causal_time=True)
    network = pipe.transformer
    kind, config = type(network).__name__, pyramid.config()
    told = Tuned("x", "transformer", kind, [], config, list(case.narrow), 8.0, dict(case.call))
    made = TunedPipeline(pipe, network, told)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("name", ["wan", "ltx"])
def test_prompts_may_be_encoded_beforehand(name):
    case = find_case(name)
    pipe = tuned(case, FACTORS)
    told, empty = (Asker(case.pipe(), **case.call).encode([text])[0] for text in ("a small red cat runs", ""))
    options = {"num_inference_steps": 4, "output_type": "latent"}
    encoded = {**told, **{f"negative_{key}": value for key, value in empty.items()}}
    made, same = (
        pipe(generator=torch.Generator().manual_seed(0), **options, **given).frames
        for given in (encoded, {"prompt": "a small red cat runs"})
    )
    torch.testing.assert_close(made, same)


@pytest.mark.parametrize("factors", [[(1, 1, 1)], FACTORS])
def test_as_many_steps_as_noise_levels_are_given(factors):
    case = find_case("hunyuan")
    pipe = tuned(case, factors)
    with evaluations(case, pipe.pipe) as calls:
        pipe("a cat", output_type="latent", sigmas=[1.0, 0.9, 0.8, 0.5, 0.2])
    assert len(calls) == 5
