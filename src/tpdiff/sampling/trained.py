"""What is written beside a network that was trained in a stock pipeline: tpdiff.json."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tpdiff.shipped import or_shipped

TOLD = "tpdiff.json"
HERE = "."


@dataclass(frozen=True)
class Tuned:
    """What a saved network's folder says of it.

    Attributes:
        base: the pipeline that it was trained from, a folder or a name on the hub; ".": the folder itself is a whole
            pipeline.
        component: the network's name in the pipeline.
        kind: its class; None: only low-rank matrices are saved.
        adapters: names of the matrices' sets, one a stage, or "default".
        pyramid: `Pyramid.config()` of its stages.
        default_size: (num_frames, height, width) in pixels that it was trained at.
        fps: frames a second of its training clips.
        options: arguments of every call that says no others.
        per_stage_target: the network's flow is per unit of a stage's own time (`train.target=per_stage`).
        timestep_policy: what the network is told of the time (`train.timestep_policy`).
    """

    base: str
    component: str
    kind: str | None
    adapters: list[str]
    pyramid: dict[str, Any]
    default_size: list[int]
    fps: float
    options: dict[str, Any] = field(default_factory=dict)
    per_stage_target: bool = False
    timestep_policy: str = "native"

    @property
    def usual(self) -> dict[str, Any]:
        """Arguments of every call that says no others; pipelines take `frame_rate` or have no use for it."""
        return {"frame_rate": self.fps} | self.options


def read_tuned(folder: str | Path) -> Tuned:
    """What a folder says of the network in it.

    Raises:
        ValueError: it says nothing.
    """
    path = Path(folder) / TOLD
    if not path.is_file():
        raise ValueError(
            f"no {TOLD} in {folder}: expected a folder that `tpdiff export` wrote of a fine-tuned pipeline, or a "
            "checkpoint of its run"
        )
    return Tuned(**json.loads(path.read_text(encoding="utf-8")))


def newest_checkpoint(folder: Path) -> Path:
    """The folder that holds a pipeline: `folder` itself, the newest checkpoint of the run in it, or a model that comes
    along, by name.

    Raises:
        FileNotFoundError: neither is there.
    """
    folder = or_shipped(folder)
    if _holds_model(folder):
        return folder
    steps = sorted(p for p in (folder / "checkpoints").glob("step-*") if _holds_model(p))
    if not steps:
        raise FileNotFoundError(
            f"no model in {folder}: expected a folder that `tpdiff train` or save_pretrained wrote "
            "(model_index.json, or checkpoints/step-*)"
        )
    return steps[-1]


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model_index.json", TOLD))
