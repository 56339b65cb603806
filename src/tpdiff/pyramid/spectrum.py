"""Power spectra of latents: how strong they are at every frequency of time and space.

Latents are measured in the orthonormal DCT-II along T, H and W: the basis in which the "dct" operator cuts, without the
seam that a periodic transform has between an axis's ends. White noise of unit variance has power 1 in every
coefficient, so that a power is a signal-to-noise ratio at κ = 1.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import numpy as np
import scipy.fft
import torch
from torch import Tensor

VERSION = 1
BANDS = (24, 24, 24)  # to be cut at strides 3/2, 2, 3, 4, 6, 8


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Mean power of latents per band of frequencies, white noise of unit variance having 1 everywhere.

    Attributes:
        power: float64 (bands of T, of H, of W). Band b of n spans b/n to (b+1)/n of an axis's highest frequency (half
            a turn per element). On a causal time axis: that of the frames after the first.
        first: on a causal time axis, that of the first frame, (bands of H, of W); else None.
        size: (T, H, W) in latent elements, the smallest of the latents measured.
        clips: how many were measured.
        description: of what, in plain JSON values ({"vae": ..., "dataset": ...}).
    """

    power: np.ndarray
    first: np.ndarray | None
    size: tuple[int, int, int]
    clips: int
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def causal_time(self) -> bool:
        """Whether the first frame was measured alone."""
        return self.first is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, powers to 6 digits."""
        return {
            "version": VERSION,
            "description": dict(self.description),
            "clips": self.clips,
            "size": list(self.size),
            "power": _rounded(self.power),
            "first": None if self.first is None else _rounded(self.first),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Spectrum":
        """The spectrum of `to_dict`.

        Raises:
            ValueError: another version, or powers that are no (T, H, W) array of finite numbers >= 0.
        """
        if values.get("version") != VERSION:
            raise ValueError(f"spectrum of version {values.get('version')!r}; this program reads version {VERSION}")
        power = np.array(values["power"], dtype=np.float64)
        first = None if values["first"] is None else np.array(values["first"], dtype=np.float64)
        if power.ndim != 3 or (first is not None and first.shape != power.shape[1:]):
            raise ValueError(
                f"a spectrum has powers (T, H, W) and, of a causal first frame, (H, W); got {power.shape}"
                f"{'' if first is None else f' and {first.shape}'}"
            )
        if not all(np.isfinite(part).all() and (part >= 0).all() for part in (power, first) if part is not None):
            raise ValueError("a spectrum's powers must be finite and >= 0")
        t, h, w = values["size"]
        return cls(power, first, (t, h, w), values["clips"], values["description"])


def measure_spectrum(
    latents: Iterable[Tensor],
    *,
    causal_time: bool = False,
    bands: tuple[int, int, int] = BANDS,
    description: Mapping[str, Any] | None = None,
) -> Spectrum:
    """The mean power of latents per band, over clips and channels, one batch in memory at a time.

    Coefficient i of an axis of N elements stands for i/N to (i+1)/N of the axis's highest frequency and counts in every
    band by their overlap, so that clips of different sizes can be measured together; each clip counts once. Powers
    are raw, means included, in the latents' own scale: give the latents as the network sees them, normalised.

    Args:
        latents: batches (B, C, T, H, W).
        causal_time: measure the first frame on its own (pyramids with `causal_time`).
        bands: (T, H, W) how many; a pyramid's strides must divide them.
        description: of what was measured, plain JSON values: VAE, clips, size in pixels.

    Raises:
        ValueError: nothing to measure, latents of another shape, values that are not finite, or a causal time axis
            of one frame.
    """
    power, first, size, clips = np.zeros(bands), np.zeros((1, *bands[1:])), None, 0
    for batch in latents:
        if batch.ndim != 5 or 0 in batch.shape:
            raise ValueError(f"expected latents (B, C, T, H, W), got {tuple(batch.shape)}")
        if not bool(batch.isfinite().all()):
            raise ValueError(f"latents of clips {clips} to {clips + len(batch) - 1} hold values that are not finite")
        if causal_time and batch.shape[2] == 1:
            raise ValueError("latents of one frame have no spectrum along a causal time axis; set causal_time=False")
        values = batch.detach().to("cpu", torch.float64).numpy()
        power += _banded(values[:, :, int(causal_time) :], bands)
        if causal_time:
            first += _banded(values[:, :, :1], (1, *bands[1:]))
        size = values.shape[2:] if size is None else tuple(map(min, size, values.shape[2:]))
        clips += len(batch)
    if size is None:
        raise ValueError("no latents to measure")
    t, h, w = size
    return Spectrum(power / clips, first[0] / clips if causal_time else None, (t, h, w), clips, dict(description or {}))


def _banded(x: np.ndarray, bands: Sequence[int]) -> np.ndarray:
    """Band powers, summed over the batch and averaged over channels."""
    power = (scipy.fft.dctn(x, axes=(2, 3, 4), norm="ortho") ** 2).mean(1).sum(0)
    return reduce(lambda p, axis: along(_overlap(bands[axis], p.shape[axis]), p, axis), range(3), power)


def _overlap(bands: int, n: int) -> np.ndarray:
    """(bands, n): which share of each band every coefficient fills; rows sum to 1."""
    band, own = np.arange(bands)[:, None] * n, np.arange(n)[None] * bands  # in units of 1 / (bands n)
    return (np.minimum(band + n, own + bands) - np.maximum(band, own)).clip(0) / n


def along(matrix: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    """A matrix applied to one axis of an array."""
    return np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)


def _rounded(power: np.ndarray) -> list:
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[float])(power).tolist()
