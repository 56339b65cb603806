"""How cost grows with the frames: tokens, seconds and memory of a model, plain and pyramidal, resumable.

    OMP_NUM_THREADS=1 python benchmarks/frame_cost.py [configs/frame-cost.yaml] [--device cuda] [--results DIR]

For each number of frames it samples and takes training steps with random weights, both methods in turns, every turn in
a process of its own, and writes the page docs/results/frame-cost/<device>/README.md. Nothing else should run. Whatever
turn is finished is kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from study_command import carry_out, command, say, table_parser

from tpdiff.cli.quiet import quiet
from tpdiff.evaluation.frame_cost import DTYPES, METHODS, FrameTable, load_table, take_turn, write_random
from tpdiff.evaluation.frame_cost_page import FrameCost, write_page
from tpdiff.evaluation.machine import refuse_others
from tpdiff.evaluation.planning import Plan
from tpdiff.evaluation.study import read_result, write_result
from tpdiff.evaluation.study_run import provenance


def main() -> int:
    """Run what is asked for; the exit status."""
    args = table_parser(__doc__, "frame-cost").parse_args()
    quiet()
    return carry_out(lambda: _run(args))


def _run(args: argparse.Namespace) -> Path:
    """The page."""
    asked = load_table(args.table)
    results = args.results / asked.name / args.device
    costs = measured(asked, asked.plans(args.device), args.device, results)
    return write_page(asked, costs, results, command())


def measured(asked: FrameTable, plans: Mapping[int, Plan], device: str, results: Path) -> list[FrameCost]:
    """All turns of all numbers of frames, those that are kept already and the rest.

    Raises:
        ValueError: what is kept was measured otherwise, or, where something is left to measure, elsewhere.
    """
    size = getattr(asked, device).model_dump(exclude={"frames"})
    settings = size | {"steps": asked.steps, "stages": asked.stages}
    paths = {(frames, method): results / f"{frames}-{method}.json" for frames in plans for method in METHODS}
    rows = {place: read_result(path) for place, path in paths.items()}
    for place, row in rows.items():
        if row and row["asked"] != settings:
            raise ValueError(f"{paths[place]} was measured with {row['asked']}, not {settings}; remove it")
    waiting = [
        (turn, place)
        for frames in plans
        for turn in range(asked.rounds)
        for place in ((frames, method) for method in (list(METHODS) if turn % 2 == 0 else reversed(METHODS)))
        if len(rows[place].get("turns", ())) <= turn
    ]
    if waiting:
        refuse_others({paths[place]: row["machine"] for place, row in rows.items() if row})
    with TemporaryDirectory() as folder:
        if waiting:
            write_random(next(iter(plans.values())).model, Path(folder))
        for turn, (frames, method) in waiting:
            say(f"{frames} frames, {method}, turn {turn + 1}")
            planned, config = plans[frames], asked.training(method, frames, device, Path(folder))
            with ProcessPoolExecutor(1, get_context("spawn"), quiet) as pool:
                made = pool.submit(take_turn, planned, method, config, device).result()
            row = rows[frames, method] or _row(asked, planned, method, device, settings)
            rows[frames, method] = row | {"turns": [*row["turns"], made]}
            write_result(paths[frames, method], rows[frames, method])
    return [FrameCost(*(rows[frames, method] for method in METHODS)) for frames in plans]


def _row(asked: FrameTable, planned: Plan, method: str, device: str, settings: dict[str, Any]) -> dict[str, Any]:
    made = provenance(asked)
    return {
        "method": method,
        "asked": settings,
        "device": device,
        "dtype": str(DTYPES[device]).removeprefix("torch."),
        "plan": planned.as_dict(),
        **{key: made[key] for key in ("created", "commit", "machine")},
        "turns": [],
    }


if __name__ == "__main__":
    raise SystemExit(main())
