"""What a pipeline asks of its components during a call."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tiny import Case
from torch import Tensor

ENCODERS = ("text_encoder", "text_encoder_2", "image_encoder")
PICTURE_ENCODERS = ("vae.encoder", "image_encoder")


@dataclass
class Evaluation:
    """One call of a network.

    Attributes:
        network: the component's name.
        size: (t, h, w) of the latents that it was given.
        time: what it was told, (B,) or (B, tokens).
        input: the latents, as given.
    """

    network: str
    size: tuple[int, int, int]
    time: Tensor
    input: Tensor


def size_of(given: dict[str, Any]) -> tuple[int, int, int]:
    """(t, h, w) from the arguments of a network's call; packed tokens must be as many as the size says."""
    latents = given["hidden_states"] if "hidden_states" in given else given["sample"]
    if latents.ndim == 3:
        size = given["num_frames"], given["height"], given["width"]
        assert latents.shape[1] == size[0] * size[1] * size[2]
        return size
    if "image_rotary_emb" in given:  # (B, T, C, H, W)
        latents = latents.transpose(1, 2)
    return tuple(latents.shape[2:])


@contextmanager
def evaluations(case: Case, pipe: Any) -> Iterator[list[Evaluation]]:
    """The calls of the predicting networks, as they come."""
    seen: list[Evaluation] = []
    handles = []
    for name in case.networks:

        def note(module: Any, args: tuple, kwargs: dict[str, Any], name: str = name) -> None:
            given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
            latents = given["hidden_states"] if "hidden_states" in given else given["sample"]
            seen.append(Evaluation(name, size_of(given), given["timestep"].clone(), latents.clone()))

        handles.append(getattr(pipe, name).register_forward_pre_hook(note, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def encodings(pipe: Any, names: Iterable[str] = ENCODERS) -> Iterator[Counter]:
    """How often each encoder was called."""
    seen: Counter = Counter()
    handles = []
    for name in names:
        component, _, part = name.partition(".")
        encoder = getattr(pipe, component, None)
        if encoder is not None:

            def note(module: Any, args: tuple, name: str = name) -> None:
                seen[name] += 1

            handles.append(encoder.get_submodule(part).register_forward_pre_hook(note))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
