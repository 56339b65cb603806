"""Networks that wait on the CPU, where several share the steps: in every stage one alone is on the device."""

from __future__ import annotations

from typing import Any

from tpdiff.families import Family
from tpdiff.schedulers.runs import first_told


def put_away(pipe: Any, family: Family, stage: int) -> None:
    """Let the networks of a pipeline with model offload wait, but for the one that a stage begins with.

    accelerate puts away what works before a network, not what works after it. Stages overlap in time, so that the
    first may be asked again after the second.

    Args:
        pipe: the pipeline, its scheduler a `PyramidScheduler`; without offload nothing is done.
        family: of the pipeline.
        stage: k.
    """
    scheduler, spans = pipe.scheduler, family.networks(pipe)
    t = first_told(scheduler.base, scheduler.pyramid, stage, scheduler.config.timestep_policy)
    _, asked = max((least, name) for name, (least, _) in spans.items() if least <= t)
    others = [getattr(pipe, name) for name in spans if name != asked]
    for hook in getattr(pipe, "_all_hooks", []):
        if any(hook.model is other for other in others):
            hook.offload()
