"""Clips a second of training with plain batches and with token-budget batches of the same peak memory.

    python benchmarks/token_budget.py [--device cuda] [--frames 16] [--size 64] [--patch 8] [--width 256] [--layers 4]
                                      [--batch 2] [--rounds 5] [--cpu-time] [--json]

VideoDiT on noise in place of clips, so that nothing but training is timed: forward, backward and fused AdamW under
bfloat16 autocast on a GPU, in float32 on a CPU. The budget is what `--batch` clips of the finest stage have in tokens,
so that both ways need the finest stage's memory. Both ways and all stages take turns; medians of the rounds are
printed, with each one's peak memory. "in all": clips of all stages in equal shares. On a machine shared with other
work, --cpu-time runs one thread and counts the processor time it was given instead of the time that passed.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch

from tpdiff.evaluation.machine import describe, one_line
from tpdiff.models import VideoDiT, keep_freed_memory
from tpdiff.models.memory import give_back_freed_memory, peak_bytes, reset_peak
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.training.load_config import build_config
from tpdiff.training.stage_mix import StageMix, open_mix

FACTORS = {"T": [(1, 1, 1), (2, 1, 1), (4, 1, 1)], "THW": [(1, 1, 1), (2, 2, 2), (4, 4, 4)]}


@dataclass(frozen=True)
class Rate:
    """One stage, one way: clips in a batch, median seconds of a step, peak bytes of memory (None: not told)."""

    way: str
    stage: int
    clips: int
    seconds: float
    peak: int | None

    @property
    def clips_per_second(self) -> float:
        return self.clips / self.seconds


class Desk:
    """A network and its optimizer, to step at any stage with any number of clips."""

    def __init__(self, args: argparse.Namespace):
        self.device = torch.device(args.device)
        self.clock = time.process_time if args.cpu_time else time.perf_counter
        patch = (1, args.patch, args.patch)
        torch.manual_seed(0)
        self.network = VideoDiT(
            in_channels=3,
            patch_size=patch,
            hidden_size=args.width,
            num_layers=args.layers,
            num_attention_heads=max(1, args.width // 64),
        ).to(self.device)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4, fused=True)
        self.pyramid = Pyramid(FlowMatchingSchedule(), factors=FACTORS[args.axes])
        self.shape = (3, args.frames, args.size, args.size)
        self.patch = patch

    def mix(self, batch: int, budget: bool) -> StageMix:
        """Plain batches of so many clips, or the budget of as many of the finest stage."""
        values: dict[str, Any] = {"data": {"path": "."}, "train": {"steps": 1, "batch_size": batch}}
        values["pyramid"] = {"factors": [list(f) for f in self.pyramid.factors]}
        mix = open_mix(build_config(values), self.pyramid, self.shape, self.patch, 1)
        if not budget:
            return mix
        values["train"]["token_budget"] = batch * mix.tokens[0]
        return open_mix(build_config(values), self.pyramid, self.shape, self.patch, 1)

    def seconds(self, stage: int, clips: int) -> float:
        """One training step, timed."""
        size = self.pyramid.stage_shape((clips, *self.shape), stage)
        x, t = torch.randn(size, device=self.device), torch.rand(clips, device=self.device)
        self._wait()
        started = self.clock()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.network(x, t, strides=self.pyramid.factors[stage], return_dict=False)[0].float().square().mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._wait()
        return self.clock() - started

    def peak(self, stage: int, clips: int) -> int | None:
        """Bytes of memory that a step takes: allocated on a GPU, growth of what is resident otherwise."""
        give_back_freed_memory()
        reset_peak()
        before = 0 if self.device.type == "cuda" else peak_bytes()
        self.seconds(stage, clips)
        after = peak_bytes()
        return None if before is None or after is None else after - before

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def measure(desk: Desk, batch: int, rounds: int) -> list[Rate]:
    """Both ways at every stage, in turns."""
    ways = {"plain": desk.mix(batch, False), "budget": desk.mix(batch, True)}
    cells = [(way, stage, mix.clips[stage]) for way, mix in ways.items() for stage in range(len(desk.pyramid))]
    for _, stage, clips in cells:
        desk.seconds(stage, clips)
    peaks = [desk.peak(stage, clips) for _, stage, clips in cells]
    for _, stage, clips in cells:
        desk.seconds(stage, clips)
    times = list(zip(*([desk.seconds(stage, clips) for _, stage, clips in cells] for _ in range(rounds)), strict=True))
    return [Rate(*cell, median(own), peak) for cell, own, peak in zip(cells, times, peaks, strict=True)]


def in_all(rates: list[Rate], way: str) -> float:
    """Clips a second where every stage trains on as many clips."""
    own = [rate.clips_per_second for rate in rates if rate.way == way]
    return len(own) / sum(1 / one for one in own)


def figures(rates: list[Rate]) -> dict[str, Any]:
    """What was measured, and budget against plain."""
    plain, budget = ([r for r in rates if r.way == way] for way in ("plain", "budget"))
    peaks = [max((r.peak for r in own if r.peak is not None), default=None) for own in (plain, budget)]
    return {
        "machine": describe(),
        "rates": [asdict(rate) | {"clips_per_second": rate.clips_per_second} for rate in rates],
        "speedup_by_stage": [b.clips_per_second / p.clips_per_second for p, b in zip(plain, budget, strict=True)],
        "clips_per_second": {way: in_all(rates, way) for way in ("plain", "budget")},
        "speedup": in_all(rates, "budget") / in_all(rates, "plain"),
        "peak": dict(zip(("plain", "budget"), peaks, strict=True)),
        "peak_ratio": None if None in peaks else peaks[1] / peaks[0],  # type: ignore[operator]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--axes", choices=FACTORS, default="T", help="what grows from stage to stage")
    defaults = {"frames": 16, "size": 64, "patch": 8, "width": 256, "layers": 4, "batch": 2, "rounds": 5}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.device == "cpu":
        keep_freed_memory()
    if args.cpu_time:
        torch.set_num_threads(1)
    rates = measure(Desk(args), args.batch, args.rounds)
    found = figures(rates)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    print(one_line())
    for rate in rates:
        peak = "?" if rate.peak is None else f"{rate.peak / 1024**2:8.1f} MiB"
        print(f"{rate.way:6} stage {rate.stage}  {rate.clips:4} clips  {rate.clips_per_second:9.2f} clips/s  {peak}")
    by_stage = ", ".join(f"stage {k} {ratio:.2f}x" for k, ratio in enumerate(found["speedup_by_stage"]))
    ratio = "unknown" if found["peak_ratio"] is None else f"{found['peak_ratio']:.3f}"
    print(f"budget against plain: {by_stage}; in all {found['speedup']:.2f}x; peak memory {ratio} of plain's")


if __name__ == "__main__":
    main()
