"""The arguments of a pipeline's call: what stages refuse, and what each of them is given in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tpdiff.families import Family


def check_arguments(pipe: Any, family: Family, options: Mapping[str, Any]) -> None:
    """Refuse what a call through stages cannot do, before any work.

    Raises:
        ValueError: timesteps of a plain schedule, noise in every step, or no picture where one is the first frame.
    """
    if options.get("timesteps") is not None:
        raise ValueError("timesteps of a plain schedule have no meaning with stages; give steps to apply_pyramid")
    if eta := options.get("eta"):
        raise ValueError(
            f"eta {eta:g}: a stage is sampled without noise, since its noise estimate is not the score; use eta=0"
        )
    if family.from_picture(pipe) and "image" in options and options["image"] is None:
        raise ValueError(f"{type(pipe).__name__} starts from a picture: give it as image")


def in_one_stage(options: Mapping[str, Any], counts: Sequence[int] | None) -> dict[str, Any]:
    """The arguments where there is one stage: its own guidance, and its own steps unless the call says the levels."""
    (scale,) = each_stage(options.get("guidance_scale"), 1)
    own: dict[str, Any] = {} if scale is None else {"guidance_scale": scale}
    if counts is not None and options.get("sigmas") is None and options.get("timesteps") is None:
        own["num_inference_steps"] = counts[0]
    return {**options, **own}


def each_stage(scale: Any, stages: int) -> list[Any]:
    """The guidance of every stage; None: the call's.

    Raises:
        ValueError: another number of values than stages.
    """
    if not isinstance(scale, Sequence):
        return [None] * stages
    if len(scale) != stages:
        raise ValueError(f"guidance_scale has {len(scale)} values for {stages} stages; give one, or one a stage")
    return list(scale)


def one_a_prompt(negative_prompt: Any, prompts: int) -> list[Any]:
    """What guidance leads away from, for each of so many prompts: one for all, None too, or one for each.

    Raises:
        ValueError: another number of them than prompts.
    """
    negative = [negative_prompt] * prompts if isinstance(negative_prompt, str | None) else list(negative_prompt)
    if len(negative) != prompts:
        raise ValueError(f"{len(negative)} negative prompts for {prompts} prompts; give one, or one a prompt")
    return negative


def counting(options: Mapping[str, Any], order: int) -> Any:
    """done, evaluations of the network -> the callback's arguments, so that it counts on from there.

    Args:
        options: of the call.
        order: of the scheduler: how many evaluations a step has, of which older callbacks are told the steps.
    """
    if options.get("callback") is not None:  # of older pipelines
        every, tell = options.get("callback_steps") or 1, options["callback"]

        def old(done: int) -> dict[str, Any]:
            steps = done // order

            def told(step: int, timestep: Any, latents: Tensor) -> None:
                if (step + steps) % every == 0:
                    tell(step + steps, timestep, latents)

            return {"callback": told, "callback_steps": 1}

        return old
    callback = options.get("callback_on_step_end")
    if callback is None:
        return lambda done: {}
    inputs = getattr(callback, "tensor_inputs", None) or options.get("callback_on_step_end_tensor_inputs")

    def new(done: int) -> dict[str, Any]:
        def told(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
            return callback(pipe, step + done, timestep, tensors)

        return {"callback_on_step_end": told, "callback_on_step_end_tensor_inputs": inputs}

    return new


def clones(generator: Any) -> Any:
    """Generators in the same state, so that what a stage draws and throws away is not missing elsewhere."""
    if isinstance(generator, Sequence):
        return [clones(one) for one in generator]
    return None if generator is None else generator.clone_state()
