"""What a comparison measured, as plain values that go to JSON and back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from tpdiff.files import write_whole


@dataclass(frozen=True)
class LossPoint:
    """The training loss of one optimizer step.

    Attributes:
        seconds: training time so far.
        step: optimizer steps so far, from 1.
        stage: the stage k the step trained, 0 the finest.
        loss: mean squared error per element.
    """

    seconds: float
    step: int
    stage: int
    loss: float


@dataclass(frozen=True)
class StageView:
    """What sampling had made of a clip when a stage ended: its clean estimate, before the jump.

    Attributes:
        stage: k, 0 the finest.
        factors: (T, H, W) stride against full size.
        frames: T at this stage.
        height: H in pixels at this stage.
        width: W in pixels at this stage.
        video: path of an mp4, relative to the comparison's folder.
        start: the noisy time s_k in [0, 1]; None: not recorded.
        end: the clean time e_k in [0, 1]; None: not recorded.
    """

    stage: int
    factors: tuple[float, float, float]
    frames: int
    height: int
    width: int
    video: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class ArmResult:
    """One side of a comparison: a model trained one way.

    Attributes:
        name: short and unique ("vanilla", "pyramid").
        label: the name a reader sees.
        config: the resolved configuration, JSON values.
        seconds: training time.
        steps: optimizer steps.
        tokens: tokens the network was trained on.
        losses: one point an optimizer step (or fewer), in order of time.
        videos: sampled mp4s, relative to the comparison's folder, one a caption.
        captions: the caption of each of `videos`.
        stages: views of one sampled clip, one a stage; empty without a pyramid.
        clips: training clips seen, repeats included.
    """

    name: str
    label: str
    config: dict[str, Any]
    seconds: float
    steps: int
    tokens: int
    losses: list[LossPoint] = field(default_factory=list)
    videos: list[str] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    stages: list[StageView] = field(default_factory=list)
    clips: int | None = None


@dataclass(frozen=True)
class LatencyRow:
    """Sampling time of one way to sample, every round of it.

    Attributes:
        name: the arm or variant ("vanilla"). The first row of a comparison is what ratios refer to.
        steps: step counts as written, coarsest first ("10-10-10").
        seconds: one time a round; rounds of all rows were interleaved.
        flops: floating-point operations of one such sampling.
        decode: whether decoding to pixels and writing the files is included.
    """

    name: str
    steps: str
    seconds: list[float]
    flops: int
    decode: bool

    @property
    def median(self) -> float:
        """Median of `seconds`."""
        return median(self.seconds)


@dataclass(frozen=True)
class ShippedClips:
    """Samples of a model that was trained beforehand and comes with the package.

    Attributes:
        label: the name a reader sees, which says that it was not trained here.
        made: how it was trained, in a line.
        videos: mp4s, relative to the comparison's folder.
        captions: the caption of each of `videos`.
    """

    label: str
    made: str
    videos: list[str]
    captions: list[str]


@dataclass(frozen=True)
class Comparison:
    """All that a report shows. Paths in it are relative to the folder it is saved in.

    Attributes:
        title: one line.
        command: the command that made it.
        created: date and time, ISO 8601.
        minutes: training time of each arm.
        machine: what `machine.describe` returned.
        data: facts about the training set, name -> value.
        real: mp4s of real clips.
        real_captions: the caption of each of `real`.
        arms: the sides, the base method first.
        latency: sampling times, the base method first.
        notes: sentences for the reader.
        summary: one sentence of explanation under the title; empty: a general one.
        shipped: clips of models trained beforehand, to stand beside the others.
    """

    title: str
    command: str
    created: str
    minutes: float
    machine: dict[str, Any]
    data: dict[str, Any]
    real: list[str] = field(default_factory=list)
    real_captions: list[str] = field(default_factory=list)
    arms: list[ArmResult] = field(default_factory=list)
    latency: list[LatencyRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    summary: str = ""
    shipped: list[ShippedClips] = field(default_factory=list)

    def save(self, path: str | Path) -> Path:
        """Write it as JSON, whole or not at all, making the folder where needed. Returns the path.

        Raises:
            ValueError: a value JSON cannot hold (NaN or infinity).
            TypeError: a value in a dict that is not a JSON value.
        """
        path = Path(path)
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(path, text + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a comparison, with the reason.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} does not hold a comparison: {error}") from error

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Comparison:
        """The comparison of `dataclasses.asdict`."""
        arms = [_arm(arm) for arm in values.get("arms", [])]
        latency = [LatencyRow(**row) for row in values.get("latency", [])]
        shipped = [ShippedClips(**clips) for clips in values.get("shipped", [])]
        return cls(**{**values, "arms": arms, "latency": latency, "shipped": shipped})


def _arm(values: dict[str, Any]) -> ArmResult:
    losses = [LossPoint(**point) for point in values.get("losses", [])]
    stages = [StageView(**{**view, "factors": tuple(view["factors"])}) for view in values.get("stages", [])]
    return ArmResult(**{**values, "losses": losses, "stages": stages})
