"""The caches of diffusers kept right from stage to stage; docs/accelerations.md is the table.

A cache predicts a step from the steps before it, so it begins anew where a stage begins, and what it counts are the
stage's own steps. What cannot be right with stages is refused with the reason.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheDenoiserHook
from diffusers.hooks.mag_cache import MagCacheBlockHook, MagCacheHeadHook
from diffusers.hooks.pyramid_attention_broadcast import PyramidAttentionBroadcastHook
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheHook
from torch.nn import Module

Enter = Callable[[int], None]
ONE_STATE = (PyramidAttentionBroadcastHook, FasterCacheBlockHook, FasterCacheDenoiserHook)

logger = logging.getLogger(__name__)


def networks(pipe: Any) -> dict[str, Module]:
    """The networks among a pipeline's `components` by name, compiled ones unwrapped."""
    found = {name: getattr(part, "_orig_mod", part) for name, part in pipe.components.items()}
    return {name: part for name, part in found.items() if isinstance(part, Module)}


def reset_caches(pipe: Any) -> None:
    """Make every cache of a pipeline's networks forget; activations of another stage have another size.

    Args:
        pipe: its `components` are searched, also those that diffusers does not reset itself.
    """
    for network in networks(pipe).values():
        for registry in _registries(network):
            registry.reset_stateful_hooks(recurse=False)


def cached(pipe: Any) -> str | None:
    """The name of a network that has a cache enabled, if any has."""
    found = (name for name, network in networks(pipe).items() if any(hook._is_stateful for hook in _hooks(network)))
    return next(found, None)


def check_caches(pipe: Any, evaluations: Sequence[int]) -> None:
    """Refuse caches that stages cannot run with, before any work.

    Args:
        pipe: the pipeline.
        evaluations: network evaluations of every stage, coarsest first.

    Raises:
        ValueError: MagCache's ratios that are not one an evaluation of all stages in turn, or where two networks share
            the steps; TaylorSeer's cool-down beyond the last stage's steps.
    """
    for name, network in networks(pipe).items():
        hooks = _hooks(network)
        for config in _mag_configs(hooks):
            _check_ratios(pipe, name, config, evaluations)
        seers = (hook.disable_cache_after_step for hook in hooks if isinstance(hook, TaylorSeerCacheHook))
        after = max((step for step in seers if step is not None), default=-1)
        if after >= evaluations[-1]:
            raise ValueError(
                f"TaylorSeer's disable_cache_after_step={after} counts the steps of one stage, and the last stage "
                f"has {evaluations[-1]}, so that it would never take effect; nearest: {evaluations[-1] - 1}"
            )


@contextmanager
def staged_caches(pipe: Any, evaluations: Sequence[int]) -> Iterator[Enter]:
    """While it lasts, caches work stage by stage: `enter(place)` makes them begin stage number `place`, 0 the coarsest.

    MagCache gets that stage's ratios; one that calibrates keeps the ratios of all stages in turn, the mean over the
    guidance branches, in its `config.mag_ratios`. FasterCache computes the first step of every stage, whatever its
    timestep ranges say. All is as it was afterwards, and caches hold nothing, whether or not the call went well.

    Args:
        pipe: the pipeline.
        evaluations: network evaluations of every stage, coarsest first.

    Raises:
        ValueError: (in a network's first step) a cache that has one state for all guidance branches, in a pipeline
            that evaluates the branches one after another.
    """
    with ExitStack() as undo:
        undo.callback(reset_caches, pipe)
        slices = []
        for network in networks(pipe).values():
            hooks = _hooks(network)
            for config in _mag_configs(hooks):
                tail = next(hook for hook in hooks if isinstance(hook, MagCacheBlockHook) and hook.is_tail)
                slices.append(undo.enter_context(_mag(tail, config, evaluations)))
            for hook in hooks:
                if isinstance(hook, FasterCacheBlockHook):
                    undo.enter_context(_first_step_computed(hook))
            if any(isinstance(hook, ONE_STATE) for hook in hooks):
                undo.enter_context(_one_branch(network, hooks))

        def enter(place: int) -> None:
            reset_caches(pipe)
            for give in slices:
                give(place)

        yield enter


def _registries(network: Module) -> list[Any]:
    return [module._diffusers_hook for module in network.modules() if hasattr(module, "_diffusers_hook")]


def _hooks(network: Module) -> list[Any]:
    return [hook for registry in _registries(network) for hook in registry.hooks.values()]


# MagCache


def _mag_configs(hooks: Sequence[Any]) -> list[Any]:
    return list({id(hook.config): hook.config for hook in hooks if isinstance(hook, MagCacheHeadHook)}.values())


