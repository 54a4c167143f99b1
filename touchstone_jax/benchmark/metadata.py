"""Families of groups of cases from a metadata table: age, sex, diagnosis, scanner and the like.

A CSV with a header, separated by comma, semicolon or tab; one row a case. TotalSegmentator's
``meta.csv`` is one. Values that differ in upper and lower case only are one group, spelled as
first met; an empty value is in no group.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.legal import unknown

if TYPE_CHECKING:
    from jaxtyping import Bool

IDS = ("image_id", "name", "case", "case_id", "id", "bdmap_id")
"""Columns that may name the case, the first found counts."""

FAMILIES = {
    "ages": ("age", "ages"),
    "sex": ("gender", "sex"),
    "diagnosis": ("pathology", "diagnosis"),
    "manufacturer": ("manufacturer",),
    "institute": ("institute",),
    "scanner_model": ("scanner_model", "scanner"),
    "race": ("race",),
}
"""Family to the columns that it may be read from."""

AGES = ((18, 29), *((low, low + 9) for low in range(30, 100, 10)))
"""Age groups in years, both ends included, as in Touchstone; younger and unknown are in none."""

_SEX = {"m": "male", "f": "female", "w": "female"}


@dataclass(frozen=True, eq=False)
class Metadata:
    """What is known of the cases.

    Attributes:
        rows: case to column to text, of all rows of the file.
        families: family to group to (case,) mask over the cases of the results; families without
            any group are left out.
        listed: family to group to the number of rows of the file, in the results or not.
    """

    rows: dict[str, dict[str, str]]
    families: dict[str, dict[str, Bool[np.ndarray, " case"]]]
    listed: dict[str, dict[str, int]]

    def cases(self, column: str, value: str) -> tuple[str, ...]:
        """The cases that have a value in a column, e.g. those of ("split", "test").

        Raises:
            ValueError: no such column, or no case has that value.
        """
        columns = list(next(iter(self.rows.values())))
        if column not in columns:
            raise unknown("column of the metadata", column, columns)
        found = tuple(
            case for case, row in self.rows.items() if row[column].casefold() == value.casefold()
        )
        if not found:
            values = sorted({row[column] for row in self.rows.values()})
            raise unknown(f"value of {column!r}", value, values)
        return found


def read_metadata(path: str | Path, cases: Sequence[str]) -> Metadata:
    """The families of groups among ``cases``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no column that names the case, a case twice, an age that is no number, none of
            ``cases`` in the file, or a file that is no table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"metadata {path}: no such file")
    rows = _read(path)
    if not set(cases) & rows.keys():
        raise ValueError(
            f"metadata {path}: none of the {len(cases)} cases of the results is in it "
            f"(results have {cases[0]!r}, the metadata {next(iter(rows), None)!r})"
        )
    columns = next(iter(rows.values()))
    families: dict[str, dict[str, Bool[np.ndarray, " case"]]] = {}
    listed: dict[str, dict[str, int]] = {}
    for family, names in FAMILIES.items():
        column = next((name for name in names if name in columns), None)
        if column is None:
            continue
        spelled: dict[str, str] = {}
        group_of = {}
        for case, row in rows.items():
            text = spelled.setdefault(row[column].casefold(), row[column])
            group_of[case] = _group(family, text, path, case)
        groups = _ordered(family, [group for group in group_of.values() if group])
        if groups:
            families[family] = {
                group: np.array([group_of.get(case) == group for case in cases], bool)
                for group in groups
            }
            members = list(group_of.values())
            listed[family] = {group: members.count(group) for group in groups}
    return Metadata(rows, families, listed)


def _read(path: Path) -> dict[str, dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"metadata {path}: not UTF-8 ({error})") from error
    header = text.partition("\n")[0]
    separator = max(",;\t", key=header.count)
    found: dict[str, dict[str, str]] = {}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        key = _key(columns, path)
        for cells in filter(None, reader):
            where = f"metadata {path}:{reader.line_num}"
            if len(cells) != len(columns):
                raise ValueError(f"{where}: expected {len(columns)} cells, not {len(cells)}")
            row = {name: cell.strip() for name, cell in zip(columns, cells, strict=True)}
            case = row[key]
            if not case or case in found:
                raise ValueError(f"{where}: {f'case {case!r} twice' if case else 'no case name'}")
            found[case] = row
    except csv.Error as error:
        raise ValueError(f"metadata {path}:{reader.line_num}: no CSV file ({error})") from error
    return found


def _key(columns: list[str], path: Path) -> str:
    """The column that names the case."""
    key = next((name for name in IDS if name in columns), None)
    if key is None:
        raise ValueError(
            f"metadata {path}: no column for the case ({', '.join(IDS)}); "
            f"columns: {', '.join(columns)}"
        )
    if twice := [name for name in columns if name and columns.count(name) > 1]:
        raise ValueError(f"metadata {path}: column {twice[0]!r} twice; columns: {columns}")
    return key


def _group(family: str, text: str, path: Path, case: str) -> str | None:
    if text.casefold() in ("", "nan", "na", "none"):
        return None
    if family == "sex":
        return _SEX.get(text.casefold(), text)
    if family != "ages":
        return text
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        raise ValueError(f"metadata {path}: {case}: age {text!r}; expected years in 0..130")
    return next((f"{low}-{high}" for low, high in AGES if low <= age <= high), None)


def _ordered(family: str, groups: list[str]) -> list[str]:
    """Ages ascending, others by number of cases."""
    names = sorted(set(groups))
    return names if family == "ages" else sorted(names, key=lambda name: -groups.count(name))
