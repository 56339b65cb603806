"""What a run needs before its first step, and everything that can be refused by then."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate.tracking import get_available_trackers

from tpdiff.data import ClipDataset
from tpdiff.models.conditioning import Conditioner, LabelCondition, NoCondition, TextCondition
from tpdiff.models.text import load_text_encoder
from tpdiff.pyramid.geometry import check_video_size
from tpdiff.training import checkpoint as ckpt
from tpdiff.training.config import Config


def open_dataset(config: Config, **options: Any) -> ClipDataset:
    """The clips of a run."""
    data = config.data
    return ClipDataset(
        data.path,
        frames=data.frames,
        height=data.height,
        width=data.width,
        fps=data.fps,
        resize=data.resize,
        seed=config.seed,
        split=data.split,
        cache=data.cache,
        cache_dir=data.cache_dir,
        max_bad_share=data.max_bad_share,
        require_captions=config.condition.kind != "none",
        **options,
    )


def build_conditioner(config: Config, captions: list[str]) -> Conditioner:
    condition = config.condition
    if condition.kind == "none":
        return NoCondition()
    if condition.kind == "label":
        return LabelCondition(captions)
    text = TextCondition(*load_text_encoder(condition.encoder), condition.max_length)
    text.encode([None, *captions[:100_000]], "cpu")
    return text


def check_sizes(config: Config, coarsest: tuple[int, int, int]) -> None:
    """Refuse, before any file is opened, a clip size that pixels' patches and stages cannot hold."""
    if config.model.autoencoder is None:
        size = (config.data.frames, config.data.height, config.data.width)
        check_video_size(size, coarsest, config.model.patch_size, causal_time=config.pyramid.causal_time)


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers that are unknown or not installed; accelerate would pass over the latter in silence.

    Raises:
        ValueError: naming the tracker and those that can be had.
    """
    available = sorted(str(tracker.value) for tracker in get_available_trackers())
    for name in names:
        if name not in available:
            raise ValueError(f"log.trackers: {name!r} is unknown or not installed; installed: {', '.join(available)}")


def check_folder(out: Path, config: Config, resume: bool) -> Path | None:
    """The checkpoint to resume from, or None for a new run.

    Raises:
        ValueError: a folder in use without resume, or resume without a checkpoint.
    """
    found = ckpt.checkpoints(out)
    if resume and not found:
        raise ValueError(f"nothing to resume in {out}: no complete checkpoint under {out / 'checkpoints'}")
    if not resume and (found or (out / "config.yaml").exists()):
        raise ValueError(f"{out} holds a run already; add --resume to continue it, or choose another --out")
    return found[-1] if resume else None


def may_change(line: str) -> bool:
    """Keys that a resumed run may set anew: its budget and what it leaves behind, not what it computes."""
    return line.startswith(("train.steps:", "train.seconds:", "log.", "data.workers:", "data.cache"))
