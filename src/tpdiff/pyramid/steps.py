"""Step counts: how many sampling steps each stage gets."""

import numbers
from collections.abc import Iterable, Sequence


def split_steps(steps: int | Sequence[int], stages: int) -> list[int]:
    """Steps of every stage, **coarsest first**.

    Args:
        steps: a total, split evenly with the remainder to the coarsest stages, or one count a stage, coarsest
            first (20-20-10).
        stages: S.

    Raises:
        ValueError: neither a whole number nor a list, fewer than one step a stage, or a list of another length than S.
    """
    if isinstance(steps, int | numbers.Integral):  # numpy's are no int
        steps = int(steps)
        if steps < stages:
            raise ValueError(f"{steps} steps cannot fill {stages} stages; nearest: {stages}")
        each, left = divmod(steps, stages)
        return [each + left] + [each] * (stages - 1)
    if isinstance(steps, str) or not isinstance(steps, Iterable):
        raise ValueError(
            f"steps {steps!r} are neither a whole total (30) nor one count a stage, coarsest first ([10, 10, 10])"
        )
    counts = list(steps)
    if len(counts) != stages:
        raise ValueError(
            f"{len(counts)} step counts ({'-'.join(map(str, counts))}) for {stages} stages; "
            f"give {stages}, coarsest first, or one total"
        )
    if any(not isinstance(n, numbers.Integral) or n < 1 for n in counts):
        raise ValueError(f"every stage needs at least one whole step, got {'-'.join(map(str, counts))}; nearest: 1")
    return [int(n) for n in counts]
