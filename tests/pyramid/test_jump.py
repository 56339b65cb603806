"""The jump gives the next stage's start its right law: mean γ_s U D x0 and white noise of variance σ_s² (MATH 3)."""

import math

import numpy as np
import pytest
import torch
from pyramid_reference import (
    BOTH,
    FLOW,
    SCHEDULES,
    SETTINGS,
    SPACE,
    TIME,
    Setting,
    coefficients,
    copying,
    enlarge,
    noise_map,
    normal,
    shrink,
)

from tpdiff.pyramid import Pyramid

SAMPLES = 60_000


def cleaner_ends(setting, schedule):
    """The default starts, with ends at nine tenths of the times that the starts would allow."""
    tight = setting.pyramid(schedule)
    ends = [0.9 * stage.end for stage in tight.stages[1:]]
    return setting.pyramid(schedule, ends=ends, starts=[stage.start for stage in tight.stages[:-1]])


def start_moments(setting: Setting, pyramid: Pyramid, k: int, samples: int):
    """Empirical mean and covariance of x_s over jumps from x_e = γ_e D x0 + σ_e ε, x0 held fixed."""
    x0 = normal(1, 1, *setting.size, seed=3)
    coarse = shrink(x0, setting.factors[k + 1], setting.causal)
    gamma, sigma = coefficients(pyramid.schedule, pyramid.stages[k + 1].end)
    x_e = gamma * coarse + sigma * normal(samples, *coarse.shape[1:], seed=4)
    x_s = pyramid.jump(x_e, k, generator=torch.Generator().manual_seed(5)).flatten(1).numpy()
    return coarse, x_s.mean(axis=0), np.cov(x_s, rowvar=False)


