"""Sizes that some stage could not hold are refused with the rule and the nearest legal values."""

import re

import numpy as np
import pytest

from tpdiff.pyramid import check_axis, check_video_size
from tpdiff.pyramid.geometry import exact_strides, largest_video_size


def refusal(call, *args, **options) -> str:
    with pytest.raises(ValueError, match="nearest") as caught:
        call(*args, **options)
    return str(caught.value)


def test_the_message_of_the_house():
    message = refusal(check_axis, "height", 450, {"VAE": 8, "patch": 2, "pyramid": 4})
    assert message == "height 450 is not a multiple of 64 (8 VAE × 2 patch × 4 pyramid); nearest: 448 or 512"


def test_a_factor_of_one_is_not_named():
    message = refusal(check_axis, "width", 10, {"VAE": 8, "patch": 1, "pyramid": 1})
    assert message == "width 10 is not a multiple of 8 (8 VAE); nearest: 8 or 16"


@pytest.mark.parametrize(("value", "nearest"), [(0, "5"), (4, "5"), (-7, "5"), (6, "5 or 10"), (14, "10 or 15")])
def test_the_nearest_size_is_never_below_the_smallest(value, nearest):
    assert refusal(check_axis, "width", value, {"patch": 5}).endswith(f"; nearest: {nearest}")


def test_a_causal_axis_counts_one_more():
    for frames in (1, 9, 81):
        check_axis("num_frames", frames, {"VAE": 4, "pyramid": 2}, causal=True)
    message = refusal(check_axis, "num_frames", 48, {"VAE": 4, "pyramid": 2}, causal=True)
    assert message == "num_frames 48 is not 1 + a multiple of 8 (4 VAE × 2 pyramid); nearest: 41 or 49"
    assert refusal(check_axis, "num_frames", 0, {"VAE": 4}, causal=True).endswith("; nearest: 1")


def test_every_size_is_judged_as_by_division():
    for multiple in (1, 3, 8):
        for causal in (False, True):
            for value in range(-3, 40):
                spare = value - 1 if causal else value
                legal = spare % multiple == 0 and (spare >= 0 if causal else spare > 0)
                if legal:
                    check_axis("height", value, {"pyramid": multiple}, causal)
                    continue
                numbers = [
                    int(n)
                    for n in re.findall(
                        r"\d+", refusal(check_axis, "height", value, {"pyramid": multiple}, causal).split("nearest:")[1]
                    )
                ]
                for number in numbers:
                    check_axis("height", number, {"pyramid": multiple}, causal)
                assert all(abs(number - value) <= multiple or value < number for number in numbers)


@pytest.mark.parametrize("factors", [[1, 2, 4], "T", ["111", "211"], 2, None, [(1, 1, 1), (2, "1", 1)], [(1, 1)]])
def test_factors_that_are_no_strides_are_refused(factors):
    said = re.escape(f", such as [(1, 1, 1), (2, 1, 1)]; got {factors!r}")
    with pytest.raises(ValueError, match=rf"^factors are \(T, H, W\) strides >= 1, .*{said}$"):
        exact_strides(factors)


def test_a_fraction_of_a_pixel_is_refused():
    assert "height 12.5" in refusal(check_axis, "height", 12.5, {"patch": 4})


def test_numpy_whole_numbers_are_sizes_too():
    check_axis("height", np.int64(448), {"VAE": 8, "patch": 2, "pyramid": 4})


def test_a_video_is_checked_axis_by_axis():
    options = {"pyramid": (4, 4, 4), "patch": (1, 2, 2), "vae": (4, 8, 8)}
    check_video_size((81, 448, 832), **options, causal_time=True)
    check_video_size((80, 448, 832), **options)
    with pytest.raises(ValueError, match=r"num_frames 80 is not 1 \+ a multiple of 16 \(4 VAE × 4 pyramid\)"):
        check_video_size((80, 448, 832), **options, causal_time=True)
    with pytest.raises(ValueError, match=r"num_frames 81 is not a multiple of 16"):
        check_video_size((81, 448, 832), **options)
    with pytest.raises(ValueError, match=r"height 480 is not a multiple of 64 .*nearest: 448 or 512"):
        check_video_size((81, 480, 832), **options, causal_time=True)
    with pytest.raises(ValueError, match=r"width 833 is not a multiple of 64 .*nearest: 832 or 896"):
        check_video_size((81, 448, 833), **options, causal_time=True)
    check_video_size((16, 12, 20), (4, 4, 4))  # latent elements: no VAE, no patch


@pytest.mark.parametrize("causal_time", [False, True])
@pytest.mark.parametrize("causal_vae", [False, True])
@pytest.mark.parametrize("pyramid", [(1, 1, 1), (4, 2, 2)])
def test_the_largest_size_is_legal_and_the_next_is_not(causal_time, causal_vae, pyramid):
    rules = {"pyramid": pyramid, "patch": (1, 2, 2), "vae": (4, 8, 8) if causal_vae else (1, 8, 8)}
    rules |= {"causal_time": causal_time, "causal_vae": causal_vae}

    def legal(size):
        try:
            check_video_size(size, **rules)
        except ValueError:
            return False
        return True

    for frames in range(1, 40):
        found = largest_video_size((frames, 70, 101), **rules)
        lengths = [length for length in range(1, frames + 1) if legal((length, 64, 96))]
        assert found == ((lengths[-1], *largest_video_size((39, 70, 101), **rules)[1:]) if lengths else None)
        assert found is None or (
            legal(found) and not any(legal((found[0], side, 96)) for side in range(found[1] + 1, 71))
        )
    assert largest_video_size((39, 15, 101), **rules) is None
