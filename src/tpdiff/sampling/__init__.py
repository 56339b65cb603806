"""Sampling: steps, solvers, the stage loop, and the pipeline around them."""

from tpdiff.sampling.loop import Progress, sample_pyramid
from tpdiff.sampling.steps import split_steps

__all__ = ["Progress", "sample_pyramid", "split_steps"]
