"""A stock pipeline whose network was trained through stages: saved beside what it was trained from, loaded, called."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from peft.utils import get_peft_model_state_dict
from torch import nn

from tpdiff.families import find_family
from tpdiff.families.sizes import stage_sizes
from tpdiff.models.memory import moved, visiting
from tpdiff.pyramid.geometry import AXIS_NAMES
from tpdiff.pyramid.noise import Generators
from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.steps import split_steps
from tpdiff.sampling.apply import apply_pyramid, remove_pyramid, stock_class
from tpdiff.sampling.arguments import one_a_prompt
from tpdiff.sampling.stock import is_hollow, load_stock
from tpdiff.sampling.trained import HERE, TOLD, Tuned, read_tuned

LORA = "pytorch_lora_weights.safetensors"


class TunedPipeline:
    """A stock pipeline with such a network, called as `PyramidPipeline` is.

    Attributes:
        pipe: the stock pipeline, its pyramid applied.
        config: what is known of it, `Tuned`.
        pyramid: its stages.

    Args:
        pipe: the pipeline; a copy of it is given the network and made pyramidal.
        network: what was trained.
        told: what is known of it.
        dtype: of autocast; None: none.
        device: where its networks are during a call, and what encodes and decodes while it does; None: where all of it
            is before.
    """

    def __init__(
        self,
        pipe: Any,
        network: nn.Module,
        told: Tuned,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ):
        self.pipe, self.config, self.dtype, self.device = copy.copy(pipe), told, dtype, device
        self.pyramid = Pyramid.from_config(told.pyramid)
        self.pipe.register_modules(**{told.component: network})
        apply_pyramid(self.pipe, told)

    @property
    def network(self) -> Any:
        """The network that was trained."""
        return getattr(self.pipe, self.config.component)

    @property
    def usual_guidance(self) -> float | None:
        """The guidance of a call that is not told any; None: there is none to tell."""
        takes = inspect.signature(stock_class(self.pipe).__call__).parameters
        guider = getattr(self.pipe, "guider", None)  # has it where the call does not
        own = takes["guidance_scale"].default if "guidance_scale" in takes else getattr(guider, "guidance_scale", None)
        return self.config.options.get("guidance_scale", own)

    @property
    def conditioner(self) -> AnyText:
        """What prompts may be."""
        return AnyText()

    def to(self, device: torch.device | str) -> TunedPipeline:
        """Move all of it; returns it."""
        self.pipe.to(device)
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """That of the stock pipeline."""
        self.pipe.set_progress_bar_config(**options)

    def lowered(self, dtype: torch.dtype) -> TunedPipeline:
        """The same, computing in a lower precision where that is safe."""
        lower = None if dtype == torch.float32 else dtype
        return TunedPipeline(self.pipe, self.network, self.config, lower, self.device)

    def whole(self) -> TunedPipeline:
        """The same, saved as a whole stock pipeline in place of the network alone."""
        return TunedPipeline(self.pipe, self.network, replace(self.config, base=HERE), None, self.device)

    def check_size(self, size: tuple[int, int, int]) -> None:
        """Raise ValueError for (num_frames, height, width) in pixels that some stage cannot hold."""
        stage_sizes(self.pipe, find_family(self.pipe), self.pyramid, size)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str | None] | None = None,
        *,
        num_inference_steps: int | Sequence[int] | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        output_type: str = "np",
        **options: Any,
    ) -> Any:
        """Make videos: arguments as those of `PyramidPipeline`, the others as those of the stock pipeline, of which
        `prompt_embeds` take the place of prompts. Without `num_inference_steps` there are 30, or as many as `sigmas`.

        Raises:
            ValueError: before any work, for a size, step count, prompt or argument that cannot be served.
        """
        alone, encoded = prompt is None or isinstance(prompt, str), options.get("prompt_embeds")
        prompts: list[Any] = [prompt] if alone or not isinstance(prompt, Sequence) else list(prompt)
        if prompt is None and encoded is not None:
            prompts = [None] * len(encoded)
        negative = one_a_prompt(negative_prompt, len(prompts))
        self.conditioner.check([*prompts, *negative])
        sigmas = options.get("sigmas")
        steps = num_inference_steps if num_inference_steps is not None else 30 if sigmas is None else len(sigmas)
        counts = split_steps(steps, len(self.pyramid))
        size = zip(AXIS_NAMES, (num_frames, height, width), self.config.default_size, strict=True)
        told: dict[str, Any] = {name: usual if given is None else given for name, given, usual in size}
        told |= options
        if guidance_scale is not None:
            told["guidance_scale"] = guidance_scale
        if negative_prompt is not None:
            told["negative_prompt"] = negative
        self.check_options(told)
        frames, high, wide = (told[name] for name in AXIS_NAMES)
        self.check_size((frames, high, wide))
        apply_pyramid(self.pipe, self.config, counts)
        told["num_inference_steps"] = sum(counts)
        parts = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        if any(map(is_hollow, parts)):
            raise ValueError("this pipeline was opened without what encodes and decodes: save it and load that")
        device = self.pipe._execution_device if self.device is None else self.device
        if output_type != "latent":
            generator = _for_decoding(self.pipe, generator, device)
        lower = torch.autocast(device.type, self.dtype) if self.dtype is not None else contextlib.nullcontext()
        words = None if prompt is None and encoded is not None else [p or "" for p in prompts]
        with self._placed(parts), lower, _staged_adapters(self):
            return self.pipe(prompt=words, generator=generator, output_type=output_type, **told)

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Write the network, or its low-rank matrices, with the stages: `PyramidPipeline.from_pretrained` loads them,
        the stock class the network, and `load_lora_weights` the matrices. A `whole` one: the stock class loads it."""
        place, told = Path(folder), self.config
        place.mkdir(parents=True, exist_ok=True)
        if told.base == HERE:
            remove_pyramid(copy.copy(self.pipe)).save_pretrained(str(place), safe_serialization=True)
        elif told.kind is not None:
            self.network.save_pretrained(str(place / told.component))
        for name in told.adapters:
            layers = {f"{loader_name(told.component)}_lora_layers": low_rank_matrices(self.network, name)}
            stock_class(self.pipe).save_lora_weights(str(adapter_folder(place, name)), **layers)  # type: ignore[attr-defined]
        (place / TOLD).write_text(json.dumps(asdict(told), indent=1), encoding="utf-8")

    def check_options(self, told: Collection[str]) -> None:
        """Raise ValueError for the name of an argument that the stock pipeline does not take, and for a picture that
        is missing."""
        stock = stock_class(self.pipe)
        kind, takes = stock.__name__, inspect.signature(stock.__call__).parameters
        if "solver" in told:
            scheduler = self.pipe.scheduler
            own = getattr(scheduler, "base", scheduler)
            raise ValueError(f"{kind} has no solver to choose: it samples by its scheduler, {type(own).__name__}")
        for name in told:
            if name not in takes:
                raise ValueError(f"{kind} takes no {name}; leave it out")
        if find_family(self.pipe).from_picture(self.pipe) and "image" not in told:
            raise ValueError(f"{kind} starts from a picture: give it as image")

    @contextlib.contextmanager
    def _placed(self, parts: Sequence[nn.Module]) -> Iterator[None]:
        """Have the pipeline's parts on the device: its networks all the time, the others while they are used."""
        if self.device is None:
            yield
            return
        predict = {id(getattr(self.pipe, name)) for name in find_family(self.pipe).networks(self.pipe)}
        networks = [part for part in parts if id(part) in predict]
        others = [part for part in parts if id(part) not in predict]
        with moved(networks, self.device), visiting(others, self.device, until=networks):
            yield


