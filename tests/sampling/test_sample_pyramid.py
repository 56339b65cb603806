"""The stage loop: what it calls, what it tells, what it refuses, and what its randomness depends on."""

import pytest
import torch

from tpdiff.pyramid import FlowMatchingSchedule, Pyramid, VariancePreservingSchedule
from tpdiff.sampling.loop import Progress, sample_pyramid

FLOW = FlowMatchingSchedule()
VP = VariancePreservingSchedule()
BOTH = ((1, 1, 1), (2, 2, 2), (4, 4, 4))
SHAPE = (2, 3, 8, 4, 8)


def bent(x, t, stage):
    """A made-up network: elementwise, and different at every time and stage."""
    return torch.sin(x * (1 + stage)) + t.to(x.dtype).view(-1, 1, 1, 1, 1) * x


def never(x, t, stage):
    raise AssertionError("the denoiser was called")


def seeds(*values):
    return [torch.Generator().manual_seed(value) for value in values]


class Recorder:
    def __init__(self):
        self.calls = []

    def __call__(self, x, t, stage):
        assert not torch.is_grad_enabled()
        self.calls.append((tuple(x.shape), x.dtype, t.clone(), stage))
        return bent(x, t, stage)


@pytest.mark.parametrize("causal", [False, True], ids=["plain", "causal"])
def test_every_stage_is_denoised_at_its_own_size(causal):
    pyramid = Pyramid(FLOW, BOTH, causal_time=causal)
    shape = (2, 3, 9 if causal else 8, 4, 8)
    denoiser = Recorder()
    out = sample_pyramid(denoiser, pyramid, shape, (3, 2, 1), generator=seeds(0)[0])
    assert out.shape == shape
    assert out.dtype == torch.float32
    sizes = (
        [(2, 3, 3, 1, 2)] * 3 + [(2, 3, 5, 2, 4)] * 2 + [shape]
        if causal
        else ([(2, 3, 2, 1, 2)] * 3 + [(2, 3, 4, 2, 4)] * 2 + [shape])
    )
    assert [call[0] for call in denoiser.calls] == sizes
    assert [call[3] for call in denoiser.calls] == [2, 2, 2, 1, 1, 0]
    start_1, start_0 = (pyramid.stages[k].start for k in (1, 0))
    wanted = [1, 8 / 9, 7 / 9, start_1, (start_1 + 1 / 3) / 2, start_0]
    for (_, _, t, _), value in zip(denoiser.calls, wanted, strict=True):
        assert t.dtype == torch.float32
        assert t.tolist() == pytest.approx([value, value], abs=1e-6)


def test_a_total_is_split_over_the_stages():
    denoiser = Recorder()
    sample_pyramid(denoiser, Pyramid(FLOW, BOTH), SHAPE, 20, generator=seeds(0)[0])
    assert [call[3] for call in denoiser.calls] == [2] * 8 + [1] * 6 + [0] * 6


@pytest.mark.parametrize(("solver", "counts"), [("euler", [4, 3, 2]), ("ddim", [4, 3, 2]), ("heun", [8, 6, 3])])
def test_calls_a_solver_makes(solver, counts):
    """Heun calls twice a step, but for the very last one, which reaches a level without noise."""
    denoiser = Recorder()
    sample_pyramid(denoiser, Pyramid(FLOW, BOTH), SHAPE, (4, 3, 2), solver=solver, generator=seeds(0)[0])
    assert [[call[3] for call in denoiser.calls].count(k) for k in (2, 1, 0)] == counts


def test_latents_keep_their_dtype_whatever_the_network_answers():
    seen = []

    def widening(x, t, stage):
        seen.append((x.dtype, t.dtype))
        return bent(x.double(), t, stage)

    out = sample_pyramid(widening, Pyramid(FLOW, BOTH), SHAPE, 6, dtype=torch.bfloat16, generator=seeds(0)[0])
    assert out.dtype == torch.bfloat16
    assert set(seen) == {(torch.bfloat16, torch.float32)}


# Randomness


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_video_does_not_depend_on_its_batch(solver):
    pyramid = Pyramid(FLOW, BOTH, causal_time=True)

    def run(*values):
        shape = (len(values), 3, 9, 4, 8)
        return sample_pyramid(bent, pyramid, shape, 6, generator=seeds(*values), solver=solver)

    together = run(5, 6, 7)
    assert torch.equal(together[1:2], run(6))
    assert torch.equal(together[[2, 0]], run(7, 5))
    assert not torch.equal(together[:1], together[1:2])


