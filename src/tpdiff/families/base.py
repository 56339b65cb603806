"""What a family of diffusers pipelines must tell so that `apply_pyramid` can run it, and the list of those that do.

A stage is an ordinary call of the stock pipeline at the stage's size, from the stage's latents, over the stage's
timesteps. So a family says little: what sizes are legal, and how its latents lie in memory.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tpdiff.pyramid.operators import Ratio
from tpdiff.pyramid.stages import Pyramid

Size = tuple[int, int, int]
Shape = tuple[int, int, int]
Span = tuple[float, float]
MODULES = ("wan", "cogvideox", "ltx", "hunyuan", "mochi", "animatediff", "modelscope")


def _as_they_are(pipe: Any, latents: Tensor, shape: Shape) -> Tensor:
    return latents


def _anything(pipe: Any, pyramid: Pyramid) -> None:
    pass


def _any_scheduler(base: Any) -> None:
    pass


def _nothing(pipe: Any, factors: Ratio, options: Mapping[str, Any]) -> dict[str, Any]:
    return {}


def _one_transformer(pipe: Any) -> dict[str, Span]:
    return {"transformer": (0.0, 1.0)}


def _no_others(pipeline: str) -> tuple[str, ...]:
    return ()


def _no_other_name(layer: str) -> str:
    raise ValueError("diffusers has no converter from the names of layers in its own implementation")


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        name: its name.
        pipelines: names of the pipeline classes that are driven.
        vae_ratio: pipe -> the autoencoder's compression (T, H, W).
        patch: pipe -> the network's patch size (T, H, W).
        causal_vae: the autoencoder keeps the first frame whole: 1 + r n frames become 1 + n latent frames.
        first_frame: names of the pipelines whose first latent frame is a given picture; it is never averaged with
            others, so a pyramid over time must have a causal time axis there.
        defaults: pipe -> the pipeline's own values of num_frames, height and width where a call leaves them None.
        limits: pipe -> (least, greatest) value of num_frames, height or width, where a network has positions for no
            others.
        unpack: (pipe, the pipeline's latents, (t, h, w)) -> (B, C, t, h, w).
        pack: its inverse.
        stage_options: (pipe, (T, H, W) factors, the call's arguments) -> arguments that differ in that stage.
        given_latents: (pipe, what `prepare_latents` made for this stage, latents in the pipeline's layout) -> what it
            should have made, so that the stage starts from the latents; by default they replace the first of the made.
        networks: pipe -> the components that predict, and the (least, greatest) time in [0, 1] that each is asked at.
        shared: names of the network's arguments that are tensors without a batch axis.
        picture_kept: pipe -> whether a `first_frame` pipeline overwrites that frame by the picture's own latents, so
            that nothing is predicted there; otherwise the picture is a condition beside the latents.
        check: (pipe, pyramid) -> raises ValueError for a pyramid that this pipeline's weights cannot be run in.
        check_scheduler: the pipeline's own scheduler -> raises ValueError for one that the networks cannot be run with.
        original_layer: a layer's name in diffusers -> in the model's own implementation, by which diffusers reads
            low-rank matrices as well; raises ValueError where it does not.
        packages: name of a pipeline class -> packages that its calls need and diffusers does not bring along.
        positions: how the network is told where frames and pixels are; for the documentation.
    """

    name: str
    pipelines: tuple[str, ...]
    vae_ratio: Callable[[Any], Size]
    patch: Callable[[Any], Size]
    causal_vae: bool = True
    first_frame: tuple[str, ...] = ()
    defaults: Callable[[Any], Mapping[str, int]] = lambda pipe: {}
    limits: Callable[[Any], Mapping[str, tuple[int, int]]] = lambda pipe: {}
    unpack: Callable[[Any, Tensor, Shape], Tensor] = _as_they_are
    pack: Callable[[Any, Tensor, Shape], Tensor] = _as_they_are
    stage_options: Callable[[Any, Ratio, Mapping[str, Any]], dict[str, Any]] = _nothing
    given_latents: Callable[[Any, Any, Tensor], Any] | None = None
    networks: Callable[[Any], Mapping[str, Span]] = _one_transformer
    shared: tuple[str, ...] = ()
    picture_kept: Callable[[Any], bool] = lambda pipe: False
    check: Callable[[Any, Pyramid], None] = _anything
    check_scheduler: Callable[[Any], None] = _any_scheduler
    original_layer: Callable[[str], str] = _no_other_name
    packages: Callable[[str], tuple[str, ...]] = _no_others
    positions: str = "whole numbers at every stage's own size"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by its name: what it holds are functions, which may have none."""
        return family_named, (self.name,)

    def latent_size(self, pipe: Any, size: Size) -> Shape:
        """(num_frames, height, width) in pixels -> (t, h, w) of the latents."""
        t, h, w = self.vae_ratio(pipe)
        frames = 1 + (size[0] - 1) // t if self.causal_vae else size[0] // t
        return frames, size[1] // h, size[2] // w

    def filling(self, pipe: Any, size: Size) -> int:
        """Latent frames that the pipeline puts before the first one, to fill its patches."""
        return -self.latent_size(pipe, size)[0] % self.patch(pipe)[0]

    def from_picture(self, pipe: Any) -> bool:
        """Whether the pipeline is given its first frame."""
        return any(kind.__name__ in self.first_frame for kind in type(pipe).__mro__)

    def check_stages(self, pipe: Any, pyramid: Pyramid) -> None:
        """Refuse stages that the pipeline cannot be run through.

        Raises:
            ValueError: a given first frame would be averaged with others, or what `check` raises.
        """
        over_time = any(factors[0] > 1 for factors in pyramid.factors)
        if over_time and not pyramid.causal_time and self.from_picture(pipe):
            raise ValueError(
                f"{type(pipe).__name__} is given its first frame, which must not be averaged with others: "
                "build the pyramid with causal_time=True (of a recipe: pyramid.causal_time=true)"
            )
        self.check(pipe, pyramid)

    def start_from(self, pipe: Any, made: Any, latents: Tensor) -> Any:
        """What `prepare_latents` made, its noise replaced by latents in the pipeline's layout."""
        latents = latents.to(made[0] if isinstance(made, tuple) else made)
        if self.given_latents is not None:
            return self.given_latents(pipe, made, latents)
        return (latents, *made[1:]) if isinstance(made, tuple) else latents

    def pixel_size(self, pipe: Any, latent: Shape) -> Size:
        """(t, h, w) of the latents -> (num_frames, height, width) in pixels."""
        t, h, w = self.vae_ratio(pipe)
        frames = 1 + (latent[0] - 1) * t if self.causal_vae else latent[0] * t
        return frames, latent[1] * h, latent[2] * w


