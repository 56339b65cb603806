"""What cannot run inside a stage is refused at once, by name and with the reason."""

import pytest
import torch
from scheduled import STABLE_DIFFUSION, TIME, make, noise, run, staged

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule
from tpdiff.schedulers import PyramidScheduler, schedule_of

EULER = "FlowMatchEulerDiscreteScheduler"
DPM = "DPMSolverMultistepScheduler"
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
VP = VariancePreservingSchedule()
NOT_THE_SCORE = "a stage's noise estimate is not the score"


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "EulerAncestralDiscreteScheduler",
            {},
            f"cannot run inside a stage: it is unknown or draws noise .{NOT_THE_SCORE}",
        ),
        ("DDPMScheduler", {}, "DDPMScheduler cannot run inside a stage"),
        ("LCMScheduler", {}, "LCMScheduler cannot run inside a stage"),
        ("CogVideoXDPMScheduler", {}, "CogVideoXDPMScheduler cannot run inside a stage"),
        ("DPMSolverSinglestepScheduler", {}, "Known: CogVideoXDDIMScheduler, DDIMScheduler, DPMSolverMultistep"),
        (EULER, {"stochastic_sampling": True}, "with stochastic_sampling=True draws noise"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver++"},
            "'sde-dpmsolver..' draws noise.*use 'dpm",
        ),
        (EULER, {"use_karras_sigmas": True}, "use_karras_sigmas=True spaces its steps over one schedule"),
        (EULER, {"use_exponential_sigmas": True}, "use_exponential_sigmas=True spaces"),
        ("UniPCMultistepScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas=True spaces"),
        ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, "use_lu_lambdas=True spaces"),
        (
            "EulerDiscreteScheduler",
            {"timestep_type": "continuous"},
            "timestep_type='continuous' tells the network another",
        ),
    ],
)
def test_a_scheduler_that_stages_cannot_run(name, config, message):
    base = make(name, **config)
    flow = name.startswith("FlowMatch")
    with pytest.raises(ValueError, match=message):
        PyramidScheduler(base, Pyramid(FlowMatchingSchedule() if flow else VP, TIME))


@pytest.mark.parametrize(
    ("saved", "config"),
    [
        (DPM, {"use_karras_sigmas": True}),
        (DPM, {"use_exponential_sigmas": True}),
        (DPM, {"use_beta_sigmas": True}),
        (DPM, {"use_lu_lambdas": True}),
        (DPM, {"algorithm_type": "sde-dpmsolver++"}),
        (EULER, {"stochastic_sampling": True}),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "sigma_min": 0.002}),
    ],
)
def test_options_that_the_class_does_not_take_refuse_nothing(saved, config, tmp_path):
    """A scheduler loaded from another class's file keeps its options in the configuration."""
    make(saved, **config).save_pretrained(tmp_path)
    base = type(make("DDIMScheduler")).from_pretrained(tmp_path, **STABLE_DIFFUSION, clip_sample=False)
    assert config.keys() <= base.config.keys()
    made = []
    for scheduler in (staged(base), staged(make("DDIMScheduler", **STABLE_DIFFUSION, clip_sample=False))):
        scheduler.set_timesteps(6)
        made.append(run(scheduler, noise(1, 1, 2, 2, 2), generator=torch.Generator().manual_seed(0)))
    assert torch.equal(*made)


def test_a_prediction_type_that_the_class_does_not_take_is_none():
    base = type(make(EULER)).from_config(make("DDIMScheduler", prediction_type="epsilon").config)
    assert base.config.prediction_type == "epsilon"
    assert staged(base).stage == 2


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDIMScheduler", "HeunDiscreteScheduler"])
def test_only_a_scheduler_that_takes_flow_sigmas_has_them(name):
    base = type(make(name)).from_config(make("UniPCMultistepScheduler", **FLOW).config)
    assert base.config.use_flow_sigmas
    assert schedule_of(base).name == VP.name
    with pytest.raises(ValueError, match=f"{name} with prediction_type='flow_prediction'.*nearest: FlowMatchEuler"):
        staged(base)


def test_flow_prediction_without_flow_sigmas():
    for name in ("UniPCMultistepScheduler", DPM):
        with pytest.raises(ValueError, match=f"{name} with prediction_type='flow_prediction'.*use_flow_sigmas=True"):
            staged(make(name, prediction_type="flow_prediction"))


def test_the_schedule_of_stages_is_that_of_the_scheduler_inside():
    for base in (make(EULER), make("UniPCMultistepScheduler", **FLOW), make("DDIMScheduler")):
        assert schedule_of(staged(base)).name == schedule_of(base).name


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"rescale_betas_zero_snr": True}),
        ("CogVideoXDDIMScheduler", {"rescale_betas_zero_snr": True}),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}),
    ],
)
def test_epsilon_at_pure_noise(name, config):
    """It is what diffusers predicts by default; x_0 = (x - σ ε) / γ would be divided by nothing."""
    assert make(name, **config).config.prediction_type == "epsilon"
    with pytest.raises(ValueError, match=r"epsilon prediction cannot start from pure noise.*: use v_prediction"):
        staged(make(name, **config))
    scheduler = staged(make(name, **config, prediction_type="v_prediction"))
    scheduler.set_timesteps(6)
    assert run(scheduler, noise(1, 1, 2, 2, 2)).isfinite().all()


