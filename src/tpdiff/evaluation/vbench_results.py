"""What VBench measured of a set of videos: its own figures, read from its JSON files and held to the set."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tpdiff.evaluation.vbench import SUITES, TOTAL, UNJUDGED, Suite
from tpdiff.evaluation.vbench_set import RESULTS, STANDARD, VideoSet, digest_of, read_set

PATTERN = "*_eval_results.json"
SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Score:
    """A dimension's figure.

    Attributes:
        value: as VBench wrote it.
        normalised: as it enters the suite's totals; None for other prompts than the suite's.
        videos: that it is the figure of.
        of: videos that it could be of.
        absent: names of those that the results do not name.
        file: where it was read.
    """

    value: float
    normalised: float | None
    videos: int
    of: int
    absent: tuple[str, ...]
    file: str


@dataclass(frozen=True)
class Measured:
    """All that VBench measured of a set.

    Attributes:
        suite, mode: what was measured, and whether on the suite's own prompts.
        protocol: the prompts, the model, how it was sampled, and the files that were read.
        dimensions: figures, in the suite's order.
        missing: dimensions without one, and why.
        totals: the suite's own scores over several dimensions.
        withheld: those that are not given, and why.
    """

    suite: str
    mode: str
    protocol: dict[str, Any]
    dimensions: dict[str, Score]
    missing: dict[str, str]
    totals: dict[str, float]
    withheld: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def read_results(folder: str | Path, results: Sequence[str | Path] = ()) -> Measured:
    """Read the figures of a set of videos.

    folder: the set. results: VBench's files, or folders that hold them; none: "results" in the set's folder.

    Raises:
        ValueError: no set or no results, a file of another shape, a dimension that is not the set's or is in two
            files, a figure that is no number, or figures of other videos.
    """
    folder = Path(folder).resolve()
    videos = read_set(folder)
    suite = SUITES[videos.suite]
    found: dict[str, Score] = {}
    files = _files([Path(path) for path in results] or [folder / RESULTS])
    for path in files:
        for dimension, value in _read(path).items():
            if dimension not in videos.dimensions:
                raise ValueError(f"{path}: {dimension} is not measured on this set: {', '.join(videos.dimensions)} are")
            if dimension in found:
                raise ValueError(f"{dimension} is in {found[dimension].file} and in {path}; give the file that counts")
            found[dimension] = _score(path, folder, videos, dimension, value)
    standard = videos.mode == STANDARD
    asked = suite.dimensions if standard else tuple(videos.dimensions)
    missing = {
        dimension: "no results" if dimension in videos.dimensions else "not in this set"
        for dimension in asked
        if dimension not in found
    }
    scores = {dimension: found[dimension] for dimension in asked if dimension in found}
    whole = {d: s.value for d, s in scores.items() if d in suite.sparse or not s.absent}
    totals = suite.totals(whole) if standard else {}
    return Measured(
        suite.name,
        videos.mode,
        {
            "prompts": videos.prompts,
            "sampling": videos.sampling,
            "videos": len(videos.videos),
            "results": {str(path): digest_of(path) for path in files},
        },
        scores,
        missing,
        totals,
        _withheld(suite, totals, missing, scores) if standard else {},
    )


def _files(paths: Sequence[Path]) -> list[Path]:
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob(PATTERN)))]
    if not files:
        raise ValueError(f"no results of VBench: no {PATTERN} in {', '.join(map(str, paths))}")
    return list(dict.fromkeys(files))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path} holds no figures by dimension, as VBench's {PATTERN} do")
    return values


def _score(path: Path, folder: Path, videos: VideoSet, dimension: str, value: Any) -> Score:
    """A dimension's entry, [figure, [{"video_path": ..., "video_results": ...}, ...]], held to the set."""
    try:
        figure, rows = value
        measured = [Path(row["video_path"]) for row in rows]
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"{path}: {dimension} is not [figure, [{{video_path, ...}}, ...]] as VBench writes") from None
    if isinstance(figure, bool) or not isinstance(figure, int | float) or not math.isfinite(figure):
        raise ValueError(f"{path}: the figure of {dimension} is {figure}, no number")
    names, place = videos.listed(dimension), videos.measured_in(dimension)
    known, above = set(names), (folder.name, *Path(place).parts)
    strange = [one for one in measured if one.name not in known or not _same_end(one, (*above, one.name))]
    if strange:
        raise ValueError(
            f"{path}: {dimension} was measured on other videos than those of this set in {folder / place}: "
            f"{_some([str(one) for one in strange])}"
        )
    seen = {one.name for one in measured}
    judged = seen
    if dimension in SUITES[videos.suite].choosy:
        judged = {one.name for one, row in zip(measured, rows, strict=True) if row.get("video_results") != UNJUDGED}
    absent = tuple(name for name in names if name not in seen)
    normalised = SUITES[videos.suite].normalised(dimension, figure) if videos.mode == STANDARD else None
    return Score(float(figure), normalised, len(judged), len(names), absent, str(path))


def _same_end(path: Path, tail: Sequence[str]) -> bool:
    """Whether a path ends like the set's folder and what is below it: both may have been moved since."""
    depth = min(len(path.parts), len(tail))
    return path.parts[-depth:] == tuple(tail[-depth:])


def _withheld(
    suite: Suite, totals: dict[str, float], missing: dict[str, str], scores: dict[str, Score]
) -> dict[str, str]:
    why = {}
    for name, group in suite.groups.items():
        if name in totals:
            continue
        lacking = [f"{dimension}: {missing[dimension]}" for dimension in group if dimension in missing]
        partly = [d for d in group if d in scores and scores[d].absent and d not in suite.sparse]
        why[name] = "; ".join([*lacking, *(f"{d}: missing {_some(scores[d].absent)}" for d in partly)])
    if why:
        why[TOTAL] = f"needs {' and '.join(why)}"
    return why


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
