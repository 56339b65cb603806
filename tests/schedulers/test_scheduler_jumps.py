"""Between stages: the same run in parts, fresh histories, noise from the given generator, nothing shared."""

import copy
from itertools import pairwise

import pytest
import torch
from scheduled import BOTH, SCALED, STABLE_DIFFUSION, TIME, make, noise, run, staged, told, toy

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
KINDS = [
    ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("UniPCMultistepScheduler", {**FLOW, "solver_order": 3}),
    ("UniPCMultistepScheduler", STABLE_DIFFUSION),
    ("DPMSolverMultistepScheduler", FLOW),
    ("DPMSolverMultistepScheduler", STABLE_DIFFUSION),
    ("DDIMScheduler", STABLE_DIFFUSION),
    ("CogVideoXDDIMScheduler", {}),
    ("EulerDiscreteScheduler", STABLE_DIFFUSION),
    ("HeunDiscreteScheduler", STABLE_DIFFUSION),
]
KIND = pytest.mark.parametrize(("name", "config"), KINDS, ids=lambda v: v if isinstance(v, str) else None)
COARSE, FULL = (2, 3, 2, 2, 2), (2, 3, 8, 8, 8)
COUNTS = [4, 3, 3]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def each(*seeds):
    return [seeded(seed) for seed in seeds]


@KIND
def test_stage_by_stage_is_the_whole_run(name, config):
    scheduler = staged(make(name, **config), BOTH)
    scheduler.set_timesteps(COUNTS)
    times = scheduler.timesteps
    whole = run(scheduler, noise(*COARSE), generator=seeded())
    generator, x, seen = seeded(), noise(*COARSE), []
    for k in (2, 1, 0):
        scheduler.restrict(k)
        scheduler.set_timesteps(COUNTS)
        assert scheduler.init_noise_sigma == 1 or k == 2
        assert scheduler.num_inference_steps == COUNTS[2 - k]
        x = run(scheduler, x)
        seen.append(scheduler.timesteps)
        x = scheduler.jump(x, generator) if k else x
    assert torch.equal(torch.cat(seen), times)
    assert whole.shape == FULL
    assert torch.equal(x, whole)


@KIND
def test_histories_do_not_cross_a_jump(name, config):
    """A stage after others is stepped as by a scheduler that never saw them."""
    scheduler, fresh = staged(make(name, **config), BOTH), staged(make(name, **config), BOTH)
    scheduler.set_timesteps(COUNTS)
    fresh.restrict(0)
    fresh.set_timesteps(COUNTS)
    x = noise(*COARSE) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        if scheduler.stage == 0 and x.shape == FULL and len(fresh.timesteps):
            break
        x = scheduler.step(toy(scheduler.scale_model_input(x, t), t), t, x, generator=seeded()).prev_sample
    done = scheduler.step_index
    after = x
    for t in scheduler.timesteps[done:]:
        after = scheduler.step(toy(scheduler.scale_model_input(after, t), t), t, after).prev_sample
    assert torch.equal(after, run(fresh, x))


@KIND
def test_a_second_run_is_the_first_again(name, config):
    scheduler = staged(make(name, **config), BOTH)
    outs = []
    for _ in range(2):
        scheduler.set_timesteps(COUNTS)
        outs.append(run(scheduler, noise(*COARSE), generator=seeded()))
    assert torch.equal(*outs)
    assert outs[0].std() > 0.05


@KIND
def test_the_given_scheduler_is_left_alone(name, config):
    base = make(name, **config)
    before = copy.deepcopy(vars(base))
    scheduler = staged(base, BOTH)
    scheduler.set_timesteps(COUNTS)
    run(scheduler, noise(*COARSE))
    assert vars(base).keys() == before.keys()
    for key, value in before.items():
        same = torch.equal(value, getattr(base, key)) if torch.is_tensor(value) else value == getattr(base, key)
        assert same, key
    again = staged(scheduler.base, BOTH)  # what it holds itself can be wrapped again, after any run
    again.set_timesteps(COUNTS)
    assert torch.equal(again.timesteps, scheduler.timesteps)


@KIND
def test_a_copy_goes_its_own_way(name, config):
    scheduler = staged(make(name, **config), BOTH)
    scheduler.set_timesteps(COUNTS)
    x = noise(*COARSE) * scheduler.init_noise_sigma
    first = scheduler.timesteps[0]
    x = scheduler.step(toy(scheduler.scale_model_input(x, first), first), first, x).prev_sample
    twin = copy.deepcopy(scheduler)

    def rest(one):
        y = x
        for t in one.timesteps[1:]:
            y = one.step(toy(one.scale_model_input(y, t), t), t, y, generator=seeded()).prev_sample
        return y

    assert torch.equal(rest(scheduler), rest(twin))
    assert twin.base is not scheduler.base


@KIND
def test_noise_is_added_at_the_level_told(name, config):
    scheduler = staged(make(name, **config))
    scheduler.set_timesteps([2, 2, 2])
    t = scheduler.timesteps[[1, 3]]
    clean, drawn = noise(2, 1, 4, 2, 2), noise(2, 1, 4, 2, 2, seed=1)
    schedule, at = scheduler.pyramid.schedule, told(scheduler.base, t)
    alpha, sigma = (level.view(2, 1, 1, 1, 1) for level in (schedule.alpha(at), schedule.sigma(at)))
    wanted = alpha * clean + sigma * drawn
    wanted = wanted / alpha if name in SCALED else wanted
    assert torch.allclose(scheduler.add_noise(clean, drawn, t).double(), wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(SCALED))
