"""From a network and its conditions to a denoiser that the stage loop can call."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.told import as_told
from tpdiff.sampling.loop import Denoiser


def network_inputs(config: Any, pyramid: Pyramid, stage: int) -> dict:
    """What a network of this configuration is told of its stage: the strides, and the index if it embeds stages."""
    told: dict = {"strides": pyramid.factors[stage]}
    if getattr(config, "num_stages", None):
        told["stage"] = stage
    return told


def plain_denoiser(
    network: Any, config: Any, pyramid: Pyramid, condition: Mapping[str, Tensor], policy: str = "native"
) -> Denoiser:
    """A denoiser without guidance, as training calls a network; its answer keeps its gradients.

    Args:
        network: as for `guided_denoiser`, possibly wrapped for distribution.
        config: the network's configuration.
        pyramid: tells the strides of every stage.
        condition: keyword arguments of the network, each of B rows.
        policy: the times that it is told (`as_told`).
    """

    def denoise(x: Tensor, t: Tensor, stage: int) -> Tensor:
        told = network_inputs(config, pyramid, stage)
        return network(x, as_told(t, pyramid, stage, policy), **condition, **told, return_dict=False)[0]

    return denoise


def guided_denoiser(
    network: torch.nn.Module,
    pyramid: Pyramid,
    condition: Mapping[str, Tensor],
    null_condition: Mapping[str, Tensor] | None = None,
    guidance_scale: float = 1.0,
    per_stage: bool = False,
    policy: str = "native",
) -> Denoiser:
    """A denoiser with classifier-free guidance: null + guidance_scale (conditional - null).

    Both predictions come from one call on a doubled batch; without a null condition, or at guidance 1, the
    network is called once on the batch itself.

    Args:
        network: called as network(x, t, **condition, strides=..., return_dict=False)[0].
        pyramid: tells the strides of every stage.
        condition: keyword arguments of the network, each of B rows.
        null_condition: the same for the null (or negative) prompt.
        guidance_scale: 1 is no guidance.
        per_stage: the network says the flow per unit of the stage's own time, x_s - x_e (TPDiff Eq. 13).
        policy: the times that it is told (`as_told`).
    """
    dtype = next(network.parameters()).dtype
    guide = null_condition is not None and bool(condition) and guidance_scale != 1
    kwargs = {name: _cast(value, dtype) for name, value in condition.items()}
    if guide:
        assert null_condition is not None
        kwargs = {n: torch.cat([_cast(null_condition[n], dtype), value]) for n, value in kwargs.items()}

    def denoise(x: Tensor, t: Tensor, stage: int) -> Tensor:
        t = as_told(t, pyramid, stage, policy)
        inputs = (torch.cat([x, x]), torch.cat([t, t])) if guide else (x, t)
        told = network_inputs(network.config, pyramid, stage)
        out = network(inputs[0].to(dtype), inputs[1], **kwargs, **told, return_dict=False)[0].float()
        if per_stage:
            ends = pyramid.stages[stage]
            out = out / (ends.start_level.sigma - ends.end_level.sigma)
        if not guide:
            return out
        null, conditional = out.chunk(2)
        return null + guidance_scale * (conditional - null)

    return denoise


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value
