"""What docs/python.md says of the arguments that a tuned pipeline takes."""

import inspect
import re
from pathlib import Path

from tiny import CASES

from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.sampling.tuned import TunedPipeline

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
