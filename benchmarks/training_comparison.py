"""Does a pyramid train faster? A study by its file, resumable: whatever is finished is kept and never redone.

    python benchmarks/training_comparison.py configs/study-gameplay-flow.yaml [--json]

Records the set, tries every learning rate with every arm, then trains all arms once a seed, in turns, for equal
seconds, and writes the page docs/results/<study>/README.md. Ctrl-C ends it at the next step; the same command goes on.
--trial LR and --seed N do one part, so that several processes can share the work: trials first, then seeds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import signal
import sys
from pathlib import Path

from tpdiff.data import DataError
from tpdiff.evaluation.arms import Arms
from tpdiff.evaluation.judge import open_judge
from tpdiff.evaluation.study import load_study, make_data
from tpdiff.evaluation.study_page import finished_seeds, write_page
from tpdiff.evaluation.study_run import Desk, Interrupted, best_rates, run_seed, run_trial
from tpdiff.training.progress import ProgressReport

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run what is asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study's YAML")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="for data and checkpoints")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="for what is finished")
    parser.add_argument("--trial", type=float, action="append", help="only the trial of this learning rate")
    parser.add_argument("--seed", type=int, action="append", help="only this seed")
    parser.add_argument("--json", action="store_true", help="print the finished seeds as JSON")
    args = parser.parse_args()
    try:
        study = load_study(args.study)
        work, results = args.work / study.name, args.results / study.name
        data = make_data(study.data, work / "data")
        config = study.config(next(iter(study.arms)), data, study.seeds[0], study.learning_rates[0], study.seconds)
        desk = Desk(study, data, work, results, open_judge(config, work / "cache"), say=_say, on_arms=_stop_with)
        only = args.trial is not None or args.seed is not None
        with ProgressReport(study.name) as report:
            desk.tell = lambda arm, status: report(status, arm)
            for lr in study.learning_rates if not only else args.trial or ():
                run_trial(desk, lr)
            if not only or args.seed:
                _say(f"learning rates: {best_rates(desk)}")
            for seed in study.seeds if not only else args.seed or ():
                run_seed(desk, seed)
    except Interrupted:
        print(f"stopped; continue with: {shlex.join([Path(sys.executable).name, *sys.argv])}", file=sys.stderr)
        return 130
    except (ValueError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    done = finished_seeds(study, results)
    if done:
        _say(f"page: {write_page(study, results, f'python {shlex.join(sys.argv)}')}")
    if args.json:
        print(json.dumps(done, indent=1))
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stop_with(arms: Arms) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: arms.request_stop())


if __name__ == "__main__":
    raise SystemExit(main())
