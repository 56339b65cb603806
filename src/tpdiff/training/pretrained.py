"""Fine-tuning a diffusers pipeline stage by stage: whole, in part, or by low-rank matrices beside its weights."""

import copy
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from inspect import signature
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from peft import LoraConfig as PeftConfig
from PIL import Image
from torch import Tensor, nn

from tpdiff.data import ClipDataset, ShardDataset
from tpdiff.families.sizes import stage_sizes
from tpdiff.models.kept import KeptConditions
from tpdiff.models.memory import moved
from tpdiff.pyramid.noise import randn
from tpdiff.pyramid.told import as_told
from tpdiff.sampling.apply import stock_class
from tpdiff.sampling.asking import Condition
from tpdiff.sampling.loop import Denoiser
from tpdiff.sampling.stock import is_hollow
from tpdiff.sampling.tuned import Tuned, TunedPipeline, activate, adapter_name, without_matrices
from tpdiff.training.captions import warn_of_cut_by_pipeline
from tpdiff.training.clean import clean_pair
from tpdiff.training.config import Config, check_prediction
from tpdiff.training.distribution import shard_by_blocks, shard_frozen
from tpdiff.training.latents import Latents
from tpdiff.training.objective import Convention
from tpdiff.training.pretrained_config import LoraConfig
from tpdiff.training.pretrained_pipeline import encodes, open_pipeline, pipeline_stages
from tpdiff.training.setup import frame_rate
from tpdiff.training.trainee import Told


