"""Resizing and the two ranges."""

import pytest
import torch

from tpdiff.data import frames_to_uint8, resize_frames, to_float, to_uint8


def test_ranges_are_exact_inverses():
    every = torch.arange(256, dtype=torch.uint8)
    numbers = to_float(every)
    assert numbers.dtype == torch.float32 and (numbers.min(), numbers.max()) == (-1, 1)
    assert torch.equal(to_uint8(numbers), every)
    assert torch.equal(to_uint8(numbers.to(torch.float64)), every)


def test_values_outside_are_clamped_and_nan_refused():
    assert to_uint8(torch.tensor([-3.0, 0.0, 3.0])).tolist() == [0, 128, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match=r"torch\.uint8"):
        to_uint8(torch.zeros(2, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"torch\.float32"):
        to_float(torch.zeros(2))


def test_what_pipelines_return_becomes_the_nearest_bytes():
    frames = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.2])
    assert frames_to_uint8(frames).tolist() == frames_to_uint8(frames.numpy()).tolist() == [0, 0, 0, 1, 255, 255]
    assert frames_to_uint8(frames.bfloat16()).dtype == torch.uint8


def test_same_size_is_untouched():
    frames = torch.randint(0, 256, (2, 6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(resize_frames(frames, (6, 8)), frames)


def test_shrinking_averages_instead_of_skipping():
    stripes = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    stripes[:, :, ::4] = 255
    small = resize_frames(stripes, (8, 8)).float()
    assert (small[:, :, 1:-1] - 255 / 4).abs().max() < 12


@pytest.mark.parametrize("size", [(7, 5), (5, 7), (64, 3), (3, 64), (1, 1)])
def test_any_size_in_both_modes(size):
    frames = torch.full((2, 20, 30, 3), 77, dtype=torch.uint8)
    for mode in ("crop", "stretch"):
        assert torch.equal(resize_frames(frames, size, mode), torch.full((2, *size, 3), 77, dtype=torch.uint8))
