"""What the training of a video autoencoder is: typed, validated, from YAML with dotted overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tpdiff.training.config import Config, LogConfig
from tpdiff.training.data_config import DataConfig
from tpdiff.training.load_config import build, build_config, read_values
from tpdiff.training.section import Section

FOR_DIFFUSION = ("latents", "stages", "shards", "shuffle", "buckets")  # keys of `DataConfig`


class AutoencoderModelConfig(Section):
    """The network, `tpdiff.models.video_autoencoder.VideoAutoencoder`: patches of `time_patch` frames and
    `patch_size`² pixels become one latent of `latent_channels` each. With `time_patch` and `time_kernel` 1 every frame
    is left to itself.
    """

    latent_channels: int = Field(32, ge=1)
    hidden_size: int = Field(96, ge=8)
    encoder_layers: int = Field(2, ge=0)
    decoder_layers: int = Field(4, ge=0)
    patch_size: Literal[4, 8, 16] = 8
    time_patch: Literal[1, 2, 4, 8] = 4
    time_kernel: Literal[1, 3] = 3


class AutoencoderTrainConfig(Section):
    """How it is trained; see `tpdiff.training.reconstruction` for the loss and its weights.

    A run ends at `steps` or at `seconds` of training time, whichever comes first.
    """

    batch_size: int = Field(2, ge=1)
    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    kl_weight: float = Field(1e-4, ge=0)
    square_weight: float = Field(4.0, ge=0)
    edge_weight: float = Field(0.25, ge=0)
    motion_weight: float = Field(0.25, ge=0)
    lr: float = Field(1e-3, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(50, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    ema_decay: float = Field(0.998, ge=0, lt=1)
    precision: Literal["bf16", "no"] = "no"

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        """YAML reads a plain `no` as false."""
        return "no" if value is False else value

    @model_validator(mode="after")
    def _has_an_end(self) -> "AutoencoderTrainConfig":
        if self.steps is None and self.seconds is None:
            raise ValueError("set train.steps or train.seconds, or both")
        return self


class HeldOutConfig(Section):
    """Clips that are reconstructed when training ends, to tell how well: of another split, or none (null)."""

    split: str | None = "test"
    clips: int = Field(64, ge=1)


class AutoencoderConfig(Section):
    """A whole run. `statistics_clips` training clips give the principal components that the network begins as, and in
    the end the mean and deviation that normalise latents.
    """

    seed: int = Field(0, ge=0)
    data: DataConfig
    autoencoder: AutoencoderModelConfig = AutoencoderModelConfig()
    train: AutoencoderTrainConfig
    held_out: HeldOutConfig = HeldOutConfig()
    statistics_clips: int = Field(64, ge=2)
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> "AutoencoderConfig":
        """Refuse clips that the network cannot take whole: causal in time, and halved side by side."""
        frames, time, side = self.data.frames, self.autoencoder.time_patch, self.autoencoder.patch_size
        if frames % time != 1 % time:
            near = 1 + time * max(0, round((frames - 1) / time))
            raise ValueError(f"data.frames {frames} is not 1 + {time}n (autoencoder.time_patch); nearest: {near}")
        for name, pixels in (("height", self.data.height), ("width", self.data.width)):
            if pixels % side:
                near = side * max(1, round(pixels / side))
                raise ValueError(
                    f"data.{name} {pixels} is not a multiple of {side} (autoencoder.patch_size); nearest: {near}"
                )
        channels, width = self.autoencoder.latent_channels, self.autoencoder.hidden_size
        if channels > width:
            raise ValueError(f"autoencoder.latent_channels {channels} is above hidden_size {width}; nearest: {width}")
        return self


def check_keys(config: AutoencoderConfig) -> None:
    """Refuse keys of the section `data` that the training of an autoencoder does not heed.

    Raises:
        ValueError: naming those that are set.
    """
    data, fields = config.data, DataConfig.model_fields
    heedless = [f"data.{key}" for key in FOR_DIFFUSION if getattr(data, key) != fields[key].default]
    if heedless:
        raise ValueError(
            f"{', '.join(heedless)}: only the training of a diffusion model heeds this; an autoencoder is trained on "
            "clips of one size from the videos in data.path, so leave it out"
        )


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Config | AutoencoderConfig:
    """Read a YAML recipe: of an autoencoder where it has that section, of a diffusion model elsewhere.

    Raises:
        ConfigError: as `load_config`.
    """
    values = read_values(path)
    return build(AutoencoderConfig, values, overrides) if "autoencoder" in values else build_config(values, overrides)
