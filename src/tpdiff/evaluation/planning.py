"""What a pyramid would cost, before a weight is loaded: tokens, operations and activations of every stage.

Operations are counted by running the real network of diffusers on the meta device at every stage's size. A stage of a
pyramid is an ordinary call of the stock pipeline (`tpdiff.sampling.apply`), so a schedule's operations are those of its
steps, and the speed-up that is planned is the ratio to the plain schedule's. Text encoders, the autoencoder,
schedulers and jumps are not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from tpdiff.evaluation.counting import ACTIVATIONS, count_model
from tpdiff.families import find_family
from tpdiff.families.models import Published
from tpdiff.families.models.published import Shape, Size
from tpdiff.families.sizes import check_whole, stage_sizes
from tpdiff.pyramid import FlowMatchingSchedule, Pyramid
from tpdiff.pyramid.geometry import AXIS_NAMES
from tpdiff.pyramid.steps import split_steps

TERA = 1e12
AXES = {"T": (2, 1, 1), "HW": (1, 2, 2), "THW": (2, 2, 2)}
NOT_INCLUDED = (
    "VAE decoding, text encoders, schedulers and jumps are not included; nor is element-wise work (FLOPs are those of "
    "matrix products, convolutions and attention, 2 a multiply-add)"
)


@dataclass(frozen=True)
class StageCost:
    """One stage, or the plain schedule.

    Attributes:
        stage: k, 0 the finest.
        factors: (T, H, W) stride against full size.
        size: (num_frames, height, width) in pixels.
        latent: (t, h, w) of the latents.
        tokens: video tokens of one network pass.
        steps: sampling steps.
        tflops_per_step: TFLOPs of one network pass.
        activation_gib: peak of activations of a network call, GiB (`counting.ACTIVATIONS`).
    """

    stage: int
    factors: Size
    size: Size
    latent: Shape
    tokens: int
    steps: int
    tflops_per_step: float
    activation_gib: float

    @property
    def tflops(self) -> float:
        """TFLOPs of all its steps, one network pass each."""
        return self.steps * self.tflops_per_step


@dataclass(frozen=True)
class Plan:
    """A pyramidal schedule against the plain one.

    Attributes:
        model: whose network.
        stages: coarsest first.
        plain: the plain schedule, at full size.
        passes: network passes a step with guidance.
        batch: videos in the network call whose activations are given.
        weights_gib: all weights of the network (all experts) in bf16.
        notes: what a reader should know.
    """

    model: Published
    stages: tuple[StageCost, ...]
    plain: StageCost
    passes: int
    batch: int
    weights_gib: float
    notes: tuple[str, ...] = field(default=())

    @property
    def steps(self) -> list[int]:
        """Steps of every stage, coarsest first."""
        return [stage.steps for stage in self.stages]

    @property
    def total_tflops(self) -> float:
        """TFLOPs of the whole schedule, without guidance."""
        return sum(stage.tflops for stage in self.stages)

    @property
    def speedup(self) -> float:
        """The plain schedule's operations over the pyramid's."""
        return self.plain.tflops / self.total_tflops

    @property
    def limit(self) -> float:
        """What the speed-up tends to where the coarser stages cost nothing: only the finest one's steps are left."""
        return self.plain.tflops / self.stages[-1].tflops

    def tflops_of(self, steps: Sequence[int]) -> float:
        """TFLOPs of these stages with other step counts, coarsest first, without guidance."""
        return sum(n * stage.tflops_per_step for n, stage in zip(steps, self.stages, strict=True))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        stages = [_stage_dict(stage) | {"share": stage.tflops / self.total_tflops} for stage in self.stages]
        return {
            "model": self.model.name,
            "title": self.model.title,
            "source": self.model.source,
            "network": self.model.network,
            "size": list(self.plain.size),
            "text_tokens": self.model.text_tokens,
            "steps": self.steps,
            "stages": stages,
            "plain": _stage_dict(self.plain),
            "total_tflops": self.total_tflops,
            "total_tflops_with_guidance": self.total_tflops * self.passes,
            "plain_tflops": self.plain.tflops,
            "plain_tflops_with_guidance": self.plain.tflops * self.passes,
            "passes_with_guidance": self.passes,
            "speedup": self.speedup,
            "speedup_limit": self.limit,
            "weights_gib": self.weights_gib,
            "activation_gib": max(stage.activation_gib for stage in self.stages),
            "activation_batch": self.batch,
            "units": {
                "size": "num_frames, height, width in pixels",
                "latent": "frames, height, width of the latents",
                "tokens": "video tokens of one network pass",
                "tflops": "10^12 floating-point operations of all steps of the stage, one network pass each",
                "tflops_per_step": "10^12 floating-point operations of one network pass",
                "activation_gib": f"2^30 bytes: {ACTIVATIONS}",
                "weights_gib": "2^30 bytes in bf16, all experts",
                "speedup_limit": "the speed-up if all stages but the finest were free",
            },
            "not_included": NOT_INCLUDED,
            "notes": list(self.notes),
            "torch": torch.__version__,
        }


