"""What stock loops ask their networks, and the same to be asked for again: latents, time, prompts, pictures."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from recording import size_of
from tiny import Case, picture
from torch import Tensor

from tpdiff.sampling.asking import Asker, Question

PROMPTS = ["a small red cat runs", "the blue ball falls left"]
UNGUIDED = {"guidance_scale": 1.0}


def unguided(case: Case) -> dict[str, Any]:
    """Arguments of a call that asks a network about one prompt alone."""
    return {} if case.name in ("hunyuan", "hunyuan15") else UNGUIDED


def without_guider(case: Case, pipe: Any) -> Any:
    """The same, where guidance is a component."""
    if case.name == "hunyuan15":
        pipe.guider.disable()
    return pipe


def asker_of(case: Case, pipe: Any) -> Asker:
    """With the case's own arguments."""
    return Asker(pipe, **case.call)


@contextmanager
def questions(case: Case, pipe: Any) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """(network, its arguments by name) as a loop asks."""
    seen: list[tuple[str, dict[str, Any]]] = []
    handles = []
    for name in case.networks:
        network = getattr(pipe, name)
        names = list(inspect.signature(network.forward).parameters)

        def note(module: Any, args: tuple, kwargs: dict[str, Any], name: str = name, names: Any = names) -> None:
            seen.append((name, dict(zip(names, args, strict=False)) | kwargs))

        handles.append(network.register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def ask_again(
    case: Case,
    asker: Asker,
    given: dict[str, Any],
    factors: Any = (1, 1, 1),
    generator: Any = None,
    prompts: Any = None,
) -> Question:
    """What `asker` makes of the latents and the time in a network's arguments."""
    pipe, (t, h, w) = asker.pipe, size_of(given)
    whole = asker.family.unpack(pipe, given.get("hidden_states", given.get("sample")), (t, h, w))
    whole = whole[:, : channels_of(case, pipe)].clone()
    whole[:, :, : int(case.kept)] = 7.0  # the picture's own latents are the pipeline's to put there
    filling = whole.shape[2] % 2 == 0 and "pairs" in case.name
    return asker.ask(
        whole[:, :, int(filling) :],
        time_of(asker, given["timestep"], len(whole)),
        asker.encode(PROMPTS[: len(whole)]),
        factors,
        pictures=pictures_of(case, len(whole)),
        filling=whole[:, :, :1] if filling else None,
        generator=generator,
    )


def time_of(asker: Asker, told: Tensor, batch: int = 1) -> Tensor:
    """Timesteps (B,), one for all, or (B, tokens) -> times (B,); tokens of a picture are at time 0."""
    told = told.double().reshape(-1, 1) if told.ndim < 2 else told.double()
    told = told.amax(dim=1).expand(batch)
    if asker.schedule.name != "flow_matching":
        return told / 999
    return 1 - told / 1000 if asker.base.config.get("invert_sigmas") else told / 1000


def pictures_of(case: Case, batch: int) -> list | None:
    """One a sample, where the pipeline is given them."""
    return None if case.pictures is None else [picture() for _ in range(batch)]


def channels_of(case: Case, pipe: Any) -> int:
    """Of the latents."""
    config = case.predictors(pipe)[0].config
    return config.get("out_channels") or config["in_channels"]


def noise_for(case: Case, asker: Asker, batch: int = 1, latent: Any = None) -> dict[str, Any]:
    """`ask`'s arguments but for times and prompts, for latents of (t, h, w); of `narrow`'s size by default."""
    generator = torch.Generator().manual_seed(0)
    t, h, w = latent or asker.family.latent_size(asker.pipe, case.narrow)
    count = asker.filling((t, h, w))
    channels = channels_of(case, asker.pipe)
    filling = torch.randn(batch, channels, count, h, w, generator=generator) if count else None
    x = torch.randn(batch, channels, t, h, w, generator=generator)
    return {"x": x, "filling": filling, "pictures": pictures_of(case, batch)}
