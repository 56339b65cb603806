"""A trained model, opened to be sampled from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tpdiff.sampling.pipeline import PyramidPipeline
from tpdiff.sampling.trained import TOLD, newest_checkpoint


def open_pipeline(
    model: Path, device: torch.device, dtype: torch.dtype | None = None, offload: bool = False
) -> tuple[Any, torch.dtype]:
    """A `PyramidPipeline` or `TunedPipeline` on a device, and the dtype of its weights.

    Args:
        model: a run's folder, a checkpoint, or a saved pipeline.
        device: where to sample.
        dtype: of the network's weights; None: a fine-tuned pipeline's in bfloat16 on CUDA, else float32. Beside a
            network of tpdiff's own, autoencoder and text encoder stay in float32.
        offload: whether its parts wait on the CPU and come to the device one at a time.

    Raises:
        FileNotFoundError: no model there.
        ValueError: as `PyramidPipeline.from_pretrained`.
    """
    folder = newest_checkpoint(model)
    tuned = (folder / TOLD).is_file()
    usual = torch.bfloat16 if device.type == "cuda" else torch.float32
    kind = dtype or (usual if tuned else torch.float32)
    pipeline = PyramidPipeline.from_pretrained(folder, dtype=kind if tuned else torch.float32)
    if not tuned and kind != torch.float32:
        pipeline = pipeline.lowered(kind)
    if offload:
        (pipeline.pipe if tuned else pipeline).enable_model_cpu_offload(device=device)
    else:
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, kind
