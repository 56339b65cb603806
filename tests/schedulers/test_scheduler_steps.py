"""How steps are shared out among the stages, and counted."""

import numpy as np
import pytest
import torch
from scheduled import STABLE_DIFFUSION, grids, make, noise, staged

EULER, UNIPC = "FlowMatchEulerDiscreteScheduler", "UniPCMultistepScheduler"


@pytest.mark.parametrize("name", [EULER, UNIPC, "DDIMScheduler"])
def test_until_steps_are_laid_out_times_are_the_wrapped_schedulers(name):
    base = make(name)
    scheduler = staged(base)
    assert torch.equal(scheduler.timesteps, base.timesteps)
    assert hasattr(scheduler, "sigmas") == hasattr(base, "sigmas")
    assert not hasattr(base, "sigmas") or torch.equal(scheduler.sigmas, base.sigmas)
    scheduler.set_timesteps(6)
    assert len(scheduler.timesteps) == len(scheduler.sigmas) - 1 == 6


def test_a_total_is_shared_out_with_the_rest_to_the_coarsest():
    scheduler = staged(make(EULER))
    scheduler.set_timesteps(11)
    assert scheduler.num_inference_steps == len(scheduler.timesteps) == 11
    evenly = scheduler.sigmas
    apart = np.concatenate([grid[:-1] for grid in grids(scheduler, [5, 3, 3])])
    assert np.array_equal(apart, evenly[:-1].double())
    scheduler.set_timesteps([6, 1, 2])
    assert scheduler.num_inference_steps == 9


def test_steps_given_once_win_over_the_pipelines():
    scheduler = staged(make(EULER), steps=(20, 20, 10))
    scheduler.set_timesteps(30)
    assert scheduler.num_inference_steps == 50
    scheduler.set_timesteps()
    assert scheduler.num_inference_steps == 50
    scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10))
    assert scheduler.num_inference_steps == 50
    assert staged(make(EULER), steps=11).config.steps == [5, 3, 3]


@pytest.mark.parametrize("name", [EULER, "FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler"])
def test_evaluations_are_counted(name):
    scheduler = staged(make(name))
    assert scheduler.step_index is None
    scheduler.set_timesteps([3, 2, 2])
    expected = 7 if scheduler.order == 1 else 2 * 7 - 1  # the last step ends in clean latents, where none is needed
    assert len(scheduler.timesteps) == expected
    seen, x = [], noise(1, 1, 2, 2, 2)
    for t in scheduler.timesteps:
        seen.append((scheduler.step_index, scheduler.stage))
        x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample
    each = [3, 2, 2] if scheduler.order == 1 else [6, 4, 3]
    assert seen == list(enumerate([2] * each[0] + [1] * each[1] + [0] * each[2]))


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (2, "2 steps cannot fill 3 stages; nearest: 3"),
        ([4, 4], "2 step counts .4-4. for 3 stages"),
        ([4, 0, 4], "every stage needs at least one whole step, got 4-0-4"),
        (None, "give num_inference_steps, or sigmas"),
    ],
)
def test_counts_that_do_not_fit_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        staged(make(EULER)).set_timesteps(count)


def test_timesteps_lie_on_the_device_that_was_asked_for():
    scheduler = staged(make(UNIPC, **STABLE_DIFFUSION))
    scheduler.set_timesteps(6, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    assert scheduler.timesteps.dtype == torch.int64
