"""A comparison of training methods, as a file: which arms, for how long, judged how."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError, model_validator

from tpdiff.data import record_doom, render_digits
from tpdiff.evaluation.arms import Clock
from tpdiff.evaluation.kept import refuse_others, settings_of
from tpdiff.files import write_whole
from tpdiff.recipes import recipe_path
from tpdiff.training.config import Config
from tpdiff.training.load_config import load_config
from tpdiff.training.section import Section

LONGEST_SLICE = 20.0
TRIAL = {"data", "clock", "slice_seconds", "clips", "steps", "guidance_scale"}  # what a trial's figures depend on
WHOLE = TRIAL | {"evaluations", "final_clips"}
SOMEWHERE = Path("somewhere")  # where a set lies is no part of what a result depends on
Kind = TypeVar("Kind", bound=Section)


class StudyData(Section):
    """The set that is made for the study: `tpdiff data doom` or `tpdiff data digits`, `test_share` of it held out."""

    kind: Literal["doom", "digits"] = "doom"
    scenario: str = "basic"
    clips: int = Field(4096, ge=4)
    frames: int = Field(33, ge=1)
    size: tuple[int, int] = (32, 48)
    frame_skip: int = Field(2, ge=1)
    pace: float = Field(1.0, gt=0, le=2)
    test_share: float = Field(0.5, ge=0, le=0.5)
    seed: int = Field(0, ge=0)


class Study(Section):
    """Arms that share a recipe, a machine and a clock.

    Attributes:
        name: of its folders.
        title: of its page.
        recipe: the recipe all arms share, by name.
        overrides: changes for all arms, `section.key=value`.
        data: the set.
        arms: changes of each arm; the first is what the others are compared with.
        learning_rates: each arm is tried with each of them, and keeps the one with the smallest distance.
        sweep_seconds: training seconds of each trial.
        sweep_seed: the trials' seed, apart from the study's.
        seeds: one whole comparison a seed.
        seconds: training seconds of each arm and seed.
        clock: "wall", or "cpu" for the processor time of the process, which other work on the machine does not touch.
        slice_seconds: arms take turns of so many seconds, at most 20.
        evaluations: how often the distance is taken, at equal distances in time.
        clips: samples for it.
        final_clips: samples of the trained arms.
        steps, guidance_scale: how they are sampled.
    """

    name: str
    title: str
    recipe: str
    overrides: list[str] = Field(default_factory=list)
    data: StudyData = StudyData()
    arms: dict[str, list[str]] = Field(min_length=2)
    learning_rates: list[float] = Field(min_length=3)
    sweep_seconds: float = Field(240, gt=0)
    sweep_seed: int = Field(100, ge=0)
    seeds: list[int] = Field(min_length=1)
    seconds: float = Field(1800, gt=0)
    clock: Clock = "wall"
    slice_seconds: float = Field(15, gt=0, le=LONGEST_SLICE)
    evaluations: int = Field(10, ge=3)
    clips: int = Field(256, ge=65)
    final_clips: int = Field(2048, ge=65)
    steps: int = Field(15, ge=1)
    guidance_scale: float = Field(1.0, ge=1)

    @model_validator(mode="after")
    def _seeds_are_apart(self) -> "Study":
        if self.sweep_seed in self.seeds:
            raise ValueError(f"sweep_seed {self.sweep_seed} is also one of the seeds; choose another")
        return self

    def config(self, arm: str, data: Path, seed: int, lr: float, seconds: float) -> Config:
        """The resolved configuration of one arm.

        Raises:
            ValueError: the recipe or a change is illegal.
        """
        own = [f"data.path={data}", f"seed={seed}", f"train.lr={lr:g}", f"train.seconds={seconds:g}"]
        fixed = ["train.steps=null", "log.checkpoint_every_steps=null", "log.keep_checkpoints=1"]
        return load_config(recipe_path(self.recipe), [*self.overrides, *self.arms[arm], *own, *fixed])

    def trial_settings(self, lr: float) -> dict[str, Any]:
        """All that a trial's result depends on, as JSON values."""
        return self._settings(self.sweep_seed, dict.fromkeys(self.arms, lr), self.sweep_seconds, TRIAL)

    def seed_settings(self, seed: int, rates: Mapping[str, float]) -> dict[str, Any]:
        """All that a seed's result depends on, as JSON values; `rates` are the arms' learning rates."""
        return self._settings(seed, rates, self.seconds, WHOLE)

    def _settings(self, seed: int, rates: Mapping[str, float], seconds: float, fields: set[str]) -> dict[str, Any]:
        configs = {arm: self.config(arm, SOMEWHERE, seed, rates[arm], seconds) for arm in self.arms if arm in rates}
        arms = {arm: settings_of(config) for arm, config in configs.items()}
        return {**self.model_dump(mode="json", include=fields), "names": list(self.arms), "arms": arms}


