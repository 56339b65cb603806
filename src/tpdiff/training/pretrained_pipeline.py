"""A recipe's pretrained pipeline as training and `tpdiff cache` open it, and the stages that it is run through."""

from collections.abc import Callable, Sequence

import torch

from tpdiff.pyramid.stages import Pyramid
from tpdiff.sampling.asking import Asker
from tpdiff.sampling.stock import load_stock
from tpdiff.schedulers.runs import start_level
from tpdiff.training.config import Config
from tpdiff.training.objective import staged


def encodes(name: str) -> bool:
    """Whether a component of this name makes latents of clips, or states of captions."""
    return name == "vae" or name.startswith("text_encoder")


def open_pipeline(config: Config, hollow: Callable[[str], bool] | None = None) -> Asker:
    """The pipeline, to be asked as the recipe says; its autoencoder in float32.

    Args:
        config: the recipe, with its section `pretrained`.
        hollow: name of a network -> whether to open it without its weights.

    Raises:
        ValueError: no such pipeline, or one that stages cannot run.
    """
    wanted = config.pretrained
    assert wanted is not None
    dtypes = {"default": getattr(torch, wanted.dtype), "vae": torch.float32}
    return Asker(load_stock(wanted.path, dtypes, hollow), wanted.guidance, **wanted.options)


def pipeline_stages(config: Config, asker: Asker) -> Pyramid:
    """The configured stages, their starts at times that the network can be told (MATH 3).

    Raises:
        ValueError: stages that the pipeline, or the autoencoder with its frames, cannot have.
    """
    family, wanted = asker.family, config.pyramid.causal_time
    causal = family.causal_vae if wanted is None else wanted
    pyramid = staged(config, asker.schedule, causal)
    if len(pyramid) > 1:
        ends = [stage.end for stage in pyramid.stages[1:]]
        starts = [start_level(asker.base, pyramid, k).t for k in range(len(pyramid) - 1)]
        pyramid = replaced(pyramid, ends, starts)
    family.check_stages(asker.pipe, pyramid)
    plain = pyramid.multiples[0] > 1 and not pyramid.causal_time
    if config.data.stages == "pixel" and family.causal_vae and plain:
        raise ValueError(
            "data.stages=pixel with an autoencoder that keeps the first frame whole needs stages that keep it; "
            "nearest: pyramid.causal_time=true, or data.stages=latent"
        )
    return pyramid


def replaced(pyramid: Pyramid, ends: Sequence[float], starts: Sequence[float]) -> Pyramid:
    """The same stages between other times."""
    return Pyramid.from_config({**pyramid.config(), "ends": list(ends), "starts": list(starts)})
