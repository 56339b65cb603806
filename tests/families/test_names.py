"""A model's name stands in its own file in families/ and nowhere else in the source."""

import re
from pathlib import Path

import pytest

from tpdiff.families.base import MODULES

ROOT = Path(__file__).resolve().parents[2] / "src" / "tpdiff"
NAME = re.compile("wan|cogvideox|ltx|hunyuan|mochi|animatediff|modelscope")
# Schedulers are known by their class names (schedulers/), of which two hold a model's.
SCHEDULERS = re.compile(r"cogvideox(ddim|dpm)(scheduler)?", re.IGNORECASE)
SOURCES = sorted(ROOT.rglob("*.py"))


def named(source: str, own: str = "") -> list[str]:
    """Words that hold a model's name other than `own`, with their lines; "want" and its like do not."""
    found = []
    for number, line in enumerate(source.splitlines(), 1):
        for word in re.findall(r"[A-Za-z0-9]+", SCHEDULERS.sub("", line)):
            parts = [part.lower() for part in re.findall(r"[A-Z]*[a-z0-9]+|[A-Z]+", word)]
            names = {re.sub(r"\d.*", "", part) for part in [word.lower(), *parts]}
            if any(NAME.fullmatch(name) and name != own for name in names):
                found.append(f"{number}: {word}")
    return found


def found_in(module: Path) -> list[str]:
    """A family's file may hold the family's own name, and the list of families all of them."""
    source = module.read_text(encoding="utf-8")
    if module.name in ("base.py", "__init__.py"):
        lists = ("MODULES = ", "from tpdiff.families.models import ", "    for module in (")
        source = "\n".join(line for line in source.splitlines() if not line.startswith(lists))
    family = ROOT / "families" in module.parents and module.stem in MODULES
    return named(source, module.stem if family else "")


def test_no_model_is_named_elsewhere():
    assert {str(module): found for module in SOURCES if (found := found_in(module))} == {}


@pytest.mark.parametrize("source", ["import WanPipeline", "x = 'wan'", "# LTX does", "HunyuanVideo15", "mochi_vae"])
def test_the_rule_sees_names(source):
    assert named(source)


@pytest.mark.parametrize("source", ["what is wanted", "CogVideoXDDIMScheduler", "swans want"])
def test_the_rule_sees_no_more(source):
    assert named(source) == []


@pytest.mark.parametrize("name", MODULES)
def test_every_family_has_a_file_and_a_page(name):
    assert (ROOT / "families" / f"{name}.py").is_file()
    assert (ROOT.parents[1] / "docs" / "families" / f"{name}.md").is_file()
