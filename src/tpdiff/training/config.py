"""What a run is: typed, validated, from YAML with dotted overrides (`train.lr=1e-4`)."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tpdiff.training.data_config import DataConfig
from tpdiff.training.pretrained_config import PretrainedConfig
from tpdiff.training.section import Section, at_home
from tpdiff.training.validation_config import ValidationConfig


class ModelConfig(Section):
    """The reference network, `tpdiff.models.VideoDiT`, and what it works on: latents of `autoencoder`, or pixels.

    `latent_scale` multiplies them. Neighbouring pixels of a large clip say the same, so that much noise leaves it
    readable; a smaller scale moves the noise levels where a clip is decided away from the very first steps
    (input scaling, arXiv 2301.10972).

    `stage_embedding` tells the network its stage; `stage_projections` tells it, too, and gives each stage layers of its
    own into and out of tokens, which span as much more of the video as the stage is coarser.

    `rope_modes` of (T, H, W): a token of a coarse stage stands in the middle of the full-size ones that it replaces
    ("interpolate"), or tokens are counted whatever the stage ("extrapolate").

    `temporal_overlap` frames before and after its own are seen and said by a token of several frames; where two tokens
    say a frame, they are cross-faded. Without it, clips of coarse stages may jump where two tokens meet.
    """

    patch_size: tuple[int, int, int] = (1, 8, 8)
    hidden_size: int = Field(256, ge=8)
    num_layers: int = Field(8, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    mlp_ratio: float = Field(4.0, gt=0)
    stage_embedding: bool = False
    stage_projections: bool = False
    rope_modes: tuple[str, str, str] = ("interpolate", "interpolate", "interpolate")
    absolute_positions: bool = False
    temporal_overlap: int = Field(0, ge=0)
    gradient_checkpointing: bool = False
    autoencoder: str | None = None
    latent_scale: float = Field(1.0, gt=0)

    @field_validator("autoencoder")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return at_home(value)

    def network(self, stages: int) -> dict[str, Any]:
        """The arguments of the network, of so many stages, that do not depend on data."""
        own = self.model_dump(exclude={"autoencoder", "latent_scale", "stage_embedding", "gradient_checkpointing"})
        return own | {"num_stages": stages if self.stage_embedding or self.stage_projections else None}


class ConditionConfig(Section):
    """What the captions become: nothing, one class a distinct caption, or text for cross-attention.

    `encoder` is minilm, or the folder or hub name of a text encoder. `max_length` tokens of a text are encoded, and
    the rest is cut; a run that cuts captions says so as it begins.
    """

    kind: Literal["none", "label", "text"] = "text"
    encoder: str = "minilm"
    max_length: int = Field(32, ge=1)
    dropout: float = Field(0.1, ge=0, le=1)

    @field_validator("encoder")
    @classmethod
    def _at_home(cls, value: str) -> str | None:
        return at_home(value)


class DiffusionConfig(Section):
    """The base method. `prediction_type` None: flow_prediction for flow matching, v_prediction for ddim."""

    schedule: Literal["flow_matching", "ddim"] = "flow_matching"
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] | None = None
    zero_terminal_snr: bool = False

    @property
    def prediction(self) -> str:
        return self.prediction_type or ("flow_prediction" if self.schedule == "flow_matching" else "v_prediction")


class PyramidConfig(Section):
    """The stages, finest first; see `tpdiff.pyramid.Pyramid`.

    `factors` are (T, H, W) strides against full size. `ends` are the times in (0, 1) at which all stages but the finest
    end, rising, e_1 first; each start follows. `starts`, in place of them, are those at which all but the coarsest
    start. With neither e_k = k / S. `resize` is haar, dct, linear or an orthogonal wavelet, such as db2.
    `causal_time` None: as the autoencoder of a pretrained pipeline, otherwise no.
    """

    factors: list[tuple[int | float, int | float, int | float]] = Field([(1, 1, 1), (2, 1, 1), (4, 1, 1)])
    ends: list[float] | None = None
    starts: list[float] | None = None
    resize: str = "haar"
    causal_time: bool | None = None


class TrainConfig(Section):
    """How it is trained. A run ends at `steps` or at `seconds` of training time, whichever comes first.

    `batch_size` counts the clips of all processes together, so that a recipe is the same run on any number of them.
    `ema_device` "cpu" keeps the averaged weights out of the accelerator's memory.

    `stage_weights`, coarsest stage first, are the shares of the stages that are drawn, one a micro-batch. `all_stages`
    takes each micro-batch through all stages of which the weight is not 0, their losses by weight.

    `token_budget` takes the place of `batch_size`, which then means nothing: a micro-batch of a stage holds as many
    clips as have so many tokens together, on all processes, as many on each and at least one. Coarse stages hold more
    of them in as much memory; `stage_weights` stay the shares of the clips, equal if not given.

    `alignment` gives each clip of a batch a noise near it: by the best exchange of noises, or the nearest of
    `knn_candidates`. `align_within_condition` exchanges among clips of equal captions only, which keeps a caption's
    noise normal and does nothing where all captions differ; false exchanges them over the batch, as TPDiff does.

    `compile` compiles the network, one graph a stage. `optimizer` "adamw8bit" keeps moments in 8 bits (torchao).
    `timestep_policy` tells the network a noise level's own time, or arc length over the overlapping stages.
    `loss_space` measures the error of a network that predicts the clean sample as that of another prediction type;
    None measures it as predicted. Its weight grows as σ falls, down to σ = `loss_floor`: with flow matching and
    flow_prediction, a floor of 1 is the clean sample's own error. `distillation` weighs a further loss, against what a
    pretrained network said of the same noisy latents before training.
    """

    method: Literal["vanilla", "stagewise"] = "stagewise"
    batch_size: int = Field(16, ge=1)
    token_budget: int | None = Field(None, ge=1)
    accumulation: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)
    stage_weights: list[float] | None = None
    all_stages: bool = False
    timestep_density: Literal["uniform", "logit_normal"] = "uniform"
    timestep_policy: Literal["native", "pyramid_flow"] = "native"
    target: Literal["global", "per_stage"] = "global"
    loss_space: Literal["epsilon", "v_prediction", "flow_prediction"] | None = None
    loss_floor: float = Field(0.05, gt=0, le=1)
    distillation: float = Field(0.0, ge=0)
    alignment: Literal["none", "assignment", "knn"] = "assignment"
    align_within_condition: bool = True
    knn_candidates: int = Field(4, ge=1)
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    lr: float = Field(1e-3, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(50, ge=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float | None = Field(1.0, gt=0)
    ema_decay: float = Field(0.999, ge=0, lt=1)
    ema_device: Literal["model", "cpu"] = "model"
    precision: Literal["bf16", "fp16", "no"] = "bf16"
    compile: bool = False

    @field_validator("precision", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: object) -> object:
        """YAML reads a plain `no` as false."""
        return "no" if value is False else value

    @model_validator(mode="after")
    def _one_stage_a_batch(self) -> "TrainConfig":
        if self.token_budget is not None and self.all_stages:
            raise ValueError(
                "train.token_budget sizes a batch by its one stage, train.all_stages takes each batch through all; "
                "leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _has_an_end(self) -> "TrainConfig":
        if self.steps is None and self.seconds is None:
            raise ValueError("set train.steps or train.seconds, or both")
        return self


class LogConfig(Section):
    """What a run leaves behind. `trackers` are accelerate's, by name: tensorboard, wandb, trackio, ..."""

    trackers: list[str] = Field([])
    every_steps: int = Field(10, ge=1)
    checkpoint_every_steps: int | None = Field(1000, ge=1)
    keep_checkpoints: int = Field(2, ge=1)