def test_a_seed_makes_the_same_video_again():
    pyramid = Pyramid(FLOW, BOTH)
    first, again, other = (sample_pyramid(bent, pyramid, SHAPE, 6, generator=seeds(seed)[0]) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_no_draw_comes_from_the_global_generator():
    pyramid = Pyramid(FLOW, BOTH)
    before = torch.random.get_rng_state()
    sample_pyramid(bent, pyramid, SHAPE, 6, generator=seeds(3)[0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_start_noise_is_drawn_as_diffusers_draws_it():
    from diffusers.utils.torch_utils import randn_tensor

    starts = []

    def first(x, t, stage):
        starts.append(x.clone())
        return x

    for generator in (lambda: seeds(3)[0], lambda: seeds(3, 4)):
        starts.clear()
        sample_pyramid(first, Pyramid(FLOW, BOTH), SHAPE, 3, generator=generator())
        assert torch.equal(starts[0], randn_tensor((2, 3, 2, 1, 2), generator=generator()))


def test_given_latents_are_the_start_and_are_left_alone():
    latents = torch.randn((2, 3, 2, 1, 2), generator=seeds(1)[0])
    kept, denoiser = latents.clone(), []

    def first(x, t, stage):
        denoiser.append(x.clone())
        return x

    sample_pyramid(first, Pyramid(FLOW, BOTH), SHAPE, 3, latents=latents, generator=seeds(0)[0])
    assert torch.equal(denoiser[0], kept)
    assert torch.equal(latents, kept)


# Progress


@pytest.mark.parametrize("solver", ["euler", "ddim", "heun"])
def test_a_callback_hears_of_every_step(solver):
    pyramid = Pyramid(FLOW, BOTH)
    told: list[Progress] = []
    asked = []

    def denoiser(x, t, stage):
        asked.append((x.clone(), float(t[0])))
        return bent(x, t, stage)

    out = sample_pyramid(
        denoiser, pyramid, SHAPE, (2, 2, 1), generator=seeds(0)[0], callback=told.append, solver=solver
    )
    assert [p.step for p in told] == [1, 2, 3, 4, 5]
    assert {p.total for p in told} == {5}
    assert [p.stage for p in told] == [2, 2, 1, 1, 0]
    assert [p.ends_stage for p in told] == [False, True, False, True, True]
    middle = (pyramid.stages[1].start + 1 / 3) / 2
    assert [p.t for p in told] == pytest.approx([5 / 6, 2 / 3, middle, 1 / 3, 0], abs=1e-12)
    for p in told:
        assert p.latents.shape == p.denoised.shape == pyramid.stage_shape(SHAPE, p.stage)
    assert torch.equal(told[-1].latents, out)
    x, t = asked[0]
    torch.testing.assert_close(told[0].denoised, x - t * bent(x, torch.full((2,), t), 2))


@pytest.mark.parametrize("first", [0, 1])
def test_a_later_stage_can_be_the_first(first):
    """From the latents that a whole run enters it with, the rest is the same."""
    pyramid, ended = Pyramid(FLOW, BOTH), {}

    def keep(progress):
        if progress.ends_stage:
            ended[progress.stage] = progress.latents

    whole = sample_pyramid(bent, pyramid, SHAPE, (3, 2, 4), generator=seeds(0)[0], callback=keep)
    generator = seeds(0)[0]
    torch.randn(2, 3, 2, 1, 2, generator=generator)
    for k in (1, 0)[: 2 - first]:
        latents = pyramid.jump(ended[k + 1], k, generator=generator)
    denoiser = Recorder()
    options = {"latents": latents, "first_stage": first, "generator": generator}
    rest = sample_pyramid(denoiser, pyramid, SHAPE, (2, 4)[1 - first :], **options)
    assert [call[3] for call in denoiser.calls] == [1] * 2 * first + [0] * 4
    assert torch.equal(rest, whole)


# Refusals, all before the denoiser is called


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"shape": (2, 3, 9, 4, 8)}, "num_frames 9 is not a multiple of 4 .*nearest: 8 or 12"),
        ({"shape": (2, 3, 8, 6, 8)}, "height 6 is not a multiple of 4 .*nearest: 4 or 8"),
        ({"shape": (3, 8, 4, 8)}, "expected a shape"),
        ({"steps": 2}, "2 steps cannot fill 3 stages"),
        ({"steps": (5, 5)}, "2 step counts"),
        ({"solver": "dpm++"}, "unknown solver 'dpm.*known: euler, ddim, heun"),
        ({"spacing": "karras"}, "unknown spacing 'karras'"),
        ({"spacing": "karras", "steps": 3}, "unknown spacing 'karras'"),
        ({"prediction_type": "velocity"}, "unknown prediction_type 'velocity'"),
        ({"prediction_type": "epsilon"}, "epsilon prediction cannot start from pure noise"),
        ({"latents": torch.zeros(SHAPE)}, r"latents \(2, 3, 8, 4, 8\) must have the coarsest.*\(2, 3, 2, 1, 2\)"),
        ({"latents": torch.zeros(SHAPE), "first_stage": 1}, r"must have the first stage's shape \(2, 3, 4, 2, 4\)"),
        ({"first_stage": 1}, "first_stage 1 begins with latents of that stage; give them"),
        ({"first_stage": 3}, "no stage 3: stages are 0, the finest, to 2"),
        ({"first_stage": 1, "latents": torch.zeros(2, 3, 4, 2, 4), "steps": (2, 2, 2)}, "3 step counts"),
        ({"generator": seeds(1, 2, 3)}, "3 generators for a batch of 2"),
    ],
)
def test_refusals_come_before_any_work(change, complaint):
    options = {"shape": SHAPE, "steps": 6} | change
    shape, steps = options.pop("shape"), options.pop("steps")
    with pytest.raises(ValueError, match=complaint):
        sample_pyramid(never, Pyramid(FLOW, BOTH), shape, steps, **options)


def test_zero_terminal_snr_and_epsilon_are_refused_before_any_work():
    pyramid = Pyramid(VP.zero_terminal_snr(), BOTH)
    with pytest.raises(ValueError, match="epsilon prediction cannot start from pure noise"):
        sample_pyramid(never, pyramid, SHAPE, 6, prediction_type="epsilon")
    out = sample_pyramid(bent, pyramid, SHAPE, 6, prediction_type="v_prediction", generator=seeds(0)[0])
    assert out.isfinite().all()


def test_a_wrong_number_of_generators_is_refused_before_any_work_with_latents_too():
    latents = torch.zeros(2, 3, 2, 1, 2)
    with pytest.raises(ValueError, match="3 generators for a batch of 2"):
        sample_pyramid(never, Pyramid(FLOW, BOTH), SHAPE, 6, latents=latents, generator=seeds(1, 2, 3))
