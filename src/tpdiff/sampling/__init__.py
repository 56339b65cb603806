"""Sampling: steps, solvers, the stage loop, and the pipeline around them."""

from tpdiff.pyramid.steps import split_steps
from tpdiff.sampling.loop import Progress, sample_pyramid

__all__ = ["Progress", "sample_pyramid", "split_steps"]
