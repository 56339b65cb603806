import json
import subprocess
from pathlib import Path

import torch

from tpdiff.evaluation import machine


def test_facts_are_json_and_name_the_machine():
    facts = machine.describe()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"] and facts["cores"] >= 1 and facts["memory_gib"] > 0
    assert facts["threads"] == torch.get_num_threads() and facts["torch"] == torch.__version__
    assert facts["cpu"] in machine.one_line(facts)


def test_bfloat16_instructions_are_read_from_the_processor_flags(tmp_path, monkeypatch):
    info = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", info)
    info.write_text("model name\t: A CPU: fast\nflags\t\t: sse avx512_bf16 amx_bf16_x amx_bf16\n")
    assert machine.describe()["cpu_bf16"] == "AMX, AVX-512"
    assert machine.cpu_model() == "A CPU: fast"
    info.write_text("flags\t\t: sse avx512_bf16_not\n")
    assert machine.describe()["cpu_bf16"] == "none"
    info.unlink()
    assert machine.describe()["cpu_bf16"] == "none" and machine.cpu_model()


def test_matmul_rate_is_a_rate(monkeypatch):
    ticks = iter(range(1000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: float(next(ticks)))
    assert machine.matmul_gflops(size=64, seconds=2) == 2 * 64**3 / 1e9


def test_the_commit_is_that_of_the_working_copy():
    root = Path(machine.__file__).resolve().parents[3]
    if not (root / ".git").exists():
        assert machine.commit() is None
        return
    told = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert told.stdout.startswith(machine.commit().rstrip("+"))
