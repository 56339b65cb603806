"""Can a pretrained model be made pyramidal for a tenth of its training? A study by its file, resumable.

    python benchmarks/conversion.py configs/conversion-wan-32.yaml [--seed N]

Records the clips, trains an autoencoder, and, once a seed, trains an original to its plateau, converts it in every way
that the file lists, and judges all of them, with the controls, by the same real clips. It writes the page
docs/results/<study>/README.md. Ctrl-C ends it at the next step; the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from originals import ORIGINALS, Original
from study_command import carry_out, command, judge_of, say, size_of, stop_with, study_parser

from tpdiff.evaluation.conversion import AutoencoderPart, ConversionStudy, is_whole, load_conversion, read_conversion
from tpdiff.evaluation.conversion_page import finished, write_page
from tpdiff.evaluation.conversion_run import ConversionDesk, run_conversion
from tpdiff.evaluation.kept import own_work, refuse_others
from tpdiff.evaluation.study import make_data, read_result, write_result
from tpdiff.evaluation.study_run import Interrupted
from tpdiff.training.autoencoder import AutoencoderTrainer
from tpdiff.training.checkpoint import write_pipeline
from tpdiff.training.progress import ProgressReport

MADE = "made.json"  # says what an autoencoder was trained with
QUALITY = "quality.json"  # the last thing that the training of an autoencoder writes


def main() -> int:
    """Run what is asked for; the exit status."""
    args = study_parser(__doc__).parse_args()
    return carry_out(lambda: _run(args))


def _run(args: argparse.Namespace) -> Path | None:
    """The page of what is finished. Where all that is asked for is, no clips are made and nothing is opened."""
    study = load_conversion(args.study, size_of(args))
    results, seeds = args.results / study.name, args.seed or study.seeds
    if not all(is_whole(study, read_conversion(study, results, seed)) for seed in seeds):
        _measure(study, args.work / study.name, results, seeds)
    return write_page(study, results, command()) if finished(study, results) else None


def _measure(study: ConversionStudy, work: Path, results: Path, seeds: Sequence[int]) -> None:
    """What is not finished of these seeds."""
    build_original = _named(study.original.kind)
    own_work(work, results)
    data = make_data(study.data, work / "data")
    judge = judge_of(study.original_config(data, work, study.seeds[0]), work / "cache")
    with ProgressReport(study.name) as report:
        autoencoder = _autoencoder(study.original.autoencoder, work, report)

        def build_base(seed: int, folder: Path) -> None:
            write_pipeline(folder, build_original(study.original.network, autoencoder, seed))

        desk = ConversionDesk(study, data, work, results, judge, build_base, say=say, on_trainer=stop_with)
        desk.tell = lambda run, status: report(status, run)
        for seed in seeds:
            run_conversion(desk, seed)


def _named(kind: str) -> Original:
    if kind not in ORIGINALS:
        raise ValueError(f"no original {kind!r}; known: {', '.join(ORIGINALS)}")
    return ORIGINALS[kind]


def _autoencoder(part: AutoencoderPart, work: Path, report: ProgressReport) -> str:
    """The folder of the trained autoencoder.

    Raises:
        ValueError: the one that is there was trained by another recipe, or on other clips.
    """
    out = work / "autoencoder"
    refuse_others(out, read_result(out / MADE), part.settings)
    if not (out / QUALITY).is_file():
        config = part.config(make_data(part.data, work / "autoencoder-data"))
        trainer = AutoencoderTrainer(config, out, resume=(out / "config.yaml").exists())
        write_result(out / MADE, {"made": {"asked": part.settings}})
        stop_with(trainer)
        trainer.run(report)
        trainer.save()
        if trainer.stop_requested:
            raise Interrupted
        quality = trainer.quality()
        say(f"autoencoder: {quality.line() if quality else 'nothing held out'}")
    return str(out)


if __name__ == "__main__":
    raise SystemExit(main())
