"""Where the recipes lie: beside the package in a checkout, inside it when installed."""

from pathlib import Path


def recipe_path(name: str) -> Path:
    """The file of a shipped recipe, "demo" -> .../configs/demo.yaml.

    Raises:
        FileNotFoundError: no such recipe, with the known ones.
    """
    here = Path(__file__).resolve().parent
    folder = next(f for f in (here / "configs", here.parents[1] / "configs") if f.is_dir())
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise FileNotFoundError(f"no recipe {name!r}; known: {known}")
    return path
