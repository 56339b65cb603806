"""What a pyramid saves, measured: the stock pipeline plain and pyramidal, side by side in one run, on random weights.

Both are whole calls of diffusers' pipeline from noise to latents, with the same network; schedulers and jumps are in
them, text encoders and the autoencoder are not (prompts are random embeddings; decoding is timed apart).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn

from tpdiff.evaluation import machine
from tpdiff.evaluation.latency import Reporter, measure, standings
from tpdiff.evaluation.planning import TERA, Plan, plan
from tpdiff.evaluation.results import LatencyRow
from tpdiff.evaluation.watch import watched
from tpdiff.families.models import Published
from tpdiff.sampling.apply import apply_pyramid

GUIDANCE_SCALE = 5.0
SHORT_STEP = 0.5  # seconds: in shorter full-size steps, what is not the network weighs too much
SLOW = {"cpu": 1000.0}  # TFLOPs of one plain sampling that take hours


@dataclass(frozen=True)
class Bench:
    """A measured pyramid.

    Attributes:
        plan: what was planned for the same network, stages coarsest first.
        device: where.
        dtype: of the weights.
        guidance: whether it was used.
        rows: seconds of every round, plain first.
        step_seconds: of one step in the network, of every stage as in the plan.
        plain_step_seconds: the same of the plain schedule.
        scheduler_share: part of the time spent in scheduler and jumps, by row.
        peaks: most memory used, bytes, by row.
        decode_seconds: of decoding once, at full size; None: not measured.
    """

    plan: Plan
    device: str
    dtype: str
    guidance: bool
    rows: tuple[LatencyRow, LatencyRow]
    step_seconds: tuple[float, ...]
    plain_step_seconds: float
    scheduler_share: tuple[float, float]
    peaks: tuple[int | None, int | None]
    decode_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        plain, pyramid = standings(self.rows)
        parts = zip(self.plan.as_dict()["stages"], self.step_seconds, strict=True)
        rows = zip((plain, pyramid), self.scheduler_share, self.peaks, strict=True)
        network = ("num_layers", "layers_per_block", "num_attention_heads", "attention_head_dim", "block_out_channels")
        config = {name: value for name, value in self.plan.model.config.items() if name in network}
        return {
            "model": self.plan.model.name,
            "network": self.plan.model.network,
            "config": config,
            "size": list(self.plan.plain.size),
            "device": self.device,
            "dtype": self.dtype,
            "guidance": self.guidance,
            "steps": self.plan.steps,
            "plain_steps": self.plan.plain.steps,
            "stages": [stage | {"seconds_per_step": seconds} for stage, seconds in parts],
            "plain_seconds_per_step": self.plain_step_seconds,
            "step_is_short": self.plain_step_seconds < SHORT_STEP,
            "rows": [
                {
                    "name": row.row.name,
                    "steps": row.row.steps,
                    "seconds": row.row.seconds,
                    "median": row.row.median,
                    "tflops": row.row.flops / TERA,
                    "tflops_per_second": row.row.flops / TERA / row.row.median,
                    "scheduler_share": share,
                    "peak_bytes": peak,
                }
                for row, share, peak in rows
            ],
            "speedup": pyramid.speedup.ratio,
            "speedup_by_round": list(pyramid.speedup.paired),
            "planned_speedup": pyramid.limit,
            "reached": pyramid.share,
            "decode_seconds": self.decode_seconds,
            "units": {
                "seconds": "of one sampling, noise to latents; text encoder and VAE are not in it",
                "seconds_per_step": "in the network, all passes of a step",
                "tflops": "of one sampling, guidance included where it is used",
                "scheduler_share": "of the time, in scheduler and jumps",
                "reached": "measured over planned speed-up",
            },
            "machine": machine.describe(),
        }


def bench(
    model: Published,
    size: Sequence[int | None] = (None, None, None),
    axes: str = "T",
    stages: int = 3,
    steps: int | Sequence[int] | None = None,
    plain_steps: int | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    guidance: bool = True,
    rounds: int = 3,
    warmup: int = 1,
    decode: bool = False,
    progress: Reporter | None = None,
) -> Bench:
    """Measure a pyramid on a network of random weights.

    Args:
        model: the network's configuration, `Published.resized` where the published one is too much.
        size: as for `planning.plan`.
        axes: likewise.
        stages: likewise.
        steps: likewise.
        plain_steps: likewise.
        device: where to run.
        dtype: of the weights; None: bfloat16 on CUDA, else float32.
        guidance: with classifier-free guidance, where the model uses it.
        rounds: timed rounds; in each, both take a turn.
        warmup: rounds before them.
        decode: time the autoencoder, too.
        progress: told after every timed run.

    Raises:
        ValueError: what `plan` refuses, a pipeline that cannot run without its autoencoder, or one too slow to try.
    """
    device = torch.device(device)
    dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
    planned = plan(model, size, axes, stages, steps, plain_steps, guidance)
    check(planned, device, guidance)
    network = model.build(device, dtype)
    plain, sample_plain = one_sampling(planned, network, False, device, dtype, guidance)
    pyramid, sample_pyramid = one_sampling(planned, network, True, device, dtype, guidance)
    variants = {"plain": sample_plain, "pyramid": sample_pyramid}
    with torch.no_grad():
        seconds = measure(variants, rounds, warmup, progress)
        watches = [watched(run, pipe, network) for run, pipe in zip(variants.values(), (plain, pyramid), strict=True)]
        decoding = median(measure({"decode": _decoder(planned, device, dtype)}, rounds)["decode"]) if decode else None
    passes = planned.passes if guidance else 1
    counts = (str(planned.plain.steps), "-".join(map(str, planned.steps)))
    totals = (planned.plain.tflops, planned.total_tflops)
    rows = [
        LatencyRow(name, count, seconds[name], round(total * passes * TERA), False)
        for name, count, total in zip(variants, counts, totals, strict=True)
    ]
    calls = 1 if model.together else passes
    return Bench(
        plan=planned,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=str(dtype).removeprefix("torch."),
        guidance=guidance,
        rows=(rows[0], rows[1]),
        step_seconds=tuple(_steps_of(watches[1].calls, pyramid.evaluations(planned.steps), calls)),
        plain_step_seconds=_steps_of(watches[0].calls, [len(watches[0].calls) // calls], calls)[0],
        scheduler_share=(watches[0].scheduler / watches[0].total, watches[1].scheduler / watches[1].total),
        peaks=(watches[0].peak, watches[1].peak),
        decode_seconds=decoding,
    )


def one_sampling(
    planned: Plan, network: Any, staged: bool, device: torch.device, dtype: torch.dtype, guidance: bool
) -> tuple[Any, Callable[[], None]]:
    """A stock pipeline around a network, plain or through the plan's stages, and one sampling by it: from noise to
    latents, on random embeddings.
    """
    model, steps = planned.model, planned.plain.steps
    pipe = _pipe(model, network, guidance)
    if staged:
        steps = sum(planned.steps)
        pipe = apply_pyramid(pipe, [stage.factors for stage in reversed(planned.stages)], planned.steps)
    with torch.device(device):
        embeddings = model.embeddings(model.config, dtype)  # type: ignore[misc]
    options = _options(pipe, planned, steps, guidance) | embeddings
    return pipe, lambda: pipe(**options, generator=torch.Generator(device).manual_seed(0)) and None


def check(planned: Plan, device: torch.device, guidance: bool) -> None:
    """Refuse what cannot be measured, or not in a day.

    Raises:
        ValueError: no such device, a pipeline that needs its autoencoder, or a network too large for the device.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {str(device)!r}: there is no CUDA device here; use cpu")
    if planned.model.embeddings is None:
        raise ValueError(f"{planned.model.name} starts from a picture that its autoencoder encodes, so it is not timed")
    takes = planned.plain.tflops * (planned.passes if guidance else 1)
    if takes > SLOW.get(device.type, float("inf")):
        raise ValueError(
            f"one plain sampling takes {takes:,.0f} TFLOPs, hours on a {device.type}: give --tiny, or --layers, "
            f"--hidden and a smaller size, so that it takes at most {SLOW[device.type]:,.0f}"
        )


