"""How long sampling takes by the number of temporal stages (TPDiff's Table 1), resumable.

    OMP_NUM_THREADS=1 python benchmarks/stage_latency.py [configs/stage-latency.yaml] [--device cuda] [--results DIR]

For each model and number of stages it times diffusers' pipeline, plain and pyramidal, in turns on random weights
(`tpdiff bench`), and writes the page docs/results/stage-latency/<device>/README.md. Nothing else should run. Whatever
is finished is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError
from study_command import carry_out, command, say, table_parser

from tpdiff.evaluation.bench import bench
from tpdiff.evaluation.machine import refuse_others
from tpdiff.evaluation.markdown import head, number, table
from tpdiff.evaluation.study import read_result, write_result
from tpdiff.evaluation.study_run import provenance
from tpdiff.families.models import find_published
from tpdiff.models.memory import keep_freed_memory
from tpdiff.training.section import Section


class Size(Section):
    """Of a model: pixels, and how much of its network is kept; None: as published."""

    size: tuple[int, int, int]
    layers: int | None = None
    hidden: int | None = None


class Table(Section):
    """What is timed.

    Attributes:
        name: of its folder.
        title: of its page.
        steps: of every sampling, in all; stages share them evenly.
        stages: numbers of stages, each halving the frames.
        rounds: timed rounds, plain and pyramidal in turns.
        cpu, cuda: models by their published names, at the size that such a device is timed at.
    """

    name: str
    title: str
    steps: int = Field(30, ge=4)
    stages: list[int] = Field(min_length=1)
    rounds: int = Field(3, ge=3)
    cpu: dict[str, Size]
    cuda: dict[str, Size]


def main() -> int:
    """Run what is asked for; the exit status."""
    args = table_parser(__doc__, "stage-latency").parse_args()
    keep_freed_memory()
    return carry_out(lambda: _run(args))


def _run(args: argparse.Namespace) -> Path:
    """The page."""
    try:
        wanted = Table.model_validate(yaml.safe_load(args.table.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ValueError(f"{args.table}: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from None
    results = args.results / wanted.name / args.device
    return _page(wanted, _timed(wanted, args.device, results), results, command())


def _sizes(wanted: Table, device: str) -> dict[str, Size]:
    return wanted.cpu if device == "cpu" else wanted.cuda


def _timed(wanted: Table, device: str, results: Path) -> list[dict[str, Any]]:
    """One result a model and number of stages, those that are kept already and the rest.

    Raises:
        ValueError: what is kept was measured otherwise, or, where something is left to measure, elsewhere.
    """
    sizes, shared = _sizes(wanted, device), {"steps": wanted.steps, "rounds": wanted.rounds}
    asked = {name: size.model_dump(mode="json") | shared for name, size in sizes.items()}
    paths = {(name, stages): results / f"{name}-{stages}.json" for name in sizes for stages in wanted.stages}
    rows = {place: read_result(path) for place, path in paths.items()}
    for (name, stages), row in rows.items():
        if row and row.get("asked") != asked[name]:
            path = paths[name, stages]
            raise ValueError(f"{path} was measured with {row.get('asked')}, not {asked[name]}; remove it")
    if not all(rows.values()):
        refuse_others({paths[place]: row["machine"] for place, row in rows.items() if row})
    for (name, stages), row in rows.items():
        if not row:
            say(f"{name}, {stages} stages")
            rows[name, stages] = _time(wanted, device, name, stages) | {"asked": asked[name]}
            write_result(paths[name, stages], rows[name, stages])
    return list(rows.values())


def _time(wanted: Table, device: str, name: str, stages: int) -> dict[str, Any]:
    size = _sizes(wanted, device)[name]
    model = find_published(name).resized(size.layers, size.hidden)
    measured = bench(model, size.size, "T", stages, wanted.steps, device=device, guidance=False, rounds=wanted.rounds)
    made = provenance(wanted)
    return measured.as_dict() | {key: made[key] for key in ("created", "commit", "machine")}


def _page(wanted: Table, rows: list[dict[str, Any]], results: Path, command: str) -> Path:
    made = []
    for row in rows:
        plain, pyramid = row["rows"]
        split = "-".join(map(str, row["steps"]))
        by_round = " / ".join(f"{ratio:.2f}" for ratio in row["speedup_by_round"])
        ratios = [f"{row['speedup']:.2f} ({by_round})", f"{row['planned_speedup']:.2f}", f"{row['reached']:.1%}"]
        times = [number(plain["median"]), number(pyramid["median"])]
        made.append(
            [row["model"], str(len(row["stages"])), split, number(row["plain_seconds_per_step"]), *times, *ratios]
        )
    heads = ["model", "stages", "steps", "full-size step, s", "plain, s", "pyramid, s", "speed-up (by round)"]
    lines = [
        *head(wanted.title, command, rows[0]),
        "",
        f"{wanted.steps} steps, temporal stages that halve the frames: whole calls of diffusers' pipelines, from noise "
        "to latents, on random weights, without guidance; plain and pyramidal in turns, medians. The limit is the "
        "ratio of counted operations.",
        "",
        *table([*heads, "limit", "reached"], made),
        "",
        "| model | network |",
        "| --- | --- |",
        *(
            f"| {row['model']} | {row['network']}, {row['config']}, {'x'.join(map(str, row['size']))} |"
            for row in _one_each(rows)
        ),
    ]
    page = results / "README.md"
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return page


def _one_each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({row["model"]: row for row in rows}.values())


if __name__ == "__main__":
    raise SystemExit(main())
