"""How much sooner a temporal pyramid has sampled a batch of clips than the plain method, by the same network.

    python benchmarks/sampling_latency.py [--batch 192] [--rounds 7] [--precision bf16] [--device cpu] [--json]

Plain: 30 steps at 16 frames of 48x32 pixels. Pyramid: 10 steps each at 4, 8 and 16 frames. Both with classifier-free
guidance (both branches in one doubled batch), by the same random weights, taking turns round by round in one run.
A run ends with latents on the device ("without decoding"), then turns them into bytes and writes one mp4 a clip
("with decoding"). The limit is the ratio of the floating-point operations of both, counted by PyTorch.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

from tpdiff.data import to_uint8, write_video
from tpdiff.evaluation import machine
from tpdiff.evaluation.latency import count_flops, measure, standings
from tpdiff.evaluation.results import LatencyRow
from tpdiff.models import VideoDiT
from tpdiff.models.memory import keep_freed_memory
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.recipes import recipe_path
from tpdiff.sampling.loop import Denoiser, sample_pyramid
from tpdiff.training.load_config import load_config

RECIPE = load_config(recipe_path("gameplay"))
SHAPE = (3, RECIPE.data.frames, RECIPE.data.height, RECIPE.data.width)  # C T H W
CLASSES = 4
GUIDANCE = 3.0
FPS = 8
VARIANTS = {"plain": (((1, 1, 1),), (30,)), "pyramid": (((1, 1, 1), (2, 1, 1), (4, 1, 1)), (10, 10, 10))}
SHORT_STEP = 0.3  # seconds: in shorter full-size steps, what is not the network weighs too much


@dataclass
class Run:
    """One way to sample: a callable that samples, decodes and writes, and notes when sampling was done.

    Attributes:
        sample: -> latents (B, C, T, H, W).
        folder: where the mp4s go.
        sampled: seconds of the sampling alone, one a call.
    """

    sample: Callable[[], Tensor]
    folder: Path
    sampled: list[float] = field(default_factory=list)

    def __call__(self) -> None:
        begin = time.perf_counter()
        latents = self.sample()
        if latents.is_cuda:
            torch.cuda.synchronize()
        self.sampled.append(time.perf_counter() - begin)
        frames = to_uint8(latents).permute(0, 2, 3, 4, 1).cpu()
        for index, clip in enumerate(frames):
            write_video(self.folder / f"{index}.mp4", clip, FPS)


def network(device: torch.device, precision: str) -> VideoDiT:
    """The gameplay recipe's network with random weights, also where it starts from zeros."""
    torch.manual_seed(0)
    model = VideoDiT(in_channels=SHAPE[0], num_classes=CLASSES, **RECIPE.model.network(RECIPE.num_stages))
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    nn.Module.to(model, device=device, dtype=dtype)  # diffusers' own `to` warns about casts of pretrained weights
    return model.eval().requires_grad_(False)


def guided(model: VideoDiT, pyramid: Pyramid, labels: Tensor, precision: str) -> Denoiser:
    """Classifier-free guidance: v = v_null + w (v_label - v_null), both from one call on a doubled batch."""
    both = torch.cat((labels, torch.full_like(labels, CLASSES)))

    def denoise(x: Tensor, t: Tensor, stage: int) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=precision == "autocast"):
            doubled, times = torch.cat((x, x)), torch.cat((t, t))
            strides = pyramid.factors[stage]
            out = model(doubled, times, class_labels=both, strides=strides, return_dict=False)[0]
        conditional, unconditional = out.float().chunk(2)
        return unconditional + GUIDANCE * (conditional - unconditional)

    return denoise


def step_seconds(denoiser: Denoiser, batch: int, device: torch.device, rounds: int = 5) -> float:
    """Median seconds of one guided prediction at full size."""
    x, t = torch.randn(batch, *SHAPE, device=device), torch.full((batch,), 0.5, device=device)

    def step() -> None:
        with torch.no_grad():
            denoiser(x, t, 0)

    return median(measure({"step": step}, rounds)["step"])


def benchmark(batch: int, rounds: int, precision: str, device: torch.device, folder: Path, quiet: bool) -> dict:
    """All figures, as JSON values."""
    model = network(device, precision)
    labels = torch.arange(batch, device=device) % CLASSES
    runs: dict[str, Run] = {}
    flops: dict[str, int] = {}
    step = 0.0
    for name, (factors, steps) in VARIANTS.items():
        pyramid = Pyramid(FlowMatchingSchedule(), factors)
        denoiser = guided(model, pyramid, labels, precision)

        def sample(denoiser: Denoiser = denoiser, pyramid: Pyramid = pyramid, steps: tuple = steps) -> Tensor:
            generator = torch.Generator(device).manual_seed(0)
            return sample_pyramid(denoiser, pyramid, (batch, *SHAPE), steps, generator=generator, device=device)

        flops[name] = count_flops(sample)
        runs[name] = Run(sample, folder / name)
        step = step or step_seconds(denoiser, batch, device)

    def report(done: int, total: int, name: str, seconds: float) -> None:
        if not quiet:
            print(f"  {done}/{total} {name} {seconds:.2f} s", file=sys.stderr, flush=True)

    decoded = measure(runs, rounds, warmup=1, progress=report)
    rows = []
    for decode in (False, True):
        for name, (_, steps) in VARIANTS.items():
            seconds = decoded[name] if decode else runs[name].sampled[-rounds:]
            rows.append(LatencyRow(name, "-".join(map(str, steps)), seconds, flops[name], decode))
    return {
        "machine": machine.describe(),
        "batch": batch,
        "precision": precision,
        "device": str(device),
        "step_seconds": step,
        "step_is_short": step < SHORT_STEP,
        "rows": [
            {
                **asdict(s.row),
                "median": s.row.median,
                "ratio": s.speedup.ratio,
                "paired": s.speedup.paired,
                "limit": s.limit,
                "share": s.share,
            }
            for s in standings(rows)
        ],
    }


def show(figures: dict) -> None:
    """Print the figures for a reader."""
    print(machine.one_line(figures["machine"]))
    print(
        f"batch {figures['batch']} (doubled by guidance), {figures['precision']} on {figures['device']}; "
        f"one full-size step {figures['step_seconds']:.3f} s"
    )
    if figures["step_is_short"]:
        print(f"  below {SHORT_STEP} s a step: overheads weigh in; a larger --batch shows the method itself")
    for row in figures["rows"]:
        kind = "with decoding   " if row["decode"] else "without decoding"
        line = f"{kind} {row['name']:8} {row['steps']:9} {row['median']:8.2f} s  {row['flops'] / 1e9:8.0f} GFLOP"
        if row["limit"] is not None:
            low, high = min(row["paired"]), max(row["paired"])
            line += f"  ratio {row['ratio']:.2f} (by round {low:.2f} to {high:.2f})"
            line += f"  limit {row['limit']:.2f}  reached {row['share']:.0%}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=192, help="clips sampled together")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", choices=("fp32", "bf16", "autocast"), default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = vars(parser.parse_args())
    keep_freed_memory()  # as `tpdiff sample` does
    as_json = options.pop("json")
    if options["batch"] < 1 or options["rounds"] < 1:
        parser.error(f"--batch {options['batch']} and --rounds {options['rounds']} must be at least 1")
    options["device"] = torch.device(options["device"])
    with tempfile.TemporaryDirectory() as folder:
        figures = benchmark(**options, folder=Path(folder), quiet=as_json)
    if as_json:
        print(json.dumps(figures, indent=2))
    else:
        show(figures)


if __name__ == "__main__":
    main()
