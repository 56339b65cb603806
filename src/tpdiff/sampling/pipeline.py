"""PyramidPipeline: a trained pyramidal model with everything it needs to make videos, in diffusers' layout."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from diffusers.video_processor import VideoProcessor
from torch import Tensor

from tpdiff.models.autoencoder import decode_video
from tpdiff.models.conditioning import Conditioner, LabelCondition, NoCondition, TextCondition
from tpdiff.models.text import load_text_encoder
from tpdiff.models.video_dit import VideoDiT
from tpdiff.pyramid.geometry import check_video_size
from tpdiff.pyramid.noise import Generators
from tpdiff.pyramid.stages import Pyramid
from tpdiff.pyramid.targets import check_per_stage
from tpdiff.pyramid.told import check_policy
from tpdiff.sampling.arguments import each_stage, one_a_prompt
from tpdiff.sampling.denoiser import guided_denoiser
from tpdiff.sampling.loop import Progress, check_sampling, sample_pyramid
from tpdiff.sampling.trained import TOLD, newest_checkpoint
from tpdiff.sampling.tuned import load_tuned

OUTPUT_TYPES = ("np", "pt", "pil", "latent")
TENSOR_INPUTS = ("latents", "denoised")  # of a callback


@dataclass
class PyramidPipelineOutput(BaseOutput):
    """Videos.

    Attributes:
        frames: numpy (B, T, H, W, 3) in [0, 1], or what `output_type` asked for.
    """

    frames: np.ndarray | Tensor | list


class _Interrupted(Exception):
    """A callback has set `_interrupt`, as those of diffusers' pipelines do."""

    def __init__(self, latents: Tensor, stage: int):
        self.latents, self.stage = latents, stage