def _check_ratios(pipe: Any, name: str, config: Any, evaluations: Sequence[int]) -> None:
    kind = type(networks(pipe)[name])
    others = [other for other, network in networks(pipe).items() if other != name and isinstance(network, kind)]
    if others:
        raise ValueError(
            f"MagCache has one ratio a step, but {name} shares the steps with {', '.join(others)} by noise level, "
            "which differs from stage to stage: disable it, or use FirstBlockCache"
        )
    if config.calibrate:
        return
    advice = "calibrate through the pyramid, MagCacheConfig(calibrate=True), and take that config's mag_ratios"
    total, ratios = sum(evaluations), [float(ratio) for ratio in config.mag_ratios]
    made_of = " + ".join(str(n) for n in evaluations)
    if len(ratios) != total:
        raise ValueError(
            f"MagCache has {len(ratios)} ratios (its num_inference_steps), the stages make {total} evaluations "
            f"({made_of}): {advice}"
        )
    for place in range(len(evaluations)):
        first = sum(evaluations[:place])
        if abs(ratios[first] - 1) > 1e-6:
            raise ValueError(
                f"MagCache's ratio number {first}, {ratios[first]:g}, is that of a stage's first evaluation, which has "
                f"nothing before it ({made_of} evaluations): calibration writes 1 there, so these ratios come from "
                f"another schedule; {advice}"
            )


@contextmanager
def _mag(tail: Any, config: Any, evaluations: Sequence[int]) -> Iterator[Enter]:
    """The ratios of each stage in turn; or, calibrating, what is measured in each."""
    steps, ratios = config.num_inference_steps, config.mag_ratios
    measured: dict[str, list[float]] = {}
    calibrate = tail._perform_calibration_step

    def keep(state: Any, residual: Any) -> None:
        calibrate(state, residual)
        measured.setdefault(tail.state_manager.context.name, []).append(state.calibration_ratios[-1])

    def give(place: int) -> None:
        if config.calibrate:
            config.num_inference_steps = evaluations[place] + 1  # at that one it would print one stage's as if all
            return
        first = sum(evaluations[:place])
        config.num_inference_steps = evaluations[place]
        config.mag_ratios = ratios[first : first + evaluations[place]]

    if config.calibrate:
        tail._perform_calibration_step = keep
    try:
        yield give
    finally:
        vars(tail).pop("_perform_calibration_step", None)
        config.num_inference_steps, config.mag_ratios = steps, ratios
    whole = [values for values in measured.values() if len(values) == sum(evaluations)]
    if config.calibrate and whole:
        config.mag_ratios = [math.fsum(values) / len(whole) for values in zip(*whole, strict=True)]
        logger.info("MagCache's ratios, %s evaluations: %s", "-".join(map(str, evaluations)), config.mag_ratios)


# FasterCache and Pyramid Attention Broadcast


@contextmanager
def _first_step_computed(hook: Any) -> Iterator[None]:
    """Without guidance branches it would read an empty cache where a stage begins inside its timestep range."""
    timestep = hook.current_timestep_callback
    hook.current_timestep_callback = lambda: math.inf if hook.state.iteration == 0 else timestep()
    try:
        yield
    finally:
        hook.current_timestep_callback = timestep


@contextmanager
def _one_branch(network: Any, hooks: Sequence[Any]) -> Iterator[None]:
    """Refuse a second guidance branch in a network whose cache would take it for the next step of the first."""
    joint = any(isinstance(hook, FasterCacheDenoiserHook) and not hook.is_guidance_distilled for hook in hooks)
    cache = "FasterCache" if any(isinstance(hook, FasterCacheBlockHook) for hook in hooks) else "PAB"
    seen: set[str] = set()
    stock = network.cache_context

    def context(name: str, **options: Any) -> Any:
        seen.add(name)
        if len(seen) > 1:
            raise ValueError(
                f"{cache} keeps one state for all guidance branches, but this pipeline evaluates them one after "
                f"another ({', '.join(sorted(seen))}), so that one would get the other's attention: use "
                "guidance_scale=1, or FirstBlockCache, TaylorSeer or MagCache"
            )
        if joint and name in ("cond", "uncond"):
            raise ValueError(
                "FasterCache needs both guidance branches in one batch, but this pipeline evaluates them one after "
                "another: use guidance_scale=1 with FasterCacheConfig(is_guidance_distilled=True), or FirstBlockCache, "
                "TaylorSeer or MagCache"
            )
        return stock(name, **options)

    network.cache_context = context
    try:
        yield
    finally:
        del network.cache_context
