"""What is shown in a captioned clip, as labels: columns of the metadata such as a digit, a direction, an action."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence

from tpdiff.data import DataError, Entry

Labels = dict[str, tuple[str, ...]]  # attribute: one value a clip


def find_attributes(entries: Sequence[Entry]) -> tuple[str, ...]:
    """Columns that every entry has and that its caption determines: what the captions tell apart.

    A column counts when clips of one caption agree on it, when it has two values or more, and when each of them
    stands for two clips or more (so that numbers of files and episodes are none). Where most captions stand for one
    clip alone, no column does: they would agree on anything, on a licence as well as on an action.
    """
    alike = Counter(entry.caption for entry in entries)
    if 2 * sum(count for count in alike.values() if count > 1) <= len(entries):
        return ()
    return tuple(name for name in _shared_columns(entries) if _tells_apart(entries, name))


def labels_of(entries: Sequence[Entry], attributes: Iterable[str]) -> Labels:
    """The value of each attribute for each entry, as text.

    Raises:
        DataError: an entry lacks one; the message names the nearest column.
    """
    labels = {}
    for name in attributes:
        for entry in entries:
            if name not in entry.extra:
                near = difflib.get_close_matches(name, entry.extra, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(entry.extra) or 'none'}"
                raise DataError(f"the metadata give {entry.path} no column {name!r}{hint}")
        labels[name] = tuple(str(entry.extra[name]) for entry in entries)
    return labels


def caption_labels(entries: Sequence[Entry], attributes: Iterable[str]) -> dict[str, dict[str, str]]:
    """Caption -> the value of each attribute, so that clips made from captions can be judged.

    Raises:
        DataError: a caption stands for two values of an attribute, or as `labels_of`.
    """
    found: dict[str, dict[str, str]] = {}
    for name, values in labels_of(entries, attributes).items():
        for entry, value in zip(entries, values, strict=True):
            known = found.setdefault(entry.caption or "", {}).setdefault(name, value)
            if known != value:
                raise DataError(f"caption {entry.caption!r} stands for {name} {known!r} and {value!r}")
    return found


def _shared_columns(entries: Sequence[Entry]) -> list[str]:
    """In the order of the first entry."""
    return [name for name in (entries[0].extra if entries else {}) if all(name in entry.extra for entry in entries)]


def _tells_apart(entries: Sequence[Entry], name: str) -> bool:
    try:
        caption_labels(entries, [name])
    except DataError:
        return False
    counts = Counter(str(entry.extra[name]) for entry in entries)
    return len(counts) > 1 and min(counts.values()) > 1