class PyramidPipeline(DiffusionPipeline):
    """Text, label or nothing to video, through the stages of a pyramid.

    Args:
        transformer: the denoiser.
        vae: an autoencoder of images or videos; None for a model of pixels.
        text_encoder: a Hugging Face encoder, or None.
        tokenizer: its tokenizer, or None.
        pyramid: `Pyramid.config()`.
        prediction_type: what the transformer predicts.
        per_stage_target: whether its flow is per unit of a stage's time rather than of the schedule's σ.
        timestep_policy: what it is told of the time, "native" or "pyramid_flow" (`tpdiff.pyramid.as_told`).
        default_size: (num_frames, height, width) in pixels that it was trained at.
        latent_ratio: the autoencoder's compression (T, H, W); all ones without one.
        latent_scale: what latents (or pixels in [-1, 1]) were multiplied by in training.
        fps: frames a second of its training clips.
        labels: captions in class order, for a label-conditional model.
        text_source: where the text encoder comes from when none is saved beside the weights.
        max_text_length: tokens a prompt is padded or cut to.
    """

    _optional_components: ClassVar[list[str]] = ["vae", "text_encoder", "tokenizer"]  # type: ignore[misc]
    model_cpu_offload_seq = "text_encoder->transformer->vae"  # type: ignore[assignment]
    transformer: VideoDiT
    vae: Any
    text_encoder: Any
    tokenizer: Any
    config: Any

    def __init__(
        self,
        transformer: VideoDiT,
        vae: Any = None,
        text_encoder: Any = None,
        tokenizer: Any = None,
        pyramid: dict | None = None,
        prediction_type: str = "flow_prediction",
        per_stage_target: bool = False,
        timestep_policy: str = "native",
        default_size: list[int] | tuple[int, ...] = (16, 64, 64),
        latent_ratio: list[int] | tuple[int, ...] = (1, 1, 1),
        latent_scale: float = 1.0,
        fps: float = 8.0,
        labels: Sequence[str] | None = None,
        text_source: str | None = None,
        max_text_length: int = 32,
    ):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer)
        self.register_to_config(
            pyramid=pyramid,
            prediction_type=prediction_type,
            per_stage_target=per_stage_target,
            timestep_policy=timestep_policy,
            default_size=list(default_size),
            latent_ratio=list(latent_ratio),
            latent_scale=latent_scale,
            fps=fps,
            labels=None if labels is None else list(labels),
            text_source=text_source,
            max_text_length=max_text_length,
        )
        if pyramid is None:
            raise ValueError("PyramidPipeline needs pyramid=Pyramid(...).config()")
        self.pyramid = Pyramid.from_config(pyramid)
        check_policy(timestep_policy, self.pyramid)
        if per_stage_target:
            check_per_stage(self.pyramid.schedule)
        self.video_processor = VideoProcessor()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """Load what `save_pretrained` or `tpdiff train` wrote; of a run's folder, the newest checkpoint.

        A diffusers pipeline that was fine-tuned comes as a `TunedPipeline`, which is called alike; of `kwargs` it
        knows `dtype`.

        Raises:
            FileNotFoundError: no pipeline in the folder, or no checkpoint in the run.
            ValueError: weights of another network, a pipeline of another class, or the pipeline that was fine-tuned is
                not where it was.
        """
        folder = newest_checkpoint(Path(pretrained_model_name_or_path))
        if (folder / TOLD).is_file():
            return load_tuned(folder, **kwargs)
        index: Any = cls.load_config(str(folder))
        kind = index["_class_name"]
        if kind not in (cls.__name__, PyramidPipeline.__name__):
            raise ValueError(
                f"{folder} holds a {kind}: open it by that class of diffusers, then apply_pyramid(pipe, factors, steps)"
            )
        pipeline = super().from_pretrained(str(folder), use_safetensors=True, **kwargs)
        absent = [name for name, p in pipeline.transformer.named_parameters() if p.is_meta]
        if absent:
            raise ValueError(
                f"the weights in {folder} are of another network: {len(absent)} are missing ({absent[0]}, ...)"
            )
        return pipeline

    @cached_property
    def conditioner(self) -> Conditioner:
        """How this model turns prompts into network inputs; loads the text encoder on first use."""
        if self.config.labels:
            return LabelCondition(self.config.labels)
        if self.text_encoder is None and self.config.text_source is None:
            return NoCondition()
        if self.text_encoder is None:
            encoder, tokenizer = load_text_encoder(self.config.text_source)
            self.register_modules(text_encoder=encoder.to(self._execution_device), tokenizer=tokenizer)
            self.maybe_free_model_hooks()  # with model offload, it waits on the CPU from now on as the others do
        return TextCondition(self.text_encoder, self.tokenizer, self.config.max_text_length)

    def lowered(self, dtype: torch.dtype) -> "PyramidPipeline":
        """The same over a copy of the network in another precision."""
        other = copy.copy(self)
        transformer = copy.deepcopy(self.transformer)
        torch.nn.Module.to(transformer, dtype=dtype)
        other.register_modules(transformer=transformer)
        return other

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str | None] | None = None,
        *,
        num_inference_steps: int | Sequence[int] = 30,
        guidance_scale: float | Sequence[float] = 1.0,
        negative_prompt: str | Sequence[str | None] | None = None,
        num_videos_per_prompt: int = 1,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        generator: Generators = None,
        latents: Tensor | None = None,
        first_stage: int | None = None,
        solver: str = "euler",
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable[[Any, int, float, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> Any:
        """Make videos.

        Args:
            prompt: one, or a list; None stands for no prompt.
            num_inference_steps: a total, or one count a stage, coarsest first.
            guidance_scale: classifier-free guidance, one or one a stage, coarsest first; 1 is none, and costs nothing.
            negative_prompt: what guidance leads away from, one or one a prompt; None: no prompt.
            num_videos_per_prompt: videos of each prompt.
            num_frames: pixels' frames, None: as trained. Likewise height and width.
            generator: one, or one a video.
            latents: noise at the coarsest stage's size; with `first_stage`, what that stage starts from.
            first_stage: k, to begin there (`sample_pyramid`); the steps are then of the stages that are run.
            solver: "euler", "ddim" or "heun".
            output_type: "np" (B, T, H, W, 3) in [0, 1], "pt" (B, T, 3, H, W) in [0, 1], "pil", or "latent".
            callback_on_step_end: called after every step with this pipeline, the step from 0, the time reached in
                [0, 1] and a dict of tensors; "latents" in the dict that it returns take the place of the sampled.
            callback_on_step_end_tensor_inputs: what that dict holds: "latents" (B, C, T, H, W) at the stage's size,
                before any jump, and "denoised", the step's clean estimate of them.

        Returns:
            A `PyramidPipelineOutput`, or without `return_dict` the tuple (frames,). A callback that sets `_interrupt`
            ends the sampling.

        Raises:
            ValueError: before any work, for a size, step count, prompt, start or tensor input that cannot be served.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output_type {output_type!r}; known: {', '.join(OUTPUT_TYPES)}")
        prompts: list[str | None] = [prompt] if prompt is None or isinstance(prompt, str) else list(prompt)
        if not prompts or num_videos_per_prompt < 1:
            raise ValueError("at least one prompt and one video per prompt are needed")
        if unknown := set(callback_on_step_end_tensor_inputs) - set(TENSOR_INPUTS):
            raise ValueError(f"a callback is given {' and '.join(TENSOR_INPUTS)}, not {', '.join(sorted(unknown))}")
        wanted = (num_frames, height, width)
        size = tuple(d if w is None else w for w, d in zip(wanted, self.config.default_size, strict=True))
        negative = one_a_prompt(negative_prompt, len(prompts))
        prompts, negative = ([p for p in some for _ in range(num_videos_per_prompt)] for some in (prompts, negative))
        scales: list[Any] = [
            guidance_scale if own is None else own for own in each_stage(guidance_scale, len(self.pyramid))
        ]
        shape = (len(prompts), *self.latent_shape(size))
        asked: dict[str, Any] = {"latents": latents, "first_stage": first_stage, "generator": generator}
        asked |= {"prediction_type": self.config.prediction_type, "solver": solver}
        grids = check_sampling(self.pyramid, shape, num_inference_steps, **asked)
        self.conditioner.check([*prompts, *negative])
        if isinstance(self.conditioner, TextCondition):
            self.conditioner.warn_of_cut([*prompts, *negative])

        device = self._execution_device
        condition = self.conditioner.encode(prompts, device)
        null = self.conditioner.encode(negative, device) if prompts != negative else None  # guidance would lead nowhere
        told = {"per_stage": self.config.per_stage_target, "policy": self.config.timestep_policy}
        by_scale = {
            scale: guided_denoiser(self.transformer, self.pyramid, condition, null, scale, **told)
            for scale in {*scales}
        }
        denoisers = [by_scale[scale] for scale in reversed(scales)]
        steps = [len(grid) - 1 for grid in grids.values()]
        self._interrupt = False
        with self.progress_bar(total=sum(steps)) as bar:

            def hear(progress: Progress) -> Tensor | None:
                bar.update()
                if callback_on_step_end is None:
                    return None
                tensors = {name: getattr(progress, name) for name in callback_on_step_end_tensor_inputs}
                latents = (callback_on_step_end(self, progress.step - 1, progress.t, tensors) or {}).get("latents")
                if self._interrupt:
                    raise _Interrupted(progress.latents if latents is None else latents, progress.stage)
                return latents

            try:
                video = sample_pyramid(
                    lambda x, t, k: denoisers[k](x, t, k),
                    self.pyramid,
                    shape,
                    steps,
                    **asked,
                    device=device,
                    callback=hear,
                )
            except _Interrupted as end:
                video = end.latents
                for k in reversed(range(end.stage)):
                    video = self.pyramid.up(video, k)
        frames: Any = video
        if output_type != "latent":
            frames = self.video_processor.postprocess_video(self.decode(video), output_type=output_type)
        self.maybe_free_model_hooks()
        return PyramidPipelineOutput(frames=frames) if return_dict else (frames,)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents (B, C, t, h, w) as sampled -> video (B, 3, T, H, W), float32 in [-1, 1]."""
        latents = latents / self.config.latent_scale
        return (latents if self.vae is None else decode_video(self.vae, latents)).clamp(-1, 1)

    def check_size(self, size: Sequence[int]) -> None:
        """Raise ValueError for (num_frames, height, width) in pixels that some stage cannot hold."""
        self.latent_shape(size)

    def latent_shape(self, size: Sequence[int]) -> tuple[int, int, int, int]:
        """(C, t, h, w) of the latents of a video of `size` (num_frames, height, width) in pixels.

        Raises:
            ValueError: a size that the autoencoder, the patches or some stage cannot hold, with the nearest legal.
        """
        config: Any = self.transformer.config
        ratio = self.config.latent_ratio
        causal_vae = ratio[0] > 1
        multiples = self.pyramid.multiples
        check_video_size(size, multiples, config.patch_size, ratio, self.pyramid.causal_time, causal_vae)
        frames = 1 + (size[0] - 1) // ratio[0] if causal_vae else size[0]
        return (config.in_channels, frames, size[1] // ratio[1], size[2] // ratio[2])
