"""Resizing operators: projections, agreement with SciPy, PyWavelets and PyTorch, and the noise a jump must add."""

import math

import numpy as np
import pytest
import pywt
import scipy.fft
import torch
from torch.nn import functional

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule
from tpdiff.pyramid.operators import find_operator

PROJECTIONS = ["haar", "dct", "db2", "sym4", "coif1"]
CASES = [
    (name, ratio, size)
    for name in [*PROJECTIONS, "linear"]
    for ratio, size in [((2, 1, 1), (8, 1, 2)), ((4, 1, 1), (16, 2, 1)), ((2, 2, 1), (4, 6, 1)), ((2, 2, 2), (4, 2, 4))]
] + [("dct", (1.5, 1, 1), (6, 2, 1)), ("dct", (2, 1.5, 1), (4, 6, 1)), ("linear", (3, 1, 1), (9, 1, 1))]


def matrix(function, size):
    """The matrix of a linear function of (1, 1, T, H, W), float64, by what it makes of every unit vector."""
    count = math.prod(size)
    columns = [function(unit.reshape(1, 1, *size)).flatten() for unit in torch.eye(count, dtype=torch.float64)]
    return torch.stack(columns, dim=1)


def maps(name, ratio, size):
    """D and U as matrices."""
    operator = find_operator(name)
    coarse = tuple(round(n / r) for n, r in zip(size, ratio, strict=True))
    return matrix(lambda x: operator.down(x, ratio), size), matrix(lambda x: operator.up(x, ratio), coarse)


@pytest.mark.parametrize(("name", "ratio", "size"), CASES)
def test_corrective_noise_makes_copied_noise_white(name, ratio, size):
    operator, (_, up) = find_operator(name), maps(name, ratio, size)
    for slack in (1.0, 0.6, 0.0):
        sigma, sigma_up = 0.7, slack * 0.7 / math.sqrt(operator.block(ratio))
        correct = matrix(lambda z: operator.corrective_noise(z, ratio, sigma, sigma_up), size)  # noqa: B023
        whole = correct @ correct.T + sigma_up**2 * up @ up.T
        torch.testing.assert_close(whole, sigma**2 * torch.eye(len(whole), dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("name", "ratio", "size"), CASES)
def test_the_block_is_the_largest_eigenvalue(name, ratio, size):
    _, up = maps(name, ratio, size)
    assert torch.linalg.eigvalsh(up @ up.T).max() == pytest.approx(find_operator(name).block(ratio))


@pytest.mark.parametrize(("name", "ratio", "size"), CASES)
def test_constants_stay_and_projections_project(name, ratio, size):
    down, up = maps(name, ratio, size)
    for one in (down, up):
        torch.testing.assert_close(one.sum(1), torch.ones(len(one), dtype=torch.float64))
    if name != "linear":
        torch.testing.assert_close(down @ up, torch.eye(len(down), dtype=torch.float64))
        torch.testing.assert_close(up @ down, (up @ down).T)


@pytest.mark.parametrize("name", [*PROJECTIONS, "linear"])
def test_two_steps_down_are_one(name):
    operator, x = find_operator(name), torch.randn(2, 3, 8, 4, 8, dtype=torch.float64)
    step = operator.down(operator.down(x, (2, 1, 2)), (2, 2, 1))
    torch.testing.assert_close(step, operator.down(x, (4, 2, 2)))


def test_dct_is_scipys():
    x = torch.randn(1, 1, 12, 1, 1, dtype=torch.float64)
    low = scipy.fft.dct(x.flatten().numpy(), norm="ortho")[:8]
    wanted = scipy.fft.idct(low, norm="ortho") / math.sqrt(1.5)
    np.testing.assert_allclose(find_operator("dct").down(x, (1.5, 1, 1)).flatten(), wanted)


@pytest.mark.parametrize("name", ["db2", "sym4", "coif1", "db1"])
def test_wavelets_are_those_of_pywavelets(name):
    """Up to where the first pair lies."""
    x = torch.randn(16, dtype=torch.float64)
    own = math.sqrt(2) * find_operator(name).down(x.reshape(1, 1, 16, 1, 1), (2, 1, 1)).flatten()
    theirs = [pywt.dwt(x.roll(odd).numpy(), name, mode="periodization")[0] for odd in (0, 1)]
    assert any(np.allclose(own, np.roll(coefficients, n)) for coefficients in theirs for n in range(8))


@pytest.mark.parametrize("name", [*PROJECTIONS, "linear"])
def test_a_coarse_element_stands_for_the_middle_of_its_block(name):
    where = torch.arange(32, dtype=torch.float64)
    bump = torch.exp(-0.5 * ((where - 15.5) / 4) ** 2).reshape(1, 1, 32, 1, 1)
    coarse = find_operator(name).down(bump, (2, 1, 1)).flatten()
    middles = where.reshape(16, 2).mean(1)
    assert (coarse * middles).sum() / coarse.sum() == pytest.approx(15.5, abs=0.51)


def test_linear_is_pytorchs():
    x = torch.randn(2, 3, 4, 3, 5, dtype=torch.float64)
    wanted = functional.interpolate(x, scale_factor=(2.0, 3.0, 2.0), mode="trilinear")
    torch.testing.assert_close(find_operator("linear").up(x, (2, 3, 2)), wanted)


@pytest.mark.parametrize("schedule", [FlowMatchingSchedule(), VariancePreservingSchedule()])
@pytest.mark.parametrize(("name", "causal"), [(n, c) for n in ("dct", "db2", "linear") for c in (False, True)])
def test_law_after_a_jump_by_monte_carlo(schedule, name, causal):
    """Mean γ_s U D x0 and white noise of variance σ_s², sampled."""
    pyramid = Pyramid(schedule, [(1, 1, 1), (2, 2, 1)], resize=name, causal_time=causal)
    samples, size = 40_000, (5 if causal else 4, 4, 1)
    x0 = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(1))
    coarse, end, start = pyramid.down(x0, 1), pyramid.stages[1].end_level, pyramid.stages[0].start_level
    noise = torch.randn(samples, *coarse.shape[1:], generator=torch.Generator().manual_seed(2))
    x_s = pyramid.jump(end.alpha * coarse + end.sigma * noise, 0, generator=torch.Generator().manual_seed(3))
    flat = x_s.flatten(1).double().numpy()
    wanted = start.alpha * pyramid.up(coarse, 0).flatten().numpy()
    spread = 5.5 * start.sigma / math.sqrt(samples)
    assert np.abs(flat.mean(0) - wanted).max() < spread
    error = np.abs(np.cov(flat, rowvar=False) - start.sigma**2 * np.eye(flat.shape[1]))
    assert error.max() < math.sqrt(2) * spread * start.sigma