def test_a_corrector_of_its_own():
    base = make("UniPCMultistepScheduler", solver_p=make("DDIMScheduler"))
    with pytest.raises(ValueError, match="solver_p of its own cannot be reset at a jump"):
        staged(base)


@pytest.mark.parametrize(
    ("name", "config", "schedule"),
    [
        (EULER, {}, VP),
        ("DDIMScheduler", STABLE_DIFFUSION, FlowMatchingSchedule()),
        ("DDIMScheduler", {}, VP),  # the same kind, other betas
        ("DDIMScheduler", STABLE_DIFFUSION, VP.zero_terminal_snr()),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, VP),
    ],
)
def test_a_pyramid_on_another_schedule(name, config, schedule):
    with pytest.raises(ValueError, match=f"is not the one of {name}.*schedule_of"):
        PyramidScheduler(make(name, **config), Pyramid(schedule, TIME))


def test_the_schedule_of_the_scheduler_itself_is_taken():
    assert PyramidScheduler(make("DDIMScheduler", **STABLE_DIFFUSION), Pyramid(VP, TIME)).stage == 2


def test_what_belongs_to_flow_matching():
    for options in ({"timestep_policy": "pyramid_flow"}, {"per_stage_target": True}):
        with pytest.raises(ValueError, match="belong to flow matching"):
            staged(make("DDIMScheduler"), **options)


def test_an_unknown_policy():
    with pytest.raises(ValueError, match="unknown timestep_policy 'arc'; known: native, pyramid_flow"):
        staged(make(EULER), timestep_policy="arc")


def test_steps_for_another_number_of_stages():
    with pytest.raises(ValueError, match=r"2 step counts .20-10. for 3 stages"):
        staged(make(EULER), steps=(20, 10))


def test_an_unknown_class_in_a_saved_configuration():
    saved = {**staged(make(EULER)).config, "base_scheduler": {"_class_name": "os"}}
    with pytest.raises(ValueError, match="unknown base scheduler 'os'"):
        PyramidScheduler.from_config(saved)


@pytest.mark.parametrize("noisy", [{"eta": 0.5}, {"s_churn": 1.0}])
def test_noise_in_a_step(noisy):
    scheduler = staged(make(EULER))
    scheduler.set_timesteps(6)
    x = noise(1, 1, 2, 1, 1)
    with pytest.raises(ValueError, match=r"a stage is sampled without noise.*use eta=0"):
        scheduler.step(x, scheduler.timesteps[0], x, **noisy)
    assert scheduler.step(x, scheduler.timesteps[0], x, eta=0.0).prev_sample.shape == x.shape


@pytest.mark.parametrize(
    ("name", "option", "value", "usual"),
    [
        (EULER, "per_token_timesteps", torch.full((1, 2), 500.0), None),
        ("DDIMScheduler", "use_clipped_model_output", True, False),
        ("DDIMScheduler", "variance_noise", torch.zeros(1, 1, 2, 1, 1), None),
        ("EulerDiscreteScheduler", "s_noise", 1.1, 1.0),
        (EULER, "s_chrun", 1.0, 0),
    ],
)
def test_options_that_no_stage_heeds(name, option, value, usual):
    scheduler = staged(make(name))
    scheduler.set_timesteps(6)
    x = noise(1, 1, 2, 1, 1)
    with pytest.raises(ValueError, match=f"^{option}: a step inside a stage takes no such option"):
        scheduler.step(x, scheduler.timesteps[0], x, **{option: value})
    assert scheduler.step(x, scheduler.timesteps[0], x, **{option: usual}).prev_sample.shape == x.shape


def test_steps_that_are_not_there():
    scheduler = staged(make(EULER))
    x = noise(1, 1, 2, 1, 1)
    with pytest.raises(ValueError, match="no steps left; call set_timesteps first"):
        scheduler.step(x, 0.0, x)
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps:
        x = scheduler.step(x, t, x).prev_sample
    with pytest.raises(ValueError, match="no steps left"):
        scheduler.step(x, t, x)


def test_a_start_in_the_middle():
    scheduler = staged(make(EULER))
    scheduler.set_begin_index(0)
    with pytest.raises(ValueError, match="begin_index 3: sampling through stages begins at the first step, 0"):
        scheduler.set_begin_index(3)
    with pytest.raises(ValueError, match="timesteps of a plain schedule have no meaning with stages"):
        scheduler.set_timesteps(timesteps=[900, 100])


@pytest.mark.parametrize("stage", [-1, 3])
def test_a_stage_that_is_not_there(stage):
    with pytest.raises(ValueError, match=f"no stage {stage}: stages are 0, the finest, to 2"):
        staged(make(EULER)).restrict(stage)


def test_latents_that_no_stage_has_fail_in_the_last_stage_only():
    """The last stage never resizes, so it takes latents of any shape."""
    scheduler = staged(make(EULER))
    scheduler.restrict(0)
    scheduler.set_timesteps([1, 1, 1])
    x = torch.ones(3, 5)
    assert torch.allclose(scheduler.step(x, scheduler.timesteps[0], x).prev_sample, x - scheduler.sigmas[0])


def test_generators_are_counted_before_a_stage_is_run():
    scheduler = staged(make(EULER))
    scheduler.set_timesteps([2, 1, 1])
    x, two = torch.zeros(1, 1, 2, 1, 1), [torch.Generator(), torch.Generator()]
    with pytest.raises(ValueError, match="2 generators for a batch of 1"):
        scheduler.step(x, scheduler.timesteps[0], x, generator=two)
