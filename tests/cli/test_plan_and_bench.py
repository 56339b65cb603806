"""`tpdiff plan` and `tpdiff bench` as a user calls them."""

import json
import subprocess
import sys

import pytest
from command_line import call

from tpdiff.families.models import PUBLISHED


def figures(*arguments):
    code, out, err = call(*arguments, "--json")
    assert code == 0, err
    return json.loads(out)


SIZE = ("--height", 448, "--width", 832, "--frames", 81)
SMALL = ("--layers", 1, "--hidden", 128, "--height", 64, "--width", 64, "--frames", 17)


@pytest.mark.parametrize("command", ["plan", "bench"])
def test_both_have_help(command):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    assert "Usage: tpdiff" in out


def test_their_help_loads_no_framework():
    program = (
        "import sys\nfrom tpdiff.cli import main\n"
        "try: main(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip().endswith("[]")


# Plan


def test_a_plan_as_json():
    plan = figures("plan", "wan2.1-1.3b", *SIZE, "--axes", "THW", "--steps", "20,20,10")
    assert [stage["tokens"] for stage in plan["stages"]] == [546, 4004, 30576]
    assert [stage["steps"] for stage in plan["stages"]] == [20, 20, 10]
    assert plan["stages"][0]["size"] == [21, 112, 208]
    assert sum(stage["tflops"] for stage in plan["stages"]) == pytest.approx(plan["total_tflops"])
    assert plan["stages"][-1]["tflops_per_step"] == pytest.approx(251.8367404032)
    assert plan["total_tflops"] == pytest.approx(2820.92, rel=1e-4)
    assert plan["speedup"] == pytest.approx(50 * 251.8367404032 / plan["total_tflops"])
    assert plan["speedup_limit"] == pytest.approx(5)
    assert plan["total_tflops_with_guidance"] == pytest.approx(2 * plan["total_tflops"])
    assert {"model", "source", "size", "plain", "units", "not_included", "torch", "weights_gib"} <= set(plan)


def test_a_plan_for_a_reader():
    code, out, err = call("plan", "wan2.1-1.3b", *SIZE, "--axes", "THW", "--steps", "20,20,10")
    assert (code, err) == (0, "")
    for text in (
        "81x448x832",
        "21x56x104",
        "30,576",
        "251.8",
        "89.3%",
        "4.46x",
        "5.00x",
        "VAE decoding, text encoders",
    ):
        assert text in out, text


def test_a_budget_is_met():
    plan = figures("plan", "ltx", "--axes", "T", "--budget-tflops", 1500, "--steps", 50)
    suggestion = plan["suggestion"]
    assert sum(suggestion["steps"]) == 50
    assert suggestion["tflops"] <= 1500
    seconds = figures("plan", "ltx", "--axes", "T", "--budget-seconds", 15, "--tflops-per-second", 100)
    assert seconds["suggestion"]["steps"] == suggestion["steps"]
    assert seconds["seconds"] == pytest.approx(seconds["total_tflops_with_guidance"] / 100)
    code, out, _ = call("plan", "ltx", "--budget-seconds", 8, "--tflops-per-second", 100, "--no-guidance")
    assert code == 0
    assert "within the budget:" in out
    assert "with guidance" not in out


def test_steps_that_fit_the_budget_are_left_alone():
    asked = ("plan", "ltx", "--axes", "T", "--steps", "20,20,10", "--budget-tflops")
    plan = figures(*asked, 100_000)
    assert plan["within_budget"] and plan["suggestion"] is None
    least = plan["total_tflops_with_guidance"]
    assert figures(*asked, least)["within_budget"]
    less = figures(*asked, 0.99 * least)
    assert not less["within_budget"] and less["suggestion"]["steps"] != [20, 20, 10]
    code, out, _ = call(*asked, 100_000)
    assert code == 0
    assert "\n  within the budget of 100,000 TFLOPs\n" in out
    assert "17-17-16" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("wan2.1-1.3b --height 450", "height 450 is not a multiple of 16 (8 VAE × 2 patch); nearest: 448 or 464"),
        ("wan2.1-1.3b --frames 80", "num_frames 80 is not 1 + a multiple of 16 (4 VAE × 4 pyramid); nearest: 65 or 81"),
        ("mochy", f"unknown model 'mochy'; nearest: mochi; known: {', '.join(PUBLISHED)}"),
        ("ltx --axes TW", "axes 'TW' is none of T, HW, THW"),
        ("ltx --steps 10,10", "2 step counts (10-10) for 3 stages; give 3, coarsest first, or one total"),
        ("ltx --steps many", "steps 'many' is neither a number (30) nor counts coarsest first (10,10,10)"),
        (
            "ltx --budget-seconds 9",
            "--budget-seconds needs --tflops-per-second: what your device sustains with the model",
        ),
        ("ltx --budget-tflops 0", "--budget-tflops 0 must be above 0"),
    ],
)
def test_a_plan_that_cannot_be_made_is_one_line(arguments, message):
    code, out, err = call("plan", *arguments.split())
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n"


