"""Real pipelines of diffusers with tiny random weights, and what every one of them is asked alike."""

from tiny.cases import CASES, Case, find_case, picture

__all__ = ["CASES", "Case", "find_case", "picture"]
