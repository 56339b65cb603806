"""Small pieces of the pages that studies write."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpdiff.evaluation.machine import one_line
from tpdiff.evaluation.study_figures import Difference


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table; a bar in a cell is a letter of it."""
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in (heads, ["---"] * len(heads), *rows))
    return [f"| {' | '.join(row)} |" for row in escaped]


def number(value: float) -> str:
    """Integers and whatever reaches 100 whole, others to three digits; what is not a number is not known."""
    if math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "-∞" if value < 0 else "∞"
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def joined(values: Iterable[Any]) -> str:
    """One figure a seed; None is what never came."""
    return " / ".join("never" if v is None else number(v) for v in values)


DIFFERENCE_HEADS = ["difference of distance", "95 % over clips (paired)", "95 % over seeds (t)", "by seed", "it is"]


def difference_cells(found: Difference) -> list[str]:
    """A row's cells under `DIFFERENCE_HEADS`."""
    over_clips, over_seeds = (
        f"[{number(low)}, {number(high)}]" for low, high in ((found.low, found.high), found.over_seeds)
    )
    return [number(found.mean), over_clips, over_seeds, joined(found.seeds), found.verdict]


def floor_line(final: Mapping[str, Any], protocol: Mapping[str, Any]) -> str:
    """What real clips are from real clips, and how many: fewer than samples where the training split holds no more."""
    return f"Real against real, {min(final['clips'], protocol['floor']['clips'])} clips: {number(final['floor'])}."


def warning_lines(verdicts: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the figures do not allow, each once; nothing where there is nothing to warn of."""
    warnings = dict.fromkeys(verdict.get("warning") for verdict in verdicts)
    return [line for warning in warnings if warning for line in ("", f"Warning: {warning}.")]


def head(title: str, command: str, made: Mapping[str, Any], waiting: Sequence[str] = ()) -> list[str]:
    """The lines that a page begins with.

    Args:
        title: of the page.
        command: that makes it.
        made: when (created, ISO), on what (machine, by `machine.describe`), and of which commit, where that is known.
        waiting: what is still to be run.
    """
    commit = f", commit {made['commit']}" if made.get("commit") else ""
    lines = [f"# {title}", "", f"Made by `{command}` on {one_line(made['machine'])}; {made['created'][:10]}{commit}."]
    return [*lines, "", f"**Still to be run: {', '.join(waiting)}.**"] if waiting else lines
