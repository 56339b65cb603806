"""What a run shows while it works: rate, time left, loss, tokens a second."""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

LEAST_SCALE = 2.0**-24  # of losses in fp16; below it no gradient has been a number for about forty steps


class Shown(Protocol):
    """What a report can show: how far a run is, and a line of text."""

    @property
    def seconds(self) -> float: ...

    @property
    def fraction(self) -> float: ...

    def line(self) -> str: ...


@dataclass(frozen=True)
class Status:
    """A run at one moment.

    Attributes:
        step: optimizer steps done.
        seconds: training seconds spent (checkpoints and validation excluded).
        fraction: share of the budget done, in [0, 1].
        loss: mean loss since the last report.
        tokens_per_second: tokens the network saw a training second.
        stage_losses: mean loss of every stage seen since the last report.
        held_out: mean loss of every stage at the last validation; empty without one.
    """

    step: int
    seconds: float
    fraction: float
    loss: float
    tokens_per_second: float
    stage_losses: dict[int, float]
    held_out: dict[int, float] = field(default_factory=dict)

    @property
    def eta(self) -> float:
        """Training seconds left, inf before the first step."""
        return self.seconds * (1 - self.fraction) / self.fraction if self.fraction else math.inf

    def line(self) -> str:
        """The status in one line of text."""
        held_out = f"held-out ({_by_stage(self.held_out)})  " if self.held_out else ""
        return (
            f"step {self.step}  loss {self.loss:.4f} ({_by_stage(self.stage_losses)})  {held_out}"
            f"{self.tokens_per_second:,.0f} tokens/s  {clock(self.seconds)} done, {clock(self.eta)} left"
        )


Report = Callable[[Status], None]


class Recent:
    """Sums since the last report."""

    def __init__(self) -> None:
        self.losses: dict[int, list[float]] = defaultdict(list)
        self.gains: list[float] = []
        self.tokens, self.seconds = 0, 0.0

    def add(self, values: list[tuple[int, float, float]], tokens: int, seconds: float) -> None:
        for stage, loss, gain in values:
            self.losses[stage].append(loss)
            self.gains.append(gain)
        self.tokens += tokens
        self.seconds += seconds

    def pack(self) -> dict[str, Any]:
        """The sums as JSON values, so that a resumed run's next report is that of the run that was not cut."""
        losses = {str(k): v for k, v in self.losses.items()}
        return {"losses": losses, "gains": self.gains, "tokens": self.tokens, "seconds": self.seconds}

    def unpack(self, values: Mapping[str, Any]) -> None:
        """Put back what `pack` took."""
        self.losses.update({int(k): list(v) for k, v in values["losses"].items()})
        self.gains = list(values["gains"])
        self.tokens, self.seconds = values["tokens"], values["seconds"]

    def mean_gain(self) -> float:
        return sum(self.gains) / len(self.gains)

    def status(self, step: int, seconds: float, fraction: float) -> Status:
        stages = {k: sum(v) / len(v) for k, v in self.losses.items()}
        everything = [loss for v in self.losses.values() for loss in v]
        rate = self.tokens / self.seconds if self.seconds else 0.0
        return Status(step, seconds, fraction, sum(everything) / len(everything), rate, stages)


def _by_stage(losses: Mapping[int, float]) -> str:
    return " ".join(f"s{k} {loss:.4f}" for k, loss in sorted(losses.items()))


def clock(seconds: float) -> str:
    """Seconds as m:ss."""
    return "?" if math.isinf(seconds) else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class _StatusColumn(ProgressColumn):
    def render(self, task: object) -> Text:
        return Text(str(getattr(task, "fields", {}).get("line", "")))


class ProgressReport:
    """A live bar on a terminal, a line every `every` seconds elsewhere; use as a context manager and a `Report`."""

    def __init__(self, title: str, every: float = 30.0):
        self.console = Console(file=sys.stderr)
        self.every = every
        self._last: dict[str, float] = {}
        self._bar = Progress(
            TextColumn(title), BarColumn(24), TimeElapsedColumn(), _StatusColumn(), console=self.console
        )
        self._task = self._bar.add_task(title, total=1.0, line="")

    def __enter__(self) -> "ProgressReport":
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def __call__(self, status: Shown, name: str = "") -> None:
        """Show a status; `name` tells several runs apart."""
        if self.console.is_terminal:
            self._bar.update(self._task, completed=status.fraction, line=f"{name} {status.line()}".strip())
        elif self._due(status, name):
            self._last[name] = status.seconds
            print(f"{name} {status.line()}".strip(), file=sys.stderr, flush=True)

    def _due(self, status: Shown, name: str) -> bool:
        """Long enough after the line before; also that of another run of this name, whose seconds begin anew."""
        since = status.seconds - self._last.get(name, -math.inf)
        return not 0 <= since < self.every or status.fraction >= 1


def check_finite(what: str, value: float, step: int) -> None:
    """Stop where a loss or its gradient is not a number: from there on nothing is learnt.

    Raises:
        ValueError: naming it, and what helps.
    """
    if not math.isfinite(value):
        raise ValueError(
            f"{what} is {value} at step {step}. Checkpoints of earlier steps stay, but resumed they would come to the "
            "same. What may help in a new run: a lower train.lr or train.max_grad_norm, train.precision=no, or no "
            "captions of which the text encoder keeps no token (condition.dropout makes empty ones)"
        )


def check_scale(scale: float, step: int) -> None:
    """Stop where fp16 has given up: each step whose gradient is not a number is left out, and halves the factor that
    losses are scaled by.

    Raises:
        ValueError: the factor is below 2^-24.
    """
    if scale < LEAST_SCALE:
        raise ValueError(
            f"the gradient has not been a number in so many steps that fp16 scales losses by {scale:g} at step {step}; "
            "such steps are left out, and nothing is learnt. What may help in a new run: train.precision=bf16 or no, "
            "or no captions of which the text encoder keeps no token (condition.dropout makes empty ones)"
        )
