"""Networks that are told whole timesteps: stages start on the next noisier one, and the jump stays right."""

import itertools

import numpy as np
import pytest
import torch
from scheduled import (
    STABLE_DIFFUSION,
    bounds,
    gaussian,
    law_after_jump,
    make,
    noise,
    run,
    staged,
    told,
)

DDIM, UNIPC, DPM = "DDIMScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"
WHOLE = [
    pytest.param(DDIM, {"clip_sample": False}, id="ddim"),
    pytest.param("CogVideoXDDIMScheduler", {}, id="cogvideox"),
    pytest.param(UNIPC, {}, id="unipc"),
    pytest.param(DPM, {}, id="dpm"),
]
FLOATS = ["EulerDiscreteScheduler", "HeunDiscreteScheduler"]


def first_told(scheduler, counts=(4, 4, 4)):
    """What the network is told at the first step of every stage, coarsest first."""
    scheduler.set_timesteps(list(counts))
    twice = 2 if scheduler.order == 2 else 1
    places = [0, *itertools.accumulate(twice * n for n in counts[:-1])]
    return scheduler.timesteps[places]


@pytest.mark.parametrize(("name", "config"), WHOLE)
def test_stages_start_on_the_next_noisier_timestep(name, config):
    scheduler = staged(make(name, **STABLE_DIFFUSION, **config))
    exact = [999 * start for start, _ in bounds(scheduler)]
    starts = first_told(scheduler)
    assert starts.dtype == scheduler.timesteps.dtype == torch.int64
    assert starts.tolist() == [999, *(int(np.ceil(start)) for start in exact[1:])]
    assert all(0 < start - at < 1 for start, at in zip(starts.tolist()[1:], exact[1:], strict=True))


def test_stable_diffusions_stages_start_where_the_mathematics_says():
    """Ends at indices 666 and 333 roll back to 751.59 and 437.96 with pairs of frames."""
    assert first_told(staged(make(DDIM, **STABLE_DIFFUSION))).tolist() == [999, 752, 438]
    floats = first_told(staged(make("EulerDiscreteScheduler", **STABLE_DIFFUSION)))
    assert floats.tolist() == pytest.approx([999, 751.5911, 437.9586], abs=1e-3)


@pytest.mark.parametrize("name", FLOATS)
def test_others_start_between_timesteps(name):
    scheduler = staged(make(name, **STABLE_DIFFUSION))
    starts = first_told(scheduler)
    assert starts.dtype == torch.float32
    assert starts.tolist() == pytest.approx([999 * start for start, _ in bounds(scheduler)], abs=1e-3)


@pytest.mark.parametrize(("name", "config"), WHOLE)
def test_levels_are_those_of_the_times_told(name, config):
    scheduler = staged(make(name, **STABLE_DIFFUSION, **config))
    scheduler.set_timesteps([7, 5, 3])
    t = told(scheduler.base, scheduler.timesteps)
    sigma, alpha = scheduler.pyramid.schedule.sigma(t), scheduler.pyramid.schedule.alpha(t)
    in_base_terms = sigma if name.endswith("DDIMScheduler") or name.startswith("Cog") else sigma / alpha
    assert torch.allclose(scheduler.sigmas[:-1].double(), in_base_terms, rtol=1e-5)
    assert scheduler.sigmas[-1] == 0


@pytest.mark.parametrize(("name", "config"), [*WHOLE, *(pytest.param(name, {}, id=name) for name in FLOATS)])
@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
def test_a_jump_lands_on_the_law_of_the_level_told(name, config, k, causal):
    """Exactly, though the start is noisier than pairs of frames need: up to one of a mere 40 timesteps."""
    alphas = np.cos(np.linspace(0.03, 1.5, 41)) ** 2
    betas = (1 - alphas[1:] / alphas[:-1]).tolist()
    shift = {"snr_shift_scale": 1.0} if name.startswith("Cog") else {}
    base = make(name, num_train_timesteps=40, trained_betas=betas, **config, **shift)
    scheduler = staged(base, causal_time=causal, ends=[0.29, 0.61])
    video = gaussian(scheduler, (9 if causal else 8, 1, 1))
    mean, cov, level = law_after_jump(scheduler, video, k)
    exact = scheduler.pyramid.stages[k].start
    assert level.t == pytest.approx(exact if name in FLOATS else np.ceil(39 * exact) / 39, abs=1e-6)
    signal = level.alpha * video.lifted[k]
    assert mean == pytest.approx(signal @ video.mean, abs=1e-5)
    wanted = signal @ video.cov @ signal.T + level.sigma**2 * np.eye(len(signal))
    assert np.abs(cov - wanted).max() < 1e-5


@pytest.mark.parametrize(("name", "config"), WHOLE)
def test_no_two_steps_stand_on_one_timestep(name, config):
    """Down to the last whole timestep that a stage has, wherever between two of them its end falls."""
    for end in np.linspace(0.2, 0.3, 4):
        scheduler = staged(make(name, **STABLE_DIFFUSION, **config), ends=[end, 0.6])
        start = first_told(scheduler)[1].item()
        room = start - int(np.floor(999 * end))
        scheduler.restrict(1)
        for steps in (room, room - 1, room // 2 + 1):
            scheduler.set_timesteps([4, steps, 4])
            times = scheduler.timesteps.tolist()
            assert len(times) == steps == len(set(times))
            assert times == sorted(times, reverse=True)
            assert times[0] == start
            assert times[-1] > 999 * end
        with pytest.raises(ValueError, match=f"stage 1 has {room} whole timesteps, too few for {room + 1} steps"):
            scheduler.set_timesteps([4, room + 1, 4])


@pytest.mark.parametrize("counts", [[400, 4, 4], [4, 500, 4], [4, 4, 500]])
def test_all_stages_are_checked_and_nothing_is_laid_out(counts):
    scheduler = staged(make(DDIM, **STABLE_DIFFUSION))
    scheduler.set_timesteps([2, 2, 2])
    scheduler.restrict(1)
    laid_out = scheduler.timesteps
    with pytest.raises(ValueError, match=rf"stage {2 - counts.index(max(counts))} has .* few for {max(counts)} steps"):
        scheduler.check(counts)
    scheduler.check([4, 4, 4])
    assert scheduler.timesteps is laid_out


@pytest.mark.parametrize(("name", "config"), WHOLE)
def test_as_many_steps_as_timesteps_stay_finite(name, config):
    scheduler = staged(make(name, **STABLE_DIFFUSION, **config), ends=[0.2051282, 0.6])
    x = noise(1, 1, 2, 2, 2)
    scheduler.set_timesteps([4, 488, 4])
    assert run(scheduler, x).isfinite().all()


@pytest.mark.parametrize("name", [DDIM, UNIPC, "EulerDiscreteScheduler"])
def test_tables_of_sigmas_belong_to_flow_matching(name):
    scheduler = staged(make(name, **STABLE_DIFFUSION))
    with pytest.raises(ValueError, match="sigmas to follow are flow matching's"):
        scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.3])