class AnyText:
    """A conditioner that takes every text."""

    def check(self, prompts: Sequence[str | None]) -> None:
        """Raise ValueError for what is no text."""
        for prompt in prompts:
            if prompt is not None and not isinstance(prompt, str):
                raise ValueError(f"prompt {prompt!r} is no text; give words, or None for no prompt")


def load_tuned(folder: Path, dtype: torch.dtype = torch.float32) -> TunedPipeline:
    """What `TunedPipeline.save_pretrained` wrote.

    Raises:
        ValueError: the pipeline that it was trained from is not there.
    """
    told = read_tuned(folder)
    apart = told.kind is not None and told.base != HERE  # the network's own weights, in place of the base's
    try:
        path = str(folder) if told.base == HERE else told.base
        pipe = load_stock(path, dtype, hollow=(lambda name: name == told.component) if apart else None)
    except ValueError as error:
        raise ValueError(f"{folder} was trained from a pipeline that cannot be opened: {error}") from error
    if apart:
        kind, place = getattr(diffusers, str(told.kind)), str(folder / told.component)
        pipe.register_modules(**{told.component: kind.from_pretrained(place, use_safetensors=True, dtype=dtype)})
    second = {} if told.component == loader_name(told.component) else {f"load_into_{told.component}": True}
    for name in told.adapters:
        pipe.load_lora_weights(str(adapter_folder(folder, name)), adapter_name=name, **second)
    return TunedPipeline(pipe, getattr(pipe, told.component), told)


