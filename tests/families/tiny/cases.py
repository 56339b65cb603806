"""Every tiny pipeline with the arguments that its calls take, so that all can be asked the same things."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image

from tiny import cogvideox, hunyuan, ltx, mochi, unets, wan

PROMPT = "a small red cat runs"
SHORT: dict[str, Any] = {"max_sequence_length": 8}
PLAIN_TEMPLATE = {"template": "{}", "crop_start": 0}


def picture(seed: int = 0, side: int = 48) -> Image.Image:
    """Noise, smooth enough to look alike at every size."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def euler_flow(pipe: Any) -> Any:
    """Euler for flow matching, with the pipeline's own shift."""
    return FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift)


def unipc_flow(pipe: Any) -> Any:
    """UniPC for flow matching, with the pipeline's own shift."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=pipe.scheduler.config.shift
    )


def heun_flow(pipe: Any) -> Any:
    """Heun for flow matching."""
    return FlowMatchHeunDiscreteScheduler(shift=3.0)


def plain_flow(pipe: Any) -> Any:
    """Euler for flow matching without a dynamic shift or a terminal level."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, invert_sigmas=pipe.scheduler.config.invert_sigmas)


def cogvideox_ddim(pipe: Any) -> Any:
    """CogVideoX's deterministic solver on the pipeline's own schedule."""
    return CogVideoXDDIMScheduler.from_config(pipe.scheduler.config)


def ddim(pipe: Any) -> Any:
    """DDIM on the pipeline's own schedule."""
    return DDIMScheduler.from_config(pipe.scheduler.config)


def euler(pipe: Any) -> Any:
    """Euler in noise-to-signal ratios."""
    return EulerDiscreteScheduler.from_config(pipe.scheduler.config)


def dpm(pipe: Any) -> Any:
    """DPM-Solver++ of second order."""
    return DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)