def read_study(kind: type[Kind], path: str | Path, device: str = "cpu") -> Kind:
    """Read a study's YAML: its own size, or for a GPU the one of its section `cuda`.

    What that section says takes the place of what the rest says of the same keys, mappings within mappings too, and the
    name gets "-cuda" appended: two sizes are two studies.

    Args:
        kind: of study.
        path: of the YAML.
        device: "cpu" or "cuda".

    Raises:
        ValueError: what is wrong in it, or no such section.
    """
    values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    larger = values.pop("cuda", None) if isinstance(values, dict) else None
    if device == "cuda":
        if larger is None:
            raise ValueError(f"{path} has no section cuda, which gives the size for a GPU; leave --device cuda out")
        values = _replaced(values, larger) | {"name": f"{values.get('name')}-cuda"}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _replaced(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = values | changes
    shared = [key for key in changes if isinstance(values.get(key), dict) and isinstance(changes[key], dict)]
    return both | {key: _replaced(values[key], changes[key]) for key in shared}


def load_study(path: str | Path, device: str = "cpu") -> Study:
    """Read a study's YAML, see `read_study`, and try the configuration of every arm.

    Raises:
        ValueError: what is wrong in it.
    """
    study = read_study(Study, path, device)
    for arm in study.arms:
        study.config(arm, SOMEWHERE, study.seeds[0], study.learning_rates[0], study.seconds)
    return study


def make_data(data: StudyData, out: Path, progress: Any = None) -> Path:
    """A study's set, made or continued. Its test split is what no arm ever trains on."""
    if data.kind == "digits":
        return render_digits(
            out, clips=data.clips, frames=data.frames, test_share=data.test_share, seed=data.seed
        ).folder
    return record_doom(
        out,
        clips=data.clips,
        frames=data.frames,
        scenario=data.scenario,
        size=data.size,
        frame_skip=data.frame_skip,
        pace=data.pace,
        seed=data.seed,
        test_share=data.test_share,
        progress=progress,
    ).folder


def read_result(path: Path) -> dict[str, Any]:
    """What `write_result` wrote; {} where nothing is."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_kept(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept there of a study; {} where nothing is.

    Raises:
        ValueError: it was made with other settings, see `kept.refuse_others`.
    """
    result = read_result(path)
    refuse_others(path, result, settings)
    return result


def trial_file(results: Path, lr: float) -> Path:
    """Where the result of a trial is kept."""
    return results / f"trial-{lr:g}.json"


def seed_file(results: Path, seed: int) -> Path:
    """Where the result of a seed is kept."""
    return results / f"seed-{seed}.json"


def read_trial(study: Study, results: Path, lr: float) -> dict[str, Any]:
    """What is kept of a trial, as `read_kept`."""
    return read_kept(trial_file(results, lr), study.trial_settings(lr))


def read_seed(study: Study, results: Path, seed: int) -> dict[str, Any]:
    """What is kept of a seed, as `read_kept`."""
    path = seed_file(results, seed)
    return read_kept(path, study.seed_settings(seed, rates_of(read_result(path))))


def rates_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The arms' learning rates in what is kept of a seed."""
    return {name: row["lr"] for name, row in result.get("arms", {}).items()}


def write_result(path: Path, result: dict[str, Any]) -> None:
    """JSON, whole or not at all."""
    write_whole(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
