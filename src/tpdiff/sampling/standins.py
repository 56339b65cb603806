"""Follow a stock pipeline's call up to its first network call, and leave it there.

The call is made on stand-ins that share all that the pipeline and its networks hold. Nothing is put into either, so
nothing has to be taken out again.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tpdiff.families import Family

ENCODERS = {"vae": "encode", "image_encoder": "__call__"}  # of pictures: component -> what is called of it


class Asked(Exception):
    """A network was called.

    Attributes:
        component: its name in the pipeline.
        kwargs: what it was given, by the names of its arguments.
    """

    def __init__(self, component: str, kwargs: dict[str, Any]):
        super().__init__(component)
        self.component, self.kwargs = component, kwargs


class OneTime:
    """A scheduler whose only step is at one time.

    Latents are γ x_0 + σ ε, as networks take them: schedulers that keep them divided by γ scale them back for that.

    Args:
        config: of the pipeline's own scheduler.
        timestep: what the network is told; without axes.
        sigma: the noise level.
    """

    order = 1
    init_noise_sigma = 1.0

    def __init__(self, config: Any, timestep: Tensor, sigma: float):
        self.config, self.timesteps, self.sigmas = config, timestep[None], torch.tensor([sigma, 0.0])

    def set_timesteps(
        self, num_inference_steps: Any = None, device: Any = None, sigmas: Any = None, mu: Any = None
    ) -> None:
        """The one, whatever is asked for."""
        self.timesteps = self.timesteps.to(device)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """There is but one."""

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """As they are."""
        return sample

    def step(self) -> None:
        """Never taken."""


def first_call(
    pipe: Any,
    kind: type,
    family: Family,
    networks: Mapping[str, nn.Module],
    scheduler: OneTime,
    latents: Tensor,
    options: Mapping[str, Any],
    encoded: dict[Any, Any] | None = None,
) -> Asked:
    """What a pipeline's call first asks of a network.

    Args:
        pipe: the pipeline.
        kind: its stock class.
        family: of the pipeline.
        networks: the components that predict, by name.
        scheduler: in place of the pipeline's.
        latents: in the pipeline's layout, in place of its noise; what the call makes is on their device.
        options: of the call.
        encoded: what was made of the call's picture in calls before, which is used and added to.

    Raises:
        ValueError: a call that ends without.
    """

    def prepare_latents(self: Any, *args: Any, **kwargs: Any) -> Any:
        return family.start_from(self, kind.prepare_latents(self, *args, **kwargs), latents)  # type: ignore[attr-defined]

    parts: dict[str, Any] = {name: _asked(name, network) for name, network in networks.items()}
    parts |= {"scheduler": scheduler, "_progress_bar_config": {"disable": True}}
    if encoded is not None:
        found = {name: getattr(pipe, name, None) for name in ENCODERS}
        parts |= {name: _once(one, ENCODERS[name], encoded) for name, one in found.items() if one is not None}
    if getattr(pipe, "guider", None) is not None:
        parts["guider"] = _stand_in(pipe.guider, type(pipe.guider))
        parts["guider"].disable()
    standing = _stand_in(pipe, kind, prepare_latents=prepare_latents, _execution_device=latents.device)
    vars(standing).update(parts)
    try:
        standing(**options)
    except Asked as asked:
        return asked
    raise ValueError(f"{kind.__name__} ended without a call of {' or '.join(networks)}")


def _asked(name: str, network: nn.Module) -> Any:
    """A network that raises `Asked`: none of its hooks run, and no weight moves."""
    plain: Any = getattr(network, "_orig_mod", network)  # a compiled one's arguments have no names
    names = list(inspect.signature(plain.forward).parameters)

    def called(self: Any, *args: Any, **kwargs: Any) -> None:
        raise Asked(name, dict(zip(names, args, strict=False)) | kwargs)

    return _stand_in(network, type(network), __call__=called)


def _once(encoder: Any, method: str, made: dict[Any, Any]) -> Any:
    """An encoder of one picture, which inputs of one shape hold alike: each shape is encoded once, in the encoder's own
    precision whatever autocast says."""
    encode = getattr(encoder, method)

    def own(value: Any) -> Any:
        return value.to(encoder.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    def encode_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        key = (method, *(value.shape for value in given))
        if key not in made:
            with torch.autocast(given[0].device.type, enabled=False):
                made[key] = encode(*map(own, args), **{name: own(value) for name, value in kwargs.items()})
        return made[key]

    return _stand_in(encoder, type(encoder), **{method: encode_once})


def _stand_in(thing: Any, kind: type, **members: Any) -> Any:
    """An object that holds what `thing` holds, of a subclass of `kind` with other members."""
    other: Any = object.__new__(type(kind.__name__, (kind,), {"__module__": kind.__module__, **members}))
    vars(other).update(vars(thing))
    return other
