"""What each part of the method is worth: an ablation by its file, resumable.

    python benchmarks/ablations.py configs/ablation-fronts.yaml [--seed N] [--variant NAME]

Records the clips, trains every variant of every seed by the same number of operations, judges them by the same real
clips at several numbers of sampling steps, and writes the page docs/results/<ablation>/README.md. Whatever is finished
is never redone. Ctrl-C ends it at the next step; the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from study_command import carry_out, command, judge_of, say, size_of, stop_with, study_parser

from tpdiff.evaluation.ablation import Ablation, load_ablation, read_variant
from tpdiff.evaluation.ablation_page import finished, write_page
from tpdiff.evaluation.ablation_run import AblationDesk, run_variant
from tpdiff.evaluation.kept import own_work
from tpdiff.evaluation.study import make_data
from tpdiff.training.progress import ProgressReport


def main() -> int:
    """Run what is asked for; the exit status."""
    parser = study_parser(__doc__)
    parser.add_argument("--variant", action="append", help="only this variant")
    args = parser.parse_args()
    return carry_out(lambda: _run(args))


def _run(args: argparse.Namespace) -> Path | None:
    """The page of what is finished. Where all that is asked for is, no clips are made and nothing is opened."""
    study = load_ablation(args.study, size_of(args))
    for name in args.variant or ():
        if name not in study.variants:
            raise ValueError(f"no variant {name!r}; there are {', '.join(study.variants)}")
    results = args.results / study.name
    asked = list(itertools.product(args.seed or study.seeds, args.variant or study.variants))
    if not all(read_variant(study, results, seed, name).get("done") for seed, name in asked):
        _measure(study, args.work / study.name, results, asked)
    return write_page(study, results, command()) if finished(study, results) else None


def _measure(study: Ablation, work: Path, results: Path, asked: Sequence[tuple[int, str]]) -> None:
    """What is not finished of these variants, each by its seed."""
    own_work(work, results)
    data = make_data(study.data, work / "data")
    judge = judge_of(study.config(study.trained[0], data, study.seeds[0], 1), work / "cache")
    desk = AblationDesk(study, data, work, results, judge, say=say, on_trainer=stop_with)
    with ProgressReport(study.name) as report:
        desk.tell = lambda variant, status: report(status, variant)
        for seed, name in asked:
            run_variant(desk, seed, name)


if __name__ == "__main__":
    raise SystemExit(main())
