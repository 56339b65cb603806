"""Operations that a training run has cost by each of its losses, counted from its checkpoint, without its data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpdiff.evaluation.counting import Live
from tpdiff.evaluation.latency import count_flops
from tpdiff.evaluation.run_record import RunRecord
from tpdiff.models.video_dit import VideoDiT
from tpdiff.sampling.denoiser import plain_denoiser
from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.training.config import Config
from tpdiff.training.stage_mix import StageMix, open_mix


def operations(run: RunRecord) -> tuple[np.ndarray | None, str]:
    """What a run has cost by each of its losses, (N,), or None with the reason why that is not known.

    Counted are forward and backward passes of the network: matrix products, convolutions and attention, 2 a
    multiply-add, nothing computed anew in the backward pass of attention. They are not told where the tokens that
    follow from the configuration are not those that the run counted: clips of several sizes, or a token budget divided
    among processes.
    """
    if run.config.pretrained is not None:
        return None, "the network of a pretrained pipeline is not counted"
    if run.checkpoint is None:
        return None, "there is no checkpoint yet"
    mix, per_clip = count_training(run.checkpoint, run.config)
    stages = run.losses[:, 2].astype(int)
    clips = np.array(mix.clips)[stages]
    if int((clips * np.array(mix.tokens)[stages]).sum()) != run.state["tokens"]:
        return None, "its micro-batches were not all of the configured size (several processes or clip sizes)"
    return np.cumsum(clips * np.array(per_clip, dtype=np.float64)[stages]), ""


def count_training(checkpoint: Path, config: Config) -> tuple[StageMix, list[int]]:
    """The micro-batches of a run on one process, and operations of training on one clip at each stage, finest first.

    The network is built on the meta device, so that shapes are computed and numbers are not.
    """
    pipeline = _shape_of(checkpoint)
    network: Any = pipeline.transformer
    if config.model.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    latent = pipeline.latent_shape(pipeline.config.default_size)
    mix = open_mix(config, pipeline.pyramid, latent, network.config.patch_size, processes=1)
    counts = [count_flops(_stage_pass(pipeline, latent, k, size)) // size for k, size in enumerate(mix.clips)]
    return mix, counts


def _shape_of(checkpoint: Path) -> PyramidPipeline:
    """The pipeline of a checkpoint with a network that has no numbers, and nothing beside it."""
    told: Any = PyramidPipeline.load_config(str(checkpoint))
    known = inspect.signature(PyramidPipeline.__init__).parameters.keys() - set(PyramidPipeline._optional_components)
    settings = {name: value for name, value in told.items() if name in known and name != "transformer"}
    with torch.device("meta"):
        network = VideoDiT.from_config(VideoDiT.load_config(str(checkpoint / "transformer")))
    return PyramidPipeline(network.train(), **settings)


def _stage_pass(pipeline: PyramidPipeline, latent: tuple[int, ...], stage: int, clips: int) -> Callable[[], None]:
    """Forward and backward pass of so many clips at a stage."""
    network: Any = pipeline.transformer
    shape, times = pipeline.pyramid.stage_shape((clips, *latent), stage), torch.full((clips,), 0.5)

    def step() -> None:
        condition: dict[str, Tensor] = {}
        if network.config.num_classes is not None:
            condition["class_labels"] = torch.zeros(clips, dtype=torch.long)
        if network.config.text_dim is not None:
            length = pipeline.config.max_text_length
            condition["encoder_hidden_states"] = torch.empty(clips, length, network.config.text_dim, device="meta")
            condition["encoder_attention_mask"] = torch.ones(clips, length, dtype=torch.bool, device="meta")
        denoise = plain_denoiser(network, network.config, pipeline.pyramid, condition)
        with Live():
            said = denoise(torch.empty(shape, device="meta"), times, stage)
            said.backward(torch.empty_like(said))

    return step