@dataclass(frozen=True)
class Case:
    """One pipeline.

    Attributes:
        name: of the case.
        build: makes the pipeline.
        size: (num_frames, height, width) that three stages, each half of the next on every axis, can hold.
        latent: (t, h, w) of its latents.
        side: the least height and width, which is quick where only time matters.
        other: pipe -> another scheduler that stages can run.
        call: arguments of every call.
        networks: components that predict.
        over_space: whether stages can be smaller in height and width.
        default_runs: whether stages can run the pipeline's own scheduler.
        pictures: how a batch is given its pictures: "one" for all, a "list", or None: there are none.
        guided: whether a call takes `guidance_scale`.
        kept: whether the first latent frame is the given picture.
        refresh: what a pipeline needs again after `from_pretrained`.
    """

    name: str
    build: Callable[[], Any]
    size: tuple[int, int, int]
    latent: tuple[int, int, int]
    side: int
    other: Callable[[Any], Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    networks: tuple[str, ...] = ("transformer",)
    over_space: bool = True
    default_runs: bool = True
    pictures: str | None = None
    guided: bool = True
    kept: bool = False
    refresh: Callable[[Any], Any] = lambda pipe: pipe

    def __str__(self) -> str:
        return self.name

    def pipe(self) -> Any:
        """The pipeline as it comes."""
        return self.quiet(self.build())

    def quiet(self, pipe: Any) -> Any:
        """Without progress bars."""
        pipe.set_progress_bar_config(disable=True)
        return self.refresh(pipe)

    def stageable(self) -> Any:
        """The pipeline with a scheduler that stages can run: its own, if they can."""
        pipe = self.pipe()
        if not self.default_runs:
            pipe.scheduler = self.other(pipe)
        return pipe

    @property
    def narrow(self) -> tuple[int, int, int]:
        """As many frames as `size`, but the least height and width."""
        return self.size[0], self.side, self.side

    def arguments(self, size: tuple[int, int, int] | None = None, batch: int = 1, **changes: Any) -> dict[str, Any]:
        """Of a call that ends with latents, the same each time; `narrow` by default."""
        frames, height, width = size or self.narrow
        given: dict[str, Any] = {
            "prompt": PROMPT if batch == 1 else [PROMPT, "the blue ball falls left", *[PROMPT] * batch][:batch],
            "num_frames": frames,
            "height": height,
            "width": width,
            "num_inference_steps": 6,
            "generator": torch.Generator().manual_seed(7),
            "output_type": "latent",
            "return_dict": False,
            **self.call,
        }
        if self.pictures is not None:
            given["image"] = [picture() for _ in range(batch)] if batch > 1 and self.pictures == "list" else picture()
        return given | changes

    def run(self, pipe: Any, **changes: Any) -> Any:
        """The first of what a call returns."""
        return pipe(**self.arguments(**changes))[0]

    def stage_latents(self, factors: Any, size: tuple[int, int, int] | None = None) -> list[tuple[int, int, int]]:
        """(t, h, w) of the latents in every stage of those factors, coarsest first."""
        (t, h, w), (_, height, width) = self.latent, size or self.narrow
        h, w = h * height // self.size[1], w * width // self.size[2]
        alone = 0 if self.size[0] % 2 == 0 else 2 if t % 2 == 0 else 1  # two: the first and one that fills its pair
        return [(alone + (t - alone) // one[0], h // one[1], w // one[2]) for one in reversed(factors)]

    def predictors(self, pipe: Any) -> list[torch.nn.Module]:
        """The networks that predict."""
        return [getattr(pipe, name) for name in self.networks]


HALVES = (17, 64, 64)  # Wan 2.1, CogVideoX, HunyuanVideo: 1 + 4 n frames, 8 pixels, patches of 2
FIVE = (5, 8, 8)
PICTURES = {"call": SHORT, "pictures": "list"}

CASES = [
    Case("wan", wan.wan, HALVES, FIVE, 16, euler_flow, SHORT),
    Case("wan-picture", wan.wan_picture, HALVES, FIVE, 16, euler_flow, SHORT, pictures="one"),
    Case("wan-experts", wan.wan_experts, HALVES, FIVE, 16, heun_flow, SHORT, ("transformer", "transformer_2")),
    Case(
        "wan-experts-picture",
        wan.wan_experts_picture,
        HALVES,
        FIVE,
        16,
        euler_flow,
        SHORT,
        ("transformer", "transformer_2"),
        pictures="one",
    ),
    Case("wan-small", wan.wan_small, (17, 128, 128), FIVE, 32, euler_flow, SHORT),
    Case(
        "wan-small-picture",
        wan.wan_small_picture,
        (17, 128, 128),
        FIVE,
        32,
        euler_flow,
        SHORT,
        pictures="one",
        kept=True,
    ),
    Case("cogvideox", cogvideox.cogvideox, HALVES, FIVE, 16, ddim, SHORT),
    Case("cogvideox-rotary", cogvideox.cogvideox_rotary, HALVES, FIVE, 16, cogvideox_ddim, SHORT, default_runs=False),
    Case(
        "cogvideox-picture",
        cogvideox.cogvideox_picture,
        HALVES,
        FIVE,
        64,
        cogvideox_ddim,
        over_space=False,
        default_runs=False,
        **PICTURES,
    ),
    Case(
        "cogvideox-pairs",
        cogvideox.cogvideox_pairs,
        (33, 64, 64),
        (10, 8, 8),
        16,
        cogvideox_ddim,
        SHORT,
        default_runs=False,
    ),
    Case(
        "cogvideox-pairs-picture",
        cogvideox.cogvideox_pairs_picture,
        (33, 64, 64),
        (10, 8, 8),
        16,
        cogvideox_ddim,
        default_runs=False,
        **PICTURES,
    ),
    Case("ltx", ltx.ltx, (33, 128, 128), (5, 4, 4), 32, plain_flow, SHORT),
    Case("ltx-picture", ltx.ltx_picture, (33, 128, 128), (5, 4, 4), 32, plain_flow, kept=True, **PICTURES),
    Case("hunyuan", hunyuan.hunyuan, HALVES, FIVE, 16, unipc_flow, SHORT | {"prompt_template": PLAIN_TEMPLATE}),
    Case(
        "hunyuan15", hunyuan.hunyuan15, (17, 64, 64), (5, 4, 4), 16, plain_flow, guided=False, refresh=hunyuan.shorten
    ),
    Case("mochi", mochi.mochi, (25, 64, 64), FIVE, 16, plain_flow, SHORT),
    Case("animatediff", unets.animatediff, (4, 64, 64), (4, 8, 8), 16, euler, networks=("unet",)),
    Case("modelscope", unets.modelscope, (4, 64, 64), (4, 8, 8), 16, dpm, networks=("unet",)),
]


def find_case(name: str) -> Case:
    """By name."""
    return next(case for case in CASES if case.name == name)
