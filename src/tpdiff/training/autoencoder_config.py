"""What the training of a video autoencoder is: typed, validated, from YAML with dotted overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from tpdiff.training.config import Config, DataConfig, LogConfig, Section
from tpdiff.training.load_config import build, build_config, read_values

TIME_RATIO = 4  # frames a latent frame, the first frame apart: fixed in diffusers' AutoencoderKLWan


class AutoencoderModelConfig(Section):
    """The network, diffusers' `AutoencoderKLWan`: causal in time, 1 + 4n frames become 1 + n.

    It takes patches of `patch_size`² pixels for channels, then halves both sides between its levels, one level an
    entry of `dim_mult` (widths in multiples of `base_dim`); the last two halvings halve time as well.
    """

    latent_channels: int = Field(8, ge=1)
    base_dim: int = Field(16, ge=4)
    dim_mult: list[int] = Field([1, 2, 2], min_length=3)
    num_res_blocks: int = Field(1, ge=1)
    patch_size: int = Field(2, ge=1)

    @field_validator("dim_mult")
    @classmethod
    def _widths_are_positive(cls, value: list[int]) -> list[int]:
        if min(value) < 1:
            raise ValueError(f"autoencoder.dim_mult needs whole numbers from 1 up, got {value}")
        return value

    @property
    def space_ratio(self) -> int:
        """Pixels a side of one latent element."""
        return int(self.patch_size * 2 ** (len(self.dim_mult) - 1))


class AutoencoderTrainConfig(Section):
    """How it is trained; see `tpdiff.training.reconstruction` for the loss and its weights.

    A run ends at `steps` or at `seconds` of training time, whichever comes first.
    """

    batch_size: int = Field(4, ge=1)
    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    kl_weight: float = Field(1e-4, ge=0)
    edge_weight: float = Field(0.5, ge=0)
    motion_weight: float = Field(0.5, ge=0)
    lr: float = Field(2e-3, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "cosine"
    warmup_steps: int = Field(50, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    ema_decay: float = Field(0.99, ge=0, lt=1)
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
    """A whole run. `statistics_clips` training clips give the mean and deviation that normalise latents."""

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
        frames, side = self.data.frames, self.autoencoder.space_ratio
        if frames % TIME_RATIO != 1:
            near = 1 + TIME_RATIO * max(0, round((frames - 1) / TIME_RATIO))
            raise ValueError(f"data.frames {frames} is not 1 + {TIME_RATIO}n; nearest: {near}")
        for name, pixels in (("height", self.data.height), ("width", self.data.width)):
            if pixels % side:
                near = side * max(1, round(pixels / side))
                raise ValueError(
                    f"data.{name} {pixels} is not a multiple of {side} (autoencoder.patch_size "
                    f"{self.autoencoder.patch_size} × {side // self.autoencoder.patch_size}); nearest: {near}"
                )
        if self.log.trackers:
            raise ValueError(f"log.trackers {self.log.trackers} are not used for an autoencoder; nearest: []")
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Config | AutoencoderConfig:
    """Read a YAML recipe: of an autoencoder where it has that section, of a diffusion model elsewhere.

    Raises:
        ConfigError: as `load_config`.
    """
    values = read_values(path)
    return build(AutoencoderConfig, values, overrides) if "autoencoder" in values else build_config(values, overrides)
