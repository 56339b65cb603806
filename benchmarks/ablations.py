"""What each part of the method is worth: an ablation by its file, resumable.

    python benchmarks/ablations.py configs/ablation-fronts.yaml [--seed N] [--variant NAME]

Records the clips, trains every variant of every seed by the same number of operations, judges them by the same real
clips at several numbers of sampling steps, and writes the page docs/results/<ablation>/README.md. Whatever is finished
is never redone. Ctrl-C ends it at the next step; the same command goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from study_command import carry_out, command, heed, say, size_of, stop_with, study_parser

from tpdiff.evaluation.ablation import load_ablation
from tpdiff.evaluation.ablation_page import finished, write_page
from tpdiff.evaluation.ablation_run import AblationDesk, run_variant
from tpdiff.evaluation.judge import open_judge
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
    """The page of what is finished."""
    study = load_ablation(args.study, size_of(args))
    for name in args.variant or ():
        if name not in study.variants:
            raise ValueError(f"no variant {name!r}; there are {', '.join(study.variants)}")
    work, results = args.work / study.name, args.results / study.name
    own_work(work, results)
    data = make_data(study.data, work / "data")
    judge = open_judge(study.config(study.trained[0], data, study.seeds[0], 1), work / "cache", heed=heed)
    desk = AblationDesk(study, data, work, results, judge, say=say, on_trainer=stop_with)
    with ProgressReport(study.name) as report:
        desk.tell = lambda variant, status: report(status, variant)
        for seed in args.seed or study.seeds:
            for name in args.variant or study.variants:
                run_variant(desk, seed, name)
    return write_page(study, results, command()) if finished(study, results) else None


if __name__ == "__main__":
    raise SystemExit(main())
