"""Where the trained models lie that come along: beside the package in a checkout, inside it when installed."""

import json
from pathlib import Path
from typing import Any

CARD = "made.json"
AUTOENCODER = "frame-autoencoder"


def shipped_models() -> dict[str, Path]:
    """Folders that `PyramidPipeline.from_pretrained` loads, by name ("gameplay-vanilla"), sorted; {} without any."""
    cards = sorted(path.parent for folder in _folders() for path in folder.glob(f"*/{CARD}"))
    return {p.name: p for p in cards if (p / "model_index.json").is_file()}


def shipped_autoencoder() -> Path:
    """The folder of the frame-wise autoencoder that `load_autoencoder` loads.

    Raises:
        FileNotFoundError: it does not come with this installation.
    """
    found = [folder / AUTOENCODER for folder in _folders() if (folder / AUTOENCODER / CARD).is_file()]
    if not found:
        raise FileNotFoundError(f"this installation lacks pretrained/{AUTOENCODER}; install from the repository")
    return found[0]


def or_shipped(path: str | Path) -> Path:
    """The path itself or, where nothing is, what comes along by its name: "gameplay-pyramid" and
    "pretrained/gameplay-pyramid" name that model from any working directory.
    """
    path = Path(path)
    if not path.exists() and path.parent in (Path(), Path("pretrained")):
        found = [folder / path.name for folder in _folders() if (folder / path.name / CARD).is_file()]
        return found[0] if found else path
    return path


def card(folder: Path) -> dict[str, Any]:
    """How a shipped model was made: command, seed, data, seconds, figures."""
    return dict(json.loads((folder / CARD).read_text(encoding="utf-8")))


def _folders() -> list[Path]:
    here = Path(__file__).resolve().parent
    return [f for f in (here / "pretrained", here.parents[1] / "pretrained") if f.is_dir()][:1]
