"""A network is asked for training what its stock pipeline asks it, and answers in one convention."""

import re
from collections import defaultdict

import pytest
import torch
from accelerate import cpu_offload_with_hook
from asked import PROMPTS, ask_again, asker_of, noise_for, questions, unguided, without_guider
from oracle import Oracle
from recording import PICTURE_ENCODERS, encodings
from test_gaussian import FACTORS
from test_pictures import without_spread
from tiny import CASES, find_case, picture
from torch import Tensor

from tpdiff import apply_pyramid, remove_pyramid
from tpdiff.pyramid import Pyramid
from tpdiff.sampling.asking import Asker

TIME = [(1, 1, 1), (2, 1, 1), (4, 1, 1)]
EACH_SCHEDULER = pytest.mark.parametrize(
    ("case", "scheduler"),
    [
        pytest.param(case, scheduler, id=f"{case}-{scheduler}")
        for case in CASES
        for scheduler in ("default", "other")
        if case.default_runs or scheduler == "other"
    ],
)


def assert_same(asked, stock, atol=0.0):
    """Argument for argument; only a time may be told in another form."""
    assert asked.keys() == stock.keys()
    for name, theirs in stock.items():
        ours = asked[name]
        if name == "timestep":  # some stock solvers tell whole numbers, and some pipelines one for the batch
            ours, theirs = ours.to(theirs.dtype), theirs.expand_as(ours)
        if isinstance(theirs, Tensor) or (isinstance(theirs, tuple) and isinstance(theirs[0], Tensor)):
            torch.testing.assert_close(ours, theirs, atol=atol, rtol=0, msg=lambda told, name=name: f"{name}: {told}")
        else:
            assert ours == theirs


def steady(case):
    """The pipeline without guidance, its encoding of a picture the same each time."""
    pipe = without_guider(case, case.stageable())
    return without_spread(pipe) if case.pictures else pipe


def outputs(question):
    return question.network(**question.kwargs)[0]


def ask(case, asker, t, prompts=PROMPTS[:1], **changes):
    """About noise."""
    given = noise_for(case, asker, len(prompts)) | changes
    return asker.ask(t=asker.times(torch.tensor(t)), conditions=asker.encode(prompts), **given)


@EACH_SCHEDULER
def test_the_question_is_the_stock_loops(case, scheduler):
    pipe = without_guider(case, case.pipe())
    if scheduler == "other":
        pipe.scheduler = case.other(pipe)
    with questions(case, pipe) as stock:
        case.run(pipe, **unguided(case))
    asker = asker_of(case, pipe)
    for name, given in (stock[0], stock[-2]):
        question = ask_again(case, asker, given, generator=torch.Generator().manual_seed(7))
        assert question.component == name
        assert question.network is getattr(pipe, name)
        assert_same(question.kwargs, given)


def test_the_question_is_that_of_every_stage(case):
    """Its size, its times between whole ones, its frame rate, its encoding of the picture."""
    pipe = apply_pyramid(steady(case), TIME, (2, 2, 2))
    with questions(case, pipe) as stock:
        case.run(pipe, **unguided(case))
    asker = asker_of(case, pipe)
    for (name, given), factors in zip(stock[1::2], reversed(TIME), strict=True):
        question = ask_again(case, asker, given, factors)
        assert question.component == name
        assert_same(question.kwargs, given, atol=1e-5 if case.pictures else 0.0)


def test_a_batch_of_one_time_is_the_stock_loops(case):
    """What has no batch axis is not repeated."""
    pipe = steady(case)
    with questions(case, pipe) as stock:
        case.run(pipe, batch=2, **unguided(case))
    question = ask_again(case, asker_of(case, pipe), stock[0][1])
    assert_same(question.kwargs, stock[0][1], atol=1e-5)


