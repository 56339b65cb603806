"""PSNR and SSIM against arithmetic done another way."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from tpdiff.metrics.similarity import psnr, ssim


def noise(seed, shape=(2, 3, 3, 20, 17)):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def near(videos, seed, amount=25):
    """The same with bounded noise."""
    spread = torch.randint(-amount, amount + 1, videos.shape, generator=torch.Generator().manual_seed(seed))
    return (videos.int() + spread).clamp(0, 255).to(torch.uint8)


def slow_ssim(a, b):
    """One clip (3, T, H, W), in SciPy, on values of 0 ... 255, cut to where the window fits."""

    def mean(picture):
        return gaussian_filter(picture, 1.5, truncate=3.5, mode="constant")[5:-5, 5:-5]

    figures = []
    for channel in range(3):
        for frame in range(a.shape[1]):
            x, y = (np.asarray(clip[channel, frame], dtype=np.float64) for clip in (a, b))
            mx, my = mean(x), mean(y)
            sx, sy, sxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            figures.append(((2 * mx * my + c1) * (2 * sxy + c2)) / ((mx * mx + my * my + c1) * (sx + sy + c2)))
    return float(np.mean(figures))


@pytest.mark.parametrize(
    "other", [near(noise(0), 1), near(noise(0), 2, 90), noise(3)], ids=["near", "far", "unrelated"]
)
def test_ssim_is_that_of_a_slow_reference(other):
    videos = noise(0)
    found = ssim(videos, other)
    assert found.dtype == torch.float64 and found.shape == (2,)
    for value, a, b in zip(found.tolist(), videos, other, strict=True):
        assert value == pytest.approx(slow_ssim(a, b), abs=1e-9)


def test_ssim_of_flat_pictures_is_its_light_term_alone():
    a, b = torch.full((1, 3, 2, 16, 16), 100, dtype=torch.uint8), torch.full((1, 3, 2, 16, 16), 160, dtype=torch.uint8)
    expected = (2 * 100 * 160 + 6.5025) / (100**2 + 160**2 + 6.5025)
    assert float(ssim(a, b)) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_a_constant_difference_is_known():
    a = torch.full((2, 3, 4, 8, 8), 100, dtype=torch.uint8)
    b = a.clone()
    b[0] += 10
    b[1, :, :2] += 20  # half of the frames: the mean of the squares, not of decibels
    expected = [20 * math.log10(255 / 10), 10 * math.log10(255**2 / 200)]
    assert psnr(a, b).tolist() == pytest.approx(expected, rel=1e-12)


def test_equal_videos_are_as_alike_as_can_be():
    videos = noise(5)
    assert psnr(videos, videos).tolist() == [math.inf, math.inf]
    assert ssim(videos, videos).tolist() == pytest.approx([1, 1], abs=1e-12)


def test_both_fall_as_noise_grows_and_do_not_care_for_the_order():
    videos = torch.full((1, 3, 2, 24, 24), 128, dtype=torch.uint8)
    videos[..., ::4, :] = 30
    for figure in (psnr, ssim):
        values = [float(figure(videos, near(videos, 7, amount))) for amount in (5, 20, 60, 120)]
        assert values == sorted(values, reverse=True) and len(set(values)) == 4
        assert float(figure(near(videos, 7, 20), videos)) == pytest.approx(values[1], abs=1e-12)


@pytest.mark.parametrize("figure", [psnr, ssim])
def test_what_cannot_be_compared_is_refused(figure):
    videos = noise(0)
    with pytest.raises(ValueError, match=r"different shapes: \(2, .*\) and \(1, "):
        figure(videos, videos[:1])
    with pytest.raises(ValueError, match=r"uint8 video in \[0, 255\], got torch.float32"):
        figure(videos, videos.float())
    with pytest.raises(ValueError, match=r"clips \(B, 3, T, H, W\), got \(3, 3, 20, 17\)"):
        figure(videos[0], videos[0])


def test_frames_below_the_window_are_refused():
    small = noise(0, (1, 3, 2, 10, 32))
    with pytest.raises(ValueError, match="11 x 11 pixels, these frames have 10 x 32"):
        ssim(small, small)
    assert ssim(noise(0, (1, 3, 2, 11, 11)), noise(1, (1, 3, 2, 11, 11))).shape == (1,)