class Pretrained:
    """A network of a diffusers pipeline: a `Trainee`.

    Args:
        config: the run, with its section `pretrained`.

    Raises:
        ValueError: no such pipeline, component or parameters, or sizes and stages that it cannot hold.
    """

    def __init__(self, config: Config):
        assert config.pretrained is not None
        self.config, self.wanted = config, config.pretrained
        encoded = config.data.shards is not None and not config.validation.on
        self.asker = open_pipeline(config, encodes if encoded else None)
        self.pipe = pipe = self.asker.pipe
        check_prediction(config.train, self.asker.prediction_type)
        self.family, self.autoencoder = self.asker.family, pipe.vae
        self.name = _component(self.asker.networks, self.wanted.network)
        self.network: Any = self.asker.networks[self.name]
        adaptable = hasattr(pipe, "load_lora_weights") and hasattr(self.network, "add_adapter")
        if self.wanted.lora is not None and not adaptable:
            raise ValueError(f"{type(pipe).__name__} cannot load low-rank matrices; leave out pretrained.lora")
        self.span = self.asker.spans[self.name]
        self.patch_size = self.family.patch(pipe)
        pyramid = pipeline_stages(config, self.asker)
        self.takes_pictures = self.family.from_picture(pipe)
        given = self.takes_pictures and self.family.picture_kept(pipe)
        self.convention = Convention(pyramid, self.asker.prediction_type, self._times, int(given))
        data = config.data
        stage_sizes(pipe, self.family, pyramid, (data.frames, data.height, data.width))
        self._check_span()
        self._check_samples()
        self._conditions = KeptConditions()
        self._prepare()

    @property
    def labels(self) -> None:
        return None

    @property
    def stages(self) -> list[int]:
        least, greatest = self.span
        return [one.index for one in self.convention.pyramid.stages if one.end < greatest and one.start > least]

    def open(self, dataset: ClipDataset | ShardDataset, latents: Latents) -> None:
        self.fps = self.config.data.fps or frame_rate(dataset)
        self.asker.by_default(frame_rate=self.fps)  # as `TunedPipeline` samples
        self.device = latents.device
        if isinstance(dataset, ShardDataset):
            for bucket in dataset.buckets:
                stage_sizes(self.pipe, self.family, self.convention.pyramid, bucket)
            assert dataset.empty_prompt is not None  # `open_source` saw to it
            self._conditions[None] = dataset.empty_prompt
        elif self.config.condition.kind != "none":
            warn_of_cut_by_pipeline(dataset.captions, self.asker)
        if not self.wanted.offload:
            for encoder in (*self._encoders(text=True), *self._encoders(text=False)):
                if not is_hollow(encoder):
                    encoder.to(self.device)

    def place(self, accelerator: Accelerator) -> None:
        if self._frozen is not None and accelerator.is_fsdp2:
            shard_frozen(self._frozen, accelerator)
        elif self._frozen is not None:
            self._frozen.to(accelerator.device)

    def check(self, prompts: Sequence[str | None]) -> None:
        """Any text can be told."""

    def denoiser(self, network: nn.Module, told: Told) -> Denoiser:
        return self._denoiser(network, told, self.config.train.timestep_policy)

    def original(self, told: Told) -> Denoiser | None:
        if self.config.train.distillation == 0:
            return None
        if self._frozen is not None:
            return self._denoiser(self._frozen, told, "native")
        denoise = self._denoiser(self.network, told, "native")

        def as_it_was(x: Tensor, t: Tensor, stage: int) -> Tensor:
            with without_matrices(self.network):
                return denoise(x, t, stage)

        return as_it_was

    def pipeline(self, network: nn.Module) -> TunedPipeline:
        data, adapters = self.config.data, list(getattr(network, "peft_config", {}))
        told = Tuned(
            base=str(Path(self.wanted.path).resolve()) if Path(self.wanted.path).is_dir() else self.wanted.path,
            component=self.name,
            kind=None if adapters else type(network).__name__,
            adapters=adapters,
            pyramid=self.convention.pyramid.config(),
            default_size=[data.frames, data.height, data.width],
            fps=self.fps,
            options=self._options(),
            per_stage_target=self.config.train.target == "per_stage",
            timestep_policy=self.config.train.timestep_policy,
        )
        return TunedPipeline(self.pipe, network, told, device=self.device)

    # Inside

    def _denoiser(self, network: nn.Module, told: Told, policy: str) -> Denoiser:
        """The network as it is told these things, and the time by a policy."""
        conditions = self._encoded(told.prompts, told.known)
        pictures = None
        if self.takes_pictures:
            assert told.video is not None  # shards of such a pipeline are not made
            pictures = [_picture(clip) for clip in told.video]
        pyramid = self.convention.pyramid

        def denoise(x: Tensor, t: Tensor, stage: int) -> Tensor:
            if self.wanted.lora is not None and self.wanted.lora.per_stage:
                activate(unwrapped(network), adapter_name(stage))
            filling = self._filling(told, x, t, stage)
            with moved(self._encoders(text=False) if pictures else (), self.device):
                factors, times = pyramid.factors[stage], as_told(t, pyramid, stage, policy)
                question = self.asker.ask(
                    x, t, conditions, factors, pictures, filling, encoded=told.encoded, told=times
                )
            return self.asker.answer(question, network(**question.kwargs)[0])

        return denoise

    def _times(self, t: Tensor, stage: int) -> Tensor:
        """Drawn times, moved into the part of the stage that falls to this network, as it can be told them."""
        level, (least, greatest) = self.convention.pyramid.stages[stage], self.span
        low, high = max(level.end, least), min(level.start, greatest)
        return self.asker.times(low + (t - level.end) * (high - low) / (level.start - level.end))

    def _check_span(self) -> None:
        """Refuse stages that are drawn but hold no time at which this network is asked; and other times than native
        where they choose the network."""
        pyramid, (least, greatest) = self.convention.pyramid, self.span
        policy = self.config.train.timestep_policy
        if policy != "native" and len(pyramid) > 1 and self.span != (0.0, 1.0):
            raise ValueError(
                f"train.timestep_policy={policy} would change which network is asked when: {self.name} is asked at "
                f"times {least:g} to {greatest:g}; nearest: native"
            )
        weights = self.config.train.stage_weights or [1.0] * len(pyramid)
        for stage, weight in zip(pyramid.stages, reversed(weights), strict=len(weights) == len(pyramid)):
            if weight > 0 and stage.index not in self.stages:
                raise ValueError(
                    f"{self.name} is asked at times {least:g} to {greatest:g}, of which stage {stage.index} "
                    f"({stage.end:.3g} to {stage.start:.3g}) has none: give it weight 0 in train.stage_weights"
                )

    def _check_samples(self) -> None:
        """Refuse samples of a pipeline that must be given pictures, which validation has none for, and guidance of one
        that takes none."""
        wanted, kind = self.config.validation, stock_class(self.pipe)
        if not wanted.sampled:
            return
        if self.family.from_picture(self.pipe):
            raise ValueError(
                f"{kind.__name__} starts from pictures, which samples of a validation are not given: "
                "set validation.samples=0 and validation.distance_clips=0"
            )
        if wanted.guidance_scale is not None and "guidance_scale" not in signature(kind.__call__).parameters:
            raise ValueError(f"{kind.__name__} takes no guidance_scale; leave out validation.guidance_scale")

    def _prepare(self) -> None:
        """Say what of the network is trained and how it is sharded, and freeze all else."""
        for component in self.pipe.components.values():
            if isinstance(component, nn.Module):
                component.requires_grad_(False)
        network = self.network
        follows = self.config.train.distillation > 0 and self.wanted.lora is None
        shard_by_blocks(network)
        self._frozen = copy.deepcopy(network).eval() if follows else None
        if self.wanted.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if self.wanted.lora is None:
            patterns = self.wanted.trainable
            chosen = [(n, p) for n, p in network.named_parameters() if any(fnmatch(n, one) for one in patterns)]
            if not chosen:
                some = next(iter(dict(network.named_parameters())))
                raise ValueError(f"no parameter of {self.name} is named like {', '.join(patterns)}; one is {some}")
        else:
            set_seed(self.config.seed)  # whatever was drawn while the pipeline was opened
            stages = range(len(self.convention.pyramid)) if self.wanted.lora.per_stage else [None]
            for stage in stages:
                _add_adapter(network, self.name, self.wanted.lora, adapter_name(stage))
            chosen = [(n, p) for n, p in network.named_parameters() if ".lora_" in n]
        for _, p in chosen:
            p.data = p.data.float()
            p.requires_grad_(True)
        network.train()

    def _encoded(self, prompts: Sequence[str | None], known: Mapping[str, Condition]) -> list[Condition]:
        """What the pipeline's text encoders make of prompts, kept on the CPU; those that are known are not encoded."""
        found: dict[str | None, Condition] = {p: known[p] for p in prompts if p is not None and p in known}
        found |= {p: self._conditions[p] for p in prompts if p not in found and p in self._conditions}
        new = [p for p in dict.fromkeys(prompts) if p not in found]
        if new:
            with moved(self._encoders(text=True), self.device):
                found |= zip(new, self.asker.encode(new, self.device), strict=True)
            self._conditions.update({p: found[p] for p in new})
        return [found[p] for p in prompts]

    def _encoders(self, text: bool) -> list[nn.Module]:
        """What encodes prompts, or clips and pictures."""
        parts = {n: part for n, part in self.pipe.components.items() if n not in self.asker.networks}
        return [p for n, p in parts.items() if isinstance(p, nn.Module) and n.startswith("text_encoder") is text]

    def _filling(self, told: Told, x: Tensor, t: Tensor, stage: int) -> Tensor | None:
        """Frames before the first one where patches need them: that frame again, with noise of its own, on the path
        that sampling leads them through the stage (MATH 2)."""
        count = self.asker.filling(tuple(x.shape[2:]))  # type: ignore[arg-type]
        if count == 0:
            return None
        pyramid = self.convention.pyramid
        clean, coarse = clean_pair(pyramid, told.latents, stage)
        clean = clean[:, :, :1].expand(-1, -1, count, -1, -1)
        coarse = None if coarse is None else coarse[:, :, :1].expand(-1, -1, count, -1, -1)
        if stage not in told.noise:
            told.noise[stage] = randn(clean.shape, list(told.generators), clean.device)
        return pyramid.pair(clean, coarse, told.noise[stage], stage).at(t)

    def _options(self) -> dict[str, Any]:
        told = {} if self.wanted.guidance is None else {"guidance_scale": self.wanted.guidance}
        return dict(self.wanted.options) | told


