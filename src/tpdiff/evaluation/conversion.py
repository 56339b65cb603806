"""A study of conversion, as a file: what pretrained model is made pyramidal, in which ways, and how it is judged."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tpdiff.evaluation.study import StudyData, read_study
from tpdiff.training.config import Config
from tpdiff.training.load_config import build_config
from tpdiff.training.section import Section

BUDGET = 0.1


class AutoencoderPart(Section):
    """What encodes the original's clips: the recipe that trains it, and on which clips, apart from the study's."""

    recipe: str
    data: StudyData


class OriginalPart(Section):
    """The model that is to be converted, trained from random weights by `ConversionStudy.run` without stages.

    Attributes:
        kind: which pipeline it is; the benchmark knows how to build it.
        network: arguments of its network.
        autoencoder: its autoencoder, trained first, once for all seeds.
        overrides: changes of `run`, `section.key=value`.
    """

    kind: str
    network: dict[str, Any] = Field(default_factory=dict)
    autoencoder: AutoencoderPart
    overrides: list[str] = Field(default_factory=list)


class ConversionStudy(Section):
    """One original a seed, and what becomes of it when it is trained on by a share of its training's operations.

    Attributes:
        name: of its folders.
        title: of its page.
        data: the set.
        original: the pretrained model.
        run: the configuration that all runs share, without data.path and pretrained.path.
        conversion: changes for every arm.
        arms: changes of each arm. Those with stages are sampled at `staged_steps`; one with train.method=vanilla is the
            control that only trains on. The first is the one that the claim is about.
        budget: operations of every arm, as a share of the original's training.
        steps: the original's sampling steps.
        staged_steps: those of stages, coarsest first.
        seeds: one original and its arms a seed.
        clips: samples of each.
        batch: sampled at a time.
    """

    name: str
    title: str
    data: StudyData = StudyData()
    original: OriginalPart
    run: dict[str, Any]
    conversion: list[str] = Field(default_factory=list)
    arms: dict[str, list[str]] = Field(min_length=1)
    budget: float = Field(BUDGET, gt=0, le=1)
    steps: int = Field(50, ge=1)
    staged_steps: list[int] = Field([20, 20, 10], min_length=1)
    seeds: list[int] = Field(min_length=1)
    clips: int = Field(2048, ge=65)
    batch: int = Field(32, ge=1)

    @model_validator(mode="after")
    def _claims_of_stages(self) -> "ConversionStudy":
        first = next(iter(self.arms))
        if "train.method=vanilla" in self.arms[first]:
            raise ValueError(f"the first arm, {first}, is the one that is claimed to be pyramidal; list controls later")
        return self

    def original_config(self, data: Path, base: Path, seed: int) -> Config:
        """The resolved configuration of the original's training.

        Raises:
            ValueError: an illegal key or value.
        """
        return self._config(data, base, seed, [*self.original.overrides, "train.method=vanilla"])

    def arm_config(self, arm: str, data: Path, base: Path, seed: int, steps: int) -> Config:
        """The resolved configuration of an arm that trains on from the original in `base`.

        Raises:
            ValueError: an illegal key or value.
        """
        return self._config(data, base, seed, [*self.conversion, *self.arms[arm], f"train.steps={steps}"])

    def _config(self, data: Path, base: Path, seed: int, overrides: list[str]) -> Config:
        fixed = [f"data.path={data}", f"pretrained.path={base}", f"seed={seed}", "log.keep_checkpoints=1"]
        return build_config(self.run, [*overrides, *fixed])


def load_conversion(path: str | Path, device: str = "cpu") -> ConversionStudy:
    """Read a study's YAML, see `read_study`, and try the configuration of every run.

    Raises:
        ValueError: what is wrong in it.
    """
    study = read_study(ConversionStudy, path, device)
    somewhere = Path("somewhere")
    study.original_config(somewhere, somewhere, study.seeds[0])
    for arm in study.arms:
        study.arm_config(arm, somewhere, somewhere, study.seeds[0], 1)
    return study