def plan(
    model: Published,
    size: Sequence[int | None] = (None, None, None),
    axes: str = "T",
    stages: int = 3,
    steps: int | Sequence[int] | None = None,
    plain_steps: int | None = None,
    guidance: bool = True,
) -> Plan:
    """Plan a pyramid for a published model.

    Args:
        model: its configuration.
        size: (num_frames, height, width) in pixels; what is None is the model's own, or the nearest that stages can
            hold.
        axes: what grows from stage to stage, by 2: "T", "HW" or "THW".
        stages: S.
        steps: a total, or one count a stage, coarsest first; None: the model's usual number.
        plain_steps: of the schedule to compare with; None: as many in all.
        guidance: give activations of a network call with guidance; it is a batch of two in some pipelines.

    Raises:
        ValueError: a size that some stage cannot hold, with the nearest that it can, or steps that do not fit.
    """
    factors = stage_factors(axes, stages)
    counts = split_steps(model.steps if steps is None else steps, stages)
    if plain_steps is not None and plain_steps < 1:
        raise ValueError(f"{plain_steps} plain steps; nearest: 1")
    network = model.build("meta", torch.bfloat16)
    pipe = model.pipeline(network)
    sizes, notes = _sizes(model, pipe, factors, size)
    batch = model.passes if guidance and model.together else 1
    costs = []
    for k in range(stages):
        frames, height, width = sizes[k]
        latent = find_family(pipe).latent_size(pipe, (frames, height, width))
        count = count_model(model, latent, batch, network=network)
        costs.append(
            StageCost(
                stage=k,
                factors=factors[k],
                size=sizes[k],
                latent=latent,
                tokens=model.tokens(latent),
                steps=counts[stages - 1 - k],
                tflops_per_step=count.flops / batch / TERA,
                activation_gib=count.activation_bytes / 2**30,
            )
        )
    full = costs[0]
    plain = StageCost(**{**vars(full), "steps": sum(counts) if plain_steps is None else plain_steps})
    weights = sum(p.numel() * p.element_size() for p in network.parameters()) * model.experts / 2**30
    return Plan(model, tuple(reversed(costs)), plain, model.passes, batch, weights, (*model.notes, *notes))


def stage_factors(axes: str, stages: int) -> list[Size]:
    """(T, H, W) strides of the stages, finest first, a factor of 2 from one to the next.

    Raises:
        ValueError: unknown axes, or fewer than two stages.
    """
    if axes.upper() not in AXES:
        raise ValueError(f"axes {axes!r} is none of {', '.join(AXES)}")
    if stages < 2:
        raise ValueError(f"{stages} stages make no pyramid; nearest: 2")
    t, h, w = AXES[axes.upper()]
    return [(t**k, h**k, w**k) for k in range(stages)]


def suggest(plan: Plan, budget_tflops: float, guidance: bool = True) -> list[int]:
    """Steps of every stage, coarsest first, as many in all as the plan's, within a budget.

    An even share for the finest stage, or as many as the budget allows; the rest is split evenly over the coarser
    stages. Only where one step of the finest stage is too much for that do the next ones give up theirs.

    Args:
        plan: the stages.
        budget_tflops: of the whole schedule.
        guidance: the budget pays for guidance too.

    Raises:
        ValueError: even the cheapest schedule is dearer, with its price.
    """
    budget = budget_tflops / (plan.passes if guidance else 1)
    total, places = sum(plan.steps), len(plan.stages)
    fixed: list[int] = []
    while len(fixed) < places - 1:
        left, coarser = total - sum(fixed), places - 1 - len(fixed)
        for finest in range(left // (coarser + 1), 0, -1):
            counts = [*split_steps(left - finest, coarser), finest, *fixed]
            if plan.tflops_of(counts) <= budget:
                return counts
        fixed.insert(0, 1)
    least = [total - places + 1, *fixed]
    price = plan.tflops_of(least) * (plan.passes if guidance else 1)
    raise ValueError(
        f"a budget of {budget_tflops:g} TFLOPs is too small for {total} steps: the cheapest schedule, "
        f"{'-'.join(map(str, least))}, takes {price:.4g}; give more, fewer steps, or more stages"
    )


def _sizes(
    model: Published, pipe: Any, factors: list[Size], wanted: Sequence[int | None]
) -> tuple[list[Size], tuple[str, ...]]:
    """(num_frames, height, width) of every stage, finest first, as `apply_pyramid` calls the pipeline; notes."""
    family = find_family(pipe)
    pyramid = Pyramid(FlowMatchingSchedule(), factors, causal_time=family.causal_vae)
    family.check(pipe, pyramid)

    def legal(axis: int, value: int) -> bool:
        try:
            check_whole(pipe, family, pyramid, (value, value, value), [axis])
        except ValueError:
            return False
        return True

    frames, height, width = (
        _nearest(AXIS_NAMES[axis], own, partial(legal, axis), len(pyramid)) if value is None else value
        for axis, (own, value) in enumerate(zip(model.size, wanted, strict=True))
    )
    sizes = stage_sizes(pipe, family, pyramid, (frames, height, width))
    named = zip(AXIS_NAMES, model.size, wanted, (frames, height, width), strict=True)
    moved = [f"{name} {used} instead of {own}" for name, own, value, used in named if value is None and used != own]
    notes = (f"the model's own size does not fit the stages: {', '.join(moved)}",) if moved else ()
    return sizes, notes


def _nearest(name: str, value: int, legal: Callable[[int], bool], stages: int) -> int:
    """The legal size nearest to the model's own, the smaller of two.

    Raises:
        ValueError: none is from half to twice as large.
    """
    for away in range(value + 1):
        for near in (value - away, value + away):
            if 2 * near >= value and legal(near):
                return near
    raise ValueError(
        f"no {name} from half to twice the model's own {value} suits {stages} stages; give it, or fewer stages"
    )


def _stage_dict(stage: StageCost) -> dict[str, Any]:
    return {**vars(stage), "tflops": stage.tflops} | {
        name: list(getattr(stage, name)) for name in ("factors", "size", "latent")
    }
