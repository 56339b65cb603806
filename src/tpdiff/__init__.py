"""tpdiff: make video diffusion models pyramidal."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; at run time a name is imported when it is first asked for
    from tpdiff.models.video_dit import VideoDiT
    from tpdiff.sampling.apply import apply_pyramid, remove_pyramid
    from tpdiff.sampling.loop import sample_pyramid
    from tpdiff.sampling.modular import make_pyramidal
    from tpdiff.sampling.pipeline import PyramidPipeline
    from tpdiff.schedulers import PyramidScheduler

__version__ = "0.1.0"

_PUBLIC = {
    "PyramidPipeline": "tpdiff.sampling.pipeline",
    "apply_pyramid": "tpdiff.sampling.apply",
    "remove_pyramid": "tpdiff.sampling.apply",
    "make_pyramidal": "tpdiff.sampling.modular",
    "PyramidScheduler": "tpdiff.schedulers",
    "sample_pyramid": "tpdiff.sampling.loop",
    "VideoDiT": "tpdiff.models.video_dit",
}

# What diffusers looks for beside a class named in a saved pipeline, to know how to load it.
_BESIDE = {"SchedulerMixin": "diffusers.schedulers.scheduling_utils"}

__all__ = [
    "PyramidPipeline",
    "PyramidScheduler",
    "VideoDiT",
    "__version__",
    "apply_pyramid",
    "make_pyramidal",
    "remove_pyramid",
    "sample_pyramid",
]


def __getattr__(name: str) -> Any:
    """Public names are imported when first asked for, so that `tpdiff.pyramid` needs torch alone."""
    module = (_PUBLIC | _BESIDE).get(name)
    if module is None:
        raise AttributeError(f"module 'tpdiff' has no attribute {name!r}")
    return getattr(importlib.import_module(module), name)


def __dir__() -> list[str]:
    """What completion offers: the public names, though none is imported yet."""
    return sorted({*globals(), *__all__})
