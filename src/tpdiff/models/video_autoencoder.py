"""A small video autoencoder that a processor trains: causal in time, 1 + rn frames become 1 + n latent frames.

Most of a convolutional autoencoder's work is done at full size. This one works on patches alone: groups of r frames,
patches of p × p pixels, a linear map in and out, and residual causal convolutions between patches.
"""

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import Tensor, nn
from torch.nn import functional

STATISTICS = ("latents_mean", "latents_std")
FIRST_LOGVAR = -6.0  # the posterior begins narrow, so that its noise does not drown latents that still say little


class CausalBlock(nn.Module):
    """x + time(silu(space(norm(x)))): 3 × 3 over space, then over this latent frame and those just before it.

    The last convolution begins at zero, and the block as the identity.
    """

    def __init__(self, width: int, time_kernel: int):
        super().__init__()
        self._before = time_kernel - 1
        self.scale = nn.Parameter(torch.ones(width, 1, 1, 1))
        self.space = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(width, width, (time_kernel, 1, 1))
        nn.init.zeros_(self.time.weight)
        nn.init.zeros_(self.time.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        normed = functional.normalize(x.float(), dim=1).to(x.dtype) * x.shape[1] ** 0.5 * self.scale
        hidden = functional.silu(self.space(normed))
        return x + self.time(functional.pad(hidden, (0, 0, 0, 0, self._before, 0)))


class VideoAutoencoder(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Encoder to a diagonal normal distribution, and decoder; the calls of diffusers' autoencoders.

    Args:
        latent_channels: of a latent.
        hidden_size: width of the convolutions.
        encoder_layers, decoder_layers: residual blocks.
        patch_size: p, pixels a side of one latent element.
        time_patch: r, frames a latent frame; the first latent frame holds the first frame alone.
        time_kernel: latent frames that a convolution sees; 1 with r = 1 leaves every frame to itself, so that pipelines
            around an autoencoder of pictures can have it.
        latents_mean, latents_std: of every channel, over training clips; None: not yet measured.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 32,
        hidden_size: int = 96,
        encoder_layers: int = 2,
        decoder_layers: int = 4,
        patch_size: int = 8,
        time_patch: int = 4,
        time_kernel: int = 3,
        latents_mean: list[float] | None = None,
        latents_std: list[float] | None = None,
    ):
        super().__init__()
        self._patch = time_patch, patch_size
        values = 3 * time_patch * patch_size**2
        self.patch_in = nn.Conv3d(values, hidden_size, 1)
        self.encoder = nn.Sequential(*(CausalBlock(hidden_size, time_kernel) for _ in range(encoder_layers)))
        self.to_posterior = nn.Conv3d(hidden_size, 2 * latent_channels, 1)
        self.from_latents = nn.Conv3d(latent_channels, hidden_size, 1)
        self.decoder = nn.Sequential(*(CausalBlock(hidden_size, time_kernel) for _ in range(decoder_layers)))
        self.patch_out = nn.Conv3d(hidden_size, values, 1)
        with torch.no_grad():
            self.to_posterior.bias[latent_channels:] = FIRST_LOGVAR  # type: ignore[index]

    @property
    def config(self) -> Any:
        """Its arguments, and what they are called in the autoencoders that diffusers' video pipelines expect."""
        told = super().config
        side = told["patch_size"]
        names = {
            "z_dim": told["latent_channels"],
            "scale_factor_temporal": told["time_patch"],
            "scale_factor_spatial": side,
            "block_out_channels": (told["hidden_size"],) * side.bit_length(),  # one more than it halves the sides
            "scaling_factor": 1.0,
        }
        return FrozenDict({**told, **names})

    @torch.no_grad()
    def fold_statistics(self) -> None:
        """Work the measured mean and deviation of the latents into the weights: latents then have neither, for
        pipelines that know of one scaling factor alone."""
        if self.config.latents_mean is None:
            return
        mean, std = (torch.tensor(self.config[name]).to(self.to_posterior.bias) for name in STATISTICS)
        narrow, wide, channels = self.to_posterior, self.from_latents, len(mean)
        assert narrow.bias is not None and wide.bias is not None
        narrow.bias[:channels] -= mean
        narrow.bias[:channels] /= std
        narrow.bias[channels:] -= 2 * std.log()
        narrow.weight[:channels] /= std.view(-1, 1, 1, 1, 1)
        wide.bias += wide.weight[:, :, 0, 0, 0] @ mean
        wide.weight *= std.view(1, -1, 1, 1, 1)
        self.register_to_config(**dict.fromkeys(STATISTICS))

    @apply_forward_hook
    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Video (B, 3, 1 + rn, H, W) in [-1, 1] -> posterior of latents (B, C, 1 + n, H / p, W / p). Pictures
        (B, 3, H, W) are videos of one frame, whose latents have no time axis either.

        Raises:
            ValueError: a size that patches do not fill.
        """
        picture = x.ndim == 4
        moments = self.to_posterior(self.encoder(self.patch_in(self.patches(x.unsqueeze(2) if picture else x))))
        posterior = DiagonalGaussianDistribution(moments.squeeze(2) if picture else moments)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def patches(self, x: Tensor) -> Tensor:
        """Video (B, 3, 1 + rn, H, W) -> patches (B, 3 r p p, 1 + n, H / p, W / p), the first frame r times over.

        Raises:
            ValueError: a size that patches do not fill.
        """
        r, p = self._patch
        batch, _, frames, height, width = x.shape
        if frames % r != 1 % r or height % p or width % p:
            raise ValueError(
                f"video of {frames} × {height} × {width} is not 1 + {r}n frames of multiples of {p} pixels"
            )
        x = torch.cat([x[:, :, :1].expand(-1, -1, r - 1, -1, -1), x], dim=2)
        x = x.reshape(batch, 3, -1, r, height // p, p, width // p, p)
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)

    @torch.no_grad()
    def start_from_components(self, clips: Iterable[Tensor]) -> None:
        """Let an untrained network begin as the principal components of clips' patches.

        Its width becomes the leading components, each scaled to unit variance, and the latents the first of them; the
        decoder's map leads back. Gradient descent alone finds the faint ones late.

        Args:
            clips: videos (3, T, H, W) in [-1, 1].
        """
        count, total, products = 0, torch.zeros(()), torch.zeros(())  # of rows; clip by clip, whatever their number
        for clip in clips:
            rows = self.patches(clip[None]).transpose(0, 1).flatten(1).T.double().cpu()
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        mean = total / count
        values, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
        width, latents = self.patch_out.weight.shape[1], self.from_latents.weight.shape[1]
        kept = min(width, len(values))
        scale = values.flip(0)[:kept].clamp_min(1e-6).sqrt()
        axes = vectors.flip(1)[:, :kept]
        layers: tuple[Any, ...] = (self.patch_in, self.to_posterior, self.from_latents, self.patch_out)
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        first, narrow, wide, last = layers
        first.weight[:kept] = (axes / scale).T[..., None, None, None]
        first.bias[:kept] = -(mean @ (axes / scale))
        last.weight[:, :kept] = (axes * scale)[..., None, None, None]
        last.bias.copy_(mean)
        for channel in range(min(latents, kept)):
            narrow.weight[channel, channel] = wide.weight[channel, channel] = 1.0
        narrow.bias[latents:] = FIRST_LOGVAR

    @apply_forward_hook
    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """Latents (B, C, 1 + n, h, w) -> video (B, 3, 1 + rn, h p, w p), about [-1, 1]; (B, C, h, w) -> pictures."""
        r, p = self._patch
        x = self.patch_out(self.decoder(self.from_latents(z.unsqueeze(2) if z.ndim == 4 else z)))
        x = x.unflatten(1, (3, r, p, p)).permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        video = x[:, :, r - 1 :].squeeze(2) if z.ndim == 4 else x[:, :, r - 1 :]
        return DecoderOutput(sample=video) if return_dict else (video,)

    def forward(self, x: Tensor) -> Tensor:
        """Video to video, through the mean of the posterior."""
        posterior = self.encode(x, return_dict=False)[0]
        return self.decode(posterior.mode(), return_dict=False)[0]
