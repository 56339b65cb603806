"""What composes with stages: every cell of the table in docs/accelerations.md is a test here."""

import ast
import copy
import logging
import math
from pathlib import Path

import pytest
import torch
from accelerating import COUNTS, MAKE, SIZES, Computed, call, pyramidal, stages_by_hand
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import SeaCacheConfig
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from torch.nn import Linear

from tpdiff import apply_pyramid

PAGE = Path(__file__).resolve().parents[2] / "docs" / "accelerations.md"
STARTS = [sum(COUNTS[:place]) for place in range(len(COUNTS))]
ANEW, SAME, CLOSE, REFUSED = "begins anew", "same", "close", "refused"
NONE, ABSENT, GPU = "no effect", "not in diffusers", "needs a GPU"


# How each is turned on: (pipe, the stage's place, or None for all of them) -> None


def first_block(pipe, place):
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.3))


def taylor(pipe, place):
    pipe.transformer.enable_cache(
        TaylorSeerCacheConfig(
            cache_interval=3,
            disable_cache_before_step=2,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[".*attn1"],
        )
    )


def taylor_lite(pipe, place):
    pipe.transformer.enable_cache(
        TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, use_lite_mode=True)
    )


def mag(pipe, place):
    """Ratios as a calibration through the stages writes them: 1 where a stage begins."""
    ratios = [1.0 if step in STARTS else 1 + 0.01 * step for step in range(sum(COUNTS))]
    if place is not None:
        ratios = ratios[STARTS[place] : STARTS[place] + COUNTS[place]]
    pipe.transformer.enable_cache(
        MagCacheConfig(threshold=0.3, max_skip_steps=2, num_inference_steps=len(ratios), mag_ratios=ratios)
    )


def mag_plain(pipe, place):
    ratios = [1.0] + [1.01] * (sum(COUNTS) - 1)
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=len(ratios), mag_ratios=ratios))


def sea(pipe, place):
    pipe.transformer.enable_cache(SeaCacheConfig(threshold=5.0))


def broadcast(pipe, place):
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=lambda: pipe.current_timestep,
        )
    )


def faster(pipe, place, distilled=False):
    """By hand (place given) a distilled one is kept off the first step, where diffusers has nothing to read."""
    network, beginning = pipe.transformer, place is not None and distilled
    before = []

    def timestep():
        first = beginning and len(before) < 1
        return math.inf if first else pipe.current_timestep

    if beginning:
        handle = network.register_forward_hook(lambda *_: before.append(handle.remove()))
    network.enable_cache(
        FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            unconditional_batch_skip_range=3,
            unconditional_batch_timestep_skip_range=(-1, 1001),
            attention_weight_callback=lambda _: 0.3,
            tensor_format="BFCHW",
            is_guidance_distilled=distilled,
            current_timestep_callback=timestep,
        )
    )


def faster_distilled(pipe, place):
    faster(pipe, place, distilled=True)


