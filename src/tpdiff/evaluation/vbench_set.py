"""A set of videos as VBench looks for them: their folders, names and prompts, each video's seed, and how it is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tpdiff.evaluation.vbench import SUITES, VBENCH, Suite
from tpdiff.files import read_prompts, write_whole

SET, PROMPTS, INFO, SCRIPT = "vbench.json", "prompts.json", "full_info.json", "evaluate.sh"
VIDEOS, RESULTS, FILTERED = "videos", "results", "filtered/filtered_videos"
STANDARD, CUSTOM = "vbench_standard", "custom_input"
FLICKER = "temporal_flickering"
LONGEST = 255  # bytes of a file's name


@dataclass(frozen=True)
class Video:
    """A video that is wanted.

    Attributes:
        name: of its file.
        prompt: what it shows.
        index: its number among those of its prompt.
        seed: of its noise; no two of a set have the same.
        folders: where it belongs, relative to the set's folder.
    """

    name: str
    prompt: str
    index: int
    seed: int
    folders: tuple[str, ...]


@dataclass(frozen=True)
class VideoSet:
    """Videos for a suite.

    Attributes:
        suite: its name.
        mode: what VBench calls "vbench_standard", its own prompts, or "custom_input", others.
        prompts: the name of the file that they are from and its SHA-256.
        dimensions: the folder of each dimension's videos.
        videos: all that these dimensions take.
        sampling: the model and how it is sampled, JSON values.
    """

    suite: str
    mode: str
    prompts: dict[str, str]
    dimensions: dict[str, str]
    videos: tuple[Video, ...]
    sampling: dict[str, Any] = field(default_factory=dict)

    def measured_in(self, dimension: str) -> str:
        """The folder that VBench measures a dimension in, relative to the set's."""
        return FILTERED if self.mode == STANDARD and dimension == FLICKER else self.dimensions[dimension]

    def listed(self, dimension: str) -> tuple[str, ...]:
        """Names of the videos for which the results of a dimension may hold a figure."""
        most = SUITES[self.suite].listed.get(dimension)
        wanted = (video for video in self.videos if self.dimensions[dimension] in video.folders)
        return tuple(video.name for video in wanted if most is None or video.index < most)


def standard_set(path: str | Path, dimensions: Collection[str] = (), seed: int = 0) -> VideoSet:
    """What a suite's own prompts take. A prompt that stands in several folders has the same videos in all of them.

    path: the suite's file of prompts and dimensions, or its checkout. dimensions: those to be measured; none: all.
    seed: of the file's first video; others count on in the file's order, whichever dimensions are chosen.

    Raises:
        ValueError: no such file, one of another shape, an unknown dimension, or a prompt that names no file.
    """
    path = info_file(path)
    suite, entries = _read_info(path)
    folder_of = _folders(path, entries)
    chosen = _choose(dimensions, folder_of, f"in {path}")
    wanted: dict[str, Video] = {}
    for prompt, named in entries:
        stem = prompt[: suite.stem]
        for index in range(max(suite.more.get(d, suite.videos) for d in named)):
            name = f"{stem}-{index}.mp4"
            before = wanted.get(name) or Video(name, prompt, index, seed + len(wanted), ())
            if before.prompt != prompt:
                raise ValueError(f"{path}: two prompts have videos of the same name, {name!r}")
            wanted[name] = replace(before, folders=(*before.folders, named[0]))
        _check_name(f"{stem}-{index}.mp4", path)
    videos = _kept(wanted.values(), set(chosen.values()))
    return VideoSet(suite.name, STANDARD, _origin(path), chosen, videos)


