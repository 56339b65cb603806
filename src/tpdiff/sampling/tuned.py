"""A stock pipeline whose network was trained through stages: saved beside what it was trained from, loaded, called."""

from __future__ import annotations

import contextlib
import copy
import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from peft.utils import get_peft_model_state_dict
from torch import nn

from tpdiff.models.memory import moved
from tpdiff.pyramid.noise import Generators
from tpdiff.pyramid.stages import Pyramid
from tpdiff.sampling.apply import apply_pyramid, stock_class

TOLD = "tpdiff.json"
LORA = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True)
class Tuned:
    """What a saved network's folder says of it.

    Attributes:
        base: the pipeline that it was trained from, a folder or a name on the hub.
        component: the network's name in the pipeline.
        kind: its class; None: only low-rank matrices are saved.
        adapters: names of the matrices' sets, one a stage, or "default".
        pyramid: `Pyramid.config()` of its stages.
        default_size: (num_frames, height, width) in pixels that it was trained at.
        fps: frames a second of its training clips.
        options: arguments of every call.
    """

    base: str
    component: str
    kind: str | None
    adapters: list[str]
    pyramid: dict[str, Any]
    default_size: list[int]
    fps: float
    options: dict[str, Any] = field(default_factory=dict)


class TunedPipeline:
    """A stock pipeline with such a network, called as `PyramidPipeline` is.

    Attributes:
        pipe: the stock pipeline, its pyramid applied where there are stages.
        config: what is known of it, `Tuned`.
        pyramid: its stages.

    Args:
        pipe: the pipeline; a copy of it is given the network and made pyramidal.
        network: what was trained.
        told: what is known of it.
        dtype: of autocast; None: none.
        device: where all of it is during a call; None: where it is before.
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
        if len(self.pyramid) > 1:
            apply_pyramid(self.pipe, self.pyramid)
        self.pipe.set_progress_bar_config(disable=True)

    @property
    def network(self) -> Any:
        """The network that was trained."""
        return getattr(self.pipe, self.config.component)

    @property
    def conditioner(self) -> AnyText:
        """What prompts may be."""
        return AnyText()

    def lowered(self, dtype: torch.dtype) -> TunedPipeline:
        """The same, computing in a lower precision where that is safe."""
        return TunedPipeline(self.pipe, self.network, self.config, dtype, self.device)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str | None] | None = None,
        *,
        steps: int | Sequence[int] = 30,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        output_type: str = "np",
        **options: Any,
    ) -> Any:
        """Make videos: arguments as those of `PyramidPipeline`, the others as those of the stock pipeline."""
        prompts = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        size = zip((num_frames, height, width), self.config.default_size, strict=True)
        given = (
            dict(zip(("num_frames", "height", "width"), (a or b for a, b in size), strict=True)) | self.config.options
        )
        takes = inspect.signature(stock_class(self.pipe).__call__).parameters
        if guidance_scale is not None:
            given["guidance_scale"] = guidance_scale
        if negative_prompt is not None:
            given["negative_prompt"] = [negative_prompt] * len(prompts)
        if "frame_rate" in takes:
            given["frame_rate"] = self.config.fps
        if len(self.pyramid) > 1:
            apply_pyramid(self.pipe, self.pyramid, steps)
        given["num_inference_steps"] = steps if isinstance(steps, int) else sum(steps)
        parts = [part for part in self.pipe.components.values() if isinstance(part, nn.Module)]
        device = self.pipe._execution_device if self.device is None else self.device
        lower = torch.autocast(device.type, self.dtype) if self.dtype is not None else contextlib.nullcontext()
        with moved(() if self.device is None else parts, device), lower, _staged_adapters(self):
            return self.pipe(
                prompt=[p or "" for p in prompts], generator=generator, output_type=output_type, **given | options
            )

    def save_pretrained(self, folder: str | Path, safe_serialization: bool = True) -> None:
        """Write the network, or its low-rank matrices, with the stages: `PyramidPipeline.from_pretrained` loads them,
        the stock class the network, and `load_lora_weights` the matrices."""
        place, told = Path(folder), self.config
        place.mkdir(parents=True, exist_ok=True)
        if told.kind is not None:
            self.network.save_pretrained(str(place / told.component))
        for name in told.adapters:
            layers = {f"{told.component}_lora_layers": get_peft_model_state_dict(self.network, adapter_name=name)}
            stock_class(self.pipe).save_lora_weights(str(_adapter_folder(place, name)), **layers)  # type: ignore[attr-defined]
        (place / TOLD).write_text(json.dumps(asdict(told), indent=1))


class AnyText:
    """A conditioner that takes every prompt."""

    def check(self, prompts: Sequence[str | None]) -> None:
        """There is nothing to refuse."""


def load_tuned(folder: Path) -> TunedPipeline:
    """What `TunedPipeline.save_pretrained` wrote.

    Raises:
        ValueError: the pipeline that it was trained from is not there.
    """
    told = Tuned(**json.loads((folder / TOLD).read_text()))
    pipe = load_stock(told.base)
    if told.kind is not None:
        network = getattr(diffusers, told.kind).from_pretrained(str(folder / told.component), use_safetensors=True)
        pipe.register_modules(**{told.component: network})
    for name in told.adapters:
        pipe.load_lora_weights(str(_adapter_folder(folder, name)), adapter_name=name)
    return TunedPipeline(pipe, getattr(pipe, told.component), told)


def load_stock(path: str, dtype: torch.dtype = torch.float32) -> Any:
    """A diffusers pipeline from a folder or the hub, safetensors only.

    Raises:
        ValueError: none is there.
    """
    try:
        return DiffusionPipeline.from_pretrained(path, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"no diffusers pipeline in {path!r}: {' '.join(str(error).split())}") from error


def adapter_name(stage: int | None) -> str:
    """The name of the low-rank matrices of a stage, or of all."""
    return "default" if stage is None else f"stage_{stage}"


def activate(network: Any, name: str) -> None:
    """Let one set of low-rank matrices work; which parameters ask for gradients stays as it was."""
    asked = [p.requires_grad for p in network.parameters()]
    network.set_adapter(name)
    for p, before in zip(network.parameters(), asked, strict=True):
        p.requires_grad_(before)


def _adapter_folder(folder: Path, name: str) -> Path:
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
