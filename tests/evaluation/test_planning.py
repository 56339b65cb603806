"""Plans: operations against sums by hand, sizes against what pipelines really call their networks with."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tpdiff.evaluation.counting import Live, count_model, count_pass
from tpdiff.evaluation.planning import plan, stage_factors, suggest
from tpdiff.families.models import PUBLISHED, find_published
from tpdiff.sampling.apply import apply_pyramid

QUICK = ("wan2.1-1.3b", "ltx")
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in PUBLISHED]
# of the networks alone, as their papers and model cards give them
BILLIONS = {
    "wan2.1-1.3b": 1.4,
    "wan2.1-14b": 14.3,
    "wan2.1-i2v-14b": 16.4,
    "wan2.2-5b": 5.0,
    "cogvideox-2b": 1.7,
    "cogvideox-5b": 5.6,
    "cogvideox1.5-5b": 5.6,
    "ltx": 1.9,
    "hunyuanvideo": 12.8,
    "hunyuanvideo-1.5": 8.3,
    "mochi": 10.0,
    "animatediff": 1.3,
    "modelscope": 1.4,
    "wan2.2-14b": 14.3,
}
SMALL_SIZES = {
    "ltx": (33, 128, 128),
    "mochi": (25, 64, 64),
    "wan2.2-5b": (17, 128, 128),
    "hunyuanvideo-1.5": (17, 64, 64),
    "animatediff": (4, 256, 256),
    "modelscope": (4, 256, 256),
    "cogvideox1.5-5b": (33, 64, 64),
}


@pytest.fixture(scope="module")
def wan():
    return find_published("wan2.1-1.3b")


@pytest.fixture(scope="module")
def planned(wan):
    """The spatio-temporal pyramid of PyramidalWan."""
    return plan(wan, (81, 448, 832), "THW", 3, (20, 20, 10))


def wan_flops(config, latent, text=512, passes=1):
    """Wan's operations, by hand: every product once, 2 a multiply-add."""
    width, ffn = config["num_attention_heads"] * config["attention_head_dim"], config["ffn_dim"]
    tokens = latent[0] * latent[1] // 2 * latent[2] // 2
    patch = config["in_channels"] * 4
    own = 4 * tokens * width**2 + 2 * tokens**2 * width  # q, k, v, out; scores and values
    cross = 2 * tokens * width**2 + 2 * text * width**2 + 2 * tokens * text * width
    block = own + cross + 2 * tokens * width * ffn
    time = 256 * width + width**2 + 6 * width**2
    words = text * (config["text_dim"] * width + width**2)
    ends = tokens * width * (patch + config["out_channels"] * 4)
    return 2 * passes * (config["num_layers"] * block + time + words + ends)


# Counting


def test_attention_on_the_meta_device_is_counted_and_its_scores_are_not_stored():
    q, k, v = (torch.randn(1, 2, n, 16, device="meta") for n in (64, 48, 48))

    class Attend(torch.nn.Module):
        def forward(self, q, k, v):
            return scaled_dot_product_attention(q, k, v)

    counted = count_pass(Attend(), lambda: {"q": q, "k": k, "v": v})
    assert counted.flops == 2 * 2 * (2 * 64 * 48 * 16)
    assert counted.activation_bytes <= 4 * 2 * 64 * (16 + 1), "the result and a number a query"


def test_live_activations_are_summed_and_forgotten():
    with Live() as live:
        x = torch.randn(256, device="meta")
        y = x * 2
        z = (y + 1).view(16, 16)
        assert live.now == 3 * 1024
        del y
        assert live.now == 2 * 1024
        x = z + z
        assert live.now == 2 * 1024
    assert live.peak == 3 * 1024


def test_weights_are_no_activations():
    linear = torch.nn.Linear(64, 64, device="meta")
    counted = count_pass(linear, lambda: {"input": torch.randn(1, 64)})
    assert counted.flops == 2 * 64 * 64
    assert counted.activation_bytes == 2 * 4 * 64


def test_a_wan_shaped_network_counts_as_its_sum_by_hand(wan):
    small = wan.resized(3, 256)
    assert small.config["ffn_dim"] == 8960 * 2 // 12
    for latent in ((1, 4, 6), (5, 8, 6)):
        assert count_model(small, latent).flops == wan_flops(small.config, latent)
    assert count_model(small, (5, 8, 6), batch=2).flops == 2 * wan_flops(small.config, (5, 8, 6))


def test_the_published_wan_counts_as_its_sum_by_hand(wan):
    assert count_model(wan, (21, 56, 104)).flops == wan_flops(wan.config, (21, 56, 104))


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "cogvideox-5b", "hunyuanvideo", "hunyuanvideo-1.5", "ltx", "mochi"])
def test_layers_counted_once_are_all_layers(name):
    model = find_published(name).resized(4, 128)
    latent = (3, 4, 4)
    assert count_model(model, latent, batch=2) == count_model(model, latent, batch=2, whole=True)