@pytest.mark.parametrize(
    ("case", "axis"),
    [
        pytest.param(case, axis, id=f"{case}-{axis}")
        for case in CASES
        for axis in FACTORS
        if case.over_space or axis == "time"
    ],
)
def test_the_answer_is_the_gaussians_in_every_stage(case, axis):
    """The perfect network in the family's own convention: sign, time scale, layout and prediction type are right."""
    pipe = apply_pyramid(case.stageable(), FACTORS[axis], (2, 2, 2))
    filled = case.latent[0] % 2 == 0 and pipe.scheduler.pyramid.causal_time
    skipped = int(filled or case.kept)
    oracle = Oracle(case, pipe, axis, skipped, pipe.scheduler.pyramid.causal_time and not case.kept)
    asker, pyramid = asker_of(case, pipe), pipe.scheduler.pyramid
    assert asker.prediction_type == oracle.video.prediction_type
    latent = asker.family.latent_size(pipe, oracle.pixels())
    for k, factors in enumerate(FACTORS[axis]):
        t = asker.times(pyramid.times(torch.tensor([0.4]), k))
        shape = pyramid.stage_shape((1, 1, *latent), k)[2:]
        given = noise_for(case, asker, latent=shape)
        question = asker.ask(t=t, conditions=asker.encode(PROMPTS[:1]), factors=factors, **given)
        answer = asker.answer(question, oracle(**question.kwargs | {"return_dict": False})[0])
        assert answer.shape == given["x"].shape
        real = slice(int(case.kept), None)
        lines = given["x"][:, :, real].movedim(oracle.dim, -1)
        expected = oracle.video(lines.reshape(-1, 1, lines.shape[-1], 1, 1).double(), t, k)
        expected = expected.view(lines.shape).movedim(-1, oracle.dim).float()
        torch.testing.assert_close(answer[:, :, real], expected, atol=1e-4, rtol=1e-4)
        assert float(expected.abs().max()) > 0.1
        assert question.predicted.flatten().tolist() == [0.0] * case.kept + [1.0] * (shape[0] - case.kept)


def test_a_batch_is_its_single_questions(case):
    """Each sample has a time, a prompt and a picture of its own."""
    asker = asker_of(case, steady(case))
    given, t = noise_for(case, asker, 2), [0.3, 0.6]
    if case.pictures:
        given["pictures"] = [picture(0), picture(1)]
    with torch.no_grad():
        question = ask(case, asker, t, PROMPTS, **given)
        both = asker.answer(question, outputs(question))
        for n, (time, prompt) in enumerate(zip(t, PROMPTS, strict=True)):
            own = {
                name: value and value[n : n + 1] if isinstance(value, list) else value for name, value in given.items()
            }
            own |= {name: value[n : n + 1] for name, value in given.items() if isinstance(value, Tensor)}
            alone = ask(case, asker, [time], [prompt], **own)
            torch.testing.assert_close(both[n : n + 1], asker.answer(alone, outputs(alone)), atol=1e-5, rtol=0)
        swapped = ask(case, asker, t, PROMPTS[::-1], **given)
        assert not torch.allclose(asker.answer(swapped, outputs(swapped)), both, atol=1e-6)


@pytest.mark.parametrize("case", [case for case in CASES if case.pictures], ids=str)
def test_an_encoded_picture_is_asked_about_as_a_new_one(case):
    """At several sizes, and for pictures of their own."""
    asker, encoded = asker_of(case, case.stageable()), defaultdict(dict)
    full = asker.family.latent_size(asker.pipe, case.narrow)
    coarse = Pyramid(asker.schedule, TIME, causal_time=True).stage_shape((1, 1, *full), 2)[2:]
    for latent in (full, coarse, full, coarse):
        given = noise_for(case, asker, 2, latent) | {"pictures": [picture(0), picture(1)]}
        anew = ask(case, asker, [0.3, 0.3], PROMPTS, **given)
        with encodings(asker.pipe, PICTURE_ENCODERS) as made:
            again = ask(case, asker, [0.3, 0.3], PROMPTS, **given, encoded=encoded)
        assert_same(again.kwargs, anew.kwargs)
    assert not made


def test_gradients_reach_what_stock_uses_and_nothing_else_is_touched(case):
    pipe = without_guider(case, case.stageable())
    stock = case.run(pipe)
    with questions(case, pipe) as calls:
        case.run(pipe, **unguided(case))
    asker = asker_of(case, pipe)
    before, inside, random = dict(vars(pipe)), {n: dict(vars(m)) for n, m in parts(pipe)}, torch.get_rng_state()
    question = ask(case, asker, [0.4])
    assert torch.equal(torch.get_rng_state(), random)
    assert vars(pipe) == before
    assert {n: dict(vars(m)) for n, m in parts(pipe)} == inside
    asker.answer(question, outputs(question)).square().mean().backward()
    reached = {name for name, p in named(pipe) if p.grad is not None}
    for _, p in named(pipe):
        p.grad = None
    name, given = next((name, given) for name, given in calls if name == question.component)
    getattr(pipe, name)(**given)[0].square().mean().backward()
    assert reached == {name for name, p in named(pipe) if p.grad is not None}
    assert reached
    assert {name.split(".")[0] for name in reached} == {question.component}
    assert torch.equal(case.run(pipe), stock)


