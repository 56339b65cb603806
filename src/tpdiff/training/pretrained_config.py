"""What of a diffusers pipeline is trained, and how."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tpdiff.training.section import Section, at_home


class LoraConfig(Section):
    """Low-rank matrices beside the linear layers named by `targets` (ends of their names), in place of the weights
    themselves. `alpha` None: the rank, so that their product counts once. `per_stage` gives every stage its own.
    """

    rank: int = Field(16, ge=1)
    alpha: float | None = Field(None, gt=0)
    targets: list[str] = Field(["to_q", "to_k", "to_v", "to_out.0"], min_length=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    per_stage: bool = False


class PretrainedConfig(Section):
    """A diffusers pipeline to train on from, in place of the sections `model` and `diffusion`, which are its own.

    `network` is the component to train; None: the only one that predicts. `trainable` are patterns of names of its
    parameters (`*motion_modules*`); `lora` trains low-rank matrices instead. What is not trained is kept in `dtype`,
    what is in float32, as is the autoencoder; another `dtype` needs a `train.precision`. `guidance` is told to networks
    that embed it; None: their pipeline's default. `options` are further arguments of its call (`max_sequence_length`);
    a `frame_rate` is by default that of the clips. `offload` keeps what encodes captions, pictures and clips on the
    CPU, and on the accelerator only while it works. Every process keeps up to 2 GiB of encoded captions, those used
    last.
    """

    path: str = Field(coerce_numbers_to_str=True)
    network: str | None = None
    trainable: list[str] = Field(["*"], min_length=1)
    lora: LoraConfig | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    guidance: float | None = None
    gradient_checkpointing: bool = False
    offload: bool = False
    options: dict[str, Any] = Field({})

    @field_validator("path")
    @classmethod
    def _at_home(cls, value: str) -> str | None:
        return at_home(value)

    @model_validator(mode="after")
    def _one_way(self) -> "PretrainedConfig":
        if self.lora is not None and self.trainable != ["*"]:
            raise ValueError("pretrained.lora trains its own matrices alone; leave out pretrained.trainable")
        return self
