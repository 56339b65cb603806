"""Data-noise alignment against brute force, and what it does to the law of the noise (MATH 6)."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyramid_reference import normal
from scipy.stats import kstest

from tpdiff.pyramid import align, align_noise


def order_of(chosen: torch.Tensor, noise: torch.Tensor) -> list[int]:
    """Which row of `noise` every row of `chosen` is; fails where a row is none of them."""
    order = []
    for row in chosen:
        (hits,) = torch.nonzero((noise == row).flatten(1).all(dim=1), as_tuple=True)
        assert len(hits) == 1
        order.append(int(hits))
    return order


def best_permutation(clean: torch.Tensor, noise: torch.Tensor, keys=None) -> tuple[int, ...]:
    """The permutation of least summed squared distance, by trying all that keep every key in place."""
    keys = keys or [0] * len(clean)
    distance = (clean.double()[:, None] - noise.double()[None]).flatten(2).square().sum(2).numpy()
    rows = range(len(clean))
    legal = (p for p in itertools.permutations(rows) if all(keys[i] == keys[j] for i, j in enumerate(p)))
    return min(legal, key=lambda p: sum(distance[i, j] for i, j in enumerate(p)))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(batch=st.integers(1, 6), seed=st.integers(0, 10**6), shift=st.floats(-3, 3))
def test_assignment_is_the_best_of_all_permutations(batch, seed, shift):
    clean, noise = normal(batch, 2, 2, 1, 2, seed=seed) + shift, normal(batch, 2, 2, 1, 2, seed=seed + 1)
    chosen = align_noise(clean, noise)
    assert order_of(chosen, noise) == list(best_permutation(clean, noise))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(keys=st.lists(st.sampled_from("abc"), min_size=1, max_size=6), seed=st.integers(0, 10**6))
def test_within_conditions_it_is_the_best_that_crosses_none(keys, seed):
    clean, noise = normal(len(keys), 1, 2, 1, 2, seed=seed), normal(len(keys), 1, 2, 1, 2, seed=seed + 1)
    order = order_of(align_noise(clean, noise, condition=keys), noise)
    assert order == list(best_permutation(clean, noise, keys))


@pytest.mark.parametrize(
    "condition",
    [
        ["bright", "dark"] * 8,
        [("game", i % 4) for i in range(16)],
        torch.arange(16) % 5,
        [None] * 8 + ["dark"] * 8,
    ],
    ids=["str", "tuple", "tensor", "none"],
)
def test_a_condition_may_be_anything_hashable(condition):
    clean, noise = normal(16, 1, 2, 2, 2, seed=1), normal(16, 1, 2, 2, 2, seed=2)
    order = order_of(align_noise(clean, noise, condition=condition), noise)
    assert sorted(order) == list(range(16))
    keys = condition.tolist() if isinstance(condition, torch.Tensor) else condition
    assert all(keys[i] == keys[j] for i, j in enumerate(order))
    assert order != list(range(16))


def test_large_clips_are_compared_whole():
    """Longer than one chunk of the inner products; either end of the clips alone would pair them otherwise."""
    clean = torch.zeros(5, 1, 1, 300, 300)
    noise = torch.zeros(5, 1, 1, 300, 300)
    ends = normal(2, 5, 2, seed=3).float()
    clean[:, 0, 0, [0, -1], [0, -1]], noise[:, 0, 0, [0, -1], [0, -1]] = ends
    first, last, whole = (best_permutation(*part) for part in (ends[..., :1], ends[..., 1:], ends))
    assert whole not in (first, last)
    assert order_of(align_noise(clean, noise), noise) == list(whole)


def test_bfloat16_clips_and_noise():
    clean, noise = normal(6, 2, 2, 3, 3, seed=1).bfloat16(), normal(6, 2, 2, 3, 3, seed=2).bfloat16()
    chosen = align_noise(clean, noise)
    assert chosen.dtype == torch.bfloat16
    assert order_of(chosen, noise) == list(best_permutation(clean, noise))
    near = align_noise(clean, torch.stack([noise, noise.flip(0), noise.roll(1, 0)]), "knn")
    assert near.dtype == torch.bfloat16
    assert near.shape == clean.shape


@pytest.mark.parametrize("method", ["none", "assignment", "knn"])
def test_reported_distances_are_direct_means(method):
    clean = normal(8, 2, 3, 2, 2, seed=1) + 0.5
    noise = normal(5, 8, 2, 3, 2, 2, seed=2) if method == "knn" else normal(8, 2, 3, 2, 2, seed=2)
    found = align(clean, noise, method)
    drawn = noise[0] if method == "knn" else noise
    before, after = ((clean - e).square().mean().item() for e in (drawn, found.noise))
    assert found.before == pytest.approx(before, rel=1e-5)
    assert found.after == pytest.approx(after, rel=1e-5)
    assert found.reduction == pytest.approx((before - after) / before, abs=1e-5)
    assert torch.equal(found.noise, align_noise(clean, noise, method))
    if method == "none":
        assert torch.equal(found.noise, noise)
        assert found.reduction == 0
    else:
        assert found.reduction > 0.02


def test_knn_keeps_the_nearest_of_its_draws():
    clean, noise = normal(10, 1, 2, 2, 2, seed=1) + 1, normal(7, 10, 1, 2, 2, 2, seed=2)
    chosen = align_noise(clean, noise, "knn")
    for b in range(10):
        distances = [float((clean[b] - noise[m, b]).square().sum()) for m in range(7)]
        assert torch.equal(chosen[b], noise[int(np.argmin(distances)), b])


# The law of the noise

BATCHES = 3000


def aligned_batches(method: str, batch: int = 16, shift: float = 0.0, draws: int = 8):
    """Noise of the first clip of many batches, (BATCHES, 3); clips are drawn alike, around `shift`."""
    firsts = []
    for seed in range(BATCHES):
        clean = normal(batch, 3, 1, 1, 1, seed=2 * seed) + shift
        noise = normal(*((draws, batch) if method == "knn" else (batch,)), 3, 1, 1, 1, seed=2 * seed + 1)
        firsts.append(align_noise(clean, noise, method)[0].flatten())
    return torch.stack(firsts).numpy()


def test_assignment_leaves_the_noise_normal():
    noise = aligned_batches("assignment", shift=0.7)
    error = 5 / math.sqrt(BATCHES)
    assert np.abs(noise.mean(axis=0)).max() < error
    assert np.abs(np.cov(noise, rowvar=False) - np.eye(3)).max() < math.sqrt(2) * error
    for axis in noise.T:
        assert kstest(axis, "norm").pvalue > 1e-3
    assert kstest(np.square(noise).sum(axis=1), "chi2", args=(3,)).pvalue > 1e-3


def test_knn_leans_towards_the_data():
    """As its docstring warns: the mean moves with the data, and around zero the norm shrinks."""
    leaning = aligned_batches("knn", shift=0.7)
    assert leaning.mean(axis=0).min() > 0.15  # eight standard errors from nought
    clean = torch.zeros(4000, 3, 1, 1, 1, dtype=torch.float64)
    near_zero = align_noise(clean, normal(8, 4000, 3, 1, 1, 1, seed=1), "knn")
    assert near_zero.square().sum(dim=(1, 2, 3, 4)).mean() < 1.5  # 3 for unit noise


def caption_lean(condition_aware: bool, batch: int = 32, batches: int = 400) -> tuple[float, float, float]:
    """E⟨ε, u⟩ given the bright caption, given the dark one, and over all; u is the direction of brightness."""
    direction = torch.full((1, 2, 2, 2), 1 / math.sqrt(8), dtype=torch.float64)
    leans: dict[int, list[float]] = {1: [], -1: []}
    for seed in range(batches):
        signs = torch.where(normal(batch, seed=3 * seed) > 0, 1, -1)
        spread = 0.4 * normal(batch, 1, 2, 2, 2, seed=3 * seed + 1)
        clean = 0.5 * signs.view(-1, 1, 1, 1, 1) + spread
        noise = normal(batch, 1, 2, 2, 2, seed=3 * seed + 2)
        chosen = align_noise(clean, noise, condition=signs if condition_aware else None)
        along = (chosen * direction).flatten(1).sum(1)
        for sign, value in zip(signs.tolist(), along.tolist(), strict=True):
            leans[sign].append(value)
    return float(np.mean(leans[1])), float(np.mean(leans[-1])), float(np.mean(leans[1] + leans[-1]))


def test_plain_assignment_breaks_the_prior_given_the_caption():
    bright, dark, overall = caption_lean(condition_aware=False)
    assert 0.45 < bright < 0.8
    assert -0.8 < dark < -0.45
    assert abs(overall) < 5 / math.sqrt(400 * 32)


def test_assignment_within_captions_keeps_the_prior():
    bright, dark, _ = caption_lean(condition_aware=True)
    assert max(abs(bright), abs(dark)) < 5 / math.sqrt(400 * 16)


def test_wrong_arguments_are_refused():
    clean, noise = normal(4, 1, 2, 2, 2), normal(4, 1, 2, 2, 2)
    with pytest.raises(ValueError, match="unknown alignment 'sinkhorn'; known: none, assignment, knn"):
        align_noise(clean, noise, "sinkhorn")
    with pytest.raises(ValueError, match=r"assignment wants noise \(B, ...\) for clips \(4, 1, 2, 2, 2\), got \(3, "):
        align_noise(clean, noise[:3])
    with pytest.raises(ValueError, match=r"knn wants noise \(m, B, ...\) .*got \(4, 1, 2, 2, 2\)"):
        align_noise(clean, noise, "knn")
    with pytest.raises(ValueError, match="3 conditions for a batch of 4"):
        align_noise(clean, noise, condition=["a", "b", "c"])