class Counting:
    """A backend that runs what it is given and counts it."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def compiled(pipe, place):
    pipe.transformer = torch.compile(pipe.transformer, backend=Counting())


def first_block_compiled(pipe, place):
    first_block(pipe, place)
    compiled(pipe, place)


def math_attention(pipe, place):
    pipe.transformer.set_attention_backend("_native_math")


def group_offload(pipe, place, **options):
    cpu = torch.device("cpu")
    pipe.transformer.enable_group_offload(onload_device=cpu, offload_device=cpu, **options)


def by_blocks(pipe, place):
    group_offload(pipe, place, offload_type="block_level", num_blocks_per_group=1)


def by_leaves(pipe, place):
    group_offload(pipe, place, offload_type="leaf_level")


def to_eight_bits(pipe, place):
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def rounded_to_eight_bits(pipe):
    """What `to_eight_bits` computes with: the weights that it stores, rounded once."""
    other = MAKE["Wan" if hasattr(pipe.transformer, "blocks") else "CogVideoX"]()
    to_eight_bits(other, None)
    stored = dict(other.transformer.named_parameters())
    for name, weight in pipe.transformer.named_parameters():
        weight.data = stored[name].data.to(weight.dtype)


def torchao_int8(pipe, place):
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig(version=2))


def rounded_by_torchao(pipe):
    other = copy.deepcopy(pipe.transformer)
    quantization = pytest.importorskip("torchao.quantization")
    quantization.quantize_(other, quantization.Int8WeightOnlyConfig(version=2))
    for mine, theirs in zip(pipe.transformer.modules(), other.modules(), strict=True):
        if isinstance(mine, Linear):
            mine.weight.data = theirs.weight.dequantize()


# The table: name -> (how it is turned on, guidance scale, {family: cell}, the reference's own change)

BOTH = {kind: {"Wan": kind, "CogVideoX": kind} for kind in (ANEW, SAME, CLOSE, REFUSED, GPU)}
TABLE = {
    "FirstBlockCache": (first_block, 5.0, BOTH[ANEW], None),
    "TaylorSeer": (taylor, 5.0, BOTH[ANEW], None),
    "TaylorSeer, lite": (taylor_lite, 5.0, BOTH[ANEW], None),
    "MagCache, calibrated through the stages": (mag, 5.0, BOTH[ANEW], None),
    "MagCache, ratios of a plain schedule": (mag_plain, 5.0, BOTH[REFUSED], None),
    "SeaCache": (sea, 5.0, {"Wan": ANEW, "CogVideoX": NONE}, None),
    "Pyramid Attention Broadcast": (broadcast, 5.0, {"Wan": REFUSED, "CogVideoX": ANEW}, None),
    "Pyramid Attention Broadcast, no guidance": (broadcast, 1.0, BOTH[ANEW], None),
    "FasterCache": (faster, 5.0, {"Wan": REFUSED, "CogVideoX": ANEW}, None),
    "FasterCache, no guidance": (faster_distilled, 1.0, BOTH[ANEW], None),
    "torch.compile": (compiled, 5.0, BOTH[SAME], None),
    "torch.compile and FirstBlockCache": (first_block_compiled, 1.0, BOTH[SAME], lambda pipe: first_block(pipe, None)),
    "attention backend": (math_attention, 5.0, BOTH[CLOSE], None),
    "group offload, blocks": (by_blocks, 5.0, BOTH[SAME], None),
    "group offload, leaves": (by_leaves, 5.0, BOTH[SAME], None),
    "layerwise casting, fp8 storage": (to_eight_bits, 5.0, BOTH[SAME], rounded_to_eight_bits),
    "torchao, int8 weights": (torchao_int8, 5.0, BOTH[CLOSE], rounded_by_torchao),
}
# their tests stand further down, or in test_accelerations_devices.py
ELSEWHERE = {
    "torch.compile, dynamic=False": BOTH[SAME],
    "context parallelism, Ulysses": {"Wan": CLOSE, "CogVideoX": ABSENT},
    "context parallelism, tokens that do not divide": {"Wan": REFUSED, "CogVideoX": ABSENT},
    "context parallelism, no generator": {"Wan": REFUSED, "CogVideoX": ABSENT},
    "model CPU offload": BOTH[GPU],
    "sequential CPU offload": BOTH[GPU],
}
REASONS = {
    "MagCache, ratios of a plain schedule": r"ratio number 5, 1\.01, .* first evaluation",
    "Pyramid Attention Broadcast": r"PAB keeps one state for all guidance branches.*\(cond, uncond\)",
    "FasterCache": "FasterCache needs both guidance branches in one batch",
}
LONG = {("torch.compile and FirstBlockCache", "CogVideoX")}
CELLS = [
    pytest.param(name, family, marks=pytest.mark.slow if (name, family) in LONG else ())
    for name, row in TABLE.items()
    for family in row[2]
]


@pytest.fixture(autouse=True)
def as_before():
    """What diffusers and torch keep for a process."""
    backend = _AttentionBackendRegistry._active_backend
    yield
    _AttentionBackendRegistry.set_active_backend(backend)
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain():
    """(family, guidance) -> latents of a pyramidal run without any acceleration."""
    made = {}

    def run(family, guidance):
        if (family, guidance) not in made:
            made[family, guidance] = call(pyramidal(MAKE[family]()), guidance=guidance)
        return made[family, guidance]

    return run


@pytest.mark.parametrize(("name", "family"), CELLS)
def test_a_cell(name, family, plain):
    enable, guidance, cells, change = TABLE[name]
    kind = cells[family]
    pipe = MAKE[family]()
    enable(pipe, None)
    computed = Computed(pipe) if kind == ANEW else None
    pyramidal(pipe)
    if kind == REFUSED:
        with pytest.raises(ValueError, match=REASONS[name]):
            call(pipe, guidance=guidance)
        pipe.transformer.disable_cache()
        assert torch.equal(call(pipe, guidance=guidance), plain(family, guidance)), "a refusal leaves nothing behind"
        return
    made = call(pipe, guidance=guidance)
    if kind == ANEW:
        assert torch.equal(made, stages_by_hand(family, enable, guidance))
        assert not torch.allclose(made, plain(family, guidance), atol=1e-4), "it predicts nothing"
        branches = 2 if family == "Wan" and guidance > 1 else 1
        for stage in computed.by_stage():
            assert all(names == computed.all for names in stage[:branches]), "a stage begins with a computed step"
            assert any(names != computed.all for names in stage), "no step of this stage is predicted"
        assert torch.equal(call(pipe, guidance=guidance), made), "something is left from the first call"
        return
    reference = plain(family, guidance)
    if change is not None:
        other = MAKE[family]()
        change(other)
        reference = call(pyramidal(other), guidance=guidance)
        assert not torch.equal(reference, plain(family, guidance))
    if kind == CLOSE:
        assert torch.allclose(made, reference, rtol=1e-4, atol=1e-4)
    else:
        assert kind in (SAME, NONE)
        assert torch.equal(made, reference)


@pytest.mark.slow
@pytest.mark.parametrize("family", MAKE)
def test_the_usual_compiler_gives_the_same_to_rounding(family, plain):
    pipe = MAKE[family]()
    pipe.transformer = torch.compile(pipe.transformer, dynamic=False)
    assert torch.allclose(call(pyramidal(pipe)), plain(family, 5.0), rtol=1e-4, atol=1e-4)


def test_the_page_lists_exactly_these_rows():
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    header, _, *body = rows
    cells = {name: row[2] for name, row in TABLE.items()} | ELSEWHERE
    assert header == ["", "Wan", "CogVideoX"]
    assert len(body) == len(cells)
    assert {row[0]: (row[1], row[2]) for row in body} == {
        name: (cell["Wan"], cell["CogVideoX"]) for name, cell in cells.items()
    }


@pytest.mark.parametrize("family", MAKE)
def test_one_graph_a_stage_and_none_in_the_next_call(family, plain):
    """torch.compile, dynamic=False."""
    pipe = MAKE[family]()
    backend = Counting()
    pipe.transformer = torch.compile(pipe.transformer, backend=backend, dynamic=False)
    call(pipe, num_inference_steps=2)
    one_size = backend.graphs
    assert one_size > 0
    torch._dynamo.reset()
    pyramidal(pipe)
    assert torch.equal(call(pipe), plain(family, 5.0))
    assert backend.graphs - one_size == len(COUNTS) * one_size
    call(pipe)
    assert backend.graphs - one_size == len(COUNTS) * one_size


# MagCache


def calibrated(family, guidance):
    pipe = pyramidal(MAKE[family]())
    config = MagCacheConfig(calibrate=True)
    pipe.transformer.enable_cache(config)
    made = call(pipe, guidance=guidance)
    return pipe, config, made


@pytest.mark.parametrize(("family", "guidance"), [("Wan", 1.0), ("Wan", 5.0), ("CogVideoX", 5.0)])
def test_magcache_calibrates_stage_by_stage(family, guidance, plain, capsys):
    _, config, made = calibrated(family, guidance)
    assert torch.equal(made, plain(family, guidance)), "calibration changes nothing"
    assert capsys.readouterr().out == "", "one stage's ratios are not printed as if they were all"
    assert config.num_inference_steps == 28, "as it was"

    def calibrate(pipe, place):
        pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=COUNTS[place]))

    stages_by_hand(family, calibrate, guidance)
    printed = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("[1.0,")]
    branches = len(printed) // len(COUNTS)
    means = [
        sum(ratios) / branches
        for stage in range(len(COUNTS))
        for ratios in zip(*printed[stage * branches : (stage + 1) * branches], strict=True)
    ]
    assert config.mag_ratios == pytest.approx(means, rel=1e-12)
    assert [config.mag_ratios[first] for first in STARTS] == [1.0, 1.0, 1.0]


def test_magcache_runs_on_what_it_calibrated_and_never_meets_another_size():
    pipe, config, made = calibrated("Wan", 5.0)
    pipe.transformer.disable_cache()
    ratios = config.mag_ratios
    use = MagCacheConfig(threshold=0.5, num_inference_steps=len(ratios), mag_ratios=ratios)
    pipe.transformer.enable_cache(use)
    told = []
    handler = logging.Handler()
    handler.emit = told.append
    logger = logging.getLogger("diffusers.hooks.mag_cache")
    logger.addHandler(handler)
    try:
        fast = call(pipe)
    finally:
        logger.removeHandler(handler)
    assert [record for record in told if record.levelno >= logging.WARNING] == []
    assert not torch.equal(fast, made)
    assert use.num_inference_steps == sum(COUNTS)
    assert torch.equal(torch.as_tensor(use.mag_ratios), torch.tensor(ratios))


def test_magcache_with_another_number_of_ratios_is_refused():
    pipe = pyramidal(MAKE["Wan"]())
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=28, mag_ratios=[1.0] * 28))
    with pytest.raises(ValueError, match=r"28 ratios .* 15 evaluations \(5 \+ 4 \+ 6\): calibrate through"):
        call(pipe)


def test_magcache_is_refused_where_two_networks_share_the_steps():
    pipe = MAKE["Wan"](transformer_2=MAKE["Wan"]().transformer, boundary_ratio=0.9)
    mag(pipe, None)
    pyramidal(pipe)
    with pytest.raises(ValueError, match="transformer shares the steps with transformer_2"):
        call(pipe)


# What is left


def test_a_cool_down_that_would_never_come_is_refused():
    pipe = pyramidal(MAKE["Wan"]())
    config = TaylorSeerCacheConfig(cache_identifiers=[".*attn1"], disable_cache_after_step=12)
    pipe.transformer.enable_cache(config)
    with pytest.raises(ValueError, match=r"disable_cache_after_step=12 .* last stage has 6.*nearest: 5"):
        call(pipe)


def test_a_call_that_broke_off_leaves_no_cache_to_the_next():
    """Whatever was cached when it broke off has another stage's size."""
    pipe = pyramidal(MAKE["Wan"]())
    first_block(pipe, None)
    made = call(pipe)

    def stop(pipe, step, timestep, tensors):
        if step == STARTS[1] + 1:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):
        call(pipe, callback_on_step_end=stop)
    assert torch.equal(call(pipe), made)


def test_without_stages_nothing_is_changed():
    """One stage: a cache does what it does in the stock pipeline, even what stages refuse."""
    stock, one = MAKE["Wan"](), MAKE["Wan"]()
    apply_pyramid(one, [(1, 1, 1)])
    for pipe in (stock, one):
        broadcast(pipe, None)
    a, b = (call(pipe, SIZES[0], num_inference_steps=4) for pipe in (stock, one))
    assert torch.equal(a, b)