def test_latents_divided_by_their_signal(name):
    """The network sees γ x_0 + σ ε all the same, of unit variance at the start, and jumps happen in those terms."""
    scheduler = staged(make(name, **STABLE_DIFFUSION), BOTH)
    scheduler.set_timesteps(COUNTS)
    start = scheduler.pyramid.stages[2].start_level
    assert scheduler.init_noise_sigma == pytest.approx(1 / start.alpha, rel=1e-5)
    x = noise(*COARSE)
    assert torch.allclose(scheduler.scale_model_input(x * scheduler.init_noise_sigma, scheduler.timesteps[0]), x)
    end, into = scheduler.pyramid.stages[2].end_level, scheduler.pyramid.stages[1].start_level
    jumped = scheduler.jump(x / end.alpha, seeded()) * into.alpha
    assert torch.allclose(jumped, scheduler.pyramid.jump(x, 1, seeded()), atol=1e-5)
    assert jumped.shape == (2, 3, 4, 4, 4)


# Generators


def final(scheduler, x, **options):
    scheduler.set_timesteps(COUNTS)
    return run(scheduler, x, **options)


@KIND
def test_a_video_does_not_depend_on_its_batch(name, config):
    scheduler = staged(make(name, **config), BOTH)
    x = noise(*COARSE)
    both = final(scheduler, x, generator=each(1, 2))
    alone = [final(scheduler, x[i : i + 1], generator=each(i + 1)) for i in range(2)]
    assert torch.equal(both, torch.cat(alone))


def test_the_schedulers_own_generator_serves_where_none_is_given():
    scheduler = staged(make(*KINDS[0][:1]), BOTH)
    x = noise(*COARSE)
    given = final(scheduler, x, generator=seeded(5))
    scheduler.generator = seeded(5)
    assert torch.equal(final(scheduler, x), given)
    assert torch.equal(final(scheduler, x, generator=seeded(5)), given)  # a generator given to `step` wins
    scheduler.generator = each(5, 6)
    one = final(scheduler, x)
    assert not torch.equal(one, given)
    assert torch.equal(one, final(scheduler, x, generator=each(5, 6)))
    scheduler.generator = each(1, 2, 3)
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        final(scheduler, x)


def test_half_precision_latents_stay_half():
    scheduler = staged(make("FlowMatchEulerDiscreteScheduler"), TIME)
    out = final(scheduler, noise(1, 2, 2, 2, 2).bfloat16())
    assert out.dtype == torch.bfloat16
    assert out.shape == (1, 2, 8, 2, 2)


# Two stages of one size are the plain sampler


def flow_levels(scheduler):
    """The levels that both stages visit, each once, in pairs."""
    levels = sorted({round(level, 9) for level in scheduler.sigmas.double().tolist()}, reverse=True)
    assert len(levels) == 8
    return pairwise(levels)


def flow_euler(x, scheduler):
    for a, b in flow_levels(scheduler):
        x = x + (b - a) * toy(x, 1000 * a)
    return x


def flow_heun(x, scheduler):
    for a, b in flow_levels(scheduler):
        slope = toy(x, 1000 * a)
        if b > 0:
            slope = (slope + toy(x + (b - a) * slope, 1000 * b)) / 2
        x = x + (b - a) * slope
    return x


def ddim(x, scheduler):
    times = scheduler.timesteps
    assert len(set(times.tolist())) == 7
    for t, b in zip(times, [*scheduler.base.alphas_cumprod[times[1:]], torch.tensor(1.0)], strict=True):
        a, v = scheduler.base.alphas_cumprod[t], toy(x, t)
        x = b**0.5 * (a**0.5 * x - (1 - a) ** 0.5 * v) + (1 - b) ** 0.5 * (a**0.5 * v + (1 - a) ** 0.5 * x)
    return x


@pytest.mark.parametrize(
    ("name", "config", "sampler"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, flow_euler),
        ("FlowMatchHeunDiscreteScheduler", {}, flow_heun),
        ("DDIMScheduler", {"clip_sample": False, "prediction_type": "v_prediction"}, ddim),
    ],
)
def test_two_stages_of_one_size_are_one(name, config, sampler):
    """Their jump adds nothing, and a solver without memory cannot tell where one of them ended."""
    x = noise(2, 1, 4, 4, 4)
    double = staged(make(name, **config), ((1, 1, 1), (1, 1, 1)), ends=[500 / 999])
    double.set_timesteps([4, 3])
    assert torch.allclose(run(double, x), sampler(x, double), atol=2e-5)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("DDIMScheduler", "clip_sample"),
        ("DDIMScheduler", "thresholding"),
        ("DPMSolverMultistepScheduler", "thresholding"),
    ],
)
def test_stages_clip_nothing(name, option):
    """A stage's clean estimate may exceed the data's range; the base scheduler's wish stays in its configuration."""
    none = {"clip_sample": False, "thresholding": False} if name == "DDIMScheduler" else {"thresholding": False}
    made = []
    for wish in (False, True):
        scheduler = staged(make(name, **STABLE_DIFFUSION, **{**none, option: wish}), BOTH)
        scheduler.set_timesteps(COUNTS)
        made.append(run(scheduler, 3 * noise(*COARSE), generator=seeded()))
        assert scheduler.config[option] is scheduler.base.config[option] is wish
    assert torch.equal(*made)