def custom_set(
    path: str | Path, dimensions: Collection[str] = (), videos: int | None = None, seed: int = 0
) -> VideoSet:
    """What prompts of one's own take: numbered videos, since the prompts are in a file.

    path: a text file with one prompt a line. dimensions: of one suite; none: all that VBench takes in this mode.
    videos: of each prompt; None: as many as the suite has of its own.

    Raises:
        ValueError: no prompt, or dimensions that take none of one's own.
    """
    path = Path(path)
    prompts = read_prompts(path)
    suite = next((s for s in SUITES.values() if set(dimensions) & set(s.dimensions)), VBENCH)
    chosen = _choose(dimensions, dict.fromkeys(suite.custom, VIDEOS), f"that {suite.name} measures on other prompts")
    most = max(suite.more.get(d, suite.videos) for d in chosen)
    count = most if videos is None else videos
    if count < most and set(chosen) & set(suite.more):
        raise ValueError(f"{count} videos of a prompt are too few for {', '.join(chosen)}; nearest: {most}")
    made = tuple(  # a seed does not hang on how many videos each prompt has
        Video(f"{n:04d}-{index}.mp4", prompt, index, seed + index * len(prompts) + n, (VIDEOS,))
        for n, prompt in enumerate(prompts)
        for index in range(count)
    )
    return VideoSet(suite.name, CUSTOM, _origin(path), chosen, made)


def info_file(path: str | Path) -> Path:
    """A file itself; in a checkout, the file of prompts and dimensions.

    Raises:
        ValueError: none is there.
    """
    path = Path(path)
    if path.is_file():
        return path
    places = [path / suite.info for suite in SUITES.values()]
    found = [place for place in places if place.is_file()]
    if not found:
        raise ValueError(f"no file {path}, nor {' or '.join(map(str, places))}; give VBench's checkout or its file")
    return found[0]


def check_folder(folder: Path) -> None:
    """Raise ValueError for a file, or a folder of other things, among which a set's files would take their names."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder that is new or empty")
    others = folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir())
    if others and not (folder / SET).is_file():
        raise ValueError(f"{folder} is not empty and no set of videos; give a folder that is new or empty")


def read_set(folder: str | Path) -> VideoSet:
    """What `write_set` wrote.

    Raises:
        ValueError: no set there.
    """
    path = Path(folder) / SET
    if not path.is_file():
        raise ValueError(f"no set of videos in {folder}: {SET} is not there; `tpdiff vbench make` writes it")
    values = json.loads(path.read_text(encoding="utf-8"))
    videos = tuple(Video(**video | {"folders": tuple(video["folders"])}) for video in values.pop("videos"))
    return VideoSet(**values, videos=videos)


def write_set(wanted: VideoSet, folder: Path, source: bytes) -> None:
    """Write what goes with the videos: their record, their prompts as VBench reads them, and the script that runs it.

    source: the file that the prompts are from.
    """
    for place in sorted(set(wanted.dimensions.values())):
        (folder / place).mkdir(parents=True, exist_ok=True)
    if wanted.mode == STANDARD:
        write_whole(folder / INFO, source)
    else:
        write_whole(folder / PROMPTS, _json({video.name: video.prompt for video in wanted.videos}))
    write_whole(folder / SCRIPT, script(wanted))
    write_whole(folder / SET, _json(asdict(wanted)))


def continued(folder: Path, plan: Callable[[Collection[str]], VideoSet], dimensions: Collection[str]) -> VideoSet:
    """The set that is asked for; where one of the same settings is there already, both sets' dimensions.

    Raises:
        ValueError: the folder holds another set, with what is different.
    """
    wanted = plan(dimensions)
    if not (folder / SET).is_file():
        return wanted
    before = read_set(folder)
    old, new = (
        {"suite": s.suite, "mode": s.mode, "prompts": s.prompts["sha256"], **s.sampling} for s in (before, wanted)
    )
    new = json.loads(json.dumps(new))
    different = [f"{k} is {old.get(k)} there and {new.get(k)} here" for k in old | new if old.get(k) != new.get(k)]
    if different:
        raise ValueError(f"{folder} holds another set: {'; '.join(different)}; take another folder")
    return plan([*before.dimensions, *wanted.dimensions])


def digest_of(path: Path) -> str:
    """SHA-256 of a small file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def script(wanted: VideoSet) -> str:
    """A shell script that measures a set in VBench's own environment, dimension by dimension."""
    given = (
        f'--full_json_dir "$here/{INFO}"'
        if wanted.mode == STANDARD
        else f'--mode=custom_input --prompt_file "$here/{PROMPTS}"'
    )
    lines = [
        "#!/bin/sh",
        f"# In the environment of {wanted.suite}: sh {SCRIPT} CHECKOUT. Dimensions that have results are left alone.",
        'here=$(cd "$(dirname "$0")" && pwd -P)',
        'cd "${1:?give the folder that holds evaluate.py}" || exit 2',
        "failed=0",
        f'known() {{ ls "$here/{RESULTS}/$1/"*_eval_results.json >/dev/null 2>&1; }}',
        "measure() {",
        f'    known "$1" || python evaluate.py --dimension "$1" --videos_path "$here/$2" {given} \\',
        f'        --output_path "$here/{RESULTS}/$1" || {{ echo "$1 failed" >&2; failed=1; }}',
        "}",
    ]
    for dimension in wanted.dimensions:
        place = wanted.measured_in(dimension)
        if place == FILTERED:
            lines.append(
                f'known {dimension} || python static_filter.py --videos_path "$here/{wanted.dimensions[dimension]}" '
                f'--result_path "$here/{Path(FILTERED).parent}"'
            )
        lines.append(f"measure {dimension} {place}")
    return "\n".join([*lines, "exit $failed", ""])


