"""What a run needs before its first step, and everything that can be refused by then."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from tpdiff.data import ClipDataset, ShardDataset, check_share, scan
from tpdiff.data.folder import HELD_OUT, Entry, require_captions
from tpdiff.files import holding
from tpdiff.models.conditioning import Conditioner, LabelCondition, NoCondition, StoredText, TextCondition, padded
from tpdiff.models.text import load_text_encoder
from tpdiff.pyramid.geometry import check_video_size
from tpdiff.training import checkpoint as ckpt
from tpdiff.training.config import Config
from tpdiff.training.data_config import DataConfig
from tpdiff.training.section import Section


def open_dataset(config: Config, **options: Any) -> ClipDataset:
    """The clips of a run, from its folder of videos."""
    return open_clips(config.data, config.seed, require_captions=config.condition.kind != "none", **options)


def open_clips(data: DataConfig, seed: int, **options: Any) -> ClipDataset:
    """The clips that a configuration describes."""
    dataset = ClipDataset(
        data.path,
        frames=data.frames,
        height=data.height,
        width=data.width,
        fps=data.fps,
        starts=data.starts,
        resize=data.resize,
        seed=seed,
        split=data.split,
        cache=data.cache,
        cache_dir=data.cache_dir,
        max_bad_share=data.max_bad_share,
        **options,
    )
    warn_of_held_out(data.split, [video.entry for video in dataset.videos])
    return dataset


def look_at_videos(data: DataConfig, captions: bool) -> None:
    """Refuse a folder, a split or files that are not there, before anything is decoded.

    Args:
        data: which videos.
        captions: whether each needs one.

    Raises:
        DataError: what is missing.
    """
    found = scan(data.path, data.split)
    if captions:
        require_captions(found.entries, data.path)
    check_share(found, data.max_bad_share)


@contextmanager
def said_of(key: str, otherwise: str = "") -> Iterator[None]:
    """Whatever is refused within is said of this key of the configuration, with what would do instead."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{key}: {error}{otherwise}") from error


def warn_of_held_out(split: str | None, entries: Iterable[Entry]) -> None:
    """Warn where all splits are trained on though the folder holds some out: its figures would be of known videos."""
    held = sorted({entry.split for entry in entries if entry.split in HELD_OUT}) if split is None else []
    if held:
        warnings.warn(
            f"data.split is null: the videos of the split {' and '.join(held)} are trained on, too; nearest: "
            "data.split=train",
            stacklevel=2,
        )


def warn_of_lonely_captions(config: Config, dataset: ClipDataset, clips: int) -> None:
    """Warn where noise would be aligned within equal captions and hardly two of so many clips of a batch share one."""
    train = config.train
    within = train.alignment == "assignment" and train.align_within_condition and config.condition.kind != "none"
    if within and 0 < 4 * (clips - 1) < (captions := len(dataset.captions)):
        warnings.warn(
            f"train.alignment=assignment exchanges noise among clips of equal captions, and of {captions} captions "
            f"hardly two meet in a batch of {clips}: it will change nothing; nearest: "
            "train.align_within_condition=false, or train.alignment=none",
            stacklevel=2,
        )


def build_conditioner(config: Config, dataset: ClipDataset | ShardDataset, device: torch.device) -> Conditioner:
    """What turns the captions of a run into arguments of its network; texts are encoded on the device."""
    condition = config.condition
    if condition.kind == "none":
        return NoCondition()
    if condition.kind == "label":
        return LabelCondition(dataset.captions)
    if isinstance(dataset, ShardDataset):
        assert dataset.empty_prompt is not None  # `open_source` saw to it
        empty = padded(dataset.empty_prompt, condition.max_length)
        return StoredText(condition.encoder, condition.max_length, empty)
    encoder, tokenizer = load_text_encoder(condition.encoder, condition.max_length)
    text = TextCondition(encoder.to(device), tokenizer, condition.max_length)
    text.encode_ahead([None, *dataset.captions])
    return text


def known_text(batch: Mapping[str, Any]) -> dict[str, Mapping[str, Tensor]]:
    """What comes with a batch of its captions, encoded, by caption; {} for nothing."""
    return dict(zip(batch["caption"], batch["text"], strict=True)) if "text" in batch else {}


def check_sizes(
    config: Config,
    coarsest: tuple[int, int, int],
    ratio: tuple[int, int, int] = (1, 1, 1),
    buckets: Iterable[tuple[int, int, int]] = (),
) -> None:
    """Refuse a clip size that the autoencoder (compression `ratio`), the patches or some stage cannot hold."""
    causal = bool(config.pyramid.causal_time)
    if config.data.stages == "pixel" and ratio[0] > 1 and coarsest[0] > 1 and not causal:
        raise ValueError(
            "data.stages=pixel with an autoencoder that keeps the first frame whole needs stages that keep it, too; "
            "nearest: pyramid.causal_time=true, or data.stages=latent"
        )
    for size in ((config.data.frames, config.data.height, config.data.width), *buckets):
        check_video_size(size, coarsest, config.model.patch_size, ratio, causal, causal_vae=ratio[0] > 1)


def frame_rate(dataset: ClipDataset | ShardDataset) -> float:
    """Frames a second of the clips where each file keeps its own rate: the median over the files."""
    if isinstance(dataset, ShardDataset):
        return dataset.fps
    return float(median(video.info.fps for video in dataset.videos))


def check_folder(out: Path, config: Section, resume: bool) -> Path | None:
    """The checkpoint to resume from; None for a new run, or one that was ended before its first checkpoint.

    Raises:
        ValueError: a folder in use without resume, or resume without a checkpoint or of a run that goes on elsewhere.
    """
    if resume and out.is_dir():
        first = os.environ.get("RANK", "0") == "0"  # of several processes
        with holding(out) if first else nullcontext():
            ckpt.mend(out)
    found = ckpt.checkpoints(out)
    begun = (out / "config.yaml").exists()
    if resume and not found and not begun:
        raise ValueError(f"nothing to resume in {out}: no complete checkpoint under {out / 'checkpoints'}")
    if not resume and (found or begun):
        raise ValueError(f"{out} holds a run already; add --resume to continue it, or choose another --out")
    return found[-1] if found else None


def may_change(line: str) -> bool:
    """Keys that a resumed run may set anew: its budget, what it leaves behind, where it keeps what, and how many videos
    may be bad (its checkpoint knows the good ones); not what it computes."""
    budget, kept = (
        ("train.steps:", "train.seconds:"),
        ("log.", "validation.", "data.workers:", "data.cache", "data.latents:", "train.ema_device:"),
    )
    memory = ("model.gradient_checkpointing:", "pretrained.gradient_checkpointing:", "pretrained.offload:")
    return line.startswith((*budget, *kept, *memory, "data.max_bad_share:"))