_REGISTERED: dict[str, Family] = {}


def register_family(family: Family) -> Family:
    """Make a family known, in place of any that names the same pipelines.

    Args:
        family: its `pipelines` are matched by class name, subclasses too.
    """
    _REGISTERED.update(dict.fromkeys(family.pipelines, family))
    return family


def families() -> list[Family]:
    """All known families, each once."""
    for module in MODULES:
        importlib.import_module(f"tpdiff.families.{module}")
    return list({family.name: family for family in _REGISTERED.values()}.values())


def family_named(name: str) -> Family:
    """A known family by its name.

    Raises:
        ValueError: none is known, with those that are.
    """
    known = {family.name: family for family in families()}
    if name not in known:
        raise ValueError(f"no family {name!r} is registered; known: {', '.join(sorted(known))}")
    return known[name]


def packages_for(pipeline: str) -> tuple[str, ...]:
    """What calls of a pipeline class of this name need besides diffusers; () where no family knows it."""
    families()
    return _REGISTERED[pipeline].packages(pipeline) if pipeline in _REGISTERED else ()


def find_family(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        ValueError: none is known, with those that are.
    """
    known = families()
    for kind in type(pipe).__mro__:
        if kind.__name__ in _REGISTERED:
            return _REGISTERED[kind.__name__]
    names = ", ".join(sorted(name for family in known for name in family.pipelines))
    raise ValueError(
        f"no family is registered for {type(pipe).__name__}; known: {names}. "
        "tpdiff.families.register_family adds one (docs/families.md)"
    )
