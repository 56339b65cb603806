"""The real side of a comparison: which clips, which features, projected how. Fitted once, then any number of made
clips is measured against it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tpdiff.data import DataError, scan
from tpdiff.data.clips import Geometry
from tpdiff.data.store import load_array, store_array
from tpdiff.metrics.clips import (
    MOST,
    RULE,
    Clip,
    Source,
    choose_clips,
    clips_digest,
    count_windows,
    find_sources,
    load_clips,
    shuffled,
)
from tpdiff.metrics.distance import Array, frechet_distance
from tpdiff.metrics.features import FeatureSet, efficientnet_features
from tpdiff.metrics.projection import Projection, fit_projection
from tpdiff.metrics.rows import Progress, stored_rows

PART = 32  # clips in a stored part
CLIP_RESIZE = "antialiased bicubic"  # of files to clips, as in tpdiff.data


@dataclass(frozen=True)
class Reference:
    """Real clips as features, and the projection that made clips go through.

    Attributes:
        features: the feature set.
        projection: fitted on training clips; None where the set needs none.
        real: float64 (N, D), features of the real clips.
        held: float64 (M, D), features of training clips that the projection was not fitted on.
        clips: the N real clips, in the order of `real`.
        held_clips: the M training clips, in the order of `held`.
        train: the training clips that the projection was fitted on.
        training: all videos of the training split, those of the floor too.
        geometry: of all clips.
        protocol: what a figure taken against this reference must be quoted with, JSON values.
    """

    features: FeatureSet
    projection: Projection | None
    real: Array
    held: Array
    clips: tuple[Clip, ...]
    held_clips: tuple[Clip, ...]
    train: tuple[Clip, ...]
    training: tuple[Source, ...]
    geometry: Geometry
    protocol: dict[str, Any]

    @classmethod
    def fit(
        cls,
        folder: str | Path,
        *,
        frames: int,
        height: int,
        width: int,
        fps: float | None = None,
        resize: str = "crop",
        clips: int | None = None,
        seed: int = 0,
        split: str | None = "test",
        fit_split: str | None = "train",
        max_bad_share: float = 0.1,
        cache_dir: str | Path | None = None,
        features: FeatureSet | None = None,
        check: Callable[[tuple[Clip, ...]], None] | None = None,
        progress: Progress | None = None,
    ) -> Reference:
        """Open a dataset folder and take the features of its real clips.

        The projection is fitted on at most 2048 clips of `fit_split`; as many of its videos as there are real clips,
        at most half, are held out of the fit for the floor. Where `split` and `fit_split` name the same
        videos (None: all of the folder), these are divided into two halves first.

        Args:
            folder: see `tpdiff.data.folder`.
            frames, height, width, fps, resize: the clips, as for `ClipDataset`.
            clips: real clips; None: all that do not overlap, at most 2048.
            seed: of the choice of clips.
            split: where the real clips come from.
            fit_split: where the clips of the projection and of the floor come from.
            max_bad_share: the largest share of a split's videos that may be unusable.
            cache_dir: where features are kept from one call to the next; None: nowhere.
            features: None: `efficientnet_features()`.
            check: called with the real clips before their features are taken; what it raises ends the call.
            progress: called with (clips done, clips in all), for each of the three sets of clips.

        Raises:
            ValueError: a bad argument, more clips than there are, or frames that the features do not take.
            DataError: no such folder or split, too few videos, or too many that cannot be read.
        """
        geometry = Geometry(frames, height, width, fps, resize)
        geometry.check()
        features = features or efficientnet_features()
        features.check_frames(frames)
        real_from, fit_from = _pools(folder, geometry, split, fit_split, seed, max_bad_share)
        real_clips = choose_clips(real_from, geometry, clips, seed)
        if check is not None:
            check(real_clips)
        training = fit_from
        held_from, fit_from = _hold_out(training, len(real_clips), geometry)
        held_count = min(len(real_clips), count_windows(held_from, frames))
        held_clips = choose_clips(held_from, geometry, held_count, seed)
        train = choose_clips(fit_from, geometry, None, seed)
        store = Store(Path(cache_dir) if cache_dir else None, features, geometry)
        with store:
            projection = None if features.dimensions is None else store.projection(train, progress)
            real = store.features(real_clips, projection, progress)
            held = store.features(held_clips, projection, progress)
        protocol = {
            "frames": frames,
            "resolution": f"{height}x{width}",
            "fps": fps,
            "stride": "each file's own frames, one after another" if fps is None else f"frames nearest to n/{fps:g} s",
            "resize": f"{resize}, {CLIP_RESIZE}",
            "seed": seed,
            "clip_choice": RULE,
            "features": features.identity() | {"dimensions": real.shape[1]},
            "real": _describe(split, real_clips),
            "fit": _describe(fit_split, train),
            "floor": _describe(fit_split, held_clips),
        }
        return cls(features, projection, real, held, real_clips, held_clips, train, training, geometry, protocol)

    def project(self, videos: Tensor) -> Array:
        """Made clips, uint8 (B, 3, T, H, W) in [0, 255], to features: float64 (B, D).

        Raises:
            ValueError: clips of another size than the real ones.
        """
        frames, height, width = self.geometry[:3]
        if videos.ndim != 5 or tuple(videos.shape[2:]) != (frames, height, width):
            raise ValueError(
                f"clips are (B, 3, T, H, W) = {tuple(videos.shape)}; the real ones have {frames} frames of "
                f"{height}x{width}"
            )
        return _projected(self.features, self.projection, videos)

    @property
    def floor(self) -> float:
        """`floor_at` as many clips as there are real ones."""
        return self.floor_at(len(self.real))

    @property
    def videos(self) -> list[int]:
        """(N,), the number of the video that each real clip is of."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(clip.source.digest, len(numbers)) for clip in self.clips]

    def floor_at(self, clips: int) -> float:
        """Real against real: the Fréchet distance between `real` and so many training clips that the projection
        was not fitted on (all of them where there are fewer). What a perfect model of the training split would get.
        """
        return frechet_distance(self.real, self.held[:clips])


