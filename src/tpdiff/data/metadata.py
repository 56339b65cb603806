"""Captions in a table: the rows of a `metadata.jsonl` or `metadata.csv`."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import DataError

METADATA = ("metadata.jsonl", "metadata.csv")


def table_of(folder: Path) -> Path | None:
    """The metadata file of a folder, if it has one. Raises DataError where it has both kinds."""
    found = [folder / name for name in METADATA if (folder / name).is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds both {' and '.join(METADATA)}; keep one of them")
    return found[0] if found else None


def rows_of(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, row) of a metadata file. Raises DataError, with the line, for what is no row."""
    return _jsonl(table) if table.suffix == ".jsonl" else _csv(table)


def text_in(row: dict[str, Any], key: str, table: Path, line: int) -> str | None:
    """What a row says under a key, without spaces around it; None for nothing. Raises DataError for another type."""
    value = row.get(key)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{table}, line {line}: {key} must be text, got {value!r}")
    return (value or "").strip() or None


def _jsonl(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(_lines(table), 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{table}, line {line}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{table}, line {line}: not a JSON object: {text[:60]!r}")
        yield line, row


def _csv(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(_lines(table), strict=True)
    try:
        if "file_name" not in (reader.fieldnames or []):
            raise DataError(f"{table}, line 1: no column file_name among {reader.fieldnames or []}")
        for row in reader:
            if None in row or None in row.values():
                columns = len(reader.fieldnames or [])
                raise DataError(f"{table}, line {reader.line_num}: not the {columns} columns of line 1")
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{table}, line {reader.reader.line_num}: not CSV ({error}); is a quote left open?") from error


def _lines(table: Path) -> list[str]:
    try:
        text = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{table}: not UTF-8 text ({error})") from error
    return [f"{line}\n" for line in text.removesuffix("\n").split("\n")]  # other line ends may stand in captions