@pytest.mark.parametrize("ends", ["tight", "cleaner"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_law_after_a_jump_by_monte_carlo(schedule, setting, ends):
    pyramid = setting.pyramid(schedule) if ends == "tight" else cleaner_ends(setting, schedule)
    k = 1  # the coarser jump: small enough to look at every entry of the covariance
    coarse, mean, cov = start_moments(setting, pyramid, k, SAMPLES)
    gamma, sigma = coefficients(schedule, pyramid.stages[k].start)
    wanted = gamma * enlarge(coarse, setting.ratio(k), setting.causal).flatten().numpy()
    assert np.abs(mean - wanted).max() < 5.5 * sigma / math.sqrt(SAMPLES)
    error = np.abs(cov - sigma**2 * np.eye(len(cov)))
    spread = 5.5 * sigma**2 / math.sqrt(SAMPLES)
    assert error[~np.eye(len(cov), dtype=bool)].max(initial=0.0) < spread
    assert error.diagonal().max() < math.sqrt(2) * spread


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("ends", ["tight", "cleaner"])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_law_after_a_jump_exactly(schedule, setting, ends, k):
    """c² σ_e² U Uᵀ + N Nᵀ = σ_s² I, N being the map from the jump's own draw to what it adds."""
    pyramid = setting.pyramid(schedule) if ends == "tight" else cleaner_ends(setting, schedule)
    size = shrink(normal(1, 1, *setting.size), setting.factors[k], setting.causal).shape[2:]
    gamma_s, sigma_s = coefficients(schedule, pyramid.stages[k].start)
    gamma_e, sigma_e = coefficients(schedule, pyramid.stages[k + 1].end)
    up = copying(size, setting.ratio(k), setting.causal)
    added = noise_map(pyramid, k, size)
    cov = (gamma_s / gamma_e * sigma_e) ** 2 * up @ up.T + added @ added.T
    np.testing.assert_allclose(cov, sigma_s**2 * np.eye(len(cov)), atol=1e-9)


def test_mixed_blocks_are_really_mixed():
    """Frame 0 of a causal axis merges 4 elements where the others merge 8, and adds more noise of its own."""
    setting = Setting(BOTH, True, (5, 4, 4), 8)
    size = (3, 2, 2)
    up = copying(size, setting.ratio(1), True)
    assert sorted(set(up.sum(axis=0))) == [4, 8]
    pyramid = setting.pyramid(FLOW)
    added = noise_map(pyramid, 1, size)
    own = (added @ added.T).diagonal().reshape(size)
    sigma = pyramid.stages[1].start
    np.testing.assert_allclose(own[1:], sigma**2 * 7 / 8, atol=1e-9)  # all that white noise has beside block means
    np.testing.assert_allclose(own[0], sigma**2 * (3 / 4 + 1 / 4 * 1 / 2), atol=1e-9)


@pytest.mark.parametrize(
    ("factors", "size", "block"), [(TIME, (4, 1, 1), 2), (SPACE, (1, 4, 4), 4), (BOTH, (4, 2, 4), 8)]
)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_jump_noise_is_the_correlated_noise_of_pyramid_flow(schedule, factors, size, block):
    """n' of unit variance, correlation -1/(d - 1) in a block and 0 between blocks, weight σ_s sqrt((d - 1)/d)."""
    pyramid = Pyramid(schedule, factors)
    added = noise_map(pyramid, 1, size)
    up = copying(size, [int(r) for r in pyramid.ratio(1)], False)
    within = up @ up.T
    assert np.all(within.sum(axis=1) == block)
    correlated = np.eye(len(within)) - (within - np.eye(len(within))) / (block - 1)
    weight = coefficients(schedule, pyramid.stages[1].start)[1] * math.sqrt((block - 1) / block)
    np.testing.assert_allclose(added @ added.T, weight**2 * correlated, atol=1e-12)


def test_boundaries_and_weights_of_the_papers():
    """Signal fractions as published: Pyramid Flow's e = 2s/(1+s), (1+s)/2 and √3 (1-s)/2; TPDiff's √2γ/(σ+√2γ)."""
    space = Pyramid(FLOW, SPACE)
    for k in (0, 1):
        s = 1 - space.stages[k].start
        assert 1 - space.stages[k + 1].end == pytest.approx(2 * s / (1 + s), abs=1e-12)
        assert space.jump_coefficient(k) == pytest.approx((1 + s) / 2, abs=1e-12)
        added = noise_map(space, k, (1, 4, 4))
        np.testing.assert_allclose(np.linalg.norm(added, axis=1), math.sqrt(3) / 2 * (1 - s), atol=1e-12)
    time = Pyramid(FLOW, TIME)
    for k in (0, 1):
        sigma = time.stages[k].start
        gamma = 1 - sigma
        gamma_e = math.sqrt(2) * gamma / (sigma + math.sqrt(2) * gamma)
        assert 1 - time.stages[k + 1].end == pytest.approx(gamma_e, abs=1e-12)
        assert time.jump_coefficient(k) == pytest.approx(gamma / gamma_e, abs=1e-12)


def test_a_jump_depends_on_its_generators_alone():
    pyramid = Pyramid(FLOW, TIME)
    x = normal(3, 2, 2, 2, 2).float()

    def seeds(*values):
        return [torch.Generator().manual_seed(value) for value in values]

    together = pyramid.jump(x, 1, generator=seeds(1, 2, 3))
    alone = pyramid.jump(x[1:2], 1, generator=seeds(2))
    assert torch.equal(together[1:2], alone)
    assert torch.equal(together, pyramid.jump(x, 1, generator=seeds(1, 2, 3)))
    assert not torch.equal(together, pyramid.jump(x, 1, generator=seeds(4, 5, 6)))
    assert together.dtype == torch.float32
    assert together.shape == (3, 2, 4, 2, 2)
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        pyramid.jump(x, 1, generator=seeds(1, 2))


@pytest.mark.parametrize("setting", SETTINGS)
def test_resizing_is_block_mean_and_copy(setting):
    """Also D straight to stage 2 equals two steps of D, and U D is an orthogonal projection."""
    pyramid = setting.pyramid(FLOW)
    x = normal(2, 3, *setting.size)
    for k in (1, 2):
        torch.testing.assert_close(pyramid.down(x, k), shrink(x, setting.factors[k], setting.causal))
    assert torch.equal(pyramid.down(x, 0), x)
    middle = shrink(x, setting.factors[1], setting.causal)
    torch.testing.assert_close(pyramid.down(x, 2), shrink(middle, setting.ratio(1), setting.causal))
    torch.testing.assert_close(pyramid.up(middle, 0), enlarge(middle, setting.ratio(0), setting.causal))
    projected = pyramid.up(pyramid.down(x, 1), 0)
    torch.testing.assert_close(pyramid.up(pyramid.down(projected, 1), 0), projected)
    y = normal(2, 3, *setting.size, seed=9)
    left, right = (projected * y).sum(), (x * pyramid.up(pyramid.down(y, 1), 0)).sum()
    torch.testing.assert_close(left, right)