class Store:
    """Features by clip, kept in a folder under a key of everything that they depend on.

    Args:
        folder: None for a folder that is gone when the `with` block ends.
        features: the feature set.
        geometry: of the clips.
    """

    def __init__(self, folder: Path | None, features: FeatureSet, geometry: Geometry):
        self._features, self._geometry = features, geometry
        self._temporary = tempfile.TemporaryDirectory() if folder is None else None
        self._folder = Path(self._temporary.name) if self._temporary else folder
        self._fitted_on: str | None = None

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        if self._temporary:
            self._temporary.cleanup()

    def projection(self, clips: Sequence[Clip], progress: Progress | None = None) -> Projection:
        """The projection fitted on these clips."""
        self._fitted_on = clips_digest(clips)
        kept = self._place("projection", clips).with_suffix(".npy")
        packed = load_array(kept)
        if packed is None:
            raw = self._place("vectors", clips)

            def make(first: int, last: int) -> np.ndarray:
                return self._features.compute(load_clips(clips[first:last], self._geometry))

            for _ in stored_rows(raw, len(clips), PART, make, progress):
                pass
            fitted = fit_projection(lambda: stored_rows(raw, len(clips), PART, make), self._features.dimensions or 0)
            packed = fitted.pack()
            store_array(kept, packed)
            shutil.rmtree(raw, ignore_errors=True)
        return Projection.unpack(packed)

    def features(self, clips: Sequence[Clip], projection: Projection | None, progress: Progress | None = None) -> Array:
        """float64 (N, D) of these clips, in their order."""

        def make(first: int, last: int) -> np.ndarray:
            return _projected(self._features, projection, load_clips(clips[first:last], self._geometry))

        return np.concatenate(list(stored_rows(self._place("features", clips), len(clips), PART, make, progress)))

    def _place(self, kind: str, clips: Sequence[Clip]) -> Path:
        key = {
            "kind": kind,
            "features": self._features.identity() | {"dimensions": self._features.dimensions},
            "geometry": self._geometry._asdict(),
            "clips": clips_digest(clips),
            "fitted_on": self._fitted_on,
        }
        assert self._folder is not None
        return self._folder / f"{kind}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]}"


def _projected(features: FeatureSet, projection: Projection | None, videos: Tensor) -> Array:
    vectors = features.compute(videos)
    return vectors.astype(np.float64) if projection is None else projection(vectors)


def _pools(
    folder: str | Path, geometry: Geometry, split: str | None, fit_split: str | None, seed: int, max_bad_share: float
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """Videos for the real clips and videos for fit and floor, without a video in both, under whatever name."""
    known = scan(folder).splits
    absent = [name for name in (split, fit_split) if name is not None and name not in known]
    if absent and not known:
        raise DataError(
            f"{folder} has no splits, and a comparison needs {split!r} and {fit_split!r}: name them in metadata.jsonl "
            '("split": "test"), put the videos into subfolders train and test, or ask for all videos (split "all"), '
            "which are then divided into halves"
        )
    found = find_sources(folder, geometry, split, max_bad_share)
    if split == fit_split:
        real = shuffled(_distinct(found), seed)
        if len(real) < 2:
            raise DataError(f"{folder} has {len(real)} video; two halves need at least 2")
        return real[: len(real) // 2], real[len(real) // 2 :]
    fit = shuffled(_distinct(find_sources(folder, geometry, fit_split, max_bad_share)), seed)
    contents = {source.digest for source in found}
    return shuffled(found, seed), tuple(source for source in fit if source.digest not in contents)


def _distinct(sources: Sequence[Source]) -> tuple[Source, ...]:
    """The first of those with the same contents."""
    first: dict[str, Source] = {}
    for source in sources:
        first.setdefault(source.digest, source)
    return tuple(first.values())


def _hold_out(
    sources: tuple[Source, ...], clips: int, geometry: Geometry
) -> tuple[tuple[Source, ...], tuple[Source, ...]]:
    """The videos for the floor and those left for the fit."""
    if len(sources) < 4:
        raise DataError(f"{len(sources)} training videos are too few; the projection and the floor need at least 4")
    most, count, windows = len(sources) // 2, 0, 0
    while count < most and (count < 2 or windows < clips):
        windows += sources[count].video.length // geometry.frames
        count += 1
    return sources[:count], sources[count:]


def _describe(split: str | None, clips: Sequence[Clip]) -> dict[str, Any]:
    videos = {clip.source.digest for clip in clips}
    return {"split": split or "all", "clips": len(clips), "videos": len(videos), "digest": clips_digest(clips)}


__all__ = ["MOST", "Reference", "Store"]