Entry = tuple[str, tuple[str, ...]]  # a prompt, its dimensions


def _read_info(path: Path) -> tuple[Suite, list[Entry]]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path} holds no list of prompts with their dimensions, as {VBENCH.info} does")
    entries: list[Entry] = []
    for number, value in enumerate(values):
        told = value if isinstance(value, dict) else {}
        prompt, named = told.get("prompt_en"), told.get("dimension")
        texts = isinstance(named, list) and all(isinstance(name, str) for name in named)
        if not (isinstance(prompt, str) and prompt and named and texts):
            raise ValueError(f'{path}: entry {number} is not {{"prompt_en": text, "dimension": [names], ...}}')
        entries.append((prompt, tuple(named)))
    suite = next((s for s in SUITES.values() if entries[0][1][0] in s.dimensions), VBENCH)
    _choose([name for _, named in entries for name in named], dict.fromkeys(suite.dimensions, ""), f"of {suite.name}")
    return suite, entries


def _folders(path: Path, entries: Sequence[Entry]) -> dict[str, str]:
    """The folder of each dimension: the first that stands with it in the file."""
    folder_of: dict[str, str] = {}
    for number, (_, named) in enumerate(entries):
        for name in named:
            if folder_of.setdefault(name, named[0]) != named[0]:
                raise ValueError(f"{path}: entry {number} puts {name} beside {named[0]}, others elsewhere")
    return folder_of


def _choose(names: Collection[str], known: Mapping[str, str], where: str) -> dict[str, str]:
    """Those of the known that are named, in the order of the known; all if none is."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1, 0) or list(known)
            raise ValueError(f"{name!r} is no dimension {where}; nearest: {near[0]}")
    return {name: value for name, value in known.items() if not names or name in names}


def _kept(videos: Collection[Video], folders: Collection[str]) -> tuple[Video, ...]:
    """Videos of these folders, in these folders alone."""
    cut = (replace(video, folders=tuple(f for f in dict.fromkeys(video.folders) if f in folders)) for video in videos)
    return tuple(video for video in cut if video.folders)


def _check_name(name: str, path: Path) -> None:
    bad = next((c for c in name if c in "/\0"), None)
    if bad is not None or len(name.encode()) > LONGEST:
        what = f"is of {len(name.encode())} bytes, at most {LONGEST}" if bad is None else f"holds {bad!r}"
        raise ValueError(
            f"{path}: no file can have the name {name!r}, by which VBench looks for it: it {what}; "
            "prompts in a file of their own (--prompts) may be any"
        )


def _origin(path: Path) -> dict[str, str]:
    return {"file": path.name, "sha256": digest_of(path)}


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
