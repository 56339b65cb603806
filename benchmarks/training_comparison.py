"""Does a pyramid train faster? A study by its file, resumable: whatever is finished is kept and never redone.

    python benchmarks/training_comparison.py configs/study-gameplay-tubelets.yaml [--json]

Records the set, tries every learning rate with every arm, then trains all arms once a seed, in turns, for equal
seconds, and writes the page docs/results/<study>/README.md. Ctrl-C ends it at the next step; the same command goes on.
--trial LR and --seed N do one part, so that several processes can share the work: trials first, then seeds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from study_command import carry_out, command, judge_of, say, size_of, stop_with, study_parser

from tpdiff.evaluation.kept import own_work
from tpdiff.evaluation.study import Study, load_study, make_data, read_seed, read_trial
from tpdiff.evaluation.study_page import finished_seeds, write_page
from tpdiff.evaluation.study_run import Desk, best_rates, run_seed, run_trial
from tpdiff.training.progress import ProgressReport


def main() -> int:
    """Run what is asked for; the exit status."""
    parser = study_parser(__doc__)
    parser.add_argument("--trial", type=float, action="append", help="only the trial of this learning rate")
    parser.add_argument("--json", action="store_true", help="print the finished seeds as JSON")
    args = parser.parse_args()
    return carry_out(lambda: _run(args))


def _run(args: argparse.Namespace) -> Path | None:
    """The page of what is finished. Where all that is asked for is, no clips are made and nothing is opened."""
    study = load_study(args.study, size_of(args))
    results = args.results / study.name
    only = args.trial is not None or args.seed is not None
    trials, seeds = (args.trial or [], args.seed or []) if only else (study.learning_rates, study.seeds)
    kept = [*(read_trial(study, results, lr) for lr in trials), *(read_seed(study, results, seed) for seed in seeds)]
    if not all(result.get("done") for result in kept):
        _measure(study, args.work / study.name, results, trials, seeds)
    done = finished_seeds(study, results)
    if args.json:
        print(json.dumps(done, indent=1))
    return write_page(study, results, command()) if done else None


def _measure(study: Study, work: Path, results: Path, trials: Sequence[float], seeds: Sequence[int]) -> None:
    """What is not finished of these trials, then of these seeds."""
    own_work(work, results)
    data = make_data(study.data, work / "data")
    config = study.config(next(iter(study.arms)), data, study.seeds[0], study.learning_rates[0], study.seconds)
    desk = Desk(study, data, work, results, judge_of(config, work / "cache"), say=say, on_arms=stop_with)
    with ProgressReport(study.name) as report:
        desk.tell = lambda arm, status: report(status, arm)
        for lr in trials:
            run_trial(desk, lr)
        if seeds:
            say(f"learning rates: {best_rates(desk)}")
        for seed in seeds:
            run_seed(desk, seed)


if __name__ == "__main__":
    raise SystemExit(main())
