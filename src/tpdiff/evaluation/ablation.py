"""An ablation, as a file: variants of a recipe, each trained by the same number of operations or sampled otherwise."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tpdiff.evaluation.kept import settings_of
from tpdiff.evaluation.study import SOMEWHERE, StudyData, read_kept, read_study
from tpdiff.pyramid.operators import Ratio
from tpdiff.recipes import recipe_path
from tpdiff.training.config import Config
from tpdiff.training.load_config import load_config
from tpdiff.training.section import Section

Jump = Literal["corrected", "plain", "printed"]


class Variant(Section):
    """What is compared.

    Attributes:
        overrides: changes of the recipe it is trained by, `section.key=value`.
        of: the variant whose weights it samples from, instead of training.
        against: the variant before it that its differences are from; None: the first.
        jump: how stages are entered: "corrected" (MATH 3), "plain" (rescaled and upsampled alone), or "printed" (the
            coefficient as TPDiff's Eq. 15 prints it).
        spectral: (T, H, W) factors of a pyramid whose levels follow from the spectrum of the latents, without training.
        tolerance: of such a pyramid.
    """

    overrides: list[str] = Field(default_factory=list)
    of: str | None = None
    against: str | None = None
    jump: Jump = "corrected"
    spectral: list[Ratio] | None = None
    tolerance: float = Field(0.03, gt=0, lt=1)


class Ablation(Section):
    """Variants that share a recipe, data, seeds and training operations.

    Attributes:
        name: of its folders.
        title: of its page.
        recipe: the recipe all variants share, by name.
        overrides: changes for all.
        data: the set.
        variants: by name.
        operations: of each trained variant's training, in units of 1e12.
        steps: totals of sampling steps at each of which all are judged, the last the one that differences are taken at.
        seeds: of training, samples and intervals.
        clips: samples of each.
    """

    name: str
    title: str
    recipe: str
    overrides: list[str] = Field(default_factory=list)
    data: StudyData = StudyData()
    variants: dict[str, Variant] = Field(min_length=2)
    operations: float = Field(gt=0)
    steps: list[int] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    clips: int = Field(2048, ge=65)

    @model_validator(mode="after")
    def _all_are_there(self) -> "Ablation":
        for name, variant in self.variants.items():
            if variant.of is not None and (variant.of == name or variant.of not in self.trained):
                raise ValueError(
                    f"{name} samples of {variant.of!r}, which is not trained; choose {', '.join(self.trained)}"
                )
            if variant.of is not None and variant.overrides:
                raise ValueError(f"{name} is not trained, so that its overrides would do nothing; leave them out")
            before = list(self.variants)[: list(self.variants).index(name)]
            if variant.against is not None and variant.against not in before:
                raise ValueError(
                    f"{name} is compared with {variant.against!r}, which is not before it; choose "
                    f"{', '.join(before) or 'none'}"
                )
        return self

    @property
    def trained(self) -> list[str]:
        """Variants with weights of their own."""
        return [name for name, variant in self.variants.items() if variant.of is None]

    def base(self, variant: str) -> str | None:
        """The variant that its differences are from; None for the first."""
        first = next(iter(self.variants))
        return self.variants[variant].against or (None if variant == first else first)

    def told(self, variant: str) -> bool:
        """Whether it is told what to show."""
        trained = self.variants[variant].of or variant
        return self.config(trained, SOMEWHERE, self.seeds[0], 1).condition.kind != "none"

    def config(self, variant: str, data: Path, seed: int, steps: int) -> Config:
        """The resolved configuration of a trained variant.

        Raises:
            ValueError: the recipe or a change is illegal.
        """
        own = [f"data.path={data}", f"seed={seed}", f"train.steps={steps}", "train.seconds=null"]
        fixed = ["log.checkpoint_every_steps=1000", "log.keep_checkpoints=1"]
        overrides = [*self.overrides, *self.variants[variant].overrides, *own, *fixed]
        return load_config(recipe_path(self.recipe), overrides)

    def settings(self, seed: int, name: str) -> dict[str, Any]:
        """All that a variant's result depends on, what it is compared with too, as JSON values."""
        shared = self.model_dump(mode="json", include={"data", "operations", "steps", "clips"})
        base = self.base(name)
        compared = {} if base is None else {"base": self._own_settings(seed, base, "against")}
        return {**shared, **self._own_settings(seed, name), **compared}

    def _own_settings(self, seed: int, name: str, *without: str) -> dict[str, Any]:
        variant = self.variants[name]
        config = self.config(variant.of or name, SOMEWHERE, seed, 1)
        told = variant.model_dump(mode="json", exclude={"overrides", *without})
        return {"variant": told, "config": settings_of(config)}


def load_ablation(path: str | Path, device: str = "cpu") -> Ablation:
    """Read an ablation's YAML, see `read_study`, and try the configuration of every variant.

    Raises:
        ValueError: what is wrong in it.
    """
    study = read_study(Ablation, path, device)
    configs = {name: study.config(name, SOMEWHERE, study.seeds[0], 1) for name in study.trained}
    for name, variant in study.variants.items():
        if variant.spectral is not None and configs[variant.of or name].model.autoencoder is None:
            raise ValueError(
                f"{name}: a spectral pyramid follows from latents, and there are none; set model.autoencoder"
            )
    return study


def variant_file(results: Path, seed: int, variant: str) -> Path:
    """Where the result of a variant is kept."""
    return results / f"seed-{seed}" / f"{variant}.json"


def read_variant(study: Ablation, results: Path, seed: int, variant: str) -> dict[str, Any]:
    """What is kept of a variant; {} where nothing is.

    Raises:
        ValueError: it was made with other settings.
    """
    return read_kept(variant_file(results, seed, variant), study.settings(seed, variant))
