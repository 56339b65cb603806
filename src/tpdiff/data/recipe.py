"""A made set of clips: a folder that remembers how it was made, can be continued after a kill, and ends with
captions.

`recipe.json` (the parameters) is written first and `metadata.jsonl` (the captions) last, each whole or not at
all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tpdiff.files import write_whole

from .errors import DataError

RECIPE = "recipe.json"
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class MadeSet:
    """A finished set: where it is, how many clips each split has, the distinct captions, how many clips were
    written by this call (fewer than all when it was continued)."""

    folder: Path
    splits: dict[str, int]
    captions: tuple[str, ...]
    written: int


def open_set(out: str | Path, recipe: dict[str, Any]) -> Path:
    """Start a set in an empty or new folder, or return to one that was begun with the same recipe.

    Raises DataError when the folder holds anything else, or a set made with other parameters (they are
    named).
    """
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder that is new or empty")
    recipe = json.loads(json.dumps(recipe))
    kept = folder / RECIPE
    if kept.is_file():
        old = json.loads(kept.read_text(encoding="utf-8"))
        other = [
            f"{key} {old.get(key)!r}, asked {recipe.get(key)!r}"
            for key in recipe | old
            if old.get(key) != recipe.get(key)
        ]
        if other:
            raise DataError(f"{folder} holds another set ({'; '.join(other)}); give a new folder or remove this one")
    elif folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise DataError(f"{folder} is not empty and was not made by this command; give a folder that is new or empty")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(recipe, indent=2) + "\n")
    return folder


def finish_set(folder: Path, rows: Sequence[dict[str, Any]], written: int) -> MadeSet:
    """Write the captions of a complete set and describe it. Each row has file_name, caption and split."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(folder / METADATA, lines)
    splits = dict(Counter(row["split"] for row in rows))
    return MadeSet(folder, splits, tuple(sorted({row["caption"] for row in rows})), written)


def count_test(clips: int, test_share: float) -> int:
    """Clips that go to the test split: the share, rounded, at least one of each split where there are two
    clips.

    Raises ValueError for fewer than one clip or a share outside 0 ... 0.5.
    """
    if clips < 1:
        raise ValueError(f"clips {clips} is below 1")
    if not 0 <= test_share <= 0.5:
        raise ValueError(f"test_share {test_share} is outside 0 ... 0.5; nearest: {min(max(test_share, 0), 0.5)}")
    if test_share == 0 or clips < 2:
        return 0
    return min(max(1, round(clips * test_share)), clips - 1)
