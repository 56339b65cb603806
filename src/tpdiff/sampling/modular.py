"""Modular pipelines of diffusers with stages: the denoise block runs its own loop step at every stage's size.

Nothing here knows a model. A block is taken as it is, with whatever steps it holds, and its class is extended.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from diffusers.modular_pipelines import LoopSequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam
from torch import Tensor

from tpdiff.families import Family
from tpdiff.families.base import Size, family_named
from tpdiff.families.sizes import stage_sizes
from tpdiff.pyramid.geometry import AXIS_NAMES
from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.steps import split_steps
from tpdiff.sampling.acceleration import cached
from tpdiff.sampling.guiding import forget_averages
from tpdiff.sampling.parallel import check_parallel
from tpdiff.schedulers import PyramidScheduler, schedule_of
from tpdiff.schedulers.runs import evaluations

Blocks = TypeVar("Blocks")
Stages = Pyramid | Sequence[Sequence[float]]


def make_pyramidal(blocks: Blocks, pyramid: Stages, steps: int | Sequence[int] | None = None) -> Blocks:
    """Make the blocks of a text-to-video pipeline run through the stages of a pyramid; changed in place.

    Replaced are the denoising loop (`pyramid_denoise_block`), and before it the block that prepares latents
    (`coarse_latents_block`) and those with a scheduler, which may then be that of a pipeline saved with stages. All
    inputs and outputs stay; `num_frames`, `height` and `width` are those of the result.

    Args:
        blocks: of a known family (`blocks.model_name`), not yet an initialized pipeline; their stages, if any, go.
        pyramid: the stages, or their (T, H, W) factors, finest first, on the pipeline's own noise schedule.
        steps: a total, or one count a stage, coarsest first; wins over the call's `num_inference_steps`. None: that.

    Returns:
        The blocks.

    Raises:
        ValueError: an unknown family, blocks without one denoising loop, or without a block that prepares its latents.
    """
    loops = _loops(blocks)
    if len(loops) != 1:
        raise ValueError(f"{type(blocks).__name__} has {len(loops)} denoising loops; stages need exactly one")
    parent, name = loops[0]
    before = list(parent)[: list(parent).index(name)]
    makers = [one for one in before if "latents" in {out.name for out in parent[one].intermediate_outputs}]
    if not makers:
        raise ValueError(f"no block before {name!r} prepares latents; known before it: {', '.join(before) or 'none'}")
    for one in before:
        if "scheduler" in parent[one].component_names:
            parent[one] = _extended(parent[one], _WithoutStages)
    parent[makers[-1]] = coarse_latents_block(parent[makers[-1]], pyramid)
    parent[name] = pyramid_denoise_block(parent[name], pyramid, steps)
    return blocks


def pyramid_denoise_block(loop: Any, pyramid: Stages, steps: int | Sequence[int] | None = None) -> Any:
    """A denoising loop -> one that runs its own loop step stage by stage and jumps between.

    Its `latents` are noise (B, C, T, H, W) of the coarsest stage's size; it ends with latents of full size. Guiders
    count the steps of all stages.

    Args:
        loop: the block to extend; copied.
        pyramid, steps: as in `make_pyramidal`.

    Raises:
        ValueError: a block that is no loop, an unknown family. When called: latents of another size, an input besides
            them that is made for one size, a plain schedule's timesteps, an enabled cache.
    """
    if not isinstance(loop, LoopSequentialPipelineBlocks):
        raise ValueError(f"{type(loop).__name__} is no denoising loop (LoopSequentialPipelineBlocks)")
    return _extended(loop, _Loop, pyramid, steps)


def coarse_latents_block(prepare: Any, pyramid: Stages) -> Any:
    """A block that prepares latents -> one that makes them for the coarsest stage. Latents that are given stay.

    Raises:
        ValueError: an unknown family. When called: a size that some stage cannot hold, with the nearest legal one.
    """
    return _extended(prepare, _Prepare, pyramid)


def _extended(block: Any, extension: type, pyramid: Stages = (), steps: int | Sequence[int] | None = None) -> Any:
    family_named(block.model_name)
    made, kind = copy.copy(block), next(one for one in type(block).__mro__ if not issubclass(one, _Staged))
    made.__class__ = type(kind.__name__, (extension, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    made._stages, made._steps = pyramid, steps
    return made


class _Staged:
    """What an extended block knows of its pyramid."""

    _stages: Stages
    _steps: int | Sequence[int] | None
    model_name: str

    def _pyramid(self, components: Any) -> Pyramid:
        family, stages = family_named(self.model_name), self._stages
        if not isinstance(stages, Pyramid):
            stages = Pyramid(schedule_of(_base(components.scheduler)), stages, causal_time=family.causal_vae)
        family.check(components, stages)
        return stages


class _WithoutStages(_Staged):
    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> Any:
        with _without_stages(components):
            return super().__call__(components, state)  # type: ignore[misc]


class _Prepare(_WithoutStages):
    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> Any:
        stock, pyramid = super().__call__, self._pyramid(components)
        asked = tuple(state.get(name) for name in AXIS_NAMES)
        t, h, w = (a or getattr(components, f"default_{name}") for a, name in zip(asked, AXIS_NAMES, strict=True))
        sizes = stage_sizes(components, family_named(self.model_name), pyramid, (t, h, w))
        _set(state, sizes[-1])
        components, state = stock(components, state)
        _set(state, sizes[0])
        return components, state


class _Loop(_Staged):
    @property
    def loop_inputs(self) -> list[Any]:
        """Those of the loop, and what stages need besides."""
        own = super().loop_inputs  # type: ignore[misc]
        known = {one.name for one in own}
        return [*own, *(InputParam(name) for name in ("generator", *AXIS_NAMES) if name not in known)]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> Any:
        pyramid = self._pyramid(components)
        if len(pyramid) == 1:
            with _without_stages(components):
                self._lay_out(components, state)
                return super().__call__(components, state)  # type: ignore[misc]
        block: Any = self
        family, at = family_named(self.model_name), block.get_block_state(state)
        counts = split_steps(self._steps or at.num_inference_steps, len(pyramid))
        _check(components, family, pyramid, at)
        scheduler = _scheduler(components.scheduler, pyramid, counts)
        scheduler.check(counts)
        asked, timesteps = at.num_inference_steps, at.timesteps
        scheduler.generator = at.generator
        with _scheduled(components, scheduler), block.progress_bar(total=sum(counts)) as bar:
            at.num_inference_steps, done = sum(evaluations(scheduler, counts)), 0
            for place, count in enumerate(counts):
                if place > 0:
                    at.latents = scheduler.jump(at.latents)
                    forget_averages(getattr(components, "guider", None))
                scheduler.restrict(len(pyramid) - 1 - place, counts)
                scheduler.set_timesteps(count, device=timesteps.device)
                at.timesteps = scheduler.timesteps
                for t in at.timesteps:
                    components, at = block.loop_step(components, at, i=done, t=t)
                    done += 1
                bar.update(count)
        at.num_inference_steps, at.timesteps = asked, timesteps
        block.set_block_state(state, at)
        return components, state

    def _lay_out(self, components: Any, state: Any) -> None:
        """One stage's own steps, unless the call says its timesteps or sigmas."""
        block: Any = self
        at = block.get_block_state(state)
        if self._steps is None or not _is_plain(components.scheduler, at):
            return
        (count,) = split_steps(self._steps, 1)
        components.scheduler.set_timesteps(count, device=at.timesteps.device)
        state.set("num_inference_steps", count)
        state.set("timesteps", components.scheduler.timesteps)