def unwrapped(network: Any) -> Any:
    """The network itself, where it is wrapped for distribution."""
    return getattr(network, "module", network)


def _component(networks: dict[str, nn.Module], wanted: str | None) -> str:
    if wanted is None and len(networks) == 1:
        return next(iter(networks))
    if wanted not in networks:
        said = "is not said" if wanted is None else f"{wanted!r} does not predict"
        raise ValueError(f"pretrained.network {said}; choose one of {', '.join(networks)}")
    return wanted


def _add_adapter(network: Any, component: str, wanted: LoraConfig, name: str) -> None:
    config = PeftConfig(
        r=wanted.rank,
        lora_alpha=wanted.alpha or wanted.rank,  # type: ignore[arg-type]
        lora_dropout=wanted.dropout,
        target_modules=list(wanted.targets),
        init_lora_weights=True,
    )
    try:
        network.add_adapter(config, adapter_name=name)
    except ValueError as error:
        linear = next(n for n, m in network.named_modules() if isinstance(m, nn.Linear))
        raise ValueError(
            f"pretrained.lora.targets {', '.join(wanted.targets)}: no layer of {component} is named so; "
            f"one that could be is {linear}"
        ) from error


def _picture(clip: Tensor) -> Image.Image:
    """The first frame of a clip, uint8 (3, T, H, W)."""
    return Image.fromarray(clip[:, 0].permute(1, 2, 0).contiguous().numpy())