def parts(pipe):
    return [(name, part) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)]


def named(pipe):
    return [(f"{n}.{name}", p) for n, part in parts(pipe) for name, p in part.named_parameters()]


@pytest.mark.parametrize("name", ["wan", "wan-picture", "animatediff", "hunyuan15"])
def test_no_network_and_no_hook_runs_and_encoders_run_once_a_prompt(name):
    case = find_case(name)
    asker = asker_of(case, case.stageable())
    conditions = asker.encode(PROMPTS)
    with questions(case, asker.pipe) as networks, encodings(asker.pipe) as encoders:
        for _ in range(2):
            asker.ask(t=asker.times(torch.tensor([0.3, 0.6])), conditions=conditions, **noise_for(case, asker, 2))
    assert networks == []
    assert not any("text" in one for one in encoders)
    assert all(not value.is_cuda and len(value) == 1 for one in conditions for value in one.values())
    null = asker.encode([None, ""])
    assert all(torch.equal(null[0][one], null[1][one]) for one in null[0])


def test_what_is_offloaded_is_put_away_and_the_network_stays():
    case = find_case("wan-picture")
    pipe = case.stageable()
    pipe._all_hooks = []
    for part in ("text_encoder", "image_encoder", "transformer", "vae"):
        pipe._all_hooks.append(cpu_offload_with_hook(getattr(pipe, part), "cpu")[1])
    seen = []
    for hook in pipe._all_hooks:
        hook.offload = lambda model=hook.model: seen.append(type(model).__name__)
    asker = asker_of(case, pipe)
    question = ask(case, asker, [0.4])
    assert set(seen) == {type(getattr(pipe, one)).__name__ for one in ("text_encoder", "image_encoder", "vae")}
    assert outputs(question).isfinite().all()
    assert hasattr(pipe.transformer, "_hf_hook")


@pytest.mark.parametrize("name", ["wan", "animatediff"])
def test_a_compiled_network_is_asked_the_same(name):
    case = find_case(name)
    pipe = case.stageable()
    plain = ask(case, asker_of(case, pipe), [0.4])
    network = torch.compile(plain.network)
    setattr(pipe, plain.component, network)
    question = ask(case, asker_of(case, pipe), [0.4])
    assert question.network is network
    assert_same(question.kwargs, plain.kwargs)


@pytest.mark.parametrize("name", ["wan", "hunyuan", "cogvideox-picture"])
def test_half_precision(name):
    case = find_case(name)
    pipe = case.stageable().to(torch.bfloat16)
    asker = asker_of(case, pipe)
    question = ask(case, asker, [0.4])
    latents = question.kwargs["hidden_states"]
    assert latents.dtype == torch.bfloat16
    assert asker.answer(question, outputs(question)).dtype == torch.bfloat16


def test_a_pyramid_may_come_and_go():
    case = find_case("ltx")
    pipe = case.stageable()
    asker = asker_of(case, pipe)
    plain = ask(case, asker, [0.4])
    apply_pyramid(pipe, TIME, (2, 1, 1))
    assert_same(ask(case, asker, [0.4]).kwargs, plain.kwargs)
    assert_same(ask(case, asker_of(case, pipe), [0.4]).kwargs, plain.kwargs)
    remove_pyramid(pipe)
    assert_same(ask(case, asker, [0.4]).kwargs, plain.kwargs)


@pytest.mark.parametrize("name", ["wan-experts", "wan-experts-picture"])
def test_two_experts(name):
    case = find_case(name)
    asker = asker_of(case, case.stageable())
    boundary = asker.pipe.config.boundary_ratio
    assert asker.spans == {"transformer": (boundary, 1.0), "transformer_2": (0.0, boundary)}
    assert asker.networks == {one: getattr(asker.pipe, one) for one in asker.spans}
    for t, component in ((1.0, "transformer"), (boundary, "transformer"), (boundary - 1e-3, "transformer_2")):
        assert ask(case, asker, [t]).component == component
    with pytest.raises(ValueError, match="two networks, transformer and transformer_2: ask for them apart"):
        ask(case, asker, [0.95, 0.2], PROMPTS)


