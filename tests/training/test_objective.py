"""The loss of a stage against the papers' equations, written out anew here."""

import math

import pytest
import torch

from tpdiff.models.video_dit import VideoDiT
from tpdiff.pyramid import FlowMatchingSchedule, VariancePreservingSchedule
from tpdiff.sampling.denoiser import plain_denoiser
from tpdiff.training.clean import clean_pair
from tpdiff.training.load_config import build_config
from tpdiff.training.objective import (
    Convention,
    build_pyramid,
    draw_noise,
    draw_stage,
    draw_times,
    loss_weight,
    stage_loss,
)

BATCH, CHANNELS, FRAMES, SIZE = 3, 3, 8, 8
CAPTIONS = ["a", "b", "a"]


def configure(*overrides):
    values = {
        "data": {"path": "x"},
        "model": {"patch_size": [1, 8, 8], "hidden_size": 24, "num_layers": 1, "num_attention_heads": 2},
        "train": {"steps": 1, "alignment": "none"},
    }
    return build_config(values, overrides)


@pytest.fixture
def network():
    """A network whose last layer speaks, and what it was told at each call."""
    torch.manual_seed(0)
    network = VideoDiT(patch_size=(1, 8, 8), hidden_size=24, num_layers=1, num_attention_heads=2)
    torch.nn.init.normal_(network.final_projection.weight, std=0.2)
    network.calls = []
    network.register_forward_hook(
        lambda module, args, kwargs, out: module.calls.append((*args, kwargs, out[0].detach())), with_kwargs=True
    )
    return network


def latents(frames=FRAMES, size=SIZE):
    return torch.randn(BATCH, CHANNELS, frames, size, size, generator=torch.Generator().manual_seed(7))


def loss_of(network, config, stage=0, x=None, condition=None, seed=11, train=None, original=None):
    pyramid = build_pyramid(config)
    clean, coarse = clean_pair(pyramid, latents() if x is None else x, stage)
    return stage_loss(
        denoise=plain_denoiser(network, network.config, pyramid, condition or {}),
        convention=Convention(pyramid, config.diffusion.prediction),
        clean=clean,
        coarse=coarse,
        stage=stage,
        captions=CAPTIONS,
        config=train or config.train,
        generator=torch.Generator().manual_seed(seed),
        original=original,
    )


def draws(shape, seed=11):
    """The same draws in the same order: noise, then one u a clip."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(shape, generator=generator)
    return noise, torch.rand(BATCH, generator=generator, dtype=torch.float64)


def column(values):
    return values.to(torch.float32).view(-1, 1, 1, 1, 1)


def mean_square(error):
    """Over elements, then over clips."""
    return error.square().flatten(1).mean(1).mean()


@pytest.mark.parametrize("prediction", ["flow_prediction", "v_prediction", "sample"])
def test_one_stage_is_flow_matching_bit_for_bit(network, prediction):
    config = configure("train.method=vanilla", f"diffusion.prediction_type={prediction}")
    got = loss_of(network, config)
    x = latents()
    noise, u = draws(x.shape)
    t = u.float()
    alpha, sigma = column(1 - t.double()), column(t)
    noisy = alpha * x + sigma * noise
    target = {"flow_prediction": noise - x, "v_prediction": alpha * noise - sigma * x, "sample": x}[prediction]
    out = network(noisy, t, return_dict=False)[0]
    assert torch.equal(network.calls[0][0], noisy)
    assert torch.equal(network.calls[0][1], t)
    assert torch.equal(got.loss, mean_square(out - target))
    assert got.stage == 0
    assert got.positions == BATCH * FRAMES * SIZE * SIZE
    assert got.alignment_gain == 0


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_one_stage_is_ddim_bit_for_bit(network, prediction, zero_snr):
    if zero_snr and prediction == "epsilon":
        pytest.skip("refused")
    config = configure(
        "train.method=vanilla",
        "diffusion.schedule=ddim",
        f"diffusion.prediction_type={prediction}",
        f"diffusion.zero_terminal_snr={zero_snr}",
    )
    got = loss_of(network, config)
    x = latents()
    noise, u = draws(x.shape)
    t = u.float()
    schedule = VariancePreservingSchedule()
    schedule = schedule.zero_terminal_snr() if zero_snr else schedule
    alpha, sigma = column(schedule.alpha(t)), column(schedule.sigma(t))
    noisy = alpha * x + sigma * noise
    target = noise if prediction == "epsilon" else alpha * noise - sigma * x
    out = network(noisy, t, return_dict=False)[0]
    assert torch.equal(network.calls[0][0], noisy)
    assert torch.equal(got.loss, mean_square(out - target))


def test_the_ddim_levels_are_diffusers():
    """At whole timesteps x_t and v are what diffusers' scheduler makes of the same clip and noise."""
    from diffusers import DDIMScheduler

    peer = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    pyramid = build_pyramid(configure("train.method=vanilla", "diffusion.schedule=ddim"))
    x = latents()
    noise, _ = draws(x.shape)
    steps = torch.tensor([1, 400, 999])
    pair = pyramid.pair(x, None, noise, 0)
    t = (steps / 999).float()
    torch.testing.assert_close(pair.at(t), peer.add_noise(x, noise, steps), rtol=0, atol=2e-5)
    torch.testing.assert_close(pair.target(t, "v_prediction"), peer.get_velocity(x, noise, steps), rtol=0, atol=2e-5)


