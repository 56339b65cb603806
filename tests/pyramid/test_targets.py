"""The virtual pair of a stage, against its two boundary points and the papers' own forms (MATH 2)."""

import pytest
import torch
from pyramid_reference import (
    FLOW,
    SCHEDULES,
    SETTINGS,
    SPACE,
    TIME,
    VP,
    Setting,
    coefficients,
    enlarge,
    normal,
    shrink,
)

from tpdiff.pyramid import (
    PREDICTION_TYPES,
    Level,
    Pyramid,
    check_prediction_type,
    prediction_target,
    sample_and_noise,
)
from tpdiff.pyramid.targets import virtual_pair

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


class Path:
    """A stage's boundary points, made here from resized latents and the schedule's published coefficients."""

    def __init__(self, setting: Setting, schedule, k: int, coarse: torch.Tensor | None = None):
        self.pyramid = setting.pyramid(schedule)
        stage = self.pyramid.stages[k]
        x0 = normal(2, 3, *setting.size, seed=1)
        self.clean = shrink(x0, setting.factors[k], setting.causal)
        self.coarse = shrink(x0, setting.factors[k + 1], setting.causal) if coarse is None else coarse
        self.lifted = enlarge(self.coarse, setting.ratio(k), setting.causal)
        self.noise = normal(*self.clean.shape, seed=2)
        self.gs, self.ss = coefficients(schedule, stage.start)
        self.ge, self.se = (1.0, 0.0) if k == 0 else coefficients(schedule, stage.end)
        self.x_s = self.gs * self.lifted + self.ss * self.noise
        self.x_e = self.ge * self.clean + self.se * self.noise
        self.pair = self.pyramid.pair(self.clean, self.coarse, self.noise, k)
        self.times = torch.tensor([0.3, 0.85], dtype=torch.float64) * (stage.start - stage.end) + stage.end
        levels = [coefficients(schedule, float(t)) for t in self.times]
        both = torch.tensor(levels, dtype=torch.float64).view(2, 2, 1, 1, 1, 1)
        self.gamma, self.sigma = both[:, 0], both[:, 1]


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("own_coarse", [False, True], ids=["latent-pyramid", "pixel-pyramid"])
def test_pair_is_the_line_through_the_boundary_points(schedule, setting, k, own_coarse):
    coarse = None
    if own_coarse:  # a pixel pyramid's coarse latent is no resized version of the fine one
        like = shrink(normal(2, 3, *setting.size), setting.factors[k + 1], setting.causal)
        coarse = normal(*like.shape, seed=7)
    path = Path(setting, schedule, k, coarse)
    delta = path.ge * path.ss - path.gs * path.se
    torch.testing.assert_close(path.pair.noise, (path.ge * path.x_s - path.gs * path.x_e) / delta, **TIGHT)
    torch.testing.assert_close(path.pair.sample, (path.ss * path.x_e - path.se * path.x_s) / delta, **TIGHT)
    start = torch.full((2,), path.pyramid.stages[k].start, dtype=torch.float64)
    torch.testing.assert_close(path.pair.at(start), path.x_s, **TIGHT)
    if k > 0 or schedule is FLOW:  # VP's index 0 is not quite clean, so stage 0's path has no time at its end
        end = torch.full((2,), path.pyramid.stages[k].end, dtype=torch.float64)
        torch.testing.assert_close(path.pair.at(end), path.x_e, **TIGHT)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("setting", SETTINGS)
def test_flow_path_is_linear_in_stage_time(setting, k):
    """TPDiff Eq. 12, Pyramid Flow Eq. 6: with σ = t' σ_s + (1 - t') σ_e, x_t = t' x_s + (1 - t') x_e."""
    path = Path(setting, FLOW, k)
    local = (path.sigma - path.se) / (path.ss - path.se)
    torch.testing.assert_close(path.pair.at(path.times), local * path.x_s + (1 - local) * path.x_e, **TIGHT)
    target = path.pair.target(path.times, "flow_prediction")
    torch.testing.assert_close(target, (path.x_s - path.x_e) / (path.ss - path.se), **TIGHT)
    per_stage = path.pair.target(path.times, "flow_prediction", per_stage=True)
    torch.testing.assert_close(per_stage, path.x_s - path.x_e, **TIGHT)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("setting", SETTINGS)
