"""Distances against independent references, and what their intervals cover."""

import numpy as np
import pytest
from scipy import linalg

from tpdiff.metrics import (
    frechet_distance,
    frechet_from_moments,
    frechet_interval,
    kernel_distance,
    moments,
    paired_bootstrap,
    paired_draws,
)


def draw(seed, count, width, spread=1.0, shift=0.0):
    """Correlated normal features whose variances fall over two powers of ten."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(width, width)) * np.logspace(0, -1, width)
    return spread * rng.normal(size=(count, width)) @ mix + shift


def by_matrix_root(real, made):
    """The textbook form: SciPy's matrix root of the product of NumPy's covariances."""
    a, b = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    root = linalg.sqrtm(a @ b).real
    shift = real.mean(axis=0) - made.mean(axis=0)
    return shift @ shift + np.trace(a + b - 2 * root)


@pytest.mark.parametrize(("width", "count"), [(2, 50), (16, 300), (64, 500)])
@pytest.mark.parametrize(("spread", "shift"), [(1.0, 0.0), (1.3, 0.0), (0.8, 0.5)])
def test_frechet_agrees_with_scipys_matrix_root(width, count, spread, shift):
    real, made = draw(0, count, width), draw(1, count + 37, width, spread, shift)
    assert frechet_distance(real, made) == pytest.approx(by_matrix_root(real, made), rel=1e-4)


@pytest.mark.parametrize(("count_a", "count_b"), [(20, 25), (400, 20)])
def test_frechet_of_singular_covariances(count_a, count_b):
    """Fewer clips than dimensions. The root's trace comes from the eigenvalues of the product, another way."""
    real, made = draw(0, count_a, 48), draw(1, count_b, 48, 1.2)
    a, b = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    roots = np.sqrt(np.linalg.eigvals(a @ b).real.clip(min=0))
    small = np.sort(roots)[::-1][: min(count_a, count_b) - 1].sum()
    shift = real.mean(axis=0) - made.mean(axis=0)
    expected = shift @ shift + np.trace(a) + np.trace(b) - 2 * small
    assert frechet_distance(real, made) == pytest.approx(expected, rel=1e-4)


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    scale_a, scale_b = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 0.0])
    figure = frechet_from_moments(np.zeros(3), np.diag(scale_a), np.array([1.0, 2.0, 0.0]), np.diag(scale_b))
    assert figure == pytest.approx(5 + (1 - 3) ** 2 + (2 - 1) ** 2)


def test_frechet_of_a_set_with_itself_is_nothing():
    real = draw(0, 100, 32)
    assert frechet_distance(real, real) <= 1e-9 * np.trace(np.cov(real, rowvar=False))


def test_moments_are_unbiased():
    features = draw(0, 30, 5)
    mean, cov = moments(features)
    np.testing.assert_allclose(mean, features.mean(axis=0))
    np.testing.assert_allclose(cov, np.cov(features, rowvar=False))


@pytest.mark.parametrize(("n", "m"), [(7, 9), (600, 1100)])
def test_kernel_distance_agrees_with_the_definition(n, m):
    """The larger sizes fall into several blocks."""
    real, made = draw(0, n, 8), draw(1, m, 8, 1.1)

    def kernel(x, y):
        return (np.einsum("id,jd->ij", x, y) / 8 + 1) ** 3

    within_real = (kernel(real, real) * (1 - np.eye(n))).sum() / (n * (n - 1))
    within_made = (kernel(made, made) * (1 - np.eye(m))).sum() / (m * (m - 1))
    expected = within_real + within_made - 2 * kernel(real, made).mean()
    assert kernel_distance(real, made) == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_kernel_distance_has_no_bias():
    figures = [kernel_distance(draw(2 * i, 12, 4), draw(2 * i + 1, 12, 4)) for i in range(400)]
    assert min(figures) < 0 < max(figures)
    assert abs(np.mean(figures)) < 3 * np.std(figures) / 20