def test_embedded_guidance_is_told():
    case = find_case("hunyuan")
    pipe = case.stageable()
    assert ask(case, asker_of(case, pipe), [0.4]).kwargs["guidance"].tolist() == [6000.0]
    assert ask(case, Asker(pipe, 1.0, **case.call), [0.4]).kwargs["guidance"].tolist() == [1000.0]
    with pytest.raises(ValueError, match="guidance 3: this network is not told its guidance"):
        Asker(find_case("wan").stageable(), 3.0)


def test_whole_timesteps_are_the_next_noisier():
    asker = asker_of(find_case("animatediff"), find_case("animatediff").stageable())
    index = asker.times(torch.tensor([0.0, 0.2, 436.2 / 999, 437 / 999, 1.0])) * 999
    assert index.tolist() == pytest.approx([0, 200, 437, 437, 999], abs=1e-9)
    case = find_case("wan")
    t = torch.tensor([0.1234567])
    assert torch.equal(asker_of(case, case.stageable()).times(t), t.double())


def test_options_reach_every_call():
    case = find_case("ltx")
    asker = Asker(case.stageable(), **case.call, frame_rate=30)
    scale = [ask(case, asker, [0.4], factors=factors).kwargs["rope_interpolation_scale"][0] for factors in TIME]
    assert scale == pytest.approx([8 / 30, 16 / 30, 32 / 30])


def test_refusals_before_any_work():
    case = find_case("wan")
    pipe = case.stageable()
    asker = asker_of(case, pipe)

    def refused(told, **changes):
        with questions(case, pipe) as networks, pytest.raises(ValueError, match=told):
            ask(case, asker, changes.pop("t", [0.4]), **changes)
        assert networks == []

    noise = torch.zeros
    refused(r"shape \(1, 3, 5, 2, 2\) are not of shape \(B, 16, t, h, w\)", x=noise(1, 3, 5, 2, 2))
    refused(r"shape \(1, 16, 2, 2\) are not", x=noise(1, 16, 2, 2))
    refused(r"height 24 is not a multiple of 16 .*nearest: 16 or 32", x=noise(1, 16, 5, 3, 2))
    refused("1 conditions for 2 samples", x=noise(2, 16, 5, 2, 2), t=[0.4, 0.4])
    refused(re.escape("times [0.25, 0.5] are not 1 in [0, 1]"), t=[0.25, 0.5])
    refused(re.escape("times [1.5] are not 1 in [0, 1]"), t=[1.5])
    refused("WanPipeline takes no pictures", pictures=[picture()])
    refused(re.escape("must have the shape (1, 16, 0, 2, 2)"), filling=noise(1, 16, 1, 2, 2))
    with pytest.raises(ValueError, match="'frame_rat' is no option of LTXPipeline; nearest: frame_rate"):
        Asker(find_case("ltx").stageable(), frame_rat=3)
    with pytest.raises(ValueError, match="'num_frames' is no option of LTXPipeline"):
        Asker(find_case("ltx").stageable(), num_frames=3)
    with pytest.raises(ValueError, match="CogVideoXDPMScheduler cannot run inside a stage"):
        Asker(find_case("cogvideox-rotary").pipe())


@pytest.mark.parametrize(
    ("name", "told", "changes"),
    [
        ("animatediff", "num_frames 40 is out of this network's positions' reach", {"x": torch.zeros(1, 4, 40, 2, 2)}),
        ("cogvideox-picture", "height 32 is out of .*nearest: 64", {"x": torch.zeros(1, 4, 5, 4, 4)}),
        ("cogvideox-pairs", r"must have the shape \(1, 4, 1, 2, 2\)", {"filling": None}),
        ("wan-picture", "WanImageToVideoPipeline needs pictures", {"pictures": None}),
        ("wan-picture", "2 pictures for 1 samples", {"pictures": [picture(), picture()]}),
    ],
)
def test_refusals_of_a_networks_own(name, told, changes):
    case = find_case(name)
    with pytest.raises(ValueError, match=told):
        ask(case, asker_of(case, case.stageable()), [0.4], **changes)


def test_a_time_between_whole_timesteps_is_refused():
    case = find_case("animatediff")
    asker = asker_of(case, case.stageable())
    with pytest.raises(ValueError, match=r"whole timesteps, between which the times \[0\.25\] are"):
        asker.ask(t=torch.tensor([0.25]), conditions=asker.encode(PROMPTS[:1]), **noise_for(case, asker))
