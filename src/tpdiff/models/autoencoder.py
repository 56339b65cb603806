"""Any diffusers autoencoder, of images or of videos, behind two functions over (B, C, T, H, W)."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoModel
from diffusers import __version__ as diffusers
from torch import Tensor, nn

from tpdiff.models.digest import weights_digest
from tpdiff.models.video_autoencoder import VideoAutoencoder
from tpdiff.shipped import or_shipped


def load_autoencoder(folder: str) -> nn.Module:
    """A frozen autoencoder in evaluation mode: one of diffusers', or our own `VideoAutoencoder`, from a folder that
    save_pretrained wrote (safetensors only), from the newest checkpoint of a run that trained one, or by the name of
    one that comes along ("frame-autoencoder"); else from the Hub's repository of this name, "owner/name".

    Raises:
        ValueError: no autoencoder there.
    """
    place = or_shipped(folder)
    if not (place / "config.json").is_file():
        place = max((p.parent for p in place.glob("checkpoints/step-*/config.json")), default=place)
    if not place.is_dir() and "/" not in folder:  # nor a repository, which has an owner
        raise ValueError(f"no autoencoder in {folder!r}: no such folder, and none of this name comes along")
    try:
        kind = VideoAutoencoder if _class_name(place) == VideoAutoencoder.__name__ else AutoModel
        vae = kind.from_pretrained(str(place) if place.is_dir() else folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"no autoencoder in {folder!r}: {' '.join(str(error).split())}") from error
    absent = [name for name, p in vae.named_parameters() if p.is_meta]
    if absent:
        raise ValueError(f"no autoencoder in {folder!r}: its weights are of another network ({absent[0]} is missing)")
    if not hasattr(vae, "encode") or not hasattr(vae, "decode"):
        raise ValueError(f"{folder!r} holds a {type(vae).__name__}, which cannot encode and decode")
    return vae.eval().requires_grad_(False)


_FRAMES, _SIDE = 48, 64  # of a probe, the first frame apart: any compression divides them


@torch.no_grad()
def encode_video(vae: Any, video: Tensor) -> Tensor:
    """Video (B, 3, T, H, W) in [-1, 1] -> normalised latents (B, C, t, h, w), the posterior's mode."""
    frames = video.shape[2]
    x = video.to(next(vae.parameters()).dtype)
    x = x if _is_video(vae) else x.transpose(1, 2).flatten(0, 1)
    latents = vae.encode(x).latent_dist.mode()
    if not _is_video(vae):
        latents = latents.unflatten(0, (-1, frames)).transpose(1, 2)
    shift, scale = _normalisation(vae, latents)
    return (latents.float() - shift) * scale


@torch.no_grad()
def decode_video(vae: Any, latents: Tensor) -> Tensor:
    """Normalised latents (B, C, t, h, w) -> video (B, 3, T, H, W), float32, about [-1, 1]."""
    shift, scale = _normalisation(vae, latents)
    z = (latents / scale + shift).to(next(vae.parameters()).dtype)
    if _is_video(vae):
        return vae.decode(z, return_dict=False)[0].float()
    video = vae.decode(z.transpose(1, 2).flatten(0, 1), return_dict=False)[0]
    return video.unflatten(0, (-1, latents.shape[2])).transpose(1, 2).float()


def _class_name(folder: Path) -> str | None:
    """The class whose weights a folder holds, as its config.json says."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("_class_name") if path.is_file() else None


def _is_video(vae: nn.Module) -> bool:
    """Video autoencoders convolve over time: their kernels have three axes."""
    return any(p.ndim == 5 for p in vae.parameters())


def _normalisation(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, scale) of unit-variance latents, from whichever statistics the autoencoder carries, each for all channels
    or one a channel; in its configuration or, as weights, in its buffers.
    """
    config, buffers = vae.config, dict(vae.named_buffers(recurse=False))
    mean, std = (buffers.get(name, getattr(config, name, None)) for name in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        mean, std = getattr(config, "shift_factor", None) or 0.0, 1.0
    scale = getattr(config, "scaling_factor", None) or 1.0
    shift, deviation = (torch.as_tensor(value).to(latents).view(-1, 1, 1, 1) for value in (mean, std))
    return shift, scale / deviation


def fingerprint(vae: Any) -> str:
    """A digest of what decides the latents to the last bit: `identity`, and device and library versions."""
    return weights_digest(vae, _settings(vae), next(vae.parameters()).device.type, torch.__version__, diffusers)


def identity(vae: Any) -> str:
    """A digest of which autoencoder this is, wherever it works: class, configuration and every weight."""
    return weights_digest(vae, _settings(vae))


def _settings(vae: Any) -> str:
    kept = {k: v for k, v in vae.config.items() if not k.startswith("_")}
    return json.dumps(kept, sort_keys=True, default=str)


@torch.no_grad()
def compression(vae: Any) -> tuple[int, tuple[int, int, int]]:
    """(channels of a latent, (T, H, W) compression), measured by encoding a small black clip.

    An autoencoder that compresses time is taken to be causal, as those of diffusers are: 1 + r n frames become 1 + n.
    """
    probe = 1 + _FRAMES if _is_video(vae) else 1
    device = next(vae.parameters()).device
    latents = encode_video(vae, torch.zeros(1, 3, probe, _SIDE, _SIDE, device=device))
    _, channels, t, h, w = latents.shape
    return channels, (_FRAMES // (t - 1) if t > 1 else 1, _SIDE // h, _SIDE // w)