def test_an_interval_holds_its_figure_and_repeats():
    real, made = draw(0, 200, 16), draw(1, 200, 16, 1.2)
    first = frechet_interval(real, made, rounds=200, seed=4)
    assert first.low < first.value < first.high
    assert first.value == frechet_distance(real, made)
    assert first == frechet_interval(real, made, rounds=200, seed=4)
    assert first != frechet_interval(real, made, rounds=200, seed=5)


def test_an_interval_of_a_small_set_holds_its_figure():
    """Few clips in many dimensions: the bias that repeats add would lift the plain percentiles above the figure."""
    interval = frechet_interval(draw(0, 60, 48), draw(1, 60, 48), rounds=200)
    assert interval.low < interval.value < interval.high


def test_intervals_are_as_wide_as_figures_of_fresh_sets_spread():
    """In the mean: of sets of which the real one scatters the figure as much as the made one."""

    def sets(seed):
        return draw(seed, 240, 2), draw(seed + 1, 400, 2, 1.3)

    low, high = np.percentile([frechet_distance(*sets(2 * i)) for i in range(1000)], [2.5, 97.5])
    intervals = [frechet_interval(*sets(9000 + 2 * i), rounds=100, seed=i) for i in range(64)]
    assert np.mean([interval.high - interval.low for interval in intervals]) == pytest.approx(high - low, rel=0.09)


def test_clips_of_one_video_are_drawn_together():
    """Eight copies of each clip say no more than one, however many clips they are called."""
    real, made = draw(0, 60, 4), draw(1, 2000, 4, 1.3)
    copies, videos = np.repeat(real, 8, axis=0), list(np.repeat(np.arange(60), 8))
    once, clips, whole = (
        frechet_interval(*sets, rounds=300, seed=2, videos=numbers)
        for sets, numbers in (((real, made), None), ((copies, made), None), ((copies, made), videos))
    )
    width = once.high - once.low
    assert whole.high - whole.low == pytest.approx(width, rel=0.05)
    assert clips.high - clips.low < 0.5 * width
    drawn = [paired_draws(copies, made, 1.1 * made, 300, videos=numbers).std() for numbers in (None, videos)]
    assert drawn[1] > 1.7 * drawn[0]  # the made clips scatter both


def test_of_one_clip_a_video_and_of_one_video_clips_are_drawn():
    real, made = draw(0, 40, 4), draw(1, 40, 4)
    plain = frechet_interval(real, made, rounds=20)
    for videos in (range(40), [7] * 40):
        assert frechet_interval(real, made, rounds=20, videos=videos) == plain


def test_a_paired_difference_tells_better_from_equal():
    real, noise = draw(0, 300, 16), draw(5, 300, 16)
    near, far, other = noise * 1.05, noise * 1.4, draw(6, 300, 16) * 1.05
    difference, low, high = paired_bootstrap(real, far, near, rounds=200, seed=1)
    assert difference == pytest.approx(frechet_distance(real, far) - frechet_distance(real, near))
    assert 0 < low < difference < high
    _, low, high = paired_bootstrap(real, near, other, rounds=200, seed=1)
    assert low < 0 < high
    assert paired_bootstrap(real, near, near, rounds=50) == (0.0, 0.0, 0.0)


def test_pairs_are_kept_together():
    """Two sets that differ clip by clip in a little: pairing makes the interval far narrower than theirs."""
    real, noise = draw(0, 200, 8), draw(5, 200, 8)
    a, b = noise * 1.31, noise * 1.30
    _, low, high = paired_bootstrap(real, a, b, rounds=200, seed=1)
    alone = frechet_interval(real, a, rounds=200, seed=1)
    assert high - low < 0.2 * (alone.high - alone.low)
    assert low > 0


def test_refusals():
    good = draw(0, 10, 4)
    with pytest.raises(ValueError, match=r"\(10, 4\) and \(10, 3\)"):
        frechet_distance(good, draw(0, 10, 3))
    with pytest.raises(ValueError, match="at least 2 made clips, got 1"):
        kernel_distance(good, good[:1])
    with pytest.raises(ValueError, match="real features hold NaN"):
        frechet_distance(np.full((3, 4), np.nan), good)
    with pytest.raises(ValueError, match="equal length, got 10 and 9"):
        paired_bootstrap(good, good, good[:9])
