"""Mochi: its time runs the other way, from 0 (noise) to 1, which the scheduler knows by `invert_sigmas`."""

from collections.abc import Mapping
from typing import Any

from tpdiff.families.base import Family, Size, register_family
from tpdiff.pyramid.operators import Ratio

SCHEDULER = "FlowMatchEulerDiscreteScheduler"


def _vae_ratio(pipe: Any) -> Size:
    side = pipe.vae_spatial_scale_factor
    return pipe.vae_temporal_scale_factor, side, side


def _patch(pipe: Any) -> Size:
    return 1, pipe.patch_size, pipe.patch_size


def _defaults(pipe: Any) -> Mapping[str, int]:
    return {"height": pipe.default_height, "width": pipe.default_width}


def _one_table(pipe: Any, factors: Ratio, options: Mapping[str, Any]) -> dict[str, Any]:
    """Noise levels come from a table of as many entries as steps; all stages follow that of the whole call."""
    return {"num_inference_steps": options["num_inference_steps"]}


def _check_scheduler(base: Any) -> None:
    name = type(base).__name__
    if name != SCHEDULER or not base.config.invert_sigmas:
        given = f"{name} with invert_sigmas=False" if name == SCHEDULER else name
        raise ValueError(
            f"{given} cannot sample Mochi, whose time runs from 0, noise, to 1: use {SCHEDULER} with invert_sigmas=True"
        )


MOCHI = register_family(
    Family(
        name="mochi",
        pipelines=("MochiPipeline",),
        vae_ratio=_vae_ratio,
        patch=_patch,
        defaults=_defaults,
        stage_options=_one_table,
        check_scheduler=_check_scheduler,
        positions="learned mixtures of whole numbers, the area scaled to that of training",
    )
)
