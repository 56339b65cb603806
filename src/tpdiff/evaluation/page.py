"""What every HTML page that needs nothing but itself is made of: templates, figures as text, embedded videos."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

MISSING = "—"
_TYPES = {".mp4": "video/mp4", ".webm": "video/webm"}


@dataclass(frozen=True)
class ConfigRow:
    """One configuration key and its value in every run, as text."""

    key: str
    values: list[str]
    differs: bool


def environment(folder: Path) -> jinja2.Environment:
    """The templates, and filters for what they show; paths of videos are relative to `folder`."""
    templates = jinja2.FunctionLoader(
        lambda name: (files("tpdiff.evaluation") / "templates" / name).read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        loader=templates,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        video=lambda path: _data_uri(folder / path),
        digest=lambda text: base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode(),
        number=number,
        count=count,
        gflop=gflop,
        plain=plain,
        pretty=lambda value: json.dumps(value, indent=2, ensure_ascii=False, default=str),
        words=lambda key: str(key).replace("_", " "),
    )
    return environment


def config_rows(configs: Sequence[Mapping[str, Any]]) -> list[ConfigRow]:
    """Every dotted key of nested configurations, in order of appearance."""
    flat = [flatten(config) for config in configs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = []
    for key in keys:
        values = [config.get(key, MISSING) for config in flat]
        rows.append(ConfigRow(key, values, len(set(values)) > 1))
    return rows


def check_video(folder: Path, path: str) -> None:
    """Refuse a path that cannot be embedded.

    Raises:
        ValueError: it leaves `folder`, or is of a type browsers do not play.
        FileNotFoundError: nothing is there.
    """
    if os.path.isabs(path) or os.path.normpath(path).split(os.sep)[0] == os.pardir:
        raise ValueError(f"video path {path!r} leaves its folder; make it relative, inside {folder}")
    if Path(path).suffix.lower() not in _TYPES:
        raise ValueError(f"video {path!r} is not of a kind browsers play; use {' or '.join(_TYPES)}")
    if not (folder / path).is_file():
        raise FileNotFoundError(f"video {path!r} is not in {folder}")


def _data_uri(path: Path) -> str:
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_TYPES[path.suffix.lower()]};base64,{content}"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings -> dotted keys and text; lists stay whole."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = plain(value)
    return flat


def plain(value: Any) -> str:
    """A JSON value as a reader would write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        if any(isinstance(item, (list, tuple, Mapping)) for item in value):
            return json.dumps(value, ensure_ascii=False, default=str)
        return ", ".join(map(plain, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or "none"
    return str(value)


def number(value: float) -> str:
    """Three significant digits, never in exponent form."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return f"{value:.6f}" if "e" in text else text


def count(value: int | None) -> str:
    """A whole number with its thousands apart."""
    return MISSING if value is None else f"{value:,}"


def gflop(flops: int) -> str:
    """Operations in units of 1e9; where none were counted, a dash."""
    return number(flops / 1e9) if flops > 0 else MISSING
