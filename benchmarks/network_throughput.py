"""How close VideoDiT comes to the matrix-multiplication rate of this machine.

    python benchmarks/network_throughput.py [--tokens 64 256 1024] [--rounds 5] [--cpu-time] [--json]

Times, in alternating rounds of one run (medians are printed): the training step (forward, backward, fused AdamW;
float32 weights under bfloat16 autocast) and the inference of VideoDiT and of the same network written plainly; the
matrix multiplications of its linear layers alone. The work of both networks is counted once, by PyTorch's
FlopCounterMode on the plain one with unfused attention, so recomputation earns no credit. On a machine shared with
other work, --cpu-time runs one thread and counts the processor time it was given instead of the time that passed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tpdiff.models import VideoDiT, keep_freed_memory
from tpdiff.models.embeddings import timestep_embedding
from tpdiff.models.rotary import rotary_angles

GRIDS = {64: (4, 4, 4), 256: (4, 8, 8), 1024: (16, 8, 8)}
PATCH = 8
LINEAR_OPS = ("mm", "addmm", "linear")
ATTENTION_OPS = ("bmm", "baddbmm", "softmax", "scaled_dot_product")
OPTIMIZER_OPS = ("adamw",)


class PlainBlock(nn.Module):
    """The block of VideoDiT as one would first write it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.query_norm, self.key_norm = (nn.RMSNorm(width // heads, eps=1e-6) for _ in range(2))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, conditioning: Tensor, rotary: Tensor) -> Tensor:
        shifts = self.modulation(conditioning)[:, None].chunk(6, dim=-1)
        y = self.norms[0](x) * (1 + shifts[1]) + shifts[0]
        q, k, v = (layer(y).unflatten(-1, (self.heads, -1)) for layer in (self.query, self.key, self.value))
        q, k = self._rotate(self.query_norm(q), rotary), self._rotate(self.key_norm(k), rotary)
        y = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        x = x + shifts[2] * self.out(y.transpose(1, 2).flatten(2))
        y = self.norms[1](x) * (1 + shifts[4]) + shifts[3]
        return x + shifts[5] * self.mlp(y)

    @staticmethod
    def _rotate(x: Tensor, rotary: Tensor) -> Tensor:
        cos, sin = rotary[:, None, :, None]
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class PlainDiT(nn.Module):
    """VideoDiT, written plainly: the baseline of the speed-up."""

    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.patch_embed = nn.Conv3d(3, width, (1, PATCH, PATCH), (1, PATCH, PATCH))
        self.time_embed = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(PlainBlock(width, heads) for _ in range(layers))
        self.final_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_norm = nn.LayerNorm(width, elementwise_affine=False)
        self.final_projection = nn.Linear(width, 3 * PATCH * PATCH)

    def forward(self, x: Tensor, timestep: Tensor) -> tuple[Tensor]:
        batch, channels, t, h, w = x.shape
        size = (t, h // PATCH, w // PATCH)
        angles = rotary_angles(size, (1, PATCH, PATCH), self.head_dim).float()
        rotary = torch.stack((angles.cos(), angles.sin()))
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        conditioning = self.time_embed(timestep_embedding(timestep, 256))
        for block in self.blocks:
            tokens = block(tokens, conditioning, rotary)
        shift, scale = self.final_modulation(conditioning)[:, None].chunk(2, dim=-1)
        tokens = self.final_projection(self.final_norm(tokens) * (1 + scale) + shift)
        cells = tokens.view(batch, *size, channels, PATCH, PATCH).permute(0, 4, 1, 2, 5, 3, 6)
        return (cells.reshape(x.shape),)


@dataclass
class Figures:
    """What was measured at one number of tokens; rates in GFLOP/s, times in milliseconds."""

    tokens: int
    batch: int
    step_gflop: float
    matmul_bf16: float
    matmul_fp32: float
    plain_ms: float
    step_ms: float
    plain_inference_ms: float
    inference_ms: float
    split: dict[str, float]
    plain_split: dict[str, float]

    @property
    def rate(self) -> float:
        return self.step_gflop / self.step_ms * 1e3

    @property
    def plain_rate(self) -> float:
        return self.step_gflop / self.plain_ms * 1e3

    def lines(self) -> list[str]:
        tokens = self.tokens * self.batch
        return [
            f"{self.tokens} tokens x batch {self.batch}",
            f"  matmul        bf16 {self.matmul_bf16:7.0f} GFLOP/s   fp32 {self.matmul_fp32:7.0f} GFLOP/s",
            f"  training  VideoDiT {self.rate:7.0f} GFLOP/s  {self.rate / self.matmul_bf16:4.0%} of matmul"
            f"  {tokens / self.step_ms * 1e3:8.0f} tokens/s",
            f"               plain {self.plain_rate:7.0f} GFLOP/s  {self.plain_rate / self.matmul_bf16:4.0%} of matmul"
            f"  {tokens / self.plain_ms * 1e3:8.0f} tokens/s   speed-up {self.plain_ms / self.step_ms:.2f}x",
            f"  inference VideoDiT {tokens / self.inference_ms * 1e3:8.0f} tokens/s, plain "
            f"{tokens / self.plain_inference_ms * 1e3:8.0f} tokens/s"
            f"   speed-up {self.plain_inference_ms / self.inference_ms:.2f}x",
            *(
                f"  time split {name:8} " + "  ".join(f"{part} {share:4.0%}" for part, share in split.items())
                for name, split in (("VideoDiT", self.split), ("plain", self.plain_split))
            ),
        ]


def training_step(network: nn.Module, video: Tensor, timestep: Tensor) -> Callable[[], None]:
    """One optimisation step as a callable."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    target = torch.randn_like(video)

    def step() -> None:
        with torch.autocast(video.device.type, torch.bfloat16):
            sample = network(video, timestep)[0]
        F.mse_loss(sample.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference(network: nn.Module, video: Tensor, timestep: Tensor) -> Callable[[], None]:
    """One forward pass as a callable."""

    def step() -> None:
        with torch.inference_mode(), torch.autocast(video.device.type, torch.bfloat16):
            network(video, timestep)

    return step


def linear_layers(tokens: int, width: int, dtype: torch.dtype) -> tuple[Callable[[], None], float]:
    """The multiplications of one block's linear layers, forward and both backward, and their GFLOP."""
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    operands = [
        (torch.randn(tokens, i).to(dtype), torch.randn(o, i).to(dtype), torch.randn(tokens, o).to(dtype))
        for o, i in shapes
    ]

    def step() -> None:
        for x, weight, grad in operands:
            F.linear(x, weight), grad @ weight, grad.t() @ x

    return step, sum(6 * tokens * o * i for o, i in shapes) / 1e9


def alternate(steps: dict[str, Callable[[], None]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each step over rounds in which all take turns."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if round_:  # the first round warms up
                times[name].append(1e3 * (clock() - start))
    return {name: median(values) for name, values in times.items()}


def time_split(step: Callable[[], None]) -> dict[str, float]:
    """Shares of a step's operator time in linear layers, attention, the optimizer and all else (element-wise)."""
    with profile(activities=[ProfilerActivity.CPU]) as record:
        step()
    totals = {"linear": 0.0, "attention": 0.0, "elementwise": 0.0, "optimizer": 0.0}
    for event in record.key_averages():
        name = event.key.removeprefix("aten::").strip("_")
        if any(part in name for part in ATTENTION_OPS):
            kind = "attention"
        elif name in LINEAR_OPS:
            kind = "linear"
        elif any(part in name.lower() for part in OPTIMIZER_OPS):
            kind = "optimizer"
        else:
            kind = "elementwise"
        totals[kind] += event.self_cpu_time_total
    return {kind: value / sum(totals.values()) for kind, value in totals.items()}


def measure(
    tokens: int,
    *,
    width: int,
    layers: int,
    heads: int,
    batch_tokens: int,
    rounds: int,
    clock: Callable[[], float],
) -> Figures:
    """All figures at one number of tokens a sample."""
    t, h, w = GRIDS[tokens]
    batch = max(1, batch_tokens // tokens)
    torch.manual_seed(0)
    video, timestep = torch.randn(batch, 3, t, h * PATCH, w * PATCH), torch.rand(batch)
    plain = PlainDiT(width, layers, heads)
    ours = VideoDiT(hidden_size=width, num_layers=layers, num_attention_heads=heads, patch_size=(1, PATCH, PATCH))
    steps = {
        "plain": training_step(plain, video, timestep),
        "ours": training_step(ours, video, timestep),
        "plain_inference": inference(plain, video, timestep),
        "ours_inference": inference(ours, video, timestep),
    }
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        steps["plain"]()
    steps["bf16"], gflop = linear_layers(batch * tokens, width, torch.bfloat16)
    steps["fp32"], _ = linear_layers(batch * tokens, width, torch.float32)
    times = alternate(steps, rounds, clock)
    return Figures(
        tokens=tokens,
        batch=batch,
        step_gflop=counter.get_total_flops() / 1e9,
        matmul_bf16=gflop / times["bf16"] * 1e3,
        matmul_fp32=gflop / times["fp32"] * 1e3,
        plain_ms=times["plain"],
        step_ms=times["ours"],
        plain_inference_ms=times["plain_inference"],
        inference_ms=times["ours_inference"],
        split=time_split(steps["ours"]),
        plain_split=time_split(steps["plain"]),
    )


def machine() -> str:
    """The hardware and software the figures belong to."""
    capability = torch.backends.cpu.get_cpu_capability()
    processor = platform.processor() or platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, {capability}, torch {torch.__version__}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", choices=sorted(GRIDS), default=sorted(GRIDS))
    parser.add_argument("--batch-tokens", type=int, default=8192, help="tokens a batch: batch = this / tokens")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stock-allocator", action="store_true", help="without keep_freed_memory(), for both networks")
    parser.add_argument("--cpu-time", action="store_true", help="one thread, its processor time")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = vars(parser.parse_args())
    if not options.pop("stock_allocator"):
        keep_freed_memory()
    options["clock"] = time.perf_counter
    if options.pop("cpu_time"):
        torch.set_num_threads(1)
        options["clock"] = time.process_time
    as_json, sizes = options.pop("json"), options.pop("tokens")
    if not as_json:
        print(machine())
    results = []
    for tokens in sizes:
        results.append(measure(tokens, **options))
        if not as_json:
            print(*results[-1].lines(), sep="\n", flush=True)
    if as_json:
        figures = [{**asdict(r), "rate": r.rate, "plain_rate": r.plain_rate} for r in results]
        print(json.dumps({"machine": machine(), "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