def halve(x, factor):
    """Mean over `factor` neighbouring frames."""
    return x.reshape(*x.shape[:2], -1, factor, *x.shape[3:]).mean(3)


def double(x):
    """Each frame twice."""
    return torch.stack([x, x], dim=3).flatten(2, 3)


def flow_levels(stage, stages=3):
    """(s, e) in flow matching: ends divide [0, 1] evenly, a start has √2 the noise-to-signal of the coarser end."""
    end = stage / stages
    if stage == stages - 1:
        return 1.0, end
    kappa = math.sqrt(2) * ((stage + 1) / stages) / (1 - (stage + 1) / stages)
    return kappa / (1 + kappa), end


@pytest.mark.parametrize("target", ["global", "per_stage"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_of_flow_matching_is_equations_12_and_13(network, stage, target):
    config = configure(f"train.target={target}")
    got = loss_of(network, config, stage)
    x = latents()
    clean = halve(x, 2**stage)
    noise, u = draws(clean.shape)
    s, e = flow_levels(stage)
    lifted = clean if stage == 2 else double(halve(x, 2 ** (stage + 1)))
    x_s, x_e = (1 - s) * lifted + s * noise, (1 - e) * clean + e * noise  # Eqs. 7 and 8
    noisy = (1 - column(u)) * x_e + column(u) * x_s  # Eq. 12: u is t'
    wanted = x_s - x_e if target == "per_stage" else (x_s - x_e) / (s - e)  # Eq. 13, or per unit of t
    said, t, told, out = network.calls[0]
    torch.testing.assert_close(said, noisy, rtol=0, atol=3e-6)
    torch.testing.assert_close(t.double(), e + u * (s - e), rtol=0, atol=1e-6)
    assert told["strides"] == (2**stage, 1, 1)
    assert "stage" not in told
    torch.testing.assert_close(got.loss, mean_square(out - wanted), rtol=2e-5, atol=0)
    assert got.positions == BATCH * FRAMES * SIZE * SIZE // 2**stage
    assert got.stage == stage


@pytest.mark.parametrize("apart", [0.0, 0.5])
@pytest.mark.parametrize("target", ["global", "per_stage"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_following_the_original_costs_the_square_of_how_far_it_is(network, stage, target, apart):
    config = configure(f"train.target={target}")
    s, e = flow_levels(stage)
    unit = s - e if target == "per_stage" else 1
    pyramid = build_pyramid(config)
    own = plain_denoiser(network, network.config, pyramid, {})

    def original(x, t, k):
        return own(x, t, k) / unit + apart  # always per unit of sigma

    following = config.train.model_copy(update={"distillation": 0.7})
    alone, both = (
        loss_of(network, config, stage, train=t, original=o) for t, o in ((None, None), (following, original))
    )
    torch.testing.assert_close(both.loss, alone.loss + 0.7 * (apart * unit) ** 2, rtol=1e-5, atol=0)


VP_STARTS = {0: 437.958633 / 999, 1: 751.591130 / 999, 2: 1.0}


def vp_level(t):
    """(γ, σ), linear in ln(γ/σ) between the 1000 levels of Stable Diffusion."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    power = torch.cumprod(1 - betas, 0)
    log_snr = 0.5 * torch.log(power / (1 - power))
    index = torch.as_tensor(t, dtype=torch.float64) * 999
    left = index.long().clamp(0, 998)
    value = log_snr[left] + (index - left) * (log_snr[left + 1] - log_snr[left])
    return torch.sigmoid(2 * value).sqrt(), torch.sigmoid(-2 * value).sqrt()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_stage_of_ddim_is_equations_10_and_11(network, stage, prediction):
    got = loss_of(network, configure("diffusion.schedule=ddim", f"diffusion.prediction_type={prediction}"), stage)
    x = latents()
    clean = halve(x, 2**stage).double()
    noise, u = draws(clean.shape)
    lifted = clean if stage == 2 else double(halve(x, 2 ** (stage + 1))).double()
    s, e = VP_STARTS[stage], stage / 3
    (g_s, n_s), (g_e, n_e) = vp_level(s), vp_level(e) if stage else (1.0, 0.0)
    x_s, x_e = g_s * lifted + n_s * noise, g_e * clean + n_e * noise  # Eqs. 7 and 8
    eps = (x_e / g_e - x_s / g_s) / (n_e / g_e - n_s / g_s)  # Eq. 11
    t = (e + u * (s - e)).float()
    gamma, sigma = (level.view(-1, 1, 1, 1, 1) for level in vp_level(t))
    noisy = gamma / g_s * x_s + gamma * eps * (sigma / gamma - n_s / g_s)  # Eq. 10
    virtual = (noisy - sigma * eps) / gamma
    wanted = {"epsilon": eps, "v_prediction": gamma * eps - sigma * virtual, "sample": virtual}[prediction]
    said, when, told, out = network.calls[0]
    torch.testing.assert_close(when, t, rtol=0, atol=1e-6)
    torch.testing.assert_close(said.double(), noisy, rtol=0, atol=2e-5)
    assert told["strides"] == (2**stage, 1, 1)
    torch.testing.assert_close(got.loss.double(), mean_square(out - wanted), rtol=1e-4, atol=0)


def test_spatial_and_temporal_stages_have_their_sizes_and_strides():
    torch.manual_seed(0)
    network = VideoDiT(patch_size=(1, 4, 4), hidden_size=24, num_layers=1, num_attention_heads=2, num_stages=3)
    calls = []
    network.register_forward_hook(lambda m, a, k, o: calls.append((a[0].shape, k)), with_kwargs=True)
    config = configure("pyramid.factors=[[1,1,1],[1,2,2],[4,4,2]]")
    for stage in range(3):
        part = loss_of(network, config, stage, latents(size=16))
        assert part.positions == BATCH * math.prod(calls[-1][0][2:])
    assert [tuple(shape[2:]) for shape, _ in calls] == [(8, 16, 16), (8, 8, 8), (2, 4, 8)]
    assert [k["strides"] for _, k in calls] == [(1, 1, 1), (1, 2, 2), (4, 4, 2)]
    assert [k["stage"] for _, k in calls] == [0, 1, 2]


def test_a_causal_time_axis_keeps_its_first_frame(network):
    config = configure("pyramid.causal_time=true")
    x = latents(frames=9)
    for stage, frames in enumerate((9, 5, 3)):
        loss_of(network, config, stage, x)
        assert network.calls[-1][0].shape[2] == frames
    noise, u = draws((BATCH, CHANNELS, 9, SIZE, SIZE))
    loss_of(network, config, 0, x)
    said, t, _, _ = network.calls[-1]
    s, _ = flow_levels(0)
    torch.testing.assert_close(t.double(), u * s, rtol=0, atol=1e-6)
    first = column(1 - t.double()) * x[:, :, :1] + column(t) * noise[:, :, :1]
    torch.testing.assert_close(said[:, :, :1], first, rtol=0, atol=1e-6)


@pytest.mark.parametrize("space", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("overrides", [["train.method=vanilla"], [], ["diffusion.schedule=ddim"]])
def test_a_loss_in_another_space_is_the_error_of_the_converted_prediction(network, space, overrides):
    stage = 0 if overrides == ["train.method=vanilla"] else 1
    base = ["diffusion.prediction_type=sample", *overrides]
    got = loss_of(network, configure(*base, f"train.loss_space={space}"), stage)
    plain = loss_of(network, configure(*base), stage)
    said, t, _, out = network.calls[0]
    pyramid = build_pyramid(configure(*base))
    x = latents()
    clean = pyramid.down(x, stage)
    noise, _ = draws(clean.shape)
    coarse = pyramid.down(x, stage + 1) if len(pyramid) > 1 else None
    pair = pyramid.pair(clean, coarse, noise, stage)
    alpha, sigma = column(pyramid.schedule.alpha(t)), column(pyramid.schedule.sigma(t))
    assert sigma.min() > 0.05
    implied = (said - alpha * out) / sigma
    said_there = {"epsilon": implied, "v_prediction": alpha * implied - sigma * out, "flow_prediction": implied - out}
    wanted = mean_square(said_there[space] - pair.target(t, space))
    torch.testing.assert_close(got.loss, wanted, rtol=2e-4, atol=0)
    assert not torch.isclose(got.loss, plain.loss, rtol=1e-2)


def test_below_its_floor_a_loss_space_weighs_no_more(network):
    base = ["diffusion.prediction_type=sample", "train.method=vanilla"]
    plain = loss_of(network, configure(*base), 0)
    floored = loss_of(network, configure(*base, "train.loss_space=flow_prediction", "train.loss_floor=1"), 0)
    torch.testing.assert_close(floored.loss, plain.loss)
    schedule, t = FlowMatchingSchedule(), torch.tensor([0.0, 0.1, 0.25, 0.5, 1.0])
    weights = loss_weight(schedule, t, "flow_prediction", 0.25)
    torch.testing.assert_close(weights, torch.tensor([16.0, 16.0, 16.0, 4.0, 1.0]))


def test_a_loss_space_wants_a_prediction_of_the_sample():
    with pytest.raises(ValueError, match=r"loss_space.*sample"):
        configure("train.loss_space=flow_prediction")


def test_a_floor_of_no_weight_is_refused():
    with pytest.raises(ValueError, match=r"train\.loss_floor bounds the weight that train\.loss_space gives"):
        configure("diffusion.prediction_type=sample", "train.loss_floor=0.3")


# The draws


@pytest.mark.parametrize("weights", [None, [1, 2, 5], [0, 1, 1], [3, 0, 0]])
def test_stages_are_drawn_by_weights_given_coarsest_first(weights):
    config = configure(f"train.stage_weights={weights or ''}")
    pyramid, generator, count = build_pyramid(config), torch.Generator().manual_seed(0), 3000
    seen = torch.zeros(3)
    for _ in range(count):
        seen[draw_stage(pyramid, config.train.stage_weights, generator)] += 1
    shares = torch.tensor((weights or [1, 1, 1])[::-1], dtype=torch.float32)
    expected = count * shares / shares.sum()
    assert (seen[expected == 0] == 0).all()
    kept = expected > 0
    chi_square = ((seen - expected)[kept] ** 2 / expected[kept]).sum()
    assert chi_square < 13.8  # one in a thousand, two degrees of freedom


def test_one_stage_needs_no_draw():
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    assert draw_stage(build_pyramid(configure("train.method=vanilla")), None, generator) == 0
    assert torch.equal(generator.get_state(), state)


def test_times_follow_their_density():
    generator = torch.Generator().manual_seed(0)
    uniform = draw_times(4000, "uniform", generator)
    assert uniform.dtype == torch.float64
    assert 0 < uniform.min() < 0.01 < 0.99 < uniform.max() < 1
    assert (uniform.sort().values - torch.linspace(0, 1, 4000, dtype=torch.float64)).abs().max() < 0.03
    normal = draw_times(4000, "logit_normal", generator).logit()
    assert abs(normal.mean()) < 0.06
    assert abs(normal.std() - 1) < 0.05
    wanted = torch.distributions.Normal(0.0, 1.0).cdf(normal.sort().values)
    assert (wanted - torch.linspace(0, 1, 4000)).abs().max() < 0.03


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("overrides", [[], ["diffusion.schedule=ddim", "diffusion.zero_terminal_snr=true"]])
def test_times_stay_inside_their_stage(stage, overrides):
    pyramid = build_pyramid(configure(*overrides))
    for density in ("uniform", "logit_normal"):
        u = draw_times(500, density, torch.Generator().manual_seed(stage))
        t = pyramid.times(u, stage)
        assert (t > pyramid.stages[stage].end).all()
        assert (t < pyramid.stages[stage].start).all()
        assert t.max() - t.min() > 0.8 * (pyramid.stages[stage].start - pyramid.stages[stage].end)


@pytest.mark.parametrize("method", ["assignment", "knn"])
def test_alignment_brings_noise_nearer(method):
    x = torch.randn(16, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    config = configure(f"train.alignment={method}", "train.align_within_condition=false").train
    noise, gain = draw_noise(x, ["a"] * 16, config, torch.Generator().manual_seed(1))
    shape = (16, 4, *x.shape[1:]) if method == "knn" else x.shape
    raw = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    candidates = raw.transpose(0, 1) if method == "knn" else raw[None]
    before = (x - candidates[0]).square().mean()
    after = (x - noise).square().mean()
    assert gain > 0.005
    assert after < before
    assert gain == pytest.approx(float(1 - after / before), abs=1e-5)
    used = [(n == candidates).flatten(2).all(2).nonzero()[0].tolist() for n in noise]
    if method == "assignment":
        assert sorted(row for _, row in used) == list(range(16))
    else:
        assert [row for _, row in used] == list(range(16))
        assert len({m for m, _ in used}) > 1


def test_alignment_stays_within_equal_captions():
    x = torch.randn(16, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    captions = ["a", "b", "c", "a"] * 4
    config = configure("train.alignment=assignment").train
    noise, gain = draw_noise(x, captions, config, torch.Generator().manual_seed(1))
    raw = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    origin = [int((n == raw).flatten(1).all(1).nonzero()) for n in noise]
    assert gain > 0
    assert sorted(origin) == list(range(16))
    assert origin != list(range(16))
    assert [captions[o] for o in origin] == captions


def test_alignment_works_at_the_size_of_the_stage(network):
    """Its gain is that of the coarse clips, whose frames are means."""
    config = configure("train.alignment=assignment", "train.align_within_condition=false")
    part = loss_of(network, config, 2)
    clean = halve(latents(), 4)
    noise, gain = draw_noise(clean, CAPTIONS, config.train, torch.Generator().manual_seed(11))
    assert part.alignment_gain == gain > 0
    torch.testing.assert_close(
        network.calls[0][0],
        column(1 - network.calls[0][1]) * clean + column(network.calls[0][1]) * noise,
        rtol=0,
        atol=3e-6,
    )


def test_the_condition_reaches_the_network():
    network = VideoDiT(patch_size=(1, 8, 8), hidden_size=24, num_layers=1, num_attention_heads=2, num_classes=2)
    calls = []
    network.register_forward_hook(lambda m, a, k, o: calls.append(k), with_kwargs=True)
    labels = torch.tensor([1, 0, 2])
    loss_of(network, configure(), 1, condition={"class_labels": labels})
    assert torch.equal(calls[0]["class_labels"], labels)
