"""Every key of a recipe with its values and its default, as markdown, from the sections themselves.

python -m tpdiff.training.key_reference > docs/recipe-keys.md
"""

import json
from collections.abc import Iterator
from typing import Any

from tpdiff.training.autoencoder_config import AutoencoderConfig
from tpdiff.training.config import Config
from tpdiff.training.section import Section

RECIPES: dict[str, type[Section]] = {"diffusion model": Config, "video autoencoder": AutoencoderConfig}
WORDS = {"integer": "integer", "number": "number", "string": "text", "object": "mapping", "null": "`null`"}
SIGNS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
IDLE = {"title", "description", "default", "additionalProperties"}  # of a JSON schema: they bound nothing
HEAD = """# Keys of a recipe

Made by `python -m tpdiff.training.key_reference`; a test compares. In YAML a key stands in its section; behind a recipe
on the command line it is written as here, `train.lr=3e-4`. `null` is Python's None. Unknown keys are refused.
"""


def page() -> str:
    """The whole reference: each kind of recipe, section by section; a section that both have stands once."""
    first: dict[str, str] = {}  # class of a section -> the recipe that it is described for
    parts = [HEAD]
    for recipe, kind in RECIPES.items():
        parts.append(f"## Recipe of a {recipe}\n")
        schema = kind.model_json_schema()
        for path, section in sections("", schema, schema["$defs"]):
            heading = f"### `{path}`\n\n" if path else ""
            here = first.setdefault(section["title"], recipe) == recipe
            parts.append(heading + (described(path, section) if here else f"As of a {first[section['title']]}.\n"))
    return "\n".join(parts)


def sections(path: str, section: dict[str, Any], known: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """("", the recipe itself), ("train", ...), ("pretrained.lora", ...): JSON schemas by where their keys are."""
    yield path, section
    for key, rule in section["properties"].items():
        for part in rule.get("anyOf", [rule]):
            if "$ref" in part:
                yield from sections(f"{path}.{key}".strip("."), known[part["$ref"].rpartition("/")[2]], known)


def described(path: str, section: dict[str, Any]) -> str:
    """A section's docstring, and a row for each of its keys."""
    rows = [section["description"], "", "| key | values | default |", "|---|---|---|"]
    for key, rule in section["properties"].items():
        rows.append(f"| `{f'{path}.{key}'.strip('.')}` | {values(rule)} | {_default(rule)} |")
    return "\n".join([*rows, ""])


def values(rule: dict[str, Any]) -> str:
    """What a JSON schema admits, in words: "integer ≥ 1 or `null`".

    Raises:
        ValueError: it has a rule that there are no words for.
    """
    *others, last = _choices(dict(rule))
    return f"{', '.join(others)} or {last}" if others else last


def _choices(rule: dict[str, Any]) -> list[str]:
    if "anyOf" in rule:
        parts, whole = rule["anyOf"], {"type": "integer"}  # a number may be whole
        parts = [part for part in parts if part != whole or {"type": "number"} not in parts]
        return [choice for part in parts for choice in _choices(dict(part))]
    if "$ref" in rule:
        return ["section"]
    if "enum" in rule or "const" in rule:
        return [f"`{one}`" for one in rule.get("enum", [rule.get("const")])]
    kind = rule.pop("type")
    if kind == "boolean":
        return ["`true`", "`false`"]
    several = _several(rule) if kind == "array" else ""
    bounds = " and ".join(f"{sign} {rule.pop(name)}" for name, sign in SIGNS.items() if name in rule)
    if rule.keys() - IDLE:
        raise ValueError(f"no words for {rule}")
    return [several or f"{WORDS[kind]} {bounds}".strip()]


def _several(rule: dict[str, Any]) -> str:
    parts, least, most = rule.pop("prefixItems", []), rule.pop("minItems", 0), rule.pop("maxItems", None)
    if most not in (None, len(parts)) or any(part != parts[0] for part in parts):
        raise ValueError(f"no words for a list of {least} to {most}, first {parts}")
    first, *rest = values(parts[0] if parts else rule.pop("items")).split(" ")
    words = " ".join(["list of", *([str(most)] if parts else []), f"{first}s", *rest])
    return words if parts or not least else f"{words}, at least {least}"


def _default(rule: dict[str, Any]) -> str:
    value = rule.get("default")
    words = f"`{value if value and isinstance(value, str) else json.dumps(value)}`"
    return "required" if "default" not in rule else "that of its keys" if "$ref" in rule else words


if __name__ == "__main__":
    print(page(), end="")
