"""The bench: whole calls of the stock pipeline, plain and pyramidal, and what is told of them; times are not judged."""

import json
import mmap

import pytest
import torch

from tpdiff.evaluation.bench import bench
from tpdiff.evaluation.plots import bench_picture
from tpdiff.evaluation.watch import Watch, peak_bytes, reset_peak
from tpdiff.families.models import find_published
from tpdiff.files import write_whole


@pytest.fixture(scope="module")
def wan():
    return find_published("wan2.1-1.3b").resized(1, 128)


@pytest.fixture(scope="module")
def measured(wan):
    return bench(wan, (17, 64, 64), "THW", 3, (2, 2, 1), plain_steps=4, rounds=2)


def test_both_are_timed_in_every_round(measured):
    plain, pyramid = measured.rows
    assert (plain.name, plain.steps, len(plain.seconds)) == ("plain", "4", 2)
    assert (pyramid.name, pyramid.steps, len(pyramid.seconds)) == ("pyramid", "2-2-1", 2)
    assert all(seconds > 0 for seconds in (*plain.seconds, *pyramid.seconds, *measured.step_seconds))
    assert measured.plain_step_seconds > 0
    assert len(measured.step_seconds) == 3


def test_the_plan_beside_it_is_of_the_same_network(measured, wan):
    assert measured.plan.model.config == wan.config
    plain, pyramid = measured.rows
    assert plain.flops == pytest.approx(2 * measured.plan.plain.tflops * 1e12), "two passes of guidance"
    assert pyramid.flops == pytest.approx(2 * measured.plan.total_tflops * 1e12)
    figures = measured.as_dict()
    assert figures["planned_speedup"] == pytest.approx(measured.plan.speedup)
    assert figures["speedup"] == pytest.approx(plain.median / pyramid.median)
    assert figures["reached"] == pytest.approx(figures["speedup"] / figures["planned_speedup"])


def test_scheduler_and_jumps_are_told_apart(measured):
    assert all(0 < share < 1 for share in measured.scheduler_share)
    figures = measured.as_dict()
    assert [row["scheduler_share"] for row in figures["rows"]] == list(measured.scheduler_share)
    assert {"cpu", "cores", "threads", "torch"} <= set(figures["machine"])
    json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize("name", ["ltx", "hunyuanvideo"])
def test_other_ways_of_guidance(name):
    """In one batch, and embedded."""
    size = (17, 128, 128) if name == "ltx" else (9, 64, 64)
    model = find_published(name).resized(1, 128)
    made = bench(model, size, "T", 2, (1, 1), rounds=1, warmup=0)
    assert made.rows[0].flops == pytest.approx(model.passes * made.plan.plain.tflops * 1e12)
    assert len(made.step_seconds) == 2


def test_without_guidance_there_is_one_pass(wan):
    made = bench(wan, (17, 64, 64), "T", 2, (1, 1), guidance=False, rounds=1, warmup=0)
    assert made.rows[0].flops == pytest.approx(made.plan.plain.tflops * 1e12)


def test_seconds_are_told_by_step_and_stage(wan, monkeypatch):
    """Of clocks that are known: two passes of guidance make a step."""
    plain = Watch([1, 2, 3, 4, 10, 20], scheduler=1, total=50, peak=7)
    pyramid = Watch([1, 1, 2, 3, 4, 5], scheduler=2, total=20, peak=6)
    watches = iter([plain, pyramid])
    monkeypatch.setattr("tpdiff.evaluation.bench.watched", lambda *args: next(watches))
    seconds = {"plain": [50.0, 60.0], "pyramid": [20.0, 10.0]}
    monkeypatch.setattr("tpdiff.evaluation.bench.measure", lambda *args: seconds)
    made = bench(wan, (17, 64, 64), "T", 2, (1, 2), plain_steps=3)
    assert (made.plain_step_seconds, made.step_seconds) == (7, (2, 7))
    assert (made.scheduler_share, made.peaks) == ((1 / 50, 2 / 20), (7, 6))
    figures = made.as_dict()
    assert (figures["plain_seconds_per_step"], figures["step_is_short"]) == (7, False)
    assert [stage["seconds_per_step"] for stage in figures["stages"]] == [2, 7]
    assert [row["seconds"] for row in figures["rows"]] == list(seconds.values())
    assert (figures["speedup"], figures["speedup_by_round"]) == (pytest.approx(55 / 15), [2.5, 6])


def test_a_picture_of_it(measured, tmp_path):
    bench_picture(measured, tmp_path / "deep" / "bench.png")
    assert (tmp_path / "deep" / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bench.png"]


def test_the_peak_of_memory_starts_over():
    reset_peak()
    before = peak_bytes()
    if before is None:
        pytest.skip("this system does not tell")
    with mmap.mmap(-1, 64 * 2**20) as block:  # pages of its own, not those that an allocator kept
        block.write(b"1" * len(block))
    assert peak_bytes() >= before + 60 * 2**20


def test_bytes_are_written_whole(tmp_path):
    write_whole(tmp_path / "a.bin", b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wan2.1-i2v-14b", {"size": (17, 64, 64)}, "starts from a picture that its autoencoder encodes"),
        ("wan2.1-1.3b", {}, "one plain sampling takes 28,300 TFLOPs, hours on a cpu: give --tiny"),
        ("wan2.1-1.3b", {"size": (17, 72, 64)}, "height 72 is not a multiple of 16"),
    ],
)
def test_what_cannot_be_measured(name, options, message):
    with pytest.raises(ValueError, match=message):
        bench(find_published(name), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(wan):
    with pytest.raises(ValueError, match="there is no CUDA device here; use cpu"):
        bench(wan, (17, 64, 64), device="cuda")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wan2.1-1.3b", "animatediff"])
def test_decoding_is_timed_apart(name):
    """Of videos, and of frames."""
    model = find_published(name).resized(1, 128)
    size = (9, 64, 64) if name == "wan2.1-1.3b" else (2, 128, 128)
    made = bench(model, size, "T", 2, (1, 1), rounds=1, warmup=0, decode=True)
    assert made.decode_seconds > 0
