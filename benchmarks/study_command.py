"""What the commands that carry out studies share: how they speak, stop and end."""

import argparse
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from tpdiff.cli.bars import progress_bars
from tpdiff.cli.quiet import quiet
from tpdiff.data import DataError
from tpdiff.evaluation.judge import Judge, open_judge
from tpdiff.evaluation.study_run import Interrupted
from tpdiff.training.config import Config

ROOT = Path(__file__).resolve().parents[1]


_asked: list[int] = []  # the signals that asked for a stop


class Stoppable(Protocol):
    """What ends at its next step when asked."""

    def request_stop(self) -> None: ...


def study_parser(doc: str) -> argparse.ArgumentParser:
    """The arguments of every study: its file, its size, where it works, where its results go, and one of its seeds."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study's YAML")
    _add_device(parser)
    parser.add_argument("--work", type=Path, default=Path("runs"), help="for data and checkpoints, of one --results")
    _add_results(parser)
    parser.add_argument("--seed", type=int, action="append", help="only this seed")
    return parser


def table_parser(doc: str, name: str) -> argparse.ArgumentParser:
    """The arguments of every table of measurements: its file, the device, and where its results go."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path, nargs="?", default=ROOT / "configs" / f"{name}.yaml")
    _add_device(parser)
    _add_results(parser)
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: at the size for a GPU")


def _add_results(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--results", type=Path, default=ROOT / "docs" / "results", help="for what is finished")


def size_of(args: argparse.Namespace) -> str:
    """The device whose size is asked for.

    Raises:
        ValueError: a GPU where there is none.
    """
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device 'cuda': there is no CUDA device here; use cpu")
    return str(args.device)


def carry_out(work: Callable[[], Path | None]) -> int:
    """The exit status of a command: 0 and the page named, 2 and the error, or 130 and how to go on."""
    quiet()
    try:
        page = work()
    except (Interrupted, KeyboardInterrupt):
        say(f"stopped; continue with: {command(Path(sys.executable).name)}")
        return 130
    except (ValueError, DataError, OSError) as error:
        say(f"error: {error}")
        return 2
    if page is not None:
        say(f"page: {page}")
    return 0


def command(python: str = "python") -> str:
    """This command, as it was typed."""
    return shlex.join([python, *sys.argv])


def say(text: str) -> None:
    """A line to whoever waits."""
    print(text, file=sys.stderr, flush=True)


def judge_of(config: Config, cache: Path) -> Judge:
    """The judge of a study, which can be stopped while it looks at the real clips."""
    say("real clips and the classifier: worked out once, which takes minutes")
    with progress_bars() as bar:
        return open_judge(config, cache, heed=heed, bar=bar)


def stop_with(run: Stoppable) -> None:
    """Let Ctrl-C, or a request to terminate, end a run at its next step, and a second one whatever goes on; at once
    where it was asked for before, while no run was under way."""

    def at_its_next_step(number: int, *_: object) -> None:
        _asked.append(number)
        run.request_stop()
        say("stopping at the next step; once more: at once")
        _on_signals(signal.default_int_handler)

    _on_signals(at_its_next_step)
    if _asked:
        run.request_stop()


def heed() -> None:
    """Raise Interrupted where a stop was asked for."""
    if _asked:
        raise Interrupted


def _on_signals(handler: Callable[..., object]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
