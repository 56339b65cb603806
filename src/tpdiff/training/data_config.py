"""Where a run's clips come from: typed and validated."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from tpdiff.training.section import Section, at_home


class DataConfig(Section):
    """Where clips come from. Sizes are pixels.

    `starts` is how many clips a video gives, evenly spread over it; None: one may start at any frame. `latents` keeps
    the encoded clips of a model with an autoencoder, in memory or on disk under `cache_dir`; a clip whose latents are
    kept is not decoded again. The `workers` see what is on disk, but of memory only what was kept before they began.

    `cache` keeps decoded videos, height × width × 3 bytes a frame: "memory", up to 2 GiB in each process, "disk", under
    `cache_dir`, or "none", which decodes each clip when it is asked for. "auto" is memory where they fit, else none.

    `stages` says what the clean latents of a stage are: resized latents, or encoded resized frames.
    `shards`, a folder or a URL, is what `tpdiff cache` made of these clips. Training then reads it, shuffled within
    `shuffle` clips, and neither `path` nor `cache` nor `latents`. In it, `starts` None takes clips one after another,
    without overlap, and `buckets` are clip sizes (49x480x832, ...), None: the one of `frames` × `height` × `width`;
    "auto": those of the files, up to `frames` and the area of `height` × `width`.
    """

    path: str = Field("", coerce_numbers_to_str=True)
    split: str | None = "train"
    frames: int = Field(16, ge=1)
    height: int = Field(64, ge=1)
    width: int = Field(64, ge=1)
    fps: float | None = Field(None, gt=0)
    starts: int | None = Field(None, ge=1)
    resize: Literal["crop", "stretch"] = "crop"
    cache: Literal["auto", "memory", "disk", "none"] = "auto"
    latents: Literal["none", "memory", "disk"] = "none"
    cache_dir: str | None = None
    stages: Literal["latent", "pixel"] = "latent"
    shards: str | None = None
    shuffle: int = Field(4096, ge=1)
    buckets: list[tuple[int, int, int]] | Literal["auto"] | None = None
    workers: int = Field(0, ge=0)
    max_bad_share: float = Field(0.1, ge=0, le=1)

    @field_validator("path", mode="before")
    @classmethod
    def _none_is_no_path(cls, value: object) -> object:
        return "" if value is None else value

    @field_validator("path", "cache_dir", "shards")
    @classmethod
    def _at_home(cls, value: str | None) -> str | None:
        return at_home(value)

    @model_validator(mode="before")
    @classmethod
    def _reads_buckets(cls, values: Any) -> Any:
        """Sizes may be written 49x480x832; the first is the clip size where no other is given."""
        buckets = values.get("buckets") if isinstance(values, dict) else None
        if buckets in (None, "auto"):
            return values
        sizes = _sizes(buckets)
        sides = dict(zip(("frames", "height", "width"), sizes[0], strict=True)) if sizes else {}
        return {**({} if sides.keys() & values.keys() else sides), **values, "buckets": sizes}

    @model_validator(mode="after")
    def _has_clips(self) -> "DataConfig":
        if not self.path and self.shards is None:
            raise ValueError("data.path is required (or data.shards, what tpdiff cache made of it)")
        return self


def _sizes(buckets: Any) -> list[tuple[int, ...]]:
    """ "49x480x832,1x480x832", or a list of such or of [49, 480, 832] -> [(49, 480, 832), (1, 480, 832)]."""
    if isinstance(buckets, str):
        buckets = buckets.split(",")
    if not isinstance(buckets, list | tuple):
        buckets = [buckets]
    if len(buckets) == 3 and all(isinstance(side, int) for side in buckets):
        size = "x".join(map(str, buckets))
        raise ValueError(f"data.buckets {list(buckets)} is one size, not a list of them; nearest: {size}")
    return [_size(bucket) for bucket in buckets]


def _size(bucket: Any) -> tuple[int, ...]:
    sides = bucket.strip().lower().replace("×", "x").split("x") if isinstance(bucket, str) else bucket
    sides = [str(side) for side in sides] if isinstance(sides, list | tuple) else []
    if len(sides) != 3 or not all(side.isdecimal() and int(side) for side in sides):
        raise ValueError(f"data.buckets {bucket!r} is not FRAMESxHEIGHTxWIDTH, such as 49x480x832")
    return tuple(int(side) for side in sides)