class Config(Section):
    """A whole run."""

    seed: int = Field(0, ge=0)
    data: DataConfig
    pretrained: PretrainedConfig | None = None
    model: ModelConfig = ModelConfig()
    condition: ConditionConfig = ConditionConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    pyramid: PyramidConfig = PyramidConfig()
    train: TrainConfig
    log: LogConfig = LogConfig()
    validation: ValidationConfig = ValidationConfig()

    @property
    def offload(self) -> bool:
        """Whether what encodes stays on the CPU while it has no work."""
        return self.pretrained is not None and self.pretrained.offload

    @property
    def num_stages(self) -> int:
        """How many stages the pyramid has; the vanilla method's is one."""
        return 1 if self.train.method == "vanilla" else len(self.pyramid.factors)

    @property
    def validated_at_once(self) -> int:
        """How many clips a validation's network is asked about together."""
        return self.validation.batch_size or (16 if self.pretrained is None else 1)

    @model_validator(mode="after")
    def _is_one_model(self) -> "Config":
        if self.pretrained is None:
            if self.train.distillation > 0:
                raise ValueError("train.distillation follows a pretrained network; set pretrained.path, or 0")
            return self
        for section in ("model", "diffusion"):
            if getattr(self, section) != type(getattr(self, section))():
                raise ValueError(f"{section} describes a new network; with pretrained, leave the section out")
        dtype, fitting = self.pretrained.dtype, {"bfloat16": "bf16", "float16": "fp16"}
        if dtype != "float32" and self.train.precision == "no":
            raise ValueError(
                f"pretrained.dtype={dtype} meets what is trained, which is in float32, only under autocast; nearest: "
                f"train.precision={fitting[dtype]}, or pretrained.dtype=float32"
            )
        if self.condition.kind == "label":
            raise ValueError("condition.kind=label is for new networks; with pretrained, nearest: text or none")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Config":
        stages, weights = self.num_stages, self.train.stage_weights
        if weights is not None and self.train.method != "vanilla" and not _are_shares(weights, stages):
            raise ValueError(
                f"train.stage_weights needs {stages} weights >= 0, coarsest stage first, not all zero; got {weights}"
            )
        if self.pretrained is None:
            check_prediction(self.train, self.diffusion.prediction)
            if self.model.patch_size[0] > 1 and self.pyramid.causal_time:
                raise ValueError(
                    f"pyramid.causal_time=true keeps 1 + n frames, which patches of {self.model.patch_size[0]} do not "
                    "fill; nearest: model.patch_size[0]=1, or pyramid.causal_time=false"
                )
        encoded = self.model.autoencoder is not None or self.pretrained is not None
        if self.data.latents != "none" and not encoded:
            raise ValueError(
                f"data.latents={self.data.latents} keeps what model.autoencoder encodes; set that, or none"
            )
        if self.data.stages == "pixel" and not encoded:
            raise ValueError("data.stages=pixel encodes every stage with model.autoencoder; set that, or latent")
        if self.data.stages == "pixel" and self.data.latents != "none" and self.data.shards is None:
            raise ValueError("data.stages=pixel is kept by tpdiff cache only; set data.latents=none, or data.shards")
        if self.data.shards is not None and not encoded:
            raise ValueError("data.shards holds latents; set model.autoencoder, which they were encoded with")
        if self.validation.on and not self.data.path:
            raise ValueError("validation needs the videos themselves; set data.path, or leave validation off")
        size = (self.data.frames, self.data.height, self.data.width)
        if self.train.token_budget is not None and self.data.buckets not in (None, [size]):
            raise ValueError(
                "train.token_budget needs clips of one size, data.frames × data.height × data.width; leave out "
                f"data.buckets, or name {'x'.join(map(str, size))}"
            )
        if self.data.latents == "disk" and self.data.cache_dir is None:
            raise ValueError("data.latents=disk needs data.cache_dir, the folder to keep them in")
        return self


def check_prediction(train: TrainConfig, prediction_type: str) -> None:
    """Refuse what is not defined for what a network predicts.

    Raises:
        ValueError: naming the key.
    """
    if train.target == "per_stage" and prediction_type != "flow_prediction":
        raise ValueError("train.target=per_stage is defined for diffusion.prediction_type=flow_prediction only")
    if train.loss_space is not None and prediction_type != "sample":
        raise ValueError("train.loss_space is defined for diffusion.prediction_type=sample only")
    if train.loss_space is None and train.loss_floor != TrainConfig.model_fields["loss_floor"].default:
        raise ValueError("train.loss_floor bounds the weight that train.loss_space gives; set that, or leave it out")


def _are_shares(weights: list[float], count: int) -> bool:
    return len(weights) == count and min(weights) >= 0 and sum(weights) > 0
