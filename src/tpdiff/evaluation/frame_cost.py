"""What a model takes by the number of its frames, plain and pyramidal: tokens, seconds, memory.

A turn of one method is a sampling and training steps of every stage, in a process of its own, so that the memory of
one is not another's. The network has random weights and the clips are noise; the steps are the trainer's own
(`tpdiff train --dry-run`), the sampling is `tpdiff bench`'s.
"""

from collections.abc import Sequence
from dataclasses import asdict
from os import environ
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import Field, ValidationError
from torch import Tensor

from tpdiff.data import ShardDataset
from tpdiff.evaluation.bench import check, one_sampling
from tpdiff.evaluation.latency import measure
from tpdiff.evaluation.planning import Plan, plan, stage_factors
from tpdiff.families.models import Published, find_published
from tpdiff.models.memory import give_back_freed_memory, keep_freed_memory, peak_bytes, reset_peak
from tpdiff.training.config import Config
from tpdiff.training.dry_run import dry_run
from tpdiff.training.load_config import build_config
from tpdiff.training.section import Section

METHODS = {"plain": "vanilla", "pyramid": "stagewise"}
DTYPES = {"cpu": torch.float32, "cuda": torch.bfloat16}


class FrameSize(Section):
    """A model by its published name, as it is measured on a device.

    Attributes:
        model: its name.
        frames: numbers of them, in pixels.
        height, width: in pixels.
        layers, hidden: of its network; None: as published.
        batch: clips of a training step.
        gradient_checkpointing: of training.
    """

    model: str
    frames: list[int] = Field(min_length=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    layers: int | None = None
    hidden: int | None = None
    batch: int = Field(1, ge=1)
    gradient_checkpointing: bool = False

    @property
    def published(self) -> Published:
        """The model, its network resized."""
        return find_published(self.model).resized(self.layers, self.hidden)


class FrameTable(Section):
    """What is measured.

    Attributes:
        name: of its folder.
        title: of its page.
        steps: of a sampling, in all; stages share them evenly.
        stages: S, each halving the frames.
        rounds: turns of each method.
        cpu, cuda: the model as it is measured on such a device.
    """

    name: str
    title: str
    steps: int = Field(30, ge=4)
    stages: int = Field(3, ge=2)
    rounds: int = Field(3, ge=1)
    cpu: FrameSize
    cuda: FrameSize

    def plans(self, device: str) -> dict[int, Plan]:
        """Stages and steps by the number of frames.

        Raises:
            ValueError: sizes or steps that stages cannot hold, or no such device.
        """
        size: FrameSize = getattr(self, device)
        plans = {}
        for frames in sorted(size.frames):
            pixels = frames, size.height, size.width
            plans[frames] = plan(size.published, pixels, "T", self.stages, self.steps, guidance=False)
            check(plans[frames], torch.device(device), guidance=False)
        return plans

    def training(self, method: str, frames: int, device: str, folder: Path) -> Config:
        """The run whose steps are measured, from the pipeline in `folder`.

        Raises:
            ValueError: an illegal value.
        """
        size: FrameSize = getattr(self, device)
        return build_config(
            {
                "data": {"shards": "noise", "frames": frames, "height": size.height, "width": size.width, "fps": 8},
                "condition": {"dropout": 0},
                "pretrained": {"path": str(folder), "gradient_checkpointing": size.gradient_checkpointing},
                "pyramid": {"factors": stage_factors("T", self.stages)},
                "train": {
                    "method": METHODS[method],
                    "batch_size": size.batch,
                    "steps": 1,
                    "precision": "bf16" if device == "cuda" else "no",
                },
            }
        )


def load_table(path: str | Path) -> FrameTable:
    """Read a table's YAML.

    Raises:
        ValueError: what is wrong in it.
    """
    try:
        return FrameTable.model_validate(yaml.safe_load(Path(path).read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


class NoiseClips(ShardDataset):
    """One encoded clip of noise, again and again, in place of shards.

    Args:
        latents: (C, t, h, w).
        text: what stands for its caption, by the argument of the pipeline's call.
    """

    def __init__(self, latents: Tensor, text: dict[str, Tensor]):
        self.settings, self.buckets, self.empty_prompt = {"model.autoencoder": "none"}, {}, text
        self._clip = {"stage0": latents, "caption": "", "text": text}

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._clip | {"index": index}


def write_random(model: Published, folder: Path) -> None:
    """A stock pipeline with random weights, of whose autoencoder there is the configuration alone."""
    pipe = model.pipeline(model.build("cpu", torch.bfloat16))
    with torch.device("meta"):
        vae = model.vae()
    pipe.register_modules(vae=vae)
    pipe.save_config(folder)
    vae.save_config(folder / "vae")
    for name, part in pipe.components.items():
        if part is not None and part is not vae:
            part.save_pretrained(folder / name)


def take_turn(planned: Plan, method: str, config: Config, device: str) -> dict[str, Any]:
    """Seconds and memory of one method, in a process that has done nothing else.

    Returns:
        JSON values: sampling_seconds, of one sampling after one network call at full size; training_seconds, of the
        mean step; stages, `dry_run`'s; sampling_bytes and training_bytes, the most in use at a time, on a GPU allocated
        by PyTorch, otherwise resident beyond what was before the network was built (None: the system does not tell).
    """
    place, dtype = torch.device(device), DTYPES[device]
    if device == "cpu":
        environ["ACCELERATE_USE_CPU"] = "true"
    model, latent = planned.model, planned.plain.latent
    keep_freed_memory()
    model.pipeline(model.build("meta", dtype))  # what it imports is not its memory
    reset_peak()
    before = 0 if device == "cuda" else peak_bytes()
    network = model.build(place, dtype)
    _, sample = one_sampling(planned, network, method == "pyramid", place, dtype, guidance=False)
    with place, torch.no_grad():
        network(**model.inputs(model.config, latent, 1, dtype))
    with torch.no_grad():
        seconds = measure({method: sample}, rounds=1, warmup=0)[method][0]
    sampling = _above(before)
    del network, sample, _
    give_back_freed_memory()
    made = dry_run(config, "unwritten", 1, _noise(model, latent))
    return {
        "sampling_seconds": seconds,
        "sampling_bytes": sampling,
        "training_seconds": made.step_seconds,
        "training_bytes": _above(before),
        "stages": [asdict(stage) for stage in made.stages],
    }


def _noise(model: Published, latent: Sequence[int]) -> NoiseClips:
    embeddings = model.embeddings(model.config, torch.float32)  # type: ignore[misc]
    text = {name: value for name, value in embeddings.items() if not name.startswith("negative")}
    return NoiseClips(torch.randn(model.latent_channels, *latent), text)


def _above(before: int | None) -> int | None:
    peak = peak_bytes()
    return None if peak is None or before is None else peak - before
