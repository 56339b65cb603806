"""Context parallelism with stages: every stage's tokens must be shared out equally, and every jump drawn alike."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

from tpdiff.families import Family
from tpdiff.families.base import Size
from tpdiff.sampling.acceleration import networks

FARTHEST = 256  # how many latent elements off a nearest legal size is looked for


def check_parallel(
    pipe: Any, family: Family, stage_sizes: Callable[[Size], list[Size]], size: Size, generator: Any
) -> None:
    """Refuse what processes that share one video could not do right, before any work.

    Args:
        pipe: the pipeline.
        family: of the pipeline.
        stage_sizes: a full size in pixels (num_frames, height, width) -> that of every stage, finest first; raises
            ValueError where a stage cannot hold it.
        size: the full size asked for.
        generator: the call's.

    Raises:
        ValueError: a stage whose tokens cannot be shared out equally, with the nearest sizes where all can; no
            generator, so that every process would draw jumps of its own.
    """
    for network in networks(pipe).values():
        config = getattr(getattr(network, "_parallel_config", None), "context_parallel_config", None)
        if config is None:
            continue
        if generator is None:
            raise ValueError(
                "with context parallelism every process must draw the same noise at a jump: give the call a "
                "generator, seeded alike in all of them"
            )
        if not (config.ulysses_anything or config.ring_anything):
            _check_tokens(pipe, family, stage_sizes, size, config.ring_degree * config.ulysses_degree)


def _check_tokens(
    pipe: Any, family: Family, stage_sizes: Callable[[Size], list[Size]], size: Size, degree: int
) -> None:
    patch = family.patch(pipe)

    def shares(wanted: Size) -> list[tuple[int, ...]]:
        """(t, h, w) tokens of every stage, finest first."""
        latents = [family.latent_size(pipe, one) for one in stage_sizes(wanted)]
        return [tuple(math.ceil(n / p) for n, p in zip(latent, patch, strict=True)) for latent in latents]

    def fits(wanted: Size) -> bool:
        try:
            return all(math.prod(tokens) % degree == 0 for tokens in shares(wanted))
        except ValueError:
            return False

    for k, tokens in enumerate(shares(size)):
        count = math.prod(tokens)
        if count % degree:
            near = _near(size, family.vae_ratio(pipe), fits)
            raise ValueError(
                f"stage {k} has {count} tokens ({' × '.join(map(str, tokens))}), which {degree} processes cannot share "
                f"equally, as context parallelism does in every stage; nearest: {' or '.join(near) or 'none near'}; "
                "or set ulysses_anything=True"
            )


def _near(size: Size, unit: Size, fits: Callable[[Size], bool]) -> list[str]:
    """For each axis the nearest value that makes a size fit, in words."""
    found = []
    for axis, name in enumerate(("num_frames", "height", "width")):
        for away, sign in itertools.product(range(1, FARTHEST), (-1, 1)):
            value = size[axis] + sign * away * unit[axis]
            other = (*size[:axis], value, *size[axis + 1 :])
            if value > 0 and fits(other):  # type: ignore[arg-type]
                found.append(f"{name} {value}")
                break
    return found
