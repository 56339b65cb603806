"""Ask a stock pipeline's network, for training, exactly what the pipeline would ask it (MATH 2, 3, 7).

As with `apply_pyramid`, a stage is one ordinary call of the pipeline at the stage's size; here it is left at its first
network call, whose arguments are kept. So rotary tables, masks, packing and picture conditions are the pipeline's own
work. It stands here and not in families/ because what a network is told at a time is the schedulers' knowledge.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpdiff.families import find_family
from tpdiff.families.base import Shape, Size
from tpdiff.families.sizes import check_limits, check_whole
from tpdiff.pyramid.geometry import AXIS_NAMES
from tpdiff.pyramid.operators import Ratio
from tpdiff.pyramid.schedule import Schedule
from tpdiff.pyramid.stages import Pyramid
from tpdiff.sampling.apply import stock_class
from tpdiff.sampling.standins import Asked, OneTime, first_call
from tpdiff.schedulers import PyramidScheduler, schedule_of
from tpdiff.schedulers.options import option
from tpdiff.schedulers.runs import native_times, times_told
from tpdiff.schedulers.wrapped import check_wrappable

Condition = Mapping[str, Tensor]
OURS = {*AXIS_NAMES, "prompt", "image", "guidance_scale", "latents", "generator", "output_type"}


@dataclass(frozen=True)
class Question:
    """What a network is asked of a batch at one stage's size.

    Attributes:
        component: the network's name in the pipeline.
        network: the network; `network(**kwargs)[0]` is its output.
        kwargs: its arguments, those of all samples together.
        size: (t, h, w) of the latents that it is given.
        filling: how many of their frames, the first ones, only fill a patch.
        predicted: (1, 1, t, 1, 1) without those, 1 where the answer counts, 0 in a frame that the pipeline overwrites
            by the given picture's.
    """

    component: str
    network: nn.Module
    kwargs: dict[str, Any]
    size: Shape
    filling: int
    predicted: Tensor


class Asker:
    """Asks a pipeline's networks, and reads their answers, in the convention of `tpdiff.pyramid`: latents
    (B, C, t, h, w), times in [0, 1], predictions as it names and signs them. The pipeline is not changed.

    Args:
        pipe: a pipeline of a known family, with a pyramid applied or without.
        guidance: what a network is told that embeds its guidance; None: the pipeline's default. All are asked without
            a second prompt.
        options: further arguments of every call of the pipeline, such as `max_sequence_length`.

    Raises:
        ValueError: an unknown family, a scheduler that its networks or stages cannot be run with, a guidance that the
            network is not told, or an option that the call does not take.

    Attributes:
        pipe: the pipeline.
        family: what is known of it.
        base: its own scheduler.
        schedule: the noise schedule, to build a `Pyramid` on.
        prediction_type: what the networks predict.
    """

    def __init__(self, pipe: Any, guidance: float | None = None, **options: Any):
        self.pipe, self.family = pipe, find_family(pipe)
        self.base = pipe.scheduler.base if isinstance(pipe.scheduler, PyramidScheduler) else pipe.scheduler
        self.family.check_scheduler(self.base)
        check_wrappable(self.base)
        self.schedule: Schedule = schedule_of(self.base)
        self.prediction_type: str = option(self.base, "prediction_type", "flow_prediction")
        kind = stock_class(pipe)
        parameters = list(inspect.signature(kind.__call__).parameters.values())[1:]
        defaults = {one.name: one.default for one in parameters if one.kind is not one.VAR_KEYWORD}
        _check_options(kind, options, defaults.keys() - OURS)
        self._given, self._options = options.keys(), defaults | options
        if "guidance_scale" in defaults:
            self._options["guidance_scale"] = self._guidance(guidance)

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The components that predict, by name."""
        found = {name: getattr(self.pipe, name) for name in self.family.networks(self.pipe)}
        return {name: network for name, network in found.items() if network is not None}

    @property
    def spans(self) -> dict[str, tuple[float, float]]:
        """(least, greatest) time that each of them is asked at; a time on a border is the noisier's."""
        spans = self.family.networks(self.pipe)
        return {name: spans[name] for name in self.networks}

    @property
    def text_options(self) -> dict[str, Any]:
        """What decides, of the arguments of every call, what a prompt is encoded to."""
        takes = inspect.signature(stock_class(self.pipe).encode_prompt).parameters  # type: ignore[attr-defined]
        names = [name for name in takes if name in self._options and name not in OURS and "negative" not in name]
        return {name: self._options[name] for name in names if self._options[name] is not None}

    def by_default(self, **arguments: Any) -> None:
        """Give arguments of every call other defaults than the pipeline's own; those that it does not take, or that
        were given as options, stay as they are."""
        open_to_change = self._options.keys() - self._given
        self._options |= {name: value for name, value in arguments.items() if name in open_to_change}

    def times(self, t: Tensor) -> Tensor:
        """The times that the network can be told: t (B,), or the next noisier whole timesteps', float64 (MATH 3)."""
        return times_told(self.base, t)

    def filling(self, latent: Shape) -> int:
        """How many frames the pipeline puts before latents of (t, h, w), to fill its patches."""
        return self.family.filling(self.pipe, self.family.pixel_size(self.pipe, latent))

    @torch.no_grad()
    def encode(self, prompts: Sequence[str | None], device: torch.device | str | None = None) -> list[Condition]:
        """Prompts as the pipeline encodes them: for each the arguments that its call takes instead, one row, on the
        CPU, to be kept.

        Args:
            prompts: None is the null prompt, "".
            device: where the text encoders are; None: where the pipeline runs.
        """
        encode = stock_class(self.pipe).encode_prompt  # type: ignore[attr-defined]
        takes = inspect.signature(encode).parameters
        names = [name for name in takes if name in self._options and _is_embedding(name)]
        given = self._options | {
            "device": device or self.pipe._execution_device,
            "do_classifier_free_guidance": False,
            "num_images_per_prompt": 1,
        }
        kept: list[Condition] = []
        for prompt in prompts:
            given["prompt"] = prompt or ""
            made = encode(self.pipe, **{name: value for name, value in given.items() if name in takes})
            kept.append(dict(zip(names, [one.cpu() for one in made if one is not None], strict=True)))
        self._put_away()
        return kept

    def ask(
        self,
        x: Tensor,
        t: Tensor,
        conditions: Sequence[Condition],
        factors: Ratio = (1, 1, 1),
        pictures: Sequence[Any] | None = None,
        filling: Tensor | None = None,
        generator: torch.Generator | None = None,
        encoded: Mapping[int, dict[Any, Any]] | None = None,
        told: Tensor | None = None,
    ) -> Question:
        """What the network would be asked of noisy latents.

        Args:
            x: x_t, (B, C, t, h, w) at the stage's size. The question is on their device; so must be what encodes
                pictures.
            t: their times in [0, 1], (B,), as `times` gives them, all of one network's span.
            conditions: what `encode` made of their prompts.
            factors: the stage's (T, H, W) strides, which a frame rate follows.
            pictures: their first frames, where the pipeline is given them, as it takes them (all take PIL images).
            filling: noisy latents (B, C, n, h, w) at t that stand before x, where `filling` says that patches need
                them: x's first frame with noise of its own.
            generator: draws what the pipeline samples of a picture's encoding; None: always alike.
            encoded: number of a picture -> what was made of it in questions before, which is used and added to, at
                first `defaultdict(dict)`; None: all is made anew.
            told: times in [0, 1], (B,), that the network is told in place of t (`tpdiff.pyramid.as_told`); None: t.

        Raises:
            ValueError: latents, times, conditions or pictures that do not fit the pipeline or one another, or times of
                two networks.
        """
        t = t.detach().to("cpu", torch.float64)
        told = t if told is None else told.detach().to("cpu", torch.float64)
        size = self._check(x, t, conditions, pictures, filling)
        whole = x if filling is None else torch.cat([filling.to(x), x], dim=2)
        latent: Shape = tuple(whole.shape[2:])  # type: ignore[assignment]
        kind, networks = stock_class(self.pipe), self.networks
        options = self._options | dict(zip(AXIS_NAMES, size, strict=True)) | {"output_type": "latent"}
        options |= self.family.stage_options(self.pipe, factors, options)
        asked: list[Asked] = []
        for n, row in enumerate(whole.split(1)):
            options |= {name: value.to(x.device) for name, value in conditions[n].items()}
            options["generator"] = generator or torch.Generator().manual_seed(0)
            if pictures is not None:
                options["image"] = pictures[n]
            scheduler = OneTime(self.base.config, native_times(self.base, told[n]), float(self.schedule.sigma(t[n])))
            latents = self.family.pack(self.pipe, row, latent)
            given = {name: options[name] for name in self._options}
            before = None if encoded is None else encoded[n]
            asked.append(first_call(self.pipe, kind, self.family, networks, scheduler, latents, given, before))
        self._put_away()
        component = asked[0].component
        if any(one.component != component for one in asked):
            raise ValueError(
                f"times {t.tolist()} are of two networks, {' and '.join(sorted({one.component for one in asked}))}: "
                "ask for them apart (`spans`)"
            )
        kwargs = {name: self._together(name, [one.kwargs[name] for one in asked]) for name in asked[0].kwargs}
        predicted = torch.ones(1, 1, x.shape[2], 1, 1, device=x.device)
        if self.family.from_picture(self.pipe) and self.family.picture_kept(self.pipe):
            predicted[:, :, 0] = 0
        return Question(component, networks[component], kwargs, latent, latent[0] - x.shape[2], predicted)

    def answer(self, question: Question, output: Tensor) -> Tensor:
        """The network's output as a prediction of x's shape, (B, C, t, h, w)."""
        prediction = self.family.unpack(self.pipe, output, question.size)[:, :, question.filling :]
        return -prediction if option(self.base, "invert_sigmas") else prediction

    def _together(self, name: str, values: list[Any]) -> Any:
        """One argument, of all samples."""
        first = values[0]
        if isinstance(first, Tensor) and name not in self.family.shared:
            return torch.cat(values) if first.ndim else torch.stack(values)
        if not all(_alike(first, other) for other in values[1:]):
            raise ValueError(f"samples differ in the network's {name!r}, which is one for all: ask for them apart")
        return first

    def _put_away(self) -> None:
        """What the pipeline offloads, but for the networks."""
        networks = list(self.networks.values())
        for hook in getattr(self.pipe, "_all_hooks", []):
            if hook.model not in networks:
                hook.offload()

    def _guidance(self, guidance: float | None) -> float:
        configs: list[Any] = [network.config for network in self.networks.values()]
        if any(config.get("guidance_embeds") for config in configs):
            return self._options["guidance_scale"] if guidance is None else guidance
        if guidance is not None:
            raise ValueError(f"guidance {guidance:g}: this network is not told its guidance; leave it out")
        return 1.0

    def _check(
        self, x: Tensor, t: Tensor, conditions: Sequence[Condition], pictures: Any, filling: Tensor | None
    ) -> Size:
        """(num_frames, height, width) in pixels of latents that can be asked for."""
        config: Any = next(iter(self.networks.values())).config
        channels = config.get("out_channels") or config["in_channels"]
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(f"latents of shape {tuple(x.shape)} are not of shape (B, {channels}, t, h, w)")
        _, _, frames, height, width = x.shape
        size, plain = self.family.pixel_size(self.pipe, (frames, height, width)), Pyramid(self.schedule)
        check_limits(self.pipe, self.family, plain, size)
        check_whole(self.pipe, self.family, plain, size, (1, 2))
        if t.shape != (len(x),) or not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError(f"times {t.tolist()} are not {len(x)} in [0, 1]")
        if not torch.allclose(self.times(t.float()), t, rtol=0, atol=1e-6):
            raise ValueError(
                f"this network is told whole timesteps, between which the times {t.tolist()} are; "
                f"nearest that are noisier: {self.times(t).tolist()}"
            )
        wanted = (len(x), channels, self.filling((frames, height, width)), height, width)
        given = (*wanted[:2], 0, height, width) if filling is None else tuple(filling.shape)
        if given != wanted:
            raise ValueError(f"what fills patches must have the shape {wanted} for these latents; got {given}")
        if (pictures is not None) != self.family.from_picture(self.pipe):
            needs = "needs pictures" if pictures is None else "takes no pictures"
            raise ValueError(f"{stock_class(self.pipe).__name__} {needs}")
        for name, values in {"conditions": conditions, "pictures": pictures}.items():
            if values is not None and len(values) != len(x):
                raise ValueError(f"{len(values)} {name} for {len(x)} samples; give one each")
        return size


def _check_options(kind: type, options: Mapping[str, Any], known: Collection[str]) -> None:
    for name in options.keys() - known:
        near = difflib.get_close_matches(name, known, 1) or sorted(known)
        raise ValueError(f"{name!r} is no option of {kind.__name__}; nearest: {near[0]}")


def _is_embedding(name: str) -> bool:
    return ("embeds" in name or "mask" in name) and not name.startswith("negative")


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_alike, one, other))
    return one is other or bool(one == other)
