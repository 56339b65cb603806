"""What a spectrum measures, and the stage boundaries that follow from it, against values worked out by hand."""

import json
import math
import weakref

import numpy as np
import pytest
import scipy.fft
import torch

from tpdiff.pyramid import (
    FlowMatchingSchedule,
    Pyramid,
    Spectrum,
    VariancePreservingSchedule,
    boundaries,
    measure_spectrum,
    power_lost,
    spectral_pyramid,
)

FLOW = FlowMatchingSchedule()
VP = VariancePreservingSchedule()
TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
SPACE = [(1, 1, 1), (1, 2, 2), (1, 4, 4)]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosine(coefficient: tuple[int, int, int], size: tuple[int, int, int], amplitude: float = 1.0) -> torch.Tensor:
    """(1, 1, T, H, W) whose only DCT coefficient is `coefficient`."""
    spikes = np.zeros(size)
    spikes[coefficient] = amplitude
    return torch.from_numpy(scipy.fft.idctn(spikes, norm="ortho"))[None, None]


def of(power, first=None, size=None) -> Spectrum:
    power = np.asarray(power, dtype=float)
    return Spectrum(power, None if first is None else np.asarray(first, dtype=float), size or power.shape, 1)


def steps(*powers: float) -> Spectrum:
    """A spectrum of time alone, so many equal parts of 24 bands."""
    return of(np.repeat(powers, 24 // len(powers)).reshape(24, 1, 1))


def shells(*powers: float, bands: int = 24) -> Spectrum:
    """A spectrum of height and width: powers of max(h, w) in equal parts."""
    index = np.arange(bands) * len(powers) // bands
    return of(np.asarray(powers)[np.maximum(index[:, None], index)][None])


# Measuring


@pytest.mark.parametrize("causal", [False, True])
def test_white_noise_has_power_one_in_every_band(causal):
    """Whatever the clips' sizes, fewer elements than bands or more."""
    sizes = [(9, 4, 6), (7, 30, 26), (25, 8, 8)]
    batches = [noise(24, 4, *size, seed=seed) for seed, size in enumerate(sizes)]
    found = measure_spectrum(batches, causal_time=causal)
    assert found.power.shape == (24, 24, 24)
    assert (found.clips, found.size, found.causal_time) == (72, (7, 4, 6), causal)
    assert np.abs(found.power - 1).max() < 0.5
    assert found.power.mean() == pytest.approx(1, abs=0.01)
    if causal:
        assert found.first.shape == (24, 24)
        assert found.first.mean() == pytest.approx(1, abs=0.05)


def test_bands_are_those_of_the_cosine_transform():
    """A cosine of amplitude 3 beside one of amplitude 2 in another clip: half of 9, half of 4, nothing elsewhere."""
    size = (4, 6, 3)
    found = measure_spectrum([cosine((1, 5, 0), size, 3), cosine((3, 0, 2), size, 2)], bands=size)
    wanted = np.zeros(size)
    wanted[1, 5, 0], wanted[3, 0, 2] = 4.5, 2
    np.testing.assert_allclose(found.power, wanted, atol=1e-12)


def test_channels_are_averaged():
    clip = torch.cat([cosine((1, 0, 0), (2, 1, 1), 2), cosine((1, 0, 0), (2, 1, 1), 0)], dim=1)
    assert measure_spectrum([clip], bands=(2, 1, 1)).power.flatten() == pytest.approx([0, 2])


@pytest.mark.parametrize(
    ("elements", "coefficient", "filled"),
    [
        (8, 3, {9: 1, 10: 1, 11: 1}),  # 3/8 to 4/8 of the axis are the bands 9, 10 and 11 of 24
        (48, 7, {3: 0.5}),  # two coefficients share a band
        (16, 1, {1: 0.5, 2: 1}),  # 1.5 to 3 bands
        (36, 2, {1: 2 / 3}),  # 4/3 to 2 bands
        (36, 1, {0: 1 / 3, 1: 1 / 3}),  # 2/3 to 4/3 bands
    ],
)
def test_a_coefficient_counts_by_how_much_of_a_band_it_fills(elements, coefficient, filled):
    size = (1, elements, 1)
    found = measure_spectrum([cosine((0, coefficient, 0), size)], bands=(1, 24, 1)).power.flatten()
    wanted = np.zeros(24)
    wanted[list(filled)] = list(filled.values())
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def test_batches_are_read_one_at_a_time_and_count_by_their_clips():
    clips, read, alive = noise(6, 2, 5, 4, 4), [], []

    def stream():
        for part in clips.split([1, 3, 2]):
            batch = part.to(torch.bfloat16)
            read.append(weakref.ref(batch))
            yield batch
            del batch
            alive.append(sum(seen() is not None for seen in read))

    parts = measure_spectrum(stream(), bands=(5, 4, 4))
    assert alive == [1, 1, 1]
    whole = measure_spectrum([clips.to(torch.bfloat16)], bands=(5, 4, 4))
    np.testing.assert_allclose(parts.power, whole.power)
    assert parts.clips == 6


def test_a_causal_first_frame_is_measured_alone():
    """A constant of 2 in frame 0 and of 1 after it: no temporal frequency but the mean."""
    clip = torch.ones(1, 1, 5, 2, 2, dtype=torch.float64)
    clip[:, :, 0] = 2
    found = measure_spectrum([clip], causal_time=True, bands=(4, 2, 2))
    assert found.first.flatten() == pytest.approx([16, 0, 0, 0])
    assert found.power.flatten() == pytest.approx([16] + [0] * 15)
    assert measure_spectrum([clip], bands=(5, 2, 2)).power[1:].max() > 0.1


@pytest.mark.parametrize("causal", [False, True])
def test_a_spectrum_is_rebuilt_from_json(causal):
    made = measure_spectrum(
        [noise(2, 3, 5, 4, 4)], causal_time=causal, bands=(4, 4, 4), description={"vae": "none", "pixels": [5, 4, 4]}
    )
    again = Spectrum.from_dict(json.loads(json.dumps(made.to_dict())))
    np.testing.assert_allclose(again.power, made.power, rtol=1e-5)
    if causal:
        np.testing.assert_allclose(again.first, made.first, rtol=1e-5)
    assert (again.size, again.clips, again.causal_time) == (made.size, made.clips, causal)
    assert again.description == {"vae": "none", "pixels": [5, 4, 4]}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"version": 2}, "version 2; this program reads version 1"),
        ({"power": [1.0, 2.0]}, r"powers \(T, H, W\).*got \(2,\)"),
        ({"first": [[1.0, 2.0]]}, r"got \(1, 1, 1\) and \(1, 2\)"),
        ({"power": [[[-1.0]]]}, "finite and >= 0"),
        ({"power": [[[math.nan]]]}, "finite and >= 0"),
    ],
)
def test_a_damaged_spectrum_is_refused(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Spectrum.from_dict({**of([[[1.0]]]).to_dict(), **changes})


@pytest.mark.parametrize(
    ("batches", "causal", "complaint"),
    [
        ([], False, "no latents to measure"),
        ([torch.ones(1, 2, 3, 4)], False, r"expected latents .*got \(1, 2, 3, 4\)"),
        ([torch.ones(2, 1, 2, 2, 2), torch.full((3, 1, 2, 2, 2), torch.nan)], False, "clips 2 to 4 .* not finite"),
        ([torch.ones(1, 1, 1, 2, 2)], True, "one frame .* causal_time=False"),
    ],
)
def test_latents_that_say_nothing_are_refused(batches, causal, complaint):
    with pytest.raises(ValueError, match=complaint):
        measure_spectrum(batches, causal_time=causal)


# Boundaries


def test_boundaries_worked_out_by_hand():
    """δ = 1/10, so κ_s = 3 sqrt(P). Into stage 0: P = 1/2, κ_s = 2.1213, κ_e = κ_s / sqrt(2) = 1.5.
    Into stage 1: full-size power 8 is 4 there, κ_s = 6, κ_e = 4.2426. Flow matching: t = κ / (1 + κ).
    """
    ends, starts = boundaries(steps(100, 8, 0.5, 0.5), TIME, FLOW, 0.1)
    assert ends == pytest.approx([0.6, 0.809256], abs=1e-6)
    assert starts == pytest.approx([0.679623, 6 / 7], abs=1e-6)
    pyramid = spectral_pyramid(steps(100, 8, 0.5, 0.5), FLOW, TIME, 0.1)
    assert [stage.end for stage in pyramid.stages] == pytest.approx([0, *ends])
    assert [stage.start for stage in pyramid.stages] == pytest.approx([*starts, 1])
    assert (pyramid.resizer.name, pyramid.causal_time) == ("dct", False)


def test_the_strongest_band_decides_not_the_mean():
    spectrum = steps(100, 100, 0.01, 0.01)
    spectrum.power[12] = 0.5
    assert boundaries(spectrum, TIME[:2], FLOW, 0.1)[0] == pytest.approx([0.6])


def test_fractional_strides_cut_between_their_own_bands():
    """Bands 0-7 | 8-15 | 16-23 are stage 2 | what stage 1 adds | what stage 0 adds."""
    factors = [(1, 1, 1), (1.5, 1, 1), (3, 1, 1)]
    ends, starts = boundaries(steps(100, 6, 0.25), factors, FLOW, 0.1)
    kappas = 3 * np.sqrt([0.25, 6 / 1.5])
    assert starts == pytest.approx(kappas / (1 + kappas))
    kappas = kappas / np.sqrt([1.5, 2])
    assert ends == pytest.approx(kappas / (1 + kappas))


def test_only_bands_that_the_finer_stage_has_count_for_a_jump():
    """Time first, then space too: the power at the highest temporal frequencies is no matter of the second jump."""
    power = np.full((2, 2, 2), 1e-3)
    power[0, 0, 0], power[1, 0, 0], power[0, 1, 0], power[1, 1, 1] = 50, 0.5, 4, 0.4
    ends, starts = boundaries(of(power), [(1, 1, 1), (2, 1, 1), (2, 2, 2)], FLOW, 0.1)
    kappas = 3 * np.sqrt([0.5, 4 / 2])  # of the band that stage 0 adds, and of the one that stage 1 does
    assert starts == pytest.approx(kappas / (1 + kappas))
    kappas = kappas / np.sqrt([2, 4])
    assert ends == pytest.approx(kappas / (1 + kappas))


def test_pictures_alike_at_every_size_end_their_stages_alike():
    """P falls fourfold where ν doubles: in its own terms every stage ends at the same level, and that is no fault."""
    spectrum = shells(32, 2, 0.5, 0.5)
    pyramid = spectral_pyramid(spectrum, FLOW, SPACE, 0.1)
    assert pyramid.stages[1].end == pytest.approx(pyramid.stages[2].end)
    assert pyramid.stages[0].start == pytest.approx(pyramid.stages[1].start)
    assert power_lost(spectrum, pyramid) == pytest.approx([0.1, 0.1])
    again = Pyramid.from_config(json.loads(json.dumps(pyramid.config())))
    assert power_lost(spectrum, again) == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize("schedule", [FLOW, VP], ids=["flow", "vp"])
@pytest.mark.parametrize("resize", ["dct", "haar", "linear", "db2"])
@pytest.mark.parametrize("tolerance", [0.3, 0.1])
def test_power_lost_is_the_inverse(schedule, resize, tolerance):
    pyramid = spectral_pyramid(steps(100, 8, 0.5, 0.5), schedule, TIME, tolerance, resize=resize)
    assert pyramid.resizer.name == resize
    assert power_lost(steps(100, 8, 0.5, 0.5), pyramid) == pytest.approx([tolerance] * 2)


def test_a_smaller_tolerance_ends_coarse_stages_noisier():
    ends = [boundaries(steps(100, 8, 0.5, 0.5), TIME, FLOW, d)[0] for d in (0.3, 0.1, 0.01)]
    assert all(np.diff(ends, axis=0).flatten() > 0)


@pytest.mark.parametrize("name", ["haar", "linear"])
def test_what_other_operators_lack_is_the_power_of_their_high_band(name):
    """The mean power of (I - U D) x over the cosines, sampled."""
    power = np.array([1, 0.1, 0.1, 5, 0.1, 0.1, 3, 0.1])
    pyramid = Pyramid(FLOW, TIME[:2], resize=name)
    coefficients = noise(100_000, 8).double().numpy() * np.sqrt(power)
    x = torch.from_numpy(scipy.fft.idct(coefficients, norm="ortho")).reshape(-1, 1, 8, 1, 1)
    high = scipy.fft.dct((x - pyramid.up(pyramid.down(x, 1), 0)).flatten(1).numpy(), norm="ortho")
    strongest = (high**2).mean(0).max()
    kappa = pyramid.stages[0].start_level.kappa
    lost = power_lost(of(power.reshape(8, 1, 1)), pyramid)
    assert lost == [pytest.approx(strongest / (strongest + kappa**2), rel=0.02)]


def test_a_causal_first_frame_has_bands_of_its_own():
    """Its stage-1 elements are 4 of full size and the others' 8: power 8 in the first frame outweighs 9 elsewhere."""
    factors = [(1, 1, 1), (2, 2, 2), (2, 4, 4)]
    rest, first = np.full((4, 4, 4), 1e-3), np.full((4, 4), 1e-3)
    rest[0, :2, :2], first[:2, :2] = 9, 8
    rest[3, 3, 3], rest[0, 0, 0], first[0, 0] = 0.5, 100, 100
    spectrum = of(rest, first, (5, 4, 4))
    pyramid = spectral_pyramid(spectrum, FLOW, factors, 0.1)
    assert pyramid.causal_time
    kappas = [pyramid.stages[k].start_level.kappa for k in (0, 1)]
    assert kappas == pytest.approx([3 * math.sqrt(0.5), 3 * math.sqrt(8 / 4)])
    assert pyramid.stages[1].end_level.kappa == pytest.approx(kappas[0] / math.sqrt(8))


@pytest.mark.parametrize("tolerance", [0, 1, -0.1, 1.5, math.nan])
def test_a_tolerance_is_a_share(tolerance):
    with pytest.raises(ValueError, match=r"tolerance must lie in \(0, 1\)"):
        boundaries(steps(1, 1), TIME[:2], FLOW, tolerance)


@pytest.mark.parametrize(
    ("spectrum", "factors", "schedule", "complaint"),
    [
        pytest.param(
            steps(100, 1, 1, 1), [*TIME[:2], (2, 1, 1)], FLOW, r"stage 1 of factors \(2, 1, 1\) is useless", id="twice"
        ),
        pytest.param(
            steps(100, 0.5, 8, 8), TIME, FLOW, r"stage 1 of factors \(2, 1, 1\) is useless at .*would end", id="rising"
        ),
        pytest.param(steps(1, 0), TIME[:2], FLOW, r"stage 0 of factors \(1, 1, 1\) is useless", id="nothing-to-add"),
        pytest.param(steps(1e3, 1e3), TIME[:2], VP, r"stage 1 of .* useless .*show already at", id="never-hidden"),
        pytest.param(steps(1, 1e-6), TIME[:2], VP, "stage 0 .* useless", id="below-the-first-level"),
        pytest.param(steps(1, 1.4e-4), TIME[:2], VP, "stage 0 .* useless.* first level", id="ends-below-it"),
        pytest.param(steps(1, 1), [(1, 1, 1), (5, 1, 1)], FLOW, "24 bands along num_frames .* multiple of 5", id="5"),
        pytest.param(shells(1, 1), TIME[:2], FLOW, "measured on 1 along num_frames .* stride 2", id="one-frame"),
        pytest.param(steps(1, 1), [(1, 1, 1), (1, 2, 2)], FLOW, "measured on 1 along height", id="one-row"),
        pytest.param(steps(1, 1), [(2, 1, 1)], FLOW, "finest stage's factors must be", id="no-full-size"),
    ],
)
def test_stages_without_a_use_and_unknown_bands_are_refused(spectrum, factors, schedule, complaint):
    with pytest.raises(ValueError, match=complaint):
        boundaries(spectrum, factors, schedule, 0.1)


def test_frames_after_the_first_are_what_a_causal_axis_can_speak_of():
    spectrum = of(np.ones((4, 1, 1)), [[1.0]], (3, 1, 1))
    with pytest.raises(ValueError, match=r"measured on 2 along num_frames .* stride 4"):
        boundaries(spectrum, [(1, 1, 1), (4, 1, 1)], FLOW)


def test_operators_and_time_axes_must_fit():
    with pytest.raises(ValueError, match="haar resizes by whole ratios"):
        boundaries(steps(8, 1, 0.5), [(1, 1, 1), (1.5, 1, 1)], FLOW, resize="haar")
    with pytest.raises(ValueError, match="measured on a plain time axis, the pyramid has a causal one"):
        power_lost(steps(1, 1), Pyramid(FLOW, TIME, causal_time=True))
