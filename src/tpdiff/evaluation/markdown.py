"""Small pieces of the pages that studies write."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def number(value: float) -> str:
    """Integers whole, others to three digits."""
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def joined(values: Iterable[Any]) -> str:
    """One figure a seed; None is what never came."""
    return " / ".join("never" if v is None else number(v) for v in values)


def machine_line(facts: Mapping[str, Any]) -> str:
    """What `machine.describe` says, in few words."""
    return ", ".join([*facts.get("gpus", ()), *(str(facts[key]) for key in ("cpu", "cores") if facts.get(key))])
