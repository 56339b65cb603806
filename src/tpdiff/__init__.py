"""tpdiff: make video diffusion models pyramidal."""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "PyramidPipeline": "tpdiff.sampling.pipeline",
    "apply_pyramid": "tpdiff.sampling.apply",
    "remove_pyramid": "tpdiff.sampling.apply",
    "PyramidScheduler": "tpdiff.schedulers",
    "sample_pyramid": "tpdiff.sampling.loop",
    "VideoDiT": "tpdiff.models.video_dit",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for, so that `tpdiff.pyramid` needs torch alone."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tpdiff' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
