"""The tables that the benchmark writes: their columns, as CSV, as JSON."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

COLUMNS: dict[str, tuple[str, ...]] = {
    "tables": (
        *("metric", "algorithm", "organ", "n", "mean", "sd", "median", "q1", "q3"),
        *("zeros", "low", "high", "place", "mark"),
    ),
    "significance": (
        *("metric", "organ", "algorithm", "other", "n_pairs", "p", "p_holm", "significant"),
        *("p_holm_all", "n_nonzero", "w_plus", "mean_difference", "low", "high"),
        *("rank_biserial", "superiority"),
    ),
    "groups": (
        *("metric", "family", "organ", "algorithm", "group", "n", "mean", "sd"),
        *("median", "q1", "q3", "zeros", "n_listed", "kept", "control"),
    ),
    "group_tests": (
        *("metric", "family", "organ", "algorithm", "control", "test", "group", "other"),
        *("n", "n_other", "statistic", "df", "p", "p_bonferroni", "stars", "superiority"),
        "gate_open",
    ),
    "worst_groups": (
        *("metric", "family", "organ", "algorithm", "control", "groups", "worst", "n_worst"),
        *("mean_worst", "best", "n_best", "mean_best", "gap", "p_bonferroni", "gate_open"),
    ),
    "cases": (
        *("metric", "algorithm", "organ", "cases", "listed", "absent", "n"),
        *("not_evaluated", "missing", "zeros"),
    ),
    "ranks": (
        *("metric", "organ", "algorithm", "cases", "place", "mean_place", "low", "high"),
        *("first", "tau"),
    ),
    "sizes": (
        *("metric", "cases", "n", "tau", "tau_low", "tau_high", "winner_kept", "width"),
        "significant",
    ),
    "shift": (
        *("metric", "organ", "algorithm", "n", "mean", "n_other", "mean_other"),
        *("drop", "low", "high", "place", "place_other"),
    ),
}
COLUMNS["tables_common"] = COLUMNS["tables"]
"""Columns of each CSV file, in order; names and order are stable."""


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows as CSV; NaN is an empty cell, floats keep all their digits.

    Raises:
        ValueError: a row with other keys than ``columns``.
    """
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            if row.keys() != set(columns):
                odd = row.keys() ^ set(columns)
                raise ValueError(f"{path.name}: row with {sorted(odd)} besides or without columns")
            writer.writerow([_cell(row[name]) for name in columns])


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else repr(float(value))
    return str(value).lower() if isinstance(value, bool) else value


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """JSON as the standard has it: NaN is null."""
    text = json.dumps(_plain(content), ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
