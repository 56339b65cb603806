"""From a picture: its first frame is kept whole, and every stage sees it encoded at the stage's own size."""

import pytest
import torch
from recording import evaluations
from tiny import CASES, find_case, picture

from tpdiff import apply_pyramid, remove_pyramid
from tpdiff.families import find_family
from tpdiff.pyramid import Pyramid
from tpdiff.schedulers import schedule_of

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
BOTH = [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
STEPS = (2, 2, 2)


def with_picture(choose=lambda case: True):
    return pytest.mark.parametrize("case", [case for case in CASES if case.pictures and choose(case)], ids=str)


def without_spread(pipe):
    """Make the autoencoder's posterior narrow, so that an encoding is the same each time it is drawn."""
    encode = pipe.vae._encode
    latents = pipe.vae.config.get("latent_channels") or pipe.vae.config.z_dim

    def narrow(x, *args, **kwargs):
        parameters = encode(x, *args, **kwargs)
        parameters[:, latents:] = -30.0
        return parameters

    pipe.vae._encode = narrow
    return pipe


def factors_of(case):
    return (BOTH, case.size) if case.over_space else (TIME, case.narrow)


@with_picture(lambda case: case.kept)
def test_the_first_latent_frame_is_the_pictures_own_encoding(case):
    """At the full size: as a stock call has it, which makes no other first frame."""
    pipe = without_spread(case.stageable())
    stock = first_frame(case, pipe, case.run(pipe, size=case.size))
    apply_pyramid(pipe, BOTH, STEPS)
    made = case.run(pipe, size=case.size)
    torch.testing.assert_close(first_frame(case, pipe, made), stock, atol=1e-5, rtol=0)
    other = case.run(pipe, size=case.size, image=picture(seed=1, side=96))
    assert not torch.allclose(first_frame(case, pipe, other), stock, atol=1e-2)


def first_frame(case, pipe, latents):
    return find_family(pipe).unpack(pipe, latents, case.latent)[:, :, 0]


@with_picture(lambda case: case.kept)
def test_tokens_of_the_picture_are_at_time_zero_in_every_stage(case):
    pipe = apply_pyramid(case.stageable(), BOTH, STEPS)
    with evaluations(case, pipe) as calls:
        case.run(pipe, size=case.size)
    times = set()
    for call in calls:
        assert call.time.ndim == 2
        a_frame = call.time.shape[1] // call.size[0]
        assert bool((call.time[:, :a_frame] == 0).all())
        later = call.time[:, a_frame:]
        assert bool((later == later[0, 0]).all())
        assert float(later[0, 0]) > 0
        times.add(float(later[0, 0]))
    assert len(times) == sum(STEPS)


@with_picture(lambda case: case.kept)
def test_the_network_sees_the_stages_own_encoding_as_first_frame(case):
    pipe = without_spread(case.stageable())
    apply_pyramid(pipe, BOTH, STEPS)
    with evaluations(case, pipe) as calls:
        case.run(pipe, size=case.size)
    remove_pyramid(pipe)
    for size, own in stages_alone(case, pipe, BOTH, case.size):
        for call in (call for call in calls if call.size == size):
            torch.testing.assert_close(video(call)[:, :, 0], video(own)[:, :, 0], atol=1e-5, rtol=0)


@with_picture(lambda case: case.kept)
def test_the_picture_comes_before_given_latents(case):
    """Which are noise, and no latents that hold a picture already."""
    pipe = without_spread(case.stageable())
    apply_pyramid(pipe, TIME, STEPS)
    family, channels = find_family(pipe), pipe.transformer.config.out_channels
    coarse = case.stage_latents(TIME)[0]
    noise = torch.randn(1, channels, *coarse, generator=torch.Generator().manual_seed(1))
    seen = []
    for given in ({}, {"latents": family.pack(pipe, noise, coarse)}):
        with evaluations(case, pipe) as calls:
            case.run(pipe, **given)
        seen.append(video(calls[0])[:1])
    torch.testing.assert_close(seen[1][:, :, 0], seen[0][:, :, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(seen[1][:, :channels, 1:], noise[:, :, 1:])


@with_picture(lambda case: not case.kept)
def test_conditions_are_the_stages_own_encoding(case):
    """Channels beside the latents are what a stock call of the stage's size has there."""
    factors, size = factors_of(case)
    pipe = without_spread(case.stageable())
    apply_pyramid(pipe, factors, STEPS)
    with evaluations(case, pipe) as calls:
        case.run(pipe, size=size)
    remove_pyramid(pipe)
    channels = case.predictors(pipe)[0].config.out_channels
    for stage, own in stages_alone(case, pipe, factors, size):
        seen = [call for call in calls if call.size == stage]
        assert seen
        for call in seen:
            theirs = video(own)[:, channels:]
            assert float(theirs.abs().max()) > 0
            torch.testing.assert_close(video(call)[:, channels:], theirs, atol=1e-5, rtol=0)


def video(call):
    """The network's input as (B, C, t, h, w)."""
    x, (t, h, w) = call.input, call.size
    if x.ndim == 3:
        return x.transpose(1, 2).unflatten(2, (t, h, w))
    return x if x.shape[2] == t and x.shape[1] != t else x.transpose(1, 2)


def stages_alone(case, pipe, factors, size):
    """(latent size, the first evaluation) of a stock call at every stage's own size in pixels."""
    for one, stage in zip(reversed(factors), case.stage_latents(factors, size), strict=True):
        pixels = 1 + (size[0] - 1) // one[0], size[1] // one[1], size[2] // one[2]
        with evaluations(case, pipe) as calls:
            case.run(pipe, size=pixels, num_inference_steps=2)
        assert calls[0].size == stage
        yield stage, calls[0]


@with_picture()
def test_averaging_the_picture_with_others_is_refused(case):
    pipe = case.stageable()
    plain = Pyramid(schedule_of(pipe.scheduler), TIME)
    told = f"{type(pipe).__name__} is given its first frame, which must not be averaged .* causal_time=True"
    with pytest.raises(ValueError, match=told):
        apply_pyramid(pipe, plain)
    if case.over_space:  # over space alone no frame is averaged with another
        apply_pyramid(pipe, Pyramid(schedule_of(pipe.scheduler), [(1, 1, 1), (1, 2, 2)]), (1, 1))
        assert case.run(pipe, size=case.size).isfinite().all()


def test_cogvideox_pairs_keep_the_picture_in_the_pairs_first_place():
    case = find_case("cogvideox-pairs-picture")
    pipe = apply_pyramid(case.stageable(), TIME, STEPS)
    with evaluations(case, pipe) as calls:
        case.run(pipe)
    assert [call.size[0] for call in calls] == [4, 4, 6, 6, 10, 10]
