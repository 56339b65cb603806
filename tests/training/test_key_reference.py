"""docs/recipe-keys.md is what the sections say, and what it says can be typed."""

import re
from pathlib import Path

import pytest

from tpdiff.training.autoencoder_config import AutoencoderConfig
from tpdiff.training.config import Config
from tpdiff.training.key_reference import RECIPES, page, values
from tpdiff.training.load_config import ConfigError, build, flatten

PAGE = Path(__file__).resolve().parents[2] / "docs" / "recipe-keys.md"
ROW = re.compile(r"^\| `(\S+)` \| (.+) \| (.+) \|$", re.M)
OUTSIDE = {"≥": -1, ">": 0, "≤": 1, "<": 0}  # what to add to a bound to be outside of it


def rows():
    """(kind of recipe, key, values, default) as the committed page has them."""
    for part in PAGE.read_text(encoding="utf-8").split("## Recipe of a ")[1:]:
        name = part.partition("\n")[0]
        for key, values_, default in ROW.findall(part):
            if not values_.startswith("section"):
                yield pytest.param(RECIPES[name], key, values_, default, id=f"{name}-{key}")


def least(kind, key):
    """A recipe that says as little as one may that leaves `key` out, but has its section."""
    recipe = {"data": {"path": "videos"}, "train": {"seconds": 60} if key == "train.steps" else {"steps": 1}}
    if kind is AutoencoderConfig:
        recipe["data"]["frames"] = 17
    if key == "data.path":
        recipe |= {"data": {"shards": "shards"}, "model": {"autoencoder": "folder"}}
    if key.startswith("pretrained."):
        recipe["pretrained"] = {"path": "folder"} | ({"lora": {}} if ".lora." in key else {})
    return recipe


def test_the_page_is_what_the_sections_say():
    said = PAGE.read_text(encoding="utf-8")
    assert said == page(), f"make it anew: python -m tpdiff.training.key_reference > docs/{PAGE.name}"
    assert max(map(len, said.splitlines())) <= 126


@pytest.mark.parametrize("kind", RECIPES.values(), ids=RECIPES)
def test_every_key_stands_on_the_page(kind):
    told = {key for found, key, *_ in (row.values for row in rows()) if found is kind}
    recipe = least(kind, "pretrained.lora." if kind is Config else "")
    keys = {key for key, _ in flatten(build(kind, recipe).model_dump() | {"data": {}, "log": {}})}
    assert keys - {"pretrained.options"} <= told


@pytest.mark.parametrize(("kind", "key", "values_", "default"), rows())
def test_a_key_takes_what_the_page_says(kind, key, values_, default):
    recipe = least(kind, key)
    if default == "required":
        section, name = key.split(".")
        del recipe[section][name]
        with pytest.raises(ConfigError, match=f"{re.escape(key)} is required"):
            build(kind, recipe)
    else:
        assert build(kind, recipe, [f"{key}={default.strip('`')}"]) == build(kind, recipe)
    bounds = [(sign, float(bound)) for sign, bound in re.findall(r"([≥>≤<]) (\S+)", values_)]
    for value in [f"{bound:g}" for sign, bound in bounds if sign in "≥≤"] + re.findall(r"`(\S+)`", values_):
        assert not refused(kind, recipe, key, value)
    for value in [f"{bound + OUTSIDE[sign]:g}" for sign, bound in bounds] + ["nonsense"] * (values_[:4] != "text"):
        assert refused(kind, recipe, key, value)


def refused(kind, recipe, key, value):
    """Whether a value is none for its key; what only the other keys do not go with does not count."""
    try:
        build(kind, recipe, [f"{key}={value}"])
    except ConfigError as error:
        return bool(re.match(rf"{re.escape(key)}[\w.\[\],]*: |{re.escape(key)} '", str(error)))
    return False


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"enum": ["adamw", "adamw8bit"], "type": "string"}, "`adamw` or `adamw8bit`"),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 1}, "number ≥ 0 and < 1"),
        ({"anyOf": [{"type": "boolean"}, {"type": "null"}]}, "`true`, `false` or `null`"),
        ({"type": "array", "items": {"type": "string"}, "minItems": 1}, "list of texts, at least 1"),
        (
            {"type": "array", "items": {"type": "array", "prefixItems": [{"type": "integer"}] * 3, "maxItems": 3}},
            "list of lists of 3 integers",
        ),
    ],
)
def test_values_read_like_words(rule, words):
    assert values(rule) == words


@pytest.mark.parametrize(
    "rule",
    [
        {"type": "integer", "multipleOf": 8},
        {"type": "string", "pattern": "a+"},
        {"type": "array", "items": {"type": "string"}, "maxItems": 4},
        {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "maxItems": 2},
    ],
)
def test_a_rule_without_words_is_refused(rule):
    with pytest.raises(ValueError, match="no words"):
        values(rule)
