"""ModelScope text to video: a convolutional network over time and space; every frame has latents of its own."""

from tpdiff.families import unets
from tpdiff.families.base import Family, register_family

MODELSCOPE = register_family(
    Family(
        name="modelscope",
        pipelines=("TextToVideoSDPipeline",),
        vae_ratio=unets.vae_ratio,
        patch=unets.patch,
        causal_vae=False,
        defaults=unets.defaults,
        networks=unets.networks,
        positions="none",
    )
)
