"""Legal sizes: every stage of a pyramid must come out whole, and be told so before any work."""

from collections.abc import Mapping, Sequence

AXIS_NAMES = ("num_frames", "height", "width")


def check_axis(name: str, value: int, multiples: Mapping[str, int], causal: bool = False) -> None:
    """Refuse a size that some stage could not hold.

    Args:
        name: the axis as the user knows it ("height").
        value: the size asked for.
        multiples: what the size must be divisible by, factor by factor, e.g. {"VAE": 8, "patch": 2, "pyramid": 4}.
        causal: the axis counts 1 + n elements, n divisible (causal time axis).

    Raises:
        ValueError: naming the value, the rule and the nearest legal values.
    """
    factors = {source: m for source, m in multiples.items() if m > 1}
    step = 1
    for m in factors.values():
        step *= m
    offset = 1 if causal else 0
    smallest = offset if causal else step
    if isinstance(value, int) and value >= smallest and (value - offset) % step == 0:
        return
    below = (int(value) - offset) // step * step + offset
    nearest = [n for n in (below, below + step) if n >= smallest] or [smallest]
    rule = "1 + a multiple of" if causal else "a multiple of"
    made_of = " × ".join(f"{m} {source}" for source, m in factors.items())
    raise ValueError(
        f"{name} {value} is not {rule} {step}{f' ({made_of})' if made_of else ''}; "
        f"nearest: {' or '.join(str(n) for n in nearest)}"
    )


def check_video_size(
    size: Sequence[int],
    pyramid: Sequence[int],
    patch: Sequence[int] = (1, 1, 1),
    vae: Sequence[int] = (1, 1, 1),
    causal_time: bool = False,
) -> None:
    """`check_axis` for the three axes of a video.

    Args:
        size: (num_frames, height, width) in pixels (in latent elements where `vae` is all ones).
        pyramid: the coarsest stage's (T, H, W) stride.
        patch: the network's patch size (T, H, W).
        vae: the autoencoder's compression (T, H, W).
        causal_time: the time axis is 1 + n.
    """
    for axis, name in enumerate(AXIS_NAMES):
        multiples = {"VAE": vae[axis], "patch": patch[axis], "pyramid": int(pyramid[axis])}
        check_axis(name, size[axis], multiples, causal=causal_time and axis == 0)