def test_vp_path_is_linear_in_scaled_coordinates(setting, k):
    """TPDiff Eqs. 10-11: x/γ runs straight from x_s/γ_s to x_e/γ_e in κ, and its slope is the noise."""
    path = Path(setting, VP, k)
    kappa_s, kappa_e, kappa = path.ss / path.gs, path.se / path.ge, path.sigma / path.gamma
    slope = (path.x_s / path.gs - path.x_e / path.ge) / (kappa_s - kappa_e)
    expected = path.gamma * (path.x_e / path.ge + (kappa - kappa_e) * slope)
    torch.testing.assert_close(path.pair.at(path.times), expected, **TIGHT)
    torch.testing.assert_close(path.pair.target(path.times, "epsilon"), slope, **TIGHT)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("setting", SETTINGS)
def test_flow_target_is_the_vanilla_one_less_the_high_band(setting, k):
    path = Path(setting, FLOW, k)
    high_band = path.clean - path.lifted
    expected = path.noise - path.clean - path.gs / (path.ss - path.se) * high_band
    torch.testing.assert_close(path.pair.target(path.times, "flow_prediction"), expected, **TIGHT)


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_target_of_every_prediction_type(schedule, k):
    path = Path(Setting(SPACE, False, (2, 4, 8), 4), schedule, k)
    delta = path.ge * path.ss - path.gs * path.se
    noise = (path.ge * path.x_s - path.gs * path.x_e) / delta
    sample = (path.ss * path.x_e - path.se * path.x_s) / delta
    expected = {
        "epsilon": noise,
        "sample": sample,
        "v_prediction": path.gamma * noise - path.sigma * sample,
        "flow_prediction": noise - sample,
    }
    assert set(expected) == set(PREDICTION_TYPES)
    for prediction_type, value in expected.items():
        torch.testing.assert_close(path.pair.target(path.times, prediction_type), value, **TIGHT)