def _for_decoding(pipe: Any, generator: Generators, device: torch.device) -> Generators:
    """The generators of a call as the pipeline takes them. From a picture, where the autoencoder is told a time, it
    draws the noise of decoding by torch's own function: from one generator, on its own device. One elsewhere seeds it.

    Raises:
        ValueError: one a video, for several.
    """
    times = getattr(getattr(pipe, "vae", None), "config", {}).get("timestep_conditioning")
    if generator is None or not (times and find_family(pipe).from_picture(pipe)):
        return generator
    if isinstance(generator, Sequence):
        if len(generator) != 1:
            raise ValueError(
                f"{stock_class(pipe).__name__} draws the noise of decoding from one generator; got {len(generator)}: "
                "give one, or make one video at a time"
            )
        (generator,) = generator
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return torch.Generator(device).manual_seed(int(seed))


def adapter_name(stage: int | None) -> str:
    """The name of the low-rank matrices of a stage, or of all."""
    return "default" if stage is None else f"stage_{stage}"


def low_rank_matrices(network: Any, name: str) -> dict[str, torch.Tensor]:
    """A set of low-rank matrices by their layers, "blocks.0.to_q.lora_A.weight", the second of each pair times
    alpha / rank, so that their product counts once wherever they are loaded."""
    config = network.peft_config[name]
    scale = config.lora_alpha / config.r
    found = get_peft_model_state_dict(network, adapter_name=name)
    return {key: value * scale if ".lora_B." in key else value for key, value in found.items()}


def activate(network: Any, name: str) -> None:
    """Let one set of low-rank matrices work; which parameters ask for gradients stays as it was."""
    with _asking_as_before(network):
        network.set_adapter(name)


@contextlib.contextmanager
def without_matrices(network: Any) -> Iterator[None]:
    """Have no low-rank matrices work while active; which parameters ask for gradients is then as it was."""
    with _asking_as_before(network):
        network.disable_adapters()
        try:
            yield
        finally:
            network.enable_adapters()


@contextlib.contextmanager
def _asking_as_before(network: nn.Module) -> Iterator[None]:
    """In the end the same parameters ask for gradients as in the beginning."""
    asked = [p.requires_grad for p in network.parameters()]
    try:
        yield
    finally:
        for p, before in zip(network.parameters(), asked, strict=True):
            p.requires_grad_(before)


def loader_name(component: str) -> str:
    """What diffusers calls a network in files of low-rank matrices: a second one as the first."""
    return component.removesuffix("_2")


def adapter_folder(folder: Path, name: str) -> Path:
    """Where a set of low-rank matrices lies in a saved network's folder."""
    return folder if name == adapter_name(None) else folder / name


@contextlib.contextmanager
def _staged_adapters(tuned: TunedPipeline) -> Any:
    """Where every stage has matrices of its own, those of the stage under way work."""
    if tuned.config.adapters in ([], [adapter_name(None)]):
        yield
        return

    def switch(network: Any, args: Any, kwargs: Any) -> None:
        activate(network, adapter_name(tuned.pipe.scheduler.stage if len(tuned.pyramid) > 1 else 0))

    handle = tuned.network.register_forward_pre_hook(switch, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
