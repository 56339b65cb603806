"""Positions of a stage's elements on the full-size axis (MATH 7)."""

import pytest
import torch

from tpdiff.pyramid.positions import positions


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
def test_a_coarse_element_stands_at_the_mean_of_those_it_replaces(stride: int) -> None:
    full = positions(5 * stride, 1)
    torch.testing.assert_close(positions(5, stride), full.view(5, stride).mean(1))


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_causal_the_first_stands_alone_the_others_at_the_mean(stride: int) -> None:
    full = positions(1 + 5 * stride, 1, causal=True)
    expected = torch.cat((full[:1], full[1:].view(5, stride).mean(1)))
    torch.testing.assert_close(positions(6, stride, causal=True), expected)


def test_a_stride_need_not_be_whole() -> None:
    torch.testing.assert_close(positions(3, 1.5), torch.tensor([0.25, 1.75, 3.25], dtype=torch.float64))
    torch.testing.assert_close(positions(2, 0.5), torch.tensor([-0.25, 0.25], dtype=torch.float64))


@pytest.mark.parametrize("stride", [1, 2, 3.5])
@pytest.mark.parametrize("causal", [False, True])
def test_extrapolated_positions_count(stride: float, causal: bool) -> None:
    got = positions(4, stride, mode="extrapolate", causal=causal)
    torch.testing.assert_close(got, torch.arange(4, dtype=torch.float64))


def test_full_size_counts_from_zero_and_lengths_of_zero_and_one_are_legal() -> None:
    for causal in (False, True):
        torch.testing.assert_close(positions(7, 1, causal=causal), torch.arange(7, dtype=torch.float64))
        assert positions(0, 2, causal=causal).shape == (0,)
    assert positions(1, 4, causal=True).item() == 0
    assert positions(1, 4).item() == 1.5


@pytest.mark.parametrize("stride", [0, -1, float("nan")])
def test_refuses_a_stride_that_is_not_positive(stride: float) -> None:
    with pytest.raises(ValueError, match=r"stride .* must be positive"):
        positions(4, stride)


def test_refuses_an_unknown_mode_naming_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'stretch'.*interpolate, extrapolate"):
        positions(4, 1, mode="stretch")


def test_refuses_a_negative_length() -> None:
    with pytest.raises(ValueError, match="length -1"):
        positions(-1, 1)
