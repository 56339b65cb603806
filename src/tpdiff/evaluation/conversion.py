"""A study of conversion, as a file: what pretrained model is made pyramidal, in which ways, and how it is judged."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tpdiff.evaluation.kept import settings_of
from tpdiff.evaluation.study import SOMEWHERE, StudyData, read_kept, read_study, seed_file
from tpdiff.pyramid.operators import Ratio
from tpdiff.recipes import recipe_path
from tpdiff.training.autoencoder_config import AutoencoderConfig, load_recipe
from tpdiff.training.config import Config
from tpdiff.training.load_config import build_config
from tpdiff.training.section import Section

BUDGET = 0.1


class AutoencoderPart(Section):
    """What encodes the original's clips: the recipe that trains it, and on which clips, apart from the study's.

    Attributes:
        recipe: by name.
        data: its own clips, best of the study's size: what small pictures hold, one of larger ones does not keep.
        overrides: changes of the recipe, `section.key=value`.
    """

    recipe: str
    data: StudyData
    overrides: list[str] = Field(default_factory=list)

    def config(self, data: Path) -> AutoencoderConfig:
        """The resolved recipe.

        Raises:
            ValueError: an illegal key or value, or the recipe of something else.
        """
        config = load_recipe(recipe_path(self.recipe), [*self.overrides, f"data.path={data}"])
        if not isinstance(config, AutoencoderConfig):
            raise ValueError(f"recipe {self.recipe!r} trains no autoencoder")
        return config

    @property
    def settings(self) -> dict[str, Any]:
        """All that its weights depend on, as JSON values."""
        return {"data": self.data.model_dump(mode="json"), "recipe": settings_of(self.config(SOMEWHERE))}


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


class TrainingFree(Section):
    """A control: the original's weights through stages that follow from the spectrum of its latents, not trained.

    Attributes:
        factors: (T, H, W) strides of its stages, finest first.
        tolerance: the largest share of a band's power that a stage may lose; see `spectral_pyramid`.
        steps: of its stages, coarsest first.
    """

    factors: list[Ratio] = Field(min_length=2)
    tolerance: float = Field(0.03, gt=0, lt=1)
    steps: list[int] = Field(min_length=2)

    @model_validator(mode="after")
    def _as_many(self) -> "TrainingFree":
        if len(self.steps) != len(self.factors):
            raise ValueError(f"steps are for {len(self.steps)} stages, and there are {len(self.factors)}")
        return self


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
        training_free: a control; the first arm's stages with the original's weights are another in any case.
        guidance_scale: classifier-free guidance of every sample; 1 is none.
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
    training_free: TrainingFree | None = None
    guidance_scale: float = Field(1.0, ge=1)
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

    def settings(self, seed: int) -> dict[str, Any]:
        """All that a seed's result depends on, as JSON values; arms may be added."""
        elsewhere = {"name", "title", "run", "conversion", "arms", "seeds"}
        configs = {"original": self.original_config(SOMEWHERE, SOMEWHERE, seed)}
        configs |= {arm: self.arm_config(arm, SOMEWHERE, SOMEWHERE, seed, 1) for arm in self.arms}
        runs = {name: settings_of(config) for name, config in configs.items()}
        autoencoder = self.original.autoencoder.settings
        return {**self.model_dump(mode="json", exclude=elsewhere), "runs": runs, "autoencoder": autoencoder}

    def _config(self, data: Path, base: Path, seed: int, overrides: list[str]) -> Config:
        fixed = [f"data.path={data}", f"pretrained.path={base}", f"seed={seed}", "log.keep_checkpoints=1"]
        return build_config(self.run, [*overrides, *fixed])


def load_conversion(path: str | Path, device: str = "cpu") -> ConversionStudy:
    """Read a study's YAML, see `read_study`, and try the configuration of every run.

    Raises:
        ValueError: what is wrong in it.
    """
    study = read_study(ConversionStudy, path, device)
    study.original_config(SOMEWHERE, SOMEWHERE, study.seeds[0])
    for arm in study.arms:
        study.arm_config(arm, SOMEWHERE, SOMEWHERE, study.seeds[0], 1)
    return study


def read_conversion(study: ConversionStudy, results: Path, seed: int) -> dict[str, Any]:
    """What is kept of a seed; {} where nothing is.

    Raises:
        ValueError: it was made with other settings.
    """
    return read_kept(seed_file(results, seed), study.settings(seed))


def is_whole(study: ConversionStudy, result: Mapping[str, Any]) -> bool:
    """Whether a seed's result is finished with all of the study's arms."""
    return bool(result.get("done")) and all(arm in result["variants"] for arm in study.arms)


def refuse_other_claims(study: ConversionStudy, results: Path, result: Mapping[str, Any]) -> None:
    """Refuse a finished seed whose comparisons and seconds are of another arm than the one that the claim is about.

    Raises:
        ValueError: naming that arm.
    """
    claimed = next(iter(study.arms))
    if claimed not in result["paired"]:
        raise ValueError(
            f"{seed_file(results, result['seed'])} compares nothing with {claimed}, the arm that the claim is about; "
            "remove it, or list first the arm that it was finished for"
        )
