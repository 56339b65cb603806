"""Who may import whom, read from the source, and what `import tpdiff.pyramid` really loads."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
ROOT = SOURCE / "tpdiff"
MODULES = sorted(ROOT.rglob("*.py"))

# Left to right: a package imports only packages of earlier groups, and itself.
GROUPS = (
    ("pyramid",),
    ("models", "data"),
    ("families",),
    ("schedulers",),
    ("sampling", "metrics"),
    ("training",),
    ("evaluation",),
    ("app", "cli"),
)
RANK = {package: rank for rank, group in enumerate(GROUPS) for package in group}
LAST = len(GROUPS) - 1
# Modules beside the packages import nothing of ours, so every package but the mathematics may use them.
BESIDE = {module.stem for module in ROOT.glob("*.py") if not module.stem.startswith("__")}

FORBIDDEN = {"data": {"diffusers", "transformers"}}
ONLY = {"pyramid": {"torch", "numpy", "scipy", "pywt", "tpdiff", *sys.stdlib_module_names}}


def imported_names(source: str, package: str) -> set[str]:
    """Dotted names that a module of dotted `package` imports anywhere in it, relative ones made absolute.

    `from a import b` counts as a.b, since b may be a module.
    """
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = parents[: len(parents) - node.level + 1] if node.level else []
            base += [node.module] if node.module else []
            names.update(".".join([*base, alias.name]) for alias in node.names)
    return names


def trespasses(source: str, package: str) -> list[str]:
    """Every import of a module in `package` ("tpdiff.sampling") that the rules forbid, in words."""
    own = package.split(".")[1] if "." in package else ""
    found = []
    for name in sorted(imported_names(source, package)):
        top, _, rest = name.partition(".")
        if top in FORBIDDEN.get(own, ()) or (own in ONLY and top not in ONLY[own]):
            found.append(f"{own} imports {name}")
        if top != "tpdiff" or not own:  # the top level is lazy and may name anything
            continue
        other = rest.split(".")[0]
        if other == own or (other in BESIDE and own != "pyramid"):
            continue
        if other in RANK:
            if RANK[other] >= RANK[own]:
                found.append(f"{own} imports {name}")
        elif other != "__version__" and RANK[own] < LAST:  # the top level stands to the right of everything
            found.append(f"{own} imports {name} from the top level")
    return found


def package_of(module: Path) -> str:
    return ".".join(module.parent.relative_to(SOURCE).parts)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_a_module_imports_only_to_its_left(module):
    assert trespasses(module.read_text(encoding="utf-8"), package_of(module)) == []


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_a_module_is_an_idea_on_a_screen_or_two(module):
    lines = len(module.read_text(encoding="utf-8").splitlines())
    assert lines <= 320, f"{lines} lines; at most about 300"


@pytest.mark.parametrize("name", sorted(BESIDE))
def test_a_module_beside_the_packages_imports_nothing_of_ours(name):
    names = imported_names((ROOT / f"{name}.py").read_text(encoding="utf-8"), "tpdiff")
    assert [one for one in sorted(names) if one.split(".")[0] == "tpdiff"] == []


def test_every_package_has_its_place():
    packages = {folder.parent.name for folder in ROOT.glob("*/__init__.py")}
    assert packages <= set(RANK), f"not in the order of packages: {sorted(packages - set(RANK))}"
    assert "pyramid" in packages


@pytest.mark.parametrize(
    ("package", "source", "forbidden"),
    [
        ("tpdiff.pyramid", "import tpdiff.sampling.loop", True),
        ("tpdiff.pyramid", "from tpdiff import sampling", True),
        ("tpdiff.pyramid", "from tpdiff.pyramid.schedule import Level", False),
        ("tpdiff.pyramid", "from . import schedule", False),
        ("tpdiff.pyramid", "from .. import sampling", True),
        ("tpdiff.pyramid", "from ..models.blocks import Block", True),
        ("tpdiff.pyramid", "import math, torch\nfrom scipy.optimize import linear_sum_assignment", False),
        ("tpdiff.pyramid", "def f():\n    import diffusers", True),
        ("tpdiff.pyramid", "import yaml", True),
        ("tpdiff.models", "from tpdiff.data.video import read", True),
        ("tpdiff.models.parts", "from ...data import video", True),
        ("tpdiff.models.parts", "from ..blocks import Block", False),
        ("tpdiff.models", "if TYPE_CHECKING:\n    from tpdiff.training import config", True),
        ("tpdiff.data", "from diffusers import AutoencoderKL", True),
        ("tpdiff.data", "def f():\n    import transformers.models", True),
        ("tpdiff.data", "import av", False),
        ("tpdiff.schedulers", "from tpdiff.sampling.loop import sample_pyramid", True),
        ("tpdiff.sampling", "from tpdiff.schedulers import PyramidScheduler", False),
        ("tpdiff.sampling", "from tpdiff.families import wan\nfrom tpdiff.pyramid import Pyramid", False),
        ("tpdiff.training", "from tpdiff import sample_pyramid", True),
        ("tpdiff.training", "from tpdiff import __version__", False),
        ("tpdiff.evaluation", "from tpdiff.training.config import Config", False),
        ("tpdiff.app", "from tpdiff.cli import main", True),
        ("tpdiff.cli", "from tpdiff import sample_pyramid", False),
        ("tpdiff", "from tpdiff.sampling.loop import sample_pyramid", False),
    ],
)
def test_the_rules_see_what_they_should(package, source, forbidden):
    assert bool(trespasses(source, package)) is forbidden


def test_the_mathematics_loads_no_framework():
    """In a fresh interpreter, so that nothing another test imported hides anything."""
    heavy = ["diffusers", "transformers", "accelerate", "peft", "av", "rich", "typer"]
    program = (
        "import sys, tpdiff.pyramid\n"
        f"loaded = [name for name in {heavy} if name in sys.modules]\n"
        "ours = {name.split('.')[1] for name in sys.modules if name.startswith('tpdiff.')}\n"
        "print(loaded, ours, tpdiff.__file__)"
    )
    env = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, env=env, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"[] {{'pyramid'}} {ROOT / '__init__.py'}"
