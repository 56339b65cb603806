"""What a trainer trains: a network, how captions reach it, and what a checkpoint of it is."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from tpdiff.data import ClipDataset, ShardDataset
from tpdiff.models.conditioning import LabelCondition, TextCondition, padded
from tpdiff.models.video_dit import VideoDiT
from tpdiff.sampling.denoiser import plain_denoiser
from tpdiff.sampling.loop import Denoiser
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.training.captions import warn_of_cut
from tpdiff.training.clean import Clean
from tpdiff.training.config import Config
from tpdiff.training.latents import Latents
from tpdiff.training.objective import Convention, build_pyramid
from tpdiff.training.setup import build_conditioner, frame_rate


@dataclass(frozen=True)
class Told:
    """What a network is told beside noisy latents, a micro-batch of it.

    Attributes:
        prompts: one a clip; None: no prompt.
        video: the clips, uint8 (B, 3, T, H, W), of whose first frames pictures are made; None: only latents are kept.
        latents: theirs at full size, (B, C, t, h, w), or of each stage.
        generators: one a clip.
        known: prompts that were encoded before, as `tpdiff cache` keeps them.
        encoded: number of a clip -> what was made of its picture, whatever is asked of it again.
        noise: stage -> that of frames which patches need before the first, alike for every network that is asked.
    """

    prompts: Sequence[str | None]
    video: Tensor | None
    latents: Clean
    generators: Sequence[torch.Generator]
    known: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    encoded: Mapping[int, dict[Any, Any]] = field(default_factory=lambda: defaultdict(dict))
    noise: dict[int, Tensor] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the latents are."""
        return (self.latents if isinstance(self.latents, Tensor) else self.latents[0]).device


class Trainee(Protocol):
    """A network in training, with all that is its own.

    Attributes:
        convention: its stages, and what it is asked and answers.
        patch_size: (T, H, W) latent positions of a token.
        autoencoder: whose latents it diffuses; None: what the configuration names, or pixels.
        takes_pictures: whether it is told the first frames of clips, so that these are needed beside their latents.
        network: in training mode; parameters that do not ask for gradients stay as they are. Set by `open`.
        labels: captions in class order where they are classes.
        stages: those at whose times the network is asked, finest first.
    """

    convention: Convention
    patch_size: tuple[int, int, int]
    autoencoder: nn.Module | None
    takes_pictures: bool
    network: Any

    @property
    def labels(self) -> list[str] | None: ...

    @property
    def stages(self) -> Sequence[int]: ...

    def open(self, dataset: ClipDataset | ShardDataset, latents: Latents) -> None:
        """Make the network, for these clips."""

    def place(self, accelerator: Accelerator) -> None:
        """Bring what is asked and not trained to where the network is, in parts where that is sharded. Collective."""

    def check(self, prompts: Sequence[str | None]) -> None:
        """Raise ValueError for a prompt that cannot be told."""

    def denoiser(self, network: nn.Module, told: Told) -> Denoiser:
        """The network, possibly wrapped for distribution or averaged, as it is told these things."""

    def original(self, told: Told) -> Denoiser | None:
        """The network before training, where that is to be followed."""

    def pipeline(self, network: nn.Module) -> Any:
        """What samples from a network of this kind, called as `PyramidPipeline` is, and saves it."""


class OwnNetwork:
    """`VideoDiT` from its first weights on: a `Trainee`.

    Args:
        config: the run.

    Raises:
        ValueError: illegal stages, or a prediction type that cannot be sampled.
    """

    autoencoder: nn.Module | None = None
    takes_pictures = False
    network: Any

    def __init__(self, config: Config):
        self.config, self.patch_size = config, config.model.patch_size
        self.convention = Convention(build_pyramid(config), config.diffusion.prediction)

    def open(self, dataset: ClipDataset | ShardDataset, latents: Latents) -> None:
        self.conditioner = text = build_conditioner(self.config, dataset, latents.device)
        if isinstance(text, TextCondition):  # else they were encoded before, or are not
            warn_of_cut(dataset.captions, text.text_encoder, text.tokenizer, text.max_length)
        self._dataset, self._latents = dataset, latents
        model = self.config.model
        self.network = VideoDiT(
            in_channels=latents.shape[0],
            causal_time=self.convention.pyramid.causal_time,
            **model.network(len(self.convention.pyramid)),
            **self.conditioner.network_config(),
        )
        if model.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()

    def place(self, accelerator: Accelerator) -> None:
        """Nothing is."""

    @property
    def labels(self) -> list[str] | None:
        return self.conditioner.labels if isinstance(self.conditioner, LabelCondition) else None

    @property
    def stages(self) -> Sequence[int]:
        return range(len(self.convention.pyramid))

    def check(self, prompts: Sequence[str | None]) -> None:
        self.conditioner.check(prompts)

    def denoiser(self, network: nn.Module, told: Told) -> Denoiser:
        known = {caption: padded(text, self.config.condition.max_length) for caption, text in told.known.items()}
        condition = self.conditioner.encode(told.prompts, told.device, known)
        policy = self.config.train.timestep_policy
        return plain_denoiser(network, self.network.config, self.convention.pyramid, condition, policy)

    def original(self, told: Told) -> None:
        return None

    def pipeline(self, network: nn.Module) -> PyramidPipeline:
        condition, data = self.config.condition, self.config.data
        pipeline = PyramidPipeline(
            network,  # type: ignore[arg-type]
            vae=self._latents.autoencoder,
            pyramid=self.convention.pyramid.config(),
            prediction_type=self.convention.prediction_type,
            per_stage_target=self.config.train.target == "per_stage",
            timestep_policy=self.config.train.timestep_policy,
            default_size=[data.frames, data.height, data.width],
            latent_ratio=self._latents.ratio,
            latent_scale=self.config.model.latent_scale,
            fps=data.fps or frame_rate(self._dataset),
            labels=self.labels,
            text_source=condition.encoder if condition.kind == "text" else None,
            max_text_length=condition.max_length,
        )
        pipeline.conditioner = self.conditioner  # with what it has encoded, and no text encoder loaded again
        return pipeline