def _pipe(model: Published, network: nn.Module, guidance: bool) -> Any:
    pipe = model.pipeline(network)
    pipe.set_progress_bar_config(disable=True)
    if hasattr(pipe, "guider"):
        pipe.guider.guidance_scale = GUIDANCE_SCALE if guidance else 1.0
    return pipe


def _options(pipe: Any, planned: Plan, steps: int, guidance: bool) -> dict[str, Any]:
    options: dict[str, Any] = dict(zip(("num_frames", "height", "width"), planned.plain.size, strict=True))
    options |= {"num_inference_steps": steps, "output_type": "latent"}
    if "guidance_scale" in _parameters(pipe):
        options["guidance_scale"] = GUIDANCE_SCALE if guidance else 1.0
    return options


def _parameters(pipe: Any) -> set[str]:
    """Of the pipeline's own call, also where it runs pyramidally."""
    calls = (vars(kind)["__call__"] for kind in type(pipe).__mro__ if "__call__" in vars(kind))
    return {name for call in calls for name in inspect.signature(call).parameters}


def _steps_of(calls: list[float], evaluations: Sequence[int], passes: int) -> list[float]:
    """Median seconds of a step in the network, of every stage in order."""
    steps = [sum(calls[i : i + passes]) for i in range(0, len(calls), passes)]
    result = []
    for count in evaluations:
        result.append(median(steps[:count]))
        steps = steps[count:]
    return result


def _decoder(planned: Plan, device: torch.device, dtype: torch.dtype) -> Callable[[], None]:
    model, latent = planned.model, planned.plain.latent
    with torch.device(device):
        vae = model.vae()
    vae = nn.Module.to(vae, device, dtype).eval().requires_grad_(False)
    shape = (latent[0], model.latent_channels, *latent[1:]) if model.frame_vae else (1, model.latent_channels, *latent)
    latents = torch.randn(shape, device=device, dtype=dtype)
    return lambda: vae.decode(latents, return_dict=False) and None
