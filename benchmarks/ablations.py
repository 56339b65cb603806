"""What each part of the method is worth: an ablation by its file, resumable.

    python benchmarks/ablations.py configs/ablation-fronts.yaml [--seed N] [--variant NAME]

Records the clips, trains every variant of every seed by the same number of operations, judges them by the same real
clips at several numbers of sampling steps, and writes the page docs/results/<ablation>/README.md. Whatever is finished
is never redone. Ctrl-C ends it at the next step; the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from tpdiff.data import DataError
from tpdiff.evaluation.ablation import load_ablation
from tpdiff.evaluation.ablation_page import finished, write_page
from tpdiff.evaluation.ablation_run import AblationDesk, run_variant
from tpdiff.evaluation.judge import open_judge
from tpdiff.evaluation.study import make_data
from tpdiff.evaluation.study_run import Interrupted
from tpdiff.training.progress import ProgressReport
from tpdiff.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run what is asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="an ablation's YAML")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="for data and checkpoints")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="for what is finished")
    parser.add_argument("--seed", type=int, action="append", help="only this seed")
    parser.add_argument("--variant", action="append", help="only this variant")
    args = parser.parse_args()
    try:
        study = load_ablation(args.study)
        for name in args.variant or ():
            if name not in study.variants:
                raise ValueError(f"no variant {name!r}; there are {', '.join(study.variants)}")
        work, results = args.work / study.name, args.results / study.name
        data = make_data(study.data, work / "data")
        judge = open_judge(study.config(study.trained[0], data, study.seeds[0], 1), work / "cache")
        desk = AblationDesk(study, data, work, results, judge, say=_say, on_trainer=_stop_with)
        with ProgressReport(study.name) as report:
            desk.tell = lambda variant, status: report(status, variant)
            for seed in args.seed or study.seeds:
                for name in args.variant or study.variants:
                    run_variant(desk, seed, name)
    except Interrupted:
        print(f"stopped; continue with: {shlex.join([Path(sys.executable).name, *sys.argv])}", file=sys.stderr)
        return 130
    except (ValueError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if finished(study, results):
        _say(f"page: {write_page(study, results, f'python {shlex.join(sys.argv)}')}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stop_with(trainer: Trainer) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: trainer.request_stop())


if __name__ == "__main__":
    raise SystemExit(main())