def test_activations_on_the_meta_device_are_those_of_a_real_run(wan):
    model = wan.resized(2, 256)
    latent = (3, 8, 8)

    def peak(device):
        network = model.build(device, torch.float32)
        weights = [tensor.untyped_storage() for tensor in (*network.parameters(), *network.buffers())]
        with torch.no_grad(), Live(weights, shapes=False) as live, torch.device(device):
            inputs = model.inputs(model.config, latent, 1, torch.float32)
            network(**inputs)
        return live.peak

    real = peak("cpu")
    assert count_model(model, latent, dtype=torch.float32).activation_bytes == pytest.approx(real, rel=0.02)


# Published models


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_network_has_as_many_parameters_as_its_authors_say(name):
    network = PUBLISHED[name].build("meta", torch.bfloat16)
    assert sum(p.numel() for p in network.parameters()) / 1e9 == pytest.approx(BILLIONS[name], rel=0.03)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("axes", ["T", "HW", "THW"])
def test_every_published_model_can_be_planned(name, axes):
    made = plan(PUBLISHED[name], axes=axes)
    assert [stage.stage for stage in made.stages] == [2, 1, 0]
    tokens = [stage.tokens for stage in made.stages]
    assert tokens == sorted(tokens)
    assert 1 < made.speedup < made.limit <= 3.2
    assert made.plain.steps == sum(made.steps) == made.model.steps


def called(model, pipe, network, size, steps):
    """What a pipeline calls its network with, argument by name."""
    seen = []
    names = list(inspect.signature(network.forward).parameters)
    hook = network.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(dict(zip(names, args, strict=False)) | kwargs), with_kwargs=True
    )
    options = dict(zip(("num_frames", "height", "width"), size, strict=True)) | {"output_type": "latent"}
    if "guidance_scale" in inspect.signature(type(pipe).__call__).parameters or model.passes == 1:
        options["guidance_scale"] = 3.0
    pipe(**options, **model.embeddings(model.config, torch.float32))
    hook.remove()
    assert len(seen) == sum(steps) * (1 if model.together else model.passes)
    return seen


def shapes(value):
    return tuple(value.shape) if isinstance(value, torch.Tensor) else tuple(map(shapes, value))


def check_calls(name, axes):
    model = find_published(name).resized(1, 256)
    size, steps = SMALL_SIZES.get(name, (17, 64, 64)), [2, 2, 2]
    made = plan(model, size, axes, 3, steps)
    network = model.build("cpu", torch.float32)
    pipe = model.pipeline(network)
    pipe.set_progress_bar_config(disable=True)
    apply_pyramid(pipe, stage_factors(axes, 3), steps)
    seen = called(model, pipe, network, size, steps)
    batch, calls = (2, 1) if model.together else (1, model.passes)
    for place, stage in enumerate(made.stages):
        inputs = model.inputs(model.config, stage.latent, batch, torch.float32)
        for argument, value in inputs.items():
            if isinstance(value, torch.Tensor) or isinstance(
                value[:1] if hasattr(value, "__len__") else 0, torch.Tensor
            ):
                got = seen[2 * calls * place][argument]
                assert shapes(got) == shapes(value), (argument, stage.stage)


def test_the_planned_shapes_are_those_a_pyramidal_wan_is_called_with():
    check_calls("wan2.1-1.3b", "THW")


@pytest.mark.slow
@pytest.mark.parametrize("axes", ["T", "HW", "THW"])
@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name].embeddings is not None])
def test_the_planned_shapes_are_those_every_pyramidal_pipeline_is_called_with(name, axes):
    check_calls(name, axes)


# Arithmetic


def test_the_tokens_of_pyramidal_wan(planned):
    assert [stage.size for stage in planned.stages] == [(21, 112, 208), (41, 224, 416), (81, 448, 832)]
    assert [stage.latent for stage in planned.stages] == [(6, 14, 26), (11, 28, 52), (21, 56, 104)]
    assert [stage.tokens for stage in planned.stages] == [6 * 7 * 13, 11 * 14 * 26, 21 * 28 * 52]
    assert planned.stages[-1].tokens == 30576


def test_the_sums_of_a_plan(planned, wan):
    by_hand = [wan_flops(wan.config, stage.latent) / 1e12 for stage in planned.stages]
    assert [stage.tflops_per_step for stage in planned.stages] == pytest.approx(by_hand)
    total = 20 * by_hand[0] + 20 * by_hand[1] + 10 * by_hand[2]
    assert planned.total_tflops == pytest.approx(total)
    assert planned.plain.tflops == pytest.approx(50 * by_hand[2])
    assert planned.speedup == pytest.approx(50 * by_hand[2] / total)
    assert planned.limit == pytest.approx(5)
    figures = planned.as_dict()
    assert sum(stage["tflops"] for stage in figures["stages"]) == pytest.approx(figures["total_tflops"])
    assert sum(stage["share"] for stage in figures["stages"]) == pytest.approx(1)
    assert figures["total_tflops_with_guidance"] == pytest.approx(2 * total)


