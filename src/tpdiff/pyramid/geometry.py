"""Legal strides and sizes: every stage of a pyramid must come out whole, and be told so before any work."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

AXIS_NAMES = ("num_frames", "height", "width")
LARGEST_DENOMINATOR = 64  # of a stride: a float is read as the nearest fraction up to here

Strides = tuple[Fraction, Fraction, Fraction]


def exact_strides(factors: Sequence[Sequence[float | Fraction]]) -> tuple[Strides, ...]:
    """(T, H, W) stride of each stage against full size, finest first, as exact fractions.

    Args:
        factors: each stride an int, a `Fraction`, or a float within rounding of a simple fraction (1.5, 4 / 3).

    Raises:
        ValueError: not three numbers a stage, a stride below 1 or of no simple fraction, a finest stage that is not
            (1, 1, 1), or strides that shrink.
    """
    exact: list[Strides] = []
    if not _are_strides(factors):
        raise ValueError(
            "factors are (T, H, W) strides >= 1, whole or fractions, finest stage first, such as [(1, 1, 1), "
            f"(2, 1, 1)]; got {factors!r}"
        )
    for stage in factors:
        t, h, w = (_simple_fraction(f, name) for f, name in zip(stage, AXIS_NAMES, strict=True))
        exact.append((t, h, w))
    if not exact or exact[0] != (1, 1, 1):
        raise ValueError(f"the finest stage's factors must be (1, 1, 1); got {list(factors)}")
    for fine, coarse in pairwise(exact):
        if any(c < f for f, c in zip(fine, coarse, strict=True)):
            raise ValueError(
                f"factors must not shrink from stage to stage, finest first; got {[plain_strides(s) for s in exact]}"
            )
    return tuple(exact)


def plain_strides(strides: Strides) -> tuple[float, float, float]:
    """The strides as plain numbers: int where whole, else float."""
    t, h, w = (int(f) if f.denominator == 1 else float(f) for f in strides)
    return t, h, w


def _are_strides(factors: Any) -> bool:
    """Whether these are stages of three numbers from 1 up."""
    return isinstance(factors, Iterable) and all(
        isinstance(stage, Iterable)
        and len(sides := list(stage)) == 3
        and all(isinstance(f, numbers.Real) and 1 <= float(f) < math.inf for f in sides)
        for stage in factors
    )


def _simple_fraction(value: float | Fraction, axis: str) -> Fraction:
    stride = Fraction(value if isinstance(value, numbers.Rational) else float(value))
    simple = stride.limit_denominator(LARGEST_DENOMINATOR)
    if abs(simple - stride) > 1e-6:
        raise ValueError(
            f"{axis} has stride {value}, which is no simple fraction (denominator up to {LARGEST_DENOMINATOR}); "
            f"the nearest is {simple}"
        )
    return simple


def check_axis(
    name: str, value: int, multiples: Mapping[str, int], causal: bool = False, offset: int | None = None
) -> None:
    """Refuse a size that some stage could not hold.

    Args:
        name: the axis as the user knows it ("height").
        value: the size asked for.
        multiples: what the size must be divisible by, factor by factor, e.g. {"VAE": 8, "patch": 2, "pyramid": 4}.
        causal: the axis counts 1 + n elements, n divisible (causal time axis).
        offset: legal sizes are a multiple plus this; None: 1 on a causal axis, else 0.

    Raises:
        ValueError: naming the value, the rule and the nearest legal values.
    """
    factors = {source: m for source, m in multiples.items() if m > 1}
    step = math.prod(factors.values())
    offset = int(causal) if offset is None else offset
    smallest = offset if offset > 0 else step + offset
    if isinstance(value, numbers.Integral) and value >= smallest and (value - offset) % step == 0:
        return
    below = (int(value) - offset) // step * step + offset
    nearest = [n for n in (below, below + step) if n >= smallest] or [smallest]
    rule = {0: "a multiple of", 1: "1 + a multiple of"}.get(offset, f"{-offset} less than a multiple of")
    made_of = " × ".join(f"{m} {source}" for source, m in factors.items())
    raise ValueError(
        f"{name} {value} is not {rule} {step}{f' ({made_of})' if made_of else ''}; "
        f"nearest: {' or '.join(str(n) for n in nearest)}"
    )


Triple = tuple[int, int, int]
Geometry = tuple[Triple, Triple, Triple, bool, bool]  # what `check_video_size` asks for behind the size, in its order


def check_video_size(
    size: Sequence[int],
    pyramid: Sequence[int],
    patch: Sequence[int] = (1, 1, 1),
    vae: Sequence[int] = (1, 1, 1),
    causal_time: bool = False,
    causal_vae: bool = False,
) -> None:
    """`check_axis` for the three axes of a video.

    Args:
        size: (num_frames, height, width) in pixels (in latent elements where `vae` is all ones).
        pyramid: the coarsest stage's (T, H, W) stride.
        patch: the network's patch size (T, H, W).
        vae: the autoencoder's compression (T, H, W).
        causal_time: the pyramid keeps the first latent frame whole.
        causal_vae: the autoencoder keeps the first frame whole: 1 + r n frames become 1 + n.
    """
    for name, value, (multiples, offset) in zip(
        AXIS_NAMES, size, axis_rules(pyramid, patch, vae, causal_time, causal_vae), strict=True
    ):
        check_axis(name, value, multiples, offset=offset)


def largest_video_size(
    size: Sequence[int],
    pyramid: Sequence[int],
    patch: Sequence[int] = (1, 1, 1),
    vae: Sequence[int] = (1, 1, 1),
    causal_time: bool = False,
    causal_vae: bool = False,
) -> tuple[int, int, int] | None:
    """The largest size that `check_video_size` accepts and that exceeds `size` on no axis; None where there is none."""
    sides = []
    for value, (multiples, offset) in zip(size, axis_rules(pyramid, patch, vae, causal_time, causal_vae), strict=True):
        step = math.prod(multiples.values())
        sides.append((value - offset) // step * step + offset)
    t, h, w = sides
    return (t, h, w) if min(sides) >= 1 else None


def axis_rules(
    pyramid: Sequence[int], patch: Sequence[int], vae: Sequence[int], causal_time: bool, causal_vae: bool
) -> list[tuple[dict[str, int], int]]:
    """For T, H and W: what legal sizes are multiples of, factor by factor, and what is added to the multiple."""
    rules = []
    for axis in range(3):
        multiples = {"VAE": vae[axis], "patch": patch[axis], "pyramid": int(pyramid[axis])}
        causal = causal_time and axis == 0
        whole = causal_vae and axis == 0 and not causal_time and patch[0] * pyramid[0] > 1
        # m n latent frames of a causal autoencoder are 1 + r (m n - 1) frames
        rules.append((multiples, 1 - vae[0] if whole else int(causal or (causal_vae and axis == 0))))
    return rules
