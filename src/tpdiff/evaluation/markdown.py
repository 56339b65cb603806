"""Small pieces of the pages that studies write."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tpdiff.evaluation.machine import one_line


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def number(value: float) -> str:
    """Integers and whatever reaches 100 whole, others to three digits."""
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def joined(values: Iterable[Any]) -> str:
    """One figure a seed; None is what never came."""
    return " / ".join("never" if v is None else number(v) for v in values)


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