def test_a_budget_that_is_too_small():
    code, _, err = call("plan", "ltx", "--budget-tflops", 10)
    assert code == 2
    assert err.startswith(
        "error: a budget of 10 TFLOPs is too small for 50 steps: the cheapest schedule, 48-1-1, takes "
    )


# Bench


def test_a_bench_as_json_and_as_a_picture(tmp_path):
    picture = tmp_path / "bench.png"
    options = ("--axes", "THW", "--steps", "1,1,1", "--rounds", 1, "--warmup", 0, "--no-guidance", "--plot", picture)
    bench = figures("bench", "wan2.1-1.3b", *SMALL, *options)
    assert [stage["tokens"] for stage in bench["stages"]] == [2, 12, 80]
    assert all(stage["seconds_per_step"] > 0 for stage in bench["stages"])
    assert [row["name"] for row in bench["rows"]] == ["plain", "pyramid"]
    assert bench["config"] == {"attention_head_dim": 128, "num_attention_heads": 1, "num_layers": 1}
    assert {"speedup", "planned_speedup", "reached", "machine", "decode_seconds"} <= set(bench)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_what_was_measured_is_printed_even_where_it_cannot_be_drawn(monkeypatch, tmp_path):
    def full(measured, path):
        raise OSError("no space left")

    monkeypatch.setattr("tpdiff.evaluation.plots.bench_picture", full)
    options = ("--stages", 2, "--steps", "1,1", "--rounds", 1, "--warmup", 0, "--no-guidance", "--json")
    code, out, err = call("bench", "wan2.1-1.3b", *SMALL, *options, "--plot", tmp_path / "bench.png")
    assert (code, err) == (2, "error: no space left\n") and json.loads(out)["speedup"] > 0


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for name, message in {"folder.png": "is a folder; name a file in it", "file/a.png": "file is a file"}.items():
        code, out, err = call("bench", "wan2.1-14b", "--plot", tmp_path / name)  # it would take hours on a cpu
        assert (code, out) == (2, "") and message in err


def test_a_bench_for_a_reader():
    code, out, err = call("bench", "wan2.1-1.3b", *SMALL, "--stages", 2, "--steps", "1,1", "--rounds", 1, "--warmup", 0)
    assert code == 0
    assert err.splitlines()[-1].startswith("  2/2 ")
    for text in (
        "(1 layers, 128 wide)",
        "speed-up measured",
        "planned",
        "in scheduler and jumps",
        "torch",
        "less than",
    ):
        assert text in out, text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("wan2.1-1.3b --device tpu", "device 'tpu' is neither cpu nor cuda"),
        ("wan2.1-1.3b --dtype int8", "dtype 'int8' is none of float32, bfloat16, float16"),
        ("wan2.1-1.3b --plot a.jpg", "pictures are written as .png; a.jpg ends in '.jpg'"),
        ("wan2.1-1.3b --hidden 100", "hidden size 100 is not a multiple of 128; nearest: 128"),
        (
            "wan2.1-1.3b --layers 2 --height 100",
            "height 100 is not a multiple of 16 (8 VAE × 2 patch); nearest: 96 or 112",
        ),
    ],
)
def test_a_bench_that_cannot_be_made_is_one_line(arguments, message):
    code, out, err = call("bench", *arguments.split())
    assert (code, out) == (2, "")
    assert err == f"error: {message}\n"