@pytest.mark.parametrize(
    ("schedule", "prediction_type"), [(FLOW, "flow_prediction"), (VP, "v_prediction")], ids=["flow", "vp-v"]
)
def test_velocity_is_the_derivative_of_the_path(schedule, prediction_type):
    """Flow: dx/dσ. VP's v: dx/dφ with γ = cos φ, σ = sin φ. Both by central differences along the path."""
    path = Path(Setting(TIME, False, (8, 2, 2), 2), schedule, 1)

    def clock(t):
        levels = torch.tensor([coefficients(schedule, float(one)) for one in t], dtype=torch.float64)
        gamma, sigma = levels.T
        return (sigma if schedule is FLOW else torch.atan2(sigma, gamma)).view(2, 1, 1, 1, 1)

    step = 1e-5
    ahead, behind = path.times + step, path.times - step
    slope = (path.pair.at(ahead) - path.pair.at(behind)) / (clock(ahead) - clock(behind))
    torch.testing.assert_close(path.pair.target(path.times, prediction_type), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_target_is_constant_along_the_path(schedule):
    """Any two points of the path, and nothing else, give the same virtual noise, sample and flow."""
    path = Path(Setting(TIME, True, (9, 2, 2), 2), schedule, 0)
    stage = path.pyramid.stages[0]
    grid = torch.linspace(0.02, 1, 9, dtype=torch.float64) * stage.start
    points = [path.pair.at(t.expand(2)) for t in grid]
    levels = [coefficients(schedule, float(t)) for t in grid]
    for (ga, sa), a, (gb, sb), b in zip(levels, points, levels[1:], points[1:], strict=False):
        delta = gb * sa - ga * sb
        torch.testing.assert_close((gb * a - ga * b) / delta, path.pair.noise, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close((sa * b - sb * a) / delta, path.pair.sample, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_coarsest_stage_is_the_base_process(schedule):
    pyramid = Pyramid(schedule, TIME)
    clean, noise = normal(2, 3, 2, 2, 2, seed=1), normal(2, 3, 2, 2, 2, seed=2)
    pair = pyramid.pair(clean, None, noise, 2)
    assert torch.equal(pair.sample, clean)
    assert torch.equal(pair.noise, noise)


def test_a_coarse_latent_goes_with_every_stage_but_the_coarsest():
    pyramid = Pyramid(FLOW, TIME)
    latent = normal(1, 1, 4, 1, 1)
    with pytest.raises(ValueError, match=r"stage 0 of 3 needs .*coarse latent"):
        pyramid.pair(latent, None, latent, 0)
    with pytest.raises(ValueError, match="stage 2 of 3 takes no coarse latent"):
        pyramid.pair(latent, latent, latent, 2)
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 1, 1\) does not upsample to clean \(1, 1, 4, 1, 1\)"):
        pyramid.pair(latent, latent, latent, 0)
    with pytest.raises(ValueError, match="differ in shape"):
        pyramid.pair(latent, latent[:, :, :2], latent[:, :, :2], 0)


@pytest.mark.parametrize("end", [Level(0.4, 0.6, 0.4), Level(0.4, 0.8, 0.6), Level(0.0, 1.0, 0.0)])
def test_a_stage_may_start_from_pure_noise(end):
    """With γ_s = 0 the start is ε itself, whatever the high band, and nothing becomes infinite."""
    clean, lifted, noise = (normal(2, 1, 4, 2, 2, seed=seed) for seed in range(3))
    sample, virtual_noise = virtual_pair(clean, lifted, noise, Level(1.0, 0.0, 1.0), end)
    torch.testing.assert_close(virtual_noise, noise, **TIGHT)
    torch.testing.assert_close(sample, clean, **TIGHT)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("angle", [0.03, 0.7, 1.5])
@pytest.mark.parametrize("norm", ["flow", "vp"])
def test_a_prediction_gives_back_sample_and_noise(prediction_type, angle, norm):
    """From x and what a perfect network says, the pair that made x; the targets are written out here."""
    sigma, alpha = torch.tensor(angle).double().sin().item(), torch.tensor(angle).double().cos().item()
    if norm == "flow":
        sigma, alpha = sigma / (sigma + alpha), alpha / (sigma + alpha)
    sample, noise = normal(2, 1, 3, 2, 2, seed=1), normal(2, 1, 3, 2, 2, seed=2)
    said = {
        "epsilon": noise,
        "sample": sample,
        "v_prediction": alpha * noise - sigma * sample,
        "flow_prediction": noise - sample,
    }[prediction_type]
    x = alpha * sample + sigma * noise
    found = sample_and_noise(said, x, alpha, sigma, prediction_type)
    torch.testing.assert_close(found[0], sample, **TIGHT)
    torch.testing.assert_close(found[1], noise, **TIGHT)
    torch.testing.assert_close(prediction_target(sample, noise, alpha, sigma, prediction_type), said, **TIGHT)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction", "flow_prediction"])
def test_pure_noise_can_be_read(prediction_type):
    sample, noise = normal(2, 1, 3, 2, 2, seed=1), normal(2, 1, 3, 2, 2, seed=2)
    said = {"sample": sample, "v_prediction": -sample, "flow_prediction": noise - sample}[prediction_type]
    found = sample_and_noise(said, noise, 0.0, 1.0, prediction_type)
    torch.testing.assert_close(found, (sample, noise), **TIGHT)


def test_prediction_types_that_cannot_be_used_are_refused():
    known = "epsilon, sample, v_prediction, flow_prediction"
    x = normal(1, 1, 1, 1, 1)
    for call in (
        lambda: prediction_target(x, x, 0.5, 0.5, "velocity"),
        lambda: sample_and_noise(x, x, 0.5, 0.5, "velocity"),
        lambda: check_prediction_type("velocity", Level(1.0, 0.5, 0.5)),
    ):
        with pytest.raises(ValueError, match=f"'velocity'; known: {known}"):
            call()
    with pytest.raises(ValueError, match="epsilon prediction cannot start from pure noise"):
        check_prediction_type("epsilon", FLOW.level(1.0))
    with pytest.raises(ValueError, match="epsilon prediction cannot start from pure noise"):
        check_prediction_type("epsilon", VP.zero_terminal_snr().level(1.0))
    check_prediction_type("epsilon", VP.level(1.0))
    check_prediction_type("v_prediction", VP.zero_terminal_snr().level(1.0))
    pair = Pyramid(FLOW).pair(x, None, x, 0)
    with pytest.raises(ValueError, match="per_stage targets are defined for flow_prediction, not epsilon"):
        pair.target(torch.tensor([0.5]), "epsilon", per_stage=True)


def test_a_flow_per_stage_is_of_straight_paths():
    pyramid = Pyramid(VP, TIME)
    pair = pyramid.pair(normal(1, 1, 4, 2, 2), normal(1, 1, 2, 2, 2), normal(1, 1, 4, 2, 2), 0)
    with pytest.raises(
        ValueError, match="flows per stage belong to flow matching; this schedule is variance_preserving"
    ):
        pair.target(torch.tensor([0.2]), "flow_prediction", per_stage=True)