@pytest.mark.parametrize("name", sorted({*PROJECTIONS, "linear"} - {"haar"}))  # Haar's takes no matrix product
def test_autocast_leaves_the_mathematics_alone(name):
    """bf16 has 8 bits: what a network is trained towards must not be rounded to them."""
    pyramid = Pyramid(FlowMatchingSchedule(), [(1, 1, 1), (2, 1, 2)], resize=name)
    clean, noise = torch.randn(2, 1, 2, 8, 4, 8, generator=torch.Generator().manual_seed(0))
    t = pyramid.times(torch.tensor([0.3]), 0)

    def made():
        return pyramid.pair(clean, pyramid.down(clean, 1), noise, 0).at(t)

    plain = made()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(made(), plain)


@pytest.mark.parametrize(
    ("name", "ratio", "said"),
    [
        ("haar", (1.5, 1, 1), "haar resizes by whole ratios from stage to stage; frames has ratio 1.5"),
        ("linear", (1, 1.5, 1), "linear resizes by whole ratios from stage to stage; height has ratio 1.5"),
        ("db2", (1, 1, 3), "db2 resizes by powers of two from stage to stage; width has ratio 3"),
        ("dct", (0.5, 1, 1), "dct resizes by ratios from 1 on; frames has ratio 0.5"),
    ],
)
def test_ratios_that_cannot_be_are_refused(name, ratio, said):
    with pytest.raises(ValueError, match=said):
        find_operator(name).check_ratio(ratio)


@pytest.mark.parametrize("name", ["bior2.2", "dmey2", "cubic"])
def test_unknown_names_are_refused(name):
    with pytest.raises(ValueError, match=f"unknown resize '{name}'; known: dct, haar, linear, and orthogonal wavelets"):
        find_operator(name)


def test_sizes_must_suit_every_stage_not_the_coarsest_alone():
    pyramid = Pyramid(FlowMatchingSchedule(), [(1, 1, 1), (2, 1, 1), (3, 1, 1)], resize="dct")
    with pytest.raises(ValueError, match=r"num_frames 9 is not a multiple of 6 \(6 pyramid\); nearest: 6 or 12"):
        pyramid.stage_shape((1, 1, 9, 1, 1), 1)
    assert [pyramid.down(torch.zeros(1, 1, 12, 1, 1), k).shape[2] for k in range(3)] == [12, 6, 4]
