"""Reading a configuration: YAML file, dotted overrides, and errors that say what to type instead."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from tpdiff.recipes import recipe_path
from tpdiff.training.config import Config
from tpdiff.training.section import Section

Kind = TypeVar("Kind", bound=Section)

QUOTES = ("'", '"', "|", ">")  # with which YAML begins a text
STUDIES = {"original": "conversion.py", "variants": "ablations.py", "arms": "training_comparison.py"}  # by a key
NULLS = ("", "~", "null", "Null", "NULL")


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names every offending key."""


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML recipe, a file or the name of a shipped one, and apply `section.key=value` overrides, values written
    as YAML; those that are text need no quotes.

    Raises:
        ConfigError: no such file, bad YAML, unknown keys (with the closest known one) or illegal values.
    """
    return build_config(read_values(path), overrides)


def read_values(path: str | Path) -> dict[str, Any]:
    """The nested values of a YAML recipe: of a file, or of the shipped one where a bare name is no file.

    Raises:
        ConfigError: no such file, with those near by and the names of those that are shipped, not YAML sections, or
            those of a study, with the command that runs it.
    """
    path = _recipe_file(Path(path))
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold sections such as data, model, train")
    for key, program in STUDIES.items():
        if key in values:
            raise ConfigError(
                f"{path} is a study, since it has {key!r}, and no recipe; run it by: python benchmarks/{program} {path}"
            )
    return values


def build_config(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """A `Config` from nested values and dotted overrides.

    Raises:
        ConfigError: as `load_config`.
    """
    return build(Config, values, overrides)


def build(kind: type[Kind], values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Kind:
    """A configuration of any kind from nested values and dotted overrides.

    Raises:
        ConfigError: as `load_config`.
    """
    merged = _copy(values)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r} is not section.key=value")
        path = key.split(".")
        _set(merged, path, _parse(key, text, _is_text(kind, path)))
    problems = list(_unknown_keys(kind, merged, ()))
    if problems:
        raise ConfigError("; ".join(problems))
    try:
        return kind.model_validate(merged)
    except ValidationError as error:
        raise ConfigError("; ".join(_explain(e) for e in error.errors())) from None


def dump_config(config: Section) -> str:
    """The resolved configuration as YAML, as it is saved beside every result."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def config_difference(a: Section, b: Section) -> list[str]:
    """One line for every key whose value differs: "train.lr: 0.001 -> 0.0003"."""
    left, right = dict(flatten(a.model_dump(mode="json"))), dict(flatten(b.model_dump(mode="json")))
    keys = [*left, *(k for k in right if k not in left)]
    return [f"{k}: {left.get(k)} -> {right.get(k)}" for k in keys if left.get(k) != right.get(k)]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("train.lr", 0.001), ... of nested sections."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _recipe_file(path: Path) -> Path:
    """The file itself, or that of the shipped recipe of this bare name."""
    if path.is_file():
        return path
    near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    hint = difflib.get_close_matches(str(path), near, n=3, cutoff=0.4)
    absent = f"no configuration at {path}" + (f"; nearest: {', '.join(hint)}" if hint else "")
    if path.suffix or str(path) != path.name:
        raise ConfigError(absent)
    try:
        return recipe_path(path.name)
    except FileNotFoundError as error:
        raise ConfigError(f"{absent}; {error}") from None


def _parse(key: str, text: str, is_text: bool) -> Any:
    """A value as YAML reads it, text as typed, and numbers as people write them: YAML takes 1e-4 for text."""
    typed = text.strip()
    try:
        value = yaml.load(text, yaml.BaseLoader if is_text else yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{key}: {text!r} is not a YAML value ({reason}); quote it twice: {key}='\"...\"'") from None
    if is_text and typed in NULLS:
        return None
    if isinstance(value, str) and not typed.startswith(QUOTES):
        value = typed  # YAML would take " #" for the start of a remark
    if is_text:
        return typed if value is None else value
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_text(kind: type[BaseModel], path: Sequence[str]) -> bool:
    """Whether a key takes any text; of an unknown one nothing is said here."""
    section: type[BaseModel] | None = kind
    for name in path[:-1]:
        above = section.model_fields.get(name) if section else None
        section = _section(above.annotation) if above else None
    field = section.model_fields.get(path[-1]) if section else None
    return field is not None and str in _kinds(field.annotation)


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{'.'.join(path)} goes below {name}, which is not a section")
    values[path[-1]] = value


def _unknown_keys(model: type[BaseModel], values: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    for key, value in values.items():
        here = ".".join((*path, str(key)))
        field = model.model_fields.get(key)
        if field is None:
            nearest = difflib.get_close_matches(str(key), model.model_fields, n=1, cutoff=0)
            yield f"unknown key {here}; did you mean {'.'.join((*path, *nearest))}?"
        elif isinstance(value, Mapping) and (section := _section(field.annotation)):
            yield from _unknown_keys(section, value, (*path, key))


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation names, alone or beside None."""
    return next((kind for kind in _kinds(annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _kinds(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{where} is required"
    if error["type"] == "value_error" or not where:
        return message
    return f"{where}: {message[0].lower()}{message[1:]}, got {error['input']!r}"
