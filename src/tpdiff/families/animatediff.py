"""AnimateDiff: Stable Diffusion with motion modules; every frame has latents of its own."""

from collections.abc import Mapping
from typing import Any

from tpdiff.families import unets
from tpdiff.families.base import Family, register_family
from tpdiff.pyramid.operators import Ratio


def _limits(pipe: Any) -> Mapping[str, tuple[int, int]]:
    return {"num_frames": (1, pipe.unet.config.motion_max_seq_length)}


def _own_noise(pipe: Any, factors: Ratio, options: Mapping[str, Any]) -> dict[str, Any]:
    """Refuse noise that is not white: stages take over latents, and their noise, from one another.

    Raises:
        ValueError: naming what to switch off.
    """
    for name in ("free_init", "free_noise"):
        if getattr(pipe, f"{name}_enabled"):
            raise ValueError(f"{name} makes noise of its own, which stages cannot keep; call pipe.disable_{name}()")
    return {}


ANIMATEDIFF = register_family(
    Family(
        name="animatediff",
        pipelines=("AnimateDiffPipeline",),
        vae_ratio=unets.vae_ratio,
        patch=unets.patch,
        causal_vae=False,
        defaults=unets.defaults,
        networks=unets.networks,
        limits=_limits,
        stage_options=_own_noise,
        positions="sums of sines over frames, from 0 at every stage; none over height and width",
    )
)
