"""Tables as CSV files that a spreadsheet opens without running anything."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
    """Write rows of texts under a header, UTF-8, lines ended by a newline.

    A text that a spreadsheet would take for a formula (a case called "=1+1") gets an apostrophe in
    front, as OWASP advises against CSV injection; numbers in these tables are never below 0.

    Args:
        path: of the file.
        columns: in order.
        rows: column to text.

    Raises:
        ValueError: a row with a column that is not one of ``columns``.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows({name: _safe(text) for name, text in row.items()} for row in rows)


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text
