"""apply_pyramid: a stock diffusers pipeline that runs pyramidally, its call unchanged (MATH 2, 3).

Each stage is one ordinary call of the stock pipeline, at the stage's size, from the stage's latents, over the stage's
timesteps. All that a stock call fixes at its beginning (rotary tables, masks, condition latents, packing, dynamic
shift) is therefore made for every stage by the pipeline's own code, and the network never meets a wrong size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tpdiff.families import Family, find_family
from tpdiff.families.base import Size
from tpdiff.families.sizes import check_latents, full_size, stage_sizes
from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.steps import split_steps
from tpdiff.sampling.acceleration import check_caches, staged_caches
from tpdiff.sampling.arguments import check_arguments, clones, counting, each_stage, in_one_stage
from tpdiff.sampling.guiding import staged_guider
from tpdiff.sampling.offload import put_away
from tpdiff.sampling.parallel import check_parallel
from tpdiff.sampling.trained import Tuned, read_tuned
from tpdiff.schedulers import PyramidScheduler, schedule_of
from tpdiff.schedulers.runs import evaluations

Pipe = TypeVar("Pipe")
Stages = Pyramid | Sequence[Sequence[int]] | Tuned | str | Path
OF_THE_NETWORK = ("timestep_policy", "per_stage_target")  # what a scheduler must know of it, and a new one, too
REMEMBERED = ("encode_prompt", "encode_image")  # the same in all stages, so done once a call


def apply_pyramid(
    pipe: Pipe,
    pyramid: Stages | None = None,
    steps: int | Sequence[int] | None = None,
) -> Pipe:
    """Make a stock pipeline run through the stages of a pyramid. Its call, its components and its class name stay.

    A call may then give `guidance_scale` as one number a stage, coarsest first, and `latents` as noise of the coarsest
    stage's size. Everything else is as before, `callback_on_step_end` counts the steps of all stages.

    Args:
        pipe: a pipeline of a known family; changed in place.
        pyramid: the stages; or their (T, H, W) factors, finest first, with all else by default (the pipeline's noise
            schedule, uniform ends, Haar, a causal time axis where the autoencoder has one); or the folder of a network
            that was trained through stages, as `tpdiff export` wrote it: those of its tpdiff.json, sampled as it was
            trained, with its options and its clips' frame rate where a call says no others (`Tuned`, what such a file
            holds, does as well); or None: those of the pipeline's own `PyramidScheduler`, as `from_pretrained` restores
            it, or those that were applied before.
        steps: a total, or one count a stage, coarsest first; wins over the call's `num_inference_steps`. None: that.

    Returns:
        The pipeline.

    Raises:
        ValueError: an unknown family, a scheduler that its networks or stages cannot be run with, a pyramid on another
            schedule, a folder without its file, step counts that do not fit, or a picture-to-video pipeline whose first
            frame would be averaged away.
    """
    thing: Any = pipe
    family = find_family(thing)
    call = thing._pyramid_call if isinstance(thing, _Pyramidal) else None
    base, (told, usual) = thing.scheduler, ({}, {}) if call is None else (call.told, call.usual)
    if isinstance(base, PyramidScheduler):
        told = {name: base.config[name] for name in OF_THE_NETWORK}
        if pyramid is None:
            pyramid, steps = base.pyramid, base.config.steps if steps is None else steps
        base = base.base if call is None or base is not call.scheduler else call.base
    elif pyramid is None and call is not None:
        pyramid, steps = call.pyramid, call.counts if steps is None else steps
    family.check_scheduler(base)
    if pyramid is None:
        raise ValueError("give a pyramid: the pipeline's scheduler is not a PyramidScheduler that holds one")
    if isinstance(pyramid, str | Path):
        pyramid = read_tuned(pyramid)
    if isinstance(pyramid, Tuned):
        told, usual = {name: getattr(pyramid, name) for name in OF_THE_NETWORK}, pyramid.usual
        pyramid = Pyramid.from_config(pyramid.pyramid)
    if not isinstance(pyramid, Pyramid):
        pyramid = Pyramid(schedule_of(base), pyramid, causal_time=family.causal_vae)
    kind = stock_class(thing)
    family.check_stages(thing, pyramid)
    counts = None if steps is None else split_steps(steps, len(pyramid))
    scheduler = PyramidScheduler(base, pyramid, counts, applied=True, **told) if len(pyramid) > 1 else base
    remove_pyramid(thing)  # only now, so that what was refused leaves the pipeline as it was
    thing.scheduler = scheduler
    thing._pyramid_call = _Call(family, pyramid, counts, base, scheduler, told, usual)
    thing.__class__ = _with_stages(kind)
    return pipe


def remove_pyramid(pipe: Pipe) -> Pipe:
    """Make a pipeline stock again, its own scheduler back in place; one without a pyramid stays as it is.

    Returns:
        The pipeline.
    """
    thing: Any = pipe
    if isinstance(thing, _Pyramidal):
        if thing.scheduler is thing._pyramid_call.scheduler:  # else another was put in its place since, which stays
            thing.scheduler = thing._pyramid_call.base
        thing.__class__ = stock_class(thing)
        del thing._pyramid_call
    return pipe


def stock_class(pipe: Any) -> type:
    """The class of a pipeline without its pyramid."""
    return type(pipe).__mro__[2] if isinstance(pipe, _Pyramidal) else type(pipe)


def _with_stages(kind: type) -> type:
    return type(kind.__name__, (_Pyramidal, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _empty(kind: type) -> Any:
    """A pipeline with stages of a stock class, before it holds anything."""
    return object.__new__(_with_stages(kind))


class _Call:
    """What a pyramidal pipeline keeps, and what is true for the call and the stage that are under way."""

    def __init__(
        self,
        family: Family,
        pyramid: Pyramid,
        counts: list[int] | None,
        base: Any,
        scheduler: Any,
        told: dict[str, Any],
        usual: dict[str, Any],
    ):
        self.family, self.pyramid, self.counts = family, pyramid, counts
        self.base, self.scheduler, self.told, self.usual = base, scheduler, told, usual
        self.remembered: dict[Any, Any] | None = None
        self.latents: Tensor | None = None
        self.last = True
        self.stopped = False
        self.steps_in_all: int | None = None


class _Pyramidal:
    """What `apply_pyramid` puts before a pipeline's own class."""

    _pyramid_call: _Call
    scheduler: Any
    components: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its stock class: its own has no name that a module knows."""
        return _empty, (stock_class(self),), vars(self)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call, stock = self._pyramid_call, super().__call__  # type: ignore[misc]
        bound = inspect.signature(stock).bind(*args, **kwargs)
        given = dict(bound.arguments)
        bound.apply_defaults()
        options = bound.arguments
        options |= {name: value for name, value in call.usual.items() if name in options} | given
        options |= options.pop("kwargs", {})
        pyramid, family = call.pyramid, call.family
        if len(pyramid) == 1:
            return stock(**in_one_stage(options, call.counts))
        if self.scheduler is not call.scheduler:
            raise ValueError("the scheduler was replaced since apply_pyramid; apply the pyramid again")
        check_arguments(self, family, options)
        levels = options.get("sigmas")
        counts = call.counts or split_steps(
            options["num_inference_steps"] if levels is None else len(levels), len(pyramid)
        )
        options["num_inference_steps"] = sum(counts)
        guidance = each_stage(options.get("guidance_scale"), len(pyramid))
        size, evaluations = full_size(self, family, options), self.evaluations(counts)
        sizes = stage_sizes(self, family, pyramid, size)
        check_latents(self, family, sizes[-1], options.get("latents"), options.get("generator"))
        self.scheduler.check(counts, levels)
        check_caches(self, evaluations)
        check_parallel(self, family, partial(stage_sizes, self, family, pyramid), size, options.get("generator"))
        counted = counting(options, self.scheduler.order)
        self.scheduler.generator = options.get("generator")
        result: Any = None
        with (
            _in_stages(self, sum(evaluations)),
            staged_caches(self, evaluations) as enter,
            staged_guider(self, evaluations) as guide,
        ):
            done = 0
            call.latents = options.get("latents") if family.given_latents is not None else None
            for place, (count, scale) in enumerate(zip(counts, guidance, strict=True)):
                k = len(pyramid) - 1 - place
                call.last = k == 0
                if result is not None:
                    call.latents = self._lead_on(result[0], sizes[k + 1], sizes[k])
                own: dict[str, Any] = dict(zip(("num_frames", "height", "width"), sizes[k], strict=True))
                own |= {"num_inference_steps": count, **counted(done)}
                own |= family.stage_options(self, pyramid.factors[k], options)
                own |= {} if scale is None else {"guidance_scale": scale}
                if call.latents is not None:
                    own["latents"] = None  # `prepare_latents` gives them
                if not call.last:
                    own |= {"output_type": "latent", "return_dict": False}
                self.scheduler.restrict(k, counts)
                put_away(self, family, k)
                enter(place)
                guide(place)
                result = stock(**{**options, **{name: value for name, value in own.items() if name in options}})
                done += evaluations[place]
                call.stopped = self.interrupt  # a callback may have asked to stop at the stage's last step
        return result

    def evaluations(self, counts: Sequence[int]) -> list[int]:
        """Network evaluations of every stage, coarsest first."""
        return evaluations(self.scheduler, counts)

    def _lead_on(self, latents: Tensor, size: Size, next_size: Size) -> Tensor:
        """The latents that ended a stage -> those that the next one starts from, both as the pipeline lays them out."""
        call = self._pyramid_call
        family, pyramid = call.family, call.pyramid
        x = family.unpack(self, latents, family.latent_size(self, size))
        filling = family.filling(self, size)
        parts = [part for part in (x[:, :, :filling], x[:, :, filling:]) if part.shape[2]]
        if call.stopped:
            parts = [pyramid.up(part, self.scheduler.stage - 1) for part in parts]
        else:
            parts = [self.scheduler.jump(part) for part in parts]
        return family.pack(self, torch.cat(parts, dim=2), family.latent_size(self, next_size))

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """The stock pipeline's, its noise replaced by what the last stage left."""
        call, stock = self._pyramid_call, super().prepare_latents  # type: ignore[misc]
        if call.latents is None:
            return stock(*args, **kwargs)
        bound = inspect.signature(stock).bind(*args, **kwargs)
        if "generator" in bound.arguments:
            bound.arguments["generator"] = clones(bound.arguments["generator"])
        return call.family.start_from(self, stock(*bound.args, **bound.kwargs), call.latents)

    def maybe_free_model_hooks(self) -> None:
        """At the end of the last stage only."""
        if self._pyramid_call.last:
            super().maybe_free_model_hooks()  # type: ignore[misc]

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop; that holds for the stages left, too."""
        call = self._pyramid_call
        asked = getattr(self, "_interrupt", False)
        call.stopped = call.stopped or (call.remembered is not None and asked)
        return call.stopped or asked

    @property
    def num_timesteps(self) -> int:
        """Network evaluations of the whole call."""
        return self._pyramid_call.steps_in_all or self._num_timesteps

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return _remembering(self._pyramid_call, name, value) if name in REMEMBERED else value


@contextmanager
def _in_stages(pipe: Any, steps: int) -> Iterator[None]:
    """While stages run: what is remembered, and an end that leaves nothing behind."""
    call = pipe._pyramid_call
    call.remembered, call.latents, call.stopped, call.steps_in_all = {}, None, False, steps
    try:
        yield
    finally:
        call.remembered, call.latents, call.last, call.stopped, call.steps_in_all = None, None, True, False, None
        pipe.scheduler.restrict(None)
        pipe.scheduler.generator = None


def _remembering(call: _Call, name: str, function: Any) -> Any:
    """A method that does the same work once a call."""

    def once(*args: Any, **kwargs: Any) -> Any:
        if call.remembered is None:
            return function(*args, **kwargs)
        key = (name, *map(_key, args), *((one, _key(value)) for one, value in sorted(kwargs.items())))
        if key not in call.remembered:  # the arguments are kept, so that no other object takes their place in memory
            call.remembered[key] = function(*args, **kwargs), args, kwargs
        return call.remembered[key][0]

    return once


def _key(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_key, value))
    plain = isinstance(value, str | int | float | bool | torch.device | torch.dtype | type(None))
    return value if plain else id(value)