@contextmanager
def _scheduled(components: Any, scheduler: Any) -> Iterator[None]:
    """Have components work with a scheduler while active."""
    own, components.scheduler = components.scheduler, scheduler
    try:
        yield
    finally:
        components.scheduler = own


def _without_stages(components: Any) -> Any:
    """Have components work with their own scheduler, where a `PyramidScheduler` is around it, while active."""
    return _scheduled(components, _base(components.scheduler))


def _base(scheduler: Any) -> Any:
    return scheduler.base if isinstance(scheduler, PyramidScheduler) else scheduler


def _scheduler(own: Any, pyramid: Pyramid, counts: list[int]) -> PyramidScheduler:
    if not isinstance(own, PyramidScheduler):
        return PyramidScheduler(own, pyramid, counts)
    return PyramidScheduler(own.base, pyramid, counts, own.config["timestep_policy"], own.config["per_stage_target"])


def _check(components: Any, family: Family, pyramid: Pyramid, at: Any) -> None:
    """Refuse what a loop over several sizes would get wrong."""
    size: Size = (at.num_frames, at.height, at.width)
    sizes = stage_sizes(components, family, pyramid, size)
    coarsest = family.latent_size(components, sizes[-1])
    if at.latents.ndim != 5 or tuple(at.latents.shape[2:]) != coarsest:
        raise ValueError(
            f"latents {tuple(at.latents.shape)} are not (B, C, T, H, W) of the coarsest stage's size, {coarsest}: "
            "give such, or let make_pyramidal replace the block that prepares them, too"
        )
    for name, value in vars(at).items():
        if name != "latents" and isinstance(value, Tensor) and value.ndim == 5:
            raise ValueError(
                f"{name} {tuple(value.shape)} is made for one size, stages have several: use apply_pyramid on the "
                "ordinary pipeline"
            )
    if not _is_plain(components.scheduler, at):
        raise ValueError("timesteps or sigmas of a plain schedule have no meaning with stages; give steps instead")
    if name := cached(components):
        raise ValueError(
            f"{name} has a cache, but a modular loop does not tell it which guidance branch it evaluates: "
            "use apply_pyramid on the ordinary pipeline"
        )
    check_parallel(components, family, partial(stage_sizes, components, family, pyramid), size, at.generator)


def _is_plain(scheduler: Any, at: Any) -> bool:
    """Whether the call's timesteps are those that its scheduler lays out for their number."""
    plain = copy.deepcopy(_base(scheduler))
    plain.set_timesteps(at.num_inference_steps, device=at.timesteps.device)
    return torch.equal(plain.timesteps, at.timesteps)


def _set(state: Any, size: Size) -> None:
    for name, value in zip(AXIS_NAMES, size, strict=True):
        state.set(name, value)


def _loops(blocks: Any) -> list[tuple[Any, str]]:
    """(the sub-blocks that hold it, its name) of every denoising loop."""
    found = []
    for name, block in blocks.sub_blocks.items():
        if isinstance(block, LoopSequentialPipelineBlocks):
            found.append((blocks.sub_blocks, name))
        elif block.sub_blocks:
            found += _loops(block)
    return found