def test_another_plain_schedule(wan):
    made = plan(wan, (81, 448, 832), "T", 2, 20, plain_steps=50)
    assert made.steps == [10, 10]
    assert made.plain.steps == 50
    assert [stage.factors for stage in made.stages] == [(2, 1, 1), (1, 1, 1)]
    full = made.plain.tflops_per_step
    assert made.speedup == pytest.approx(50 * full / (10 * full + 10 * made.stages[0].tflops_per_step))


def test_a_size_that_was_not_asked_for_is_made_to_fit(wan):
    made = plan(wan, (None, None, None), "THW")
    assert made.plain.size == (81, 448, 832)
    assert made.notes == ("the model's own size does not fit the stages: height 448 instead of 480",)
    assert plan(wan, axes="T").plain.size == wan.size
    assert plan(wan, axes="T").notes == ()


def test_embedded_guidance_is_one_pass():
    made = plan(find_published("hunyuanvideo").resized(1, 128), (17, 64, 64))
    assert made.as_dict()["total_tflops_with_guidance"] == made.total_tflops


def test_guidance_in_one_batch_takes_more_memory_and_as_much_a_pass():
    model = find_published("ltx").resized(1, 128)
    both, one = (plan(model, (33, 128, 128), guidance=guidance) for guidance in (True, False))
    assert (both.batch, one.batch) == (2, 1)
    assert both.total_tflops == pytest.approx(one.total_tflops)
    assert both.stages[-1].activation_gib > 1.5 * one.stages[-1].activation_gib


def test_a_suggestion_spends_the_budget(planned):
    even = planned.tflops_of([17, 17, 16]) * 2
    assert suggest(planned, even * 1.001) == [17, 17, 16]
    assert suggest(planned, 1e9) == [17, 17, 16], "never more than an even share"
    assert suggest(planned, even / 2 * 1.001, guidance=False) == [17, 17, 16]
    wanted = planned.tflops_of([20, 20, 10]) * 2
    assert suggest(planned, wanted * 1.001) == [20, 20, 10]
    assert suggest(planned, wanted * 0.999) == [21, 20, 9]
    for budget in (wanted, wanted / 2, wanted / 4):
        steps = suggest(planned, budget)
        assert sum(steps) == 50
        assert planned.tflops_of(steps) * 2 <= budget
    least = planned.tflops_of([48, 1, 1]) * 2
    assert suggest(planned, least * 1.001) == [48, 1, 1]
    with pytest.raises(ValueError, match=r"too small for 50 steps: the cheapest schedule, 48-1-1, takes"):
        suggest(planned, least * 0.999)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": (81, 450, 832)}, "height 450 is not a multiple of 16 .* nearest: 448 or 464"),
        ({"size": (81, 480, 832), "axes": "THW"}, "height 480 is not a multiple of 64 .* nearest: 448 or 512"),
        ({"size": (80, 480, 832)}, r"num_frames 80 is not 1 \+ a multiple of 16 .* nearest: 65 or 81"),
        ({"axes": "W"}, "axes 'W' is none of T, HW, THW"),
        ({"stages": 1}, "1 stages make no pyramid; nearest: 2"),
        ({"steps": (10, 10)}, r"2 step counts \(10-10\) for 3 stages"),
        ({"steps": 2}, "2 steps cannot fill 3 stages; nearest: 3"),
        ({"stages": 7, "axes": "T"}, "no num_frames from half to twice the model's own 81 suits 7 stages; give it"),
        ({"stages": 30, "axes": "HW"}, "no height from half to twice the model's own 480 suits 30 stages; give it"),
        ({"plain_steps": 0}, "0 plain steps; nearest: 1"),
    ],
)
def test_a_plan_that_cannot_be_made(wan, options, message):
    with pytest.raises(ValueError, match=message):
        plan(wan, **options)


def test_names_and_widths_that_cannot_be():
    with pytest.raises(ValueError, match=r"unknown model 'wan2.1-1b'; nearest: wan2.1-14b; known: wan2.1-1.3b"):
        find_published("wan2.1-1b")
    with pytest.raises(ValueError, match="hidden size 200 is not a multiple of 128; nearest: 128 or 256"):
        find_published("wan2.1-1.3b").resized(2, 200)
    with pytest.raises(ValueError, match="hidden size 64 is not a multiple of 128; nearest: 128"):
        find_published("wan2.1-1.3b").resized(2, 64)
    with pytest.raises(ValueError, match="0 layers; nearest: 1"):
        find_published("ltx").resized(0, None)


def test_experts_weigh_twice_and_work_once():
    one, two = (find_published(name).resized(1, 128) for name in ("wan2.1-14b", "wan2.2-14b"))
    two = replace(two, config=one.config)
    alone, both = plan(one, (17, 64, 64)), plan(two, (17, 64, 64), steps=50)
    assert both.weights_gib == pytest.approx(2 * alone.weights_gib)
    assert math.isclose(both.total_tflops, alone.total_tflops)
