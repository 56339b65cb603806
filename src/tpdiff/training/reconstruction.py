"""What a video autoencoder is trained for, and how well it reconstructs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tpdiff.data import to_float, to_uint8
from tpdiff.metrics.similarity import WINDOW, psnr, ssim
from tpdiff.models.autoencoder import decode_video, encode_video
from tpdiff.training.autoencoder_config import AutoencoderTrainConfig

SMOOTH = 1e-3  # of the Charbonnier distance: quadratic below it, linear above


@dataclass(frozen=True)
class ReconstructionLoss:
    """The loss of one batch and its parts, scalars.

    Attributes:
        total: what is minimised.
        pixels: Charbonnier distance of the pixels, in [0, 2].
        kl: divergence of the posterior from the standard normal, nats a latent element.
        error: mean square error of the pixels in [-1, 1].
    """

    total: Tensor
    pixels: Tensor
    kl: Tensor
    error: Tensor

    @property
    def psnr(self) -> float:
        """dB, of the whole batch."""
        return psnr_of(float(self.error))


def reconstruction_loss(
    vae: Any, clean: Tensor, train: AutoencoderTrainConfig, generator: torch.Generator
) -> ReconstructionLoss:
    """Encode, draw from the posterior, decode, compare.

    With e = x̂ - x, the mean over all elements written ⟨·⟩, and forward differences ∂:

        L = ⟨√(e² + ε²) - ε⟩ + w_square ⟨e²⟩ + w_edge (⟨|∂_h e|⟩ + ⟨|∂_w e|⟩) / 2 + w_motion ⟨|∂_t e|⟩
            + w_kl ⟨½ (μ² + σ² - 1 - ln σ²)⟩

    Args:
        vae: causal in time; encode gives a posterior N(μ, σ²).
        clean: (B, 3, T, H, W) in [-1, 1], T = 1 + 4n.
        generator: of the CPU; the noise of the draw.
    """
    posterior = vae.encode(clean).latent_dist
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    noise = torch.randn(mean.shape, generator=generator).to(mean.device)
    decoded = vae.decode(mean + noise * (0.5 * logvar).exp(), return_dict=False)[0].float()
    error = decoded - clean
    pixels = (error.square() + SMOOTH**2).sqrt().mean() - SMOOTH
    edges = (error.diff(dim=3).abs().mean() + error.diff(dim=4).abs().mean()) / 2
    motion = error.diff(dim=2).abs().mean() if error.shape[2] > 1 else error.new_zeros(())
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    square = error.square().mean()
    total = pixels + train.square_weight * square + train.edge_weight * edges + train.motion_weight * motion
    return ReconstructionLoss(total + train.kl_weight * kl, pixels.detach(), kl.detach(), square.detach())


def psnr_of(error: float) -> float:
    """Peak signal-to-noise ratio, dB, of a mean square error of values in [-1, 1]; inf for none."""
    return 10 * math.log10(4 / error) if error else math.inf


@torch.no_grad()
def latent_statistics(vae: Any, clips: Iterable[Tensor], device: torch.device) -> tuple[list[float], list[float]]:
    """(mean, standard deviation) of every channel of the latents of uint8 clips (3, T, H, W), one clip at a time."""
    count, total, squares = 0, 0.0, 0.0
    for clip in clips:
        latents = vae.encode(to_float(clip[None].to(device))).latent_dist.mode()
        flat = latents.double().transpose(0, 1).flatten(1).cpu()
        count, total, squares = count + flat.shape[1], total + flat.sum(1), squares + flat.square().sum(1)
    mean = torch.as_tensor(total / count)
    deviation = (torch.as_tensor(squares / count) - mean.square()).clamp_min(1e-12).sqrt()
    return mean.tolist(), deviation.tolist()


EQUAL = 100.0  # dB


@dataclass(frozen=True)
class Quality:
    """How well held-out clips are reconstructed, as 8-bit video: means over the clips, of which one without any
    difference counts as 100 dB.

    Attributes:
        clips: how many.
        psnr: dB.
        ssim: at most 1; None for frames smaller than its window.
        still_psnr: dB, of showing each clip's mean frame throughout, for comparison; None for clips of one frame.
    """

    clips: int
    psnr: float
    ssim: float | None
    still_psnr: float | None

    def line(self) -> str:
        """The figures in one line of text."""
        alike = "" if self.ssim is None else f", SSIM {self.ssim:.3f}"
        still = "" if self.still_psnr is None else f" (each clip's mean frame: {self.still_psnr:.2f} dB)"
        return f"{self.clips} held-out clips: PSNR {self.psnr:.2f} dB{alike}{still}"


@torch.no_grad()
def measure(vae: Any, clips: Iterable[Tensor], device: torch.device) -> Quality:
    """Reconstruct uint8 clips (3, T, H, W), one at a time, through `encode_video` and `decode_video`."""
    ours, alike, still = [], [], []
    for clip in clips:
        real = clip[None]
        made = to_uint8(decode_video(vae, encode_video(vae, to_float(real.to(device))))).cpu()
        ours.append(_decibels(made, real))
        if min(real.shape[3:]) >= WINDOW:
            alike.append(float(ssim(made, real)))
        if real.shape[2] > 1:
            frame = real.float().mean(2, keepdim=True).round().to(torch.uint8)
            still.append(_decibels(frame.expand_as(real), real))
    return Quality(len(ours), fmean(ours), fmean(alike) if alike else None, fmean(still) if still else None)


def _decibels(made: Tensor, real: Tensor) -> float:
    return min(float(psnr(made, real)), EQUAL)
