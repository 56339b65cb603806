"""What data-noise alignment costs, by batch and clip size, and beside a training step.

    python benchmarks/alignment_cost.py [--batches 8 64 512] [--elements 16384 1048576] [--max-gib 24] [--json]

Times `tpdiff.pyramid.align_noise`, its inner products and its assignment, and the same pairing from a full distance
matrix (torch.cdist in float32), taking turns in one run. Clips are stored in bfloat16. Then, at the batch of
configs/gameplay.yaml, alignment beside its network's training step (forward and backward under bfloat16 autocast).
Sizes whose memory would pass --max-gib are left out and named.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
from dataclasses import asdict, dataclass
from statistics import median

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tpdiff.evaluation import machine
from tpdiff.evaluation.latency import measure, speedup
from tpdiff.models import VideoDiT
from tpdiff.pyramid import align_noise
from tpdiff.pyramid.alignment import assign, inner_products
from tpdiff.recipes import recipe_path
from tpdiff.training.load_config import load_config

BATCHES = (8, 16, 64, 256, 1024)
RECIPE = load_config(recipe_path("gameplay"))
BATCH = RECIPE.train.batch_size
SHAPE = (3, RECIPE.data.frames, RECIPE.data.height, RECIPE.data.width)
ELEMENTS = (1 << 14, 3 * 16 * 32 * 48, 1 << 20)
ROWS_AT_A_TIME = 8
GIB = 2**30
FEW = 1 << 28  # clip elements in a batch, from which on one round is enough


@dataclass(frozen=True)
class Cost:
    """Median milliseconds of one size.

    Attributes:
        batch: clips.
        elements: of one clip.
        align: all of `align_noise`.
        products: its matrix of inner products.
        assignment: its assignment problem.
        distances: the pairing from a full distance matrix; None where memory forbids.
        ratio: distances over align, of medians.
    """

    batch: int
    elements: int
    align: float
    products: float
    assignment: float
    distances: float | None
    ratio: float | None

    def line(self) -> str:
        naive = "" if self.distances is None else f"   distances {self.distances:10.1f} ms  {self.ratio:6.2f}x"
        return (
            f"{self.batch:5} x {self.elements:8} elements   align {self.align:10.1f} ms"
            f"   products {self.products:10.1f} ms   assignment {self.assignment:8.2f} ms{naive}"
        )


def clips(batch: int, elements: int, seed: int) -> Tensor:
    """(B, N) normal values in bfloat16, drawn a few rows at a time."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.empty(batch, elements, dtype=torch.bfloat16)
    for rows in values.split(ROWS_AT_A_TIME):
        rows.copy_(torch.randn(rows.shape, generator=generator))
    return values


def align_by_distances(clean: Tensor, noise: Tensor) -> Tensor:
    """The same pairing as one would first write it: every distance, squared, then the assignment."""
    distances = torch.cdist(clean.float(), noise.float()).square()
    return noise[torch.from_numpy(linear_sum_assignment(distances.numpy())[1])]


def memory(batch: int, elements: int) -> tuple[float, float]:
    """Estimated peak GiB of `align_noise` and of the distance matrix.

    Both hold clips and noises in bfloat16; the first also the noises it chose and a float32 copy with its square (to
    report the distances before and after), the second float32 copies of both, and centred ones inside cdist.
    """
    values = batch * elements
    return (2 * 2 + 2 + 2 * 4) * values / GIB, (2 * 2 + 4 * 4) * values / GIB


def cost(batch: int, elements: int, rounds: int, max_gib: float) -> Cost:
    """All times of one size."""
    clean, noise = clips(batch, elements, 0), clips(batch, elements, 1)
    products, everyone = inner_products(clean, noise), [list(range(batch))]
    variants = {
        "align": lambda: align_noise(clean, noise),
        "products": lambda: inner_products(clean, noise),
        "assignment": lambda: assign(products, everyone),
    }
    if memory(batch, elements)[1] <= max_gib:
        variants["distances"] = lambda: align_by_distances(clean, noise)
    large = batch * elements >= FEW
    times = measure(variants, rounds=1 if large else rounds, warmup=0 if large else 1)
    figures = {name: 1e3 * median(seconds) for name, seconds in times.items()}
    ratio = speedup(times["distances"], times["align"]).ratio if "distances" in times else None
    return Cost(
        batch,
        elements,
        figures["align"],
        figures["products"],
        figures["assignment"],
        figures.get("distances"),
        ratio,
    )


def beside_a_step(rounds: int) -> dict[str, float]:
    """Milliseconds of alignment and of a training step at the recipe's batch, and the former's share of the latter."""
    torch.manual_seed(0)
    model = VideoDiT(num_classes=4, **RECIPE.model.network(RECIPE.num_stages))
    video, target = torch.randn(2, BATCH, *SHAPE)
    noise = torch.randn(BATCH, *SHAPE)
    timestep, labels = torch.rand(BATCH), torch.arange(BATCH) % 4

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            sample = model(video, timestep, class_labels=labels).sample
        F.mse_loss(sample.float(), target).backward()
        model.zero_grad(set_to_none=True)

    times = measure({"step": step, "align": lambda: align_noise(video, noise)}, rounds)
    step_ms, align_ms = (1e3 * median(times[name]) for name in ("step", "align"))
    return {"batch": BATCH, "step": step_ms, "align": align_ms, "share": align_ms / step_ms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--elements", type=int, nargs="+", default=ELEMENTS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-gib", type=float, default=24.0, help="memory to stay below")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    if min(*options.batches, *options.elements, options.rounds) < 1:
        parser.error("--batches, --elements and --rounds must be at least 1")
    where = sys.stderr if options.json else sys.stdout
    print(machine.one_line(), file=where)
    costs, left_out = [], []
    for elements in options.elements:
        for batch in options.batches:
            needed = memory(batch, elements)[0]
            if needed > options.max_gib:
                left_out.append((batch, elements, needed))
                print(f"{batch:5} x {elements:8} elements   left out: about {needed:.1f} GiB", file=where)
                continue
            costs.append(cost(batch, elements, options.rounds, options.max_gib))
            print(costs[-1].line(), file=where, flush=True)
    step = beside_a_step(options.rounds)
    print(
        f"batch {BATCH} of the gameplay recipe: training step {step['step']:.0f} ms, alignment {step['align']:.1f} ms, "
        f"{step['share']:.2%} of it",
        file=where,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    print(f"peak memory of this process {peak:.1f} GiB", file=where)
    if options.json:
        figures = {"machine": machine.describe(), "costs": [asdict(c) for c in costs], "training_step": step}
        print(json.dumps({**figures, "left_out": left_out, "peak_gib": peak}, indent=2))


if __name__ == "__main__":
    main()
