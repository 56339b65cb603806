"""Can a pretrained model be made pyramidal for a tenth of its training? A study by its file, resumable.

    python benchmarks/conversion.py configs/conversion-wan.yaml [--seed N]

Records the clips, trains an autoencoder, and, once a seed, trains an original to its plateau, converts it in every way
that the file lists, and judges all of them, with the controls, by the same real clips. It writes the page
docs/results/<study>/README.md. Ctrl-C ends it at the next step; the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from pathlib import Path

from originals import ORIGINALS, Original

from tpdiff.data import DataError
from tpdiff.evaluation.conversion import AutoencoderPart, load_conversion
from tpdiff.evaluation.conversion_page import finished, write_page
from tpdiff.evaluation.conversion_run import ConversionDesk, run_conversion
from tpdiff.evaluation.judge import open_judge
from tpdiff.evaluation.study import make_data
from tpdiff.evaluation.study_run import Interrupted
from tpdiff.recipes import recipe_path
from tpdiff.training.autoencoder import AutoencoderTrainer
from tpdiff.training.autoencoder_config import AutoencoderConfig, load_recipe
from tpdiff.training.checkpoint import write_pipeline
from tpdiff.training.progress import ProgressReport
from tpdiff.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
QUALITY = "quality.json"  # the last thing that the training of an autoencoder writes


def main() -> int:
    """Run what is asked for; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study's YAML")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="for data and checkpoints")
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="for what is finished")
    parser.add_argument("--seed", type=int, action="append", help="only this seed")
    args = parser.parse_args()
    try:
        study = load_conversion(args.study)
        build_original = _named(study.original.kind)
        work, results = args.work / study.name, args.results / study.name
        data = make_data(study.data, work / "data")
        with ProgressReport(study.name) as report:
            autoencoder = _autoencoder(study.original.autoencoder, work, report)

            def build_base(seed: int, folder: Path) -> None:
                write_pipeline(folder, build_original(study.original.network, autoencoder, seed))

            judge = open_judge(study.original_config(data, work, study.seeds[0]), work / "cache")
            desk = ConversionDesk(study, data, work, results, judge, build_base, say=_say)
            desk.tell = lambda run, status: report(status, run)
            desk.on_trainer = _stop_with
            for seed in args.seed or study.seeds:
                run_conversion(desk, seed)
    except Interrupted:
        print(f"stopped; continue with: {shlex.join([Path(sys.executable).name, *sys.argv])}", file=sys.stderr)
        return 130
    except (ValueError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if finished(study, results):
        _say(f"page: {write_page(study, results, f'python {shlex.join(sys.argv)}')}")
    return 0


def _named(kind: str) -> Original:
    if kind not in ORIGINALS:
        raise ValueError(f"no original {kind!r}; known: {', '.join(ORIGINALS)}")
    return ORIGINALS[kind]


def _autoencoder(part: AutoencoderPart, work: Path, report: ProgressReport) -> str:
    """The folder of the trained autoencoder."""
    out = work / "autoencoder"
    if not (out / QUALITY).is_file():
        data = make_data(part.data, work / "autoencoder-data")
        config = load_recipe(recipe_path(part.recipe), [f"data.path={data}"])
        assert isinstance(config, AutoencoderConfig)
        trainer = AutoencoderTrainer(config, out, resume=(out / "config.yaml").exists())
        _stop_with(trainer)
        trainer.run(report)
        trainer.save()
        if trainer.stop_requested:
            raise Interrupted
        quality = trainer.quality()
        _say(f"autoencoder: {quality.line() if quality else 'nothing held out'}")
    return str(out)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _stop_with(trainer: Trainer | AutoencoderTrainer) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: trainer.request_stop())


if __name__ == "__main__":
    raise SystemExit(main())
