"""Small pieces of the pages that studies write."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def number(value: float) -> str:
    """Integers and whatever reaches 100 whole, others to three digits."""
    return f"{value:.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


def joined(values: Iterable[Any]) -> str:
    """One figure a seed; None is what never came."""
    return " / ".join("never" if v is None else number(v) for v in values)


def machine_line(facts: Mapping[str, Any]) -> str:
    """What `machine.describe` says, in few words."""
    return ", ".join(str(v) for k, v in facts.items() if k in ("cpu", "cores", "gpu") and v)
