"""With one stage the scheduler is the one it wraps, bit for bit."""

import numpy as np
import pytest
import torch
from scheduled import STABLE_DIFFUSION, make, noise, toy

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.schedulers import PyramidScheduler, schedule_of

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
V = {"prediction_type": "v_prediction"}
EULER, HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
UNIPC, DPM = "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"
TABLE = [1.0, 0.9, 0.6, 0.3, 0.1]

CASES = [
    (EULER, {}, {}),
    (EULER, {"shift": 5.0}, {}),
    (EULER, {"use_dynamic_shifting": True}, {"mu": 0.9}),
    (EULER, {"use_dynamic_shifting": True, "time_shift_type": "linear"}, {"mu": 2.0}),
    (EULER, {"invert_sigmas": True}, {"sigmas": TABLE}),
    (EULER, {"shift_terminal": 0.1}, {"sigmas": np.linspace(1, 0.2, 5)}),
    (EULER, {"use_karras_sigmas": True}, {}),
    (EULER, {"stochastic_sampling": True}, {}),
    (HEUN, {}, {}),
    (HEUN, {"shift": 3.0}, {}),
    (UNIPC, {}, {}),
    (UNIPC, {**FLOW, "flow_shift": 5.0}, {}),
    (UNIPC, {**FLOW, "use_dynamic_shifting": True}, {"mu": 0.5}),
    (UNIPC, {"use_karras_sigmas": True, **STABLE_DIFFUSION}, {}),
    (UNIPC, {"solver_order": 3, **V}, {}),
    (DPM, {}, {}),
    (DPM, {**FLOW, "flow_shift": 3.0}, {}),
    (DPM, {"use_karras_sigmas": True}, {}),
    (DPM, {"algorithm_type": "sde-dpmsolver++"}, {}),
    ("DDIMScheduler", {"timestep_spacing": "trailing", **V, "rescale_betas_zero_snr": True}, {}),
    ("DDIMScheduler", STABLE_DIFFUSION, {"eta": 0.7}),
    ("CogVideoXDDIMScheduler", V, {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", **STABLE_DIFFUSION}, {}),
    ("EulerDiscreteScheduler", STABLE_DIFFUSION, {"s_churn": 2.0}),
    ("EulerDiscreteScheduler", {}, {"timesteps": [900, 500, 100]}),
    ("HeunDiscreteScheduler", V, {}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("DDPMScheduler", {}, {}),
    ("LCMScheduler", STABLE_DIFFUSION, {}),
]
CASE = pytest.mark.parametrize(("name", "config", "options"), CASES, ids=lambda v: v if isinstance(v, str) else None)


def split(options, steps=5):
    """What goes to set_timesteps, and what to every step."""
    of_steps = {name: options[name] for name in ("eta", "s_churn") if name in options}
    layout = {name: value for name, value in options.items() if name not in of_steps}
    return layout if "timesteps" in layout else {"num_inference_steps": steps, **layout}, of_steps


def walked(scheduler, options, seed=3):
    """Every latent and everything told along a loop, and what the scheduler says of itself."""
    layout, of_steps = split(options)
    scheduler.set_timesteps(**layout)
    scheduler.set_begin_index(0) if hasattr(scheduler, "set_begin_index") else None
    generator = torch.Generator().manual_seed(seed)
    takes = "generator" in type(scheduler).step.__code__.co_varnames
    scale = torch.as_tensor(getattr(scheduler, "init_noise_sigma", 1.0))
    x = noise(2, 1, 4, 4, 4) * scale
    seen = [x, scale, scheduler.timesteps]
    if hasattr(scheduler, "sigmas"):
        seen.append(scheduler.sigmas)
    for t in scheduler.timesteps:
        inputs = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        drawn = {"generator": generator} if takes else {}
        x = scheduler.step(toy(inputs, t), t, x, return_dict=False, **drawn, **of_steps)[0]
        seen.append(x)
    return seen


def one_stage(base, **options):
    return PyramidScheduler(base, Pyramid(schedule_of(base)), **options)


@CASE
def test_every_step_is_the_same(name, config, options):
    base = make(name, **config)
    plain, wrapped = walked(base, options), walked(one_stage(make(name, **config)), options)
    assert len(plain) == len(wrapped)
    for ours, theirs in zip(wrapped, plain, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)
    assert plain[-1].isfinite().all()
    assert not torch.equal(plain[-1], plain[0])


@CASE
def test_what_pipelines_ask_is_the_same(name, config, options):
    base = make(name, **config)
    wrapped = one_stage(base)
    assert wrapped.order == base.order
    assert len(wrapped) == len(base) == 1000
    assert {key: wrapped.config[key] for key in base.config} == dict(base.config)
    assert set(wrapped.config) - set(base.config) == {
        "applied",
        "base_scheduler",
        "pyramid",
        "steps",
        "timestep_policy",
        "per_stage_target",
    }
    layout, _ = split(options)
    base.set_timesteps(**layout)
    wrapped.set_timesteps(**layout)
    assert wrapped.num_inference_steps == base.num_inference_steps
    assert getattr(wrapped, "step_index", None) == getattr(base, "step_index", None)
    assert hasattr(wrapped, "sigmas") == hasattr(base, "sigmas")


@pytest.mark.parametrize(("name", "config"), [(UNIPC, {}), (UNIPC, FLOW), (DPM, {}), ("DDIMScheduler", {})])
def test_noise_is_added_as_the_wrapped_scheduler_adds_it(name, config):
    base = make(name, **config)
    wrapped = one_stage(base)
    clean, drawn = noise(2, 1, 4, 2, 2), noise(2, 1, 4, 2, 2, seed=1)
    base.set_timesteps(8)
    wrapped.set_timesteps(8)
    at = base.timesteps[[2, 5]]
    assert torch.equal(wrapped.add_noise(clean, drawn, at), base.add_noise(clean, drawn, at))


def test_step_outputs_come_as_the_wrapped_scheduler_gives_them():
    wrapped = one_stage(make("DDIMScheduler"))
    wrapped.set_timesteps(4)
    x = noise(1, 1, 4, 2, 2)
    out = wrapped.step(0.1 * x, wrapped.timesteps[0], x)
    assert out.prev_sample.shape == out.pred_original_sample.shape == x.shape


def test_begin_in_the_middle_is_the_wrapped_schedulers():
    wrapped = one_stage(make(EULER))
    wrapped.set_timesteps(4)
    wrapped.set_begin_index(2)
    assert wrapped.begin_index == 2
    x = noise(1, 1, 4, 2, 2)
    stepped = wrapped.step(x, wrapped.timesteps[2], x).prev_sample
    assert torch.equal(stepped, x + (wrapped.sigmas[3] - wrapped.sigmas[2]) * x)


def test_steps_win_over_the_pipelines_count_but_not_over_its_sigmas():
    wrapped = one_stage(make(EULER), steps=[7])
    wrapped.set_timesteps(50)
    assert len(wrapped.timesteps) == 7
    wrapped.set_timesteps(sigmas=np.linspace(1, 0.2, 5))
    assert len(wrapped.timesteps) == 5
    plain = one_stage(make(EULER))
    plain.set_timesteps([6])
    assert len(plain.timesteps) == 6


@CASE
def test_the_given_scheduler_is_left_alone_by_one_stage_too(name, config, options):
    base = make(name, **config)
    times = base.timesteps.clone()
    walked(one_stage(base), options)
    assert torch.equal(base.timesteps, times)


@pytest.mark.parametrize("factors", [[(1, 1, 1)], [(1, 1, 1), (2, 1, 1)]])
def test_noise_is_added_by_either_name(factors):
    base = make(EULER)
    base.set_timesteps(4)
    clean, drawn = torch.randn(2, 2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    at = base.timesteps[[0, 2]]
    wanted = base.scale_noise(clean, at, drawn)
    wrapped = PyramidScheduler(make(EULER), Pyramid(FlowMatchingSchedule(), factors))
    wrapped.set_timesteps(4)
    assert torch.allclose(wrapped.add_noise(clean, drawn, at), wanted, atol=1e-6)
    assert torch.allclose(wrapped.scale_noise(clean, at, drawn), wanted, atol=1e-6)
