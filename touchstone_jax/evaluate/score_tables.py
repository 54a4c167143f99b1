"""Tables of scores: one tidy table, Touchstone's ``dsc.csv`` and ``nsd.csv``, and a summary."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from touchstone_jax.metrics.aggregate import Mean, aggregate

COLUMNS = ("case", "organ", "metric", "value", "pred_voxels", "ref_voxels", "flags")


@dataclass(frozen=True)
class Score:
    """One row of the tidy table.

    Attributes:
        case: id.
        organ: class name.
        metric: "dsc" and "nsd" in 0..1, "hd95_mm" and "assd_mm" in mm.
        value: NaN where nothing was scored; ``flags`` then says why.
        pred_voxels: of the prediction; None if there is none.
        ref_voxels: of the reference; None if there is none.
        flags: words, see `touchstone_jax.evaluate.job.FLAGS`.
    """

    case: str
    organ: str
    metric: str
    value: float
    pred_voxels: int | None
    ref_voxels: int | None
    flags: tuple[str, ...] = ()


def write_scores(path: str | Path, scores: Iterable[Score]) -> None:
    """Write the tidy table; NaN and None are empty cells, flags are joined by spaces."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for score in scores:
            cells = asdict(score) | {"value": _cell(score.value), "flags": " ".join(score.flags)}
            rows.writerow(cells[name] for name in COLUMNS)


def read_scores(path: str | Path) -> list[Score]:
    """What `write_scores` wrote.

    Raises:
        ValueError: no CSV file in UTF-8, another header, a row of another length, or a cell that
            is no number.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows, found = csv.DictReader(file, strict=True), []
        try:
            if tuple(rows.fieldnames or ()) != COLUMNS:
                raise ValueError(f"columns {rows.fieldnames}; expected {', '.join(COLUMNS)}")
            for row in rows:
                if None in row or None in row.values():
                    raise ValueError(f"expected {len(COLUMNS)} cells")
                found.append(_score(row))
        except (ValueError, csv.Error) as error:
            raise ValueError(f"{path}:{rows.line_num}: {error}") from error
    return found


def write_touchstone(
    path: str | Path,
    cases: Sequence[str],
    organs: Sequence[str],
    table: Float64[np.ndarray, "case organ"],
) -> None:
    """Write one metric as Touchstone does: a row a case, organs alphabetically, NaN left empty."""
    order = np.argsort(np.asarray(organs))
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["name", *(organs[i] for i in order)])
        for case, values in zip(cases, table, strict=True):
            rows.writerow([case, *(_cell(float(values[i])) for i in order)])


def tabulated(
    scores: Iterable[Score], metric: str, cases: Sequence[str], organs: Sequence[str]
) -> Float64[np.ndarray, "case organ"]:
    """One metric of the tidy table as a matrix; NaN where there is no row."""
    row = {case: i for i, case in enumerate(cases)}
    column = {organ: i for i, organ in enumerate(organs)}
    table = np.full((len(cases), len(organs)), np.nan)
    for score in scores:
        if score.metric == metric:
            table[row[score.case], column[score.organ]] = score.value
    return table


def averages(table: Float64[np.ndarray, "case organ"], organs: Sequence[str]) -> dict[str, Any]:
    """Means of one metric with SD and n beside each, for JSON; infinite distances are left out.

    Touchstone's two averages are both there: "per_case" and "macro"
    (`touchstone_jax.metrics.aggregate`).
    """
    summary = aggregate(table, organs, infinite="drop")
    return {
        "by_class": {name: _numbers(mean) for name, mean in summary.by_class.items()},
        "per_case": _numbers(summary.per_case),
        "macro": _numbers(summary.macro),
        "not_scored": summary.dropped_nan,
        "infinite": summary.dropped_infinite,
    }


def told(mean: Mapping[str, Any]) -> str:
    """One of the means of `averages` for people, its n beside it."""
    if not mean["n"]:
        return "none (n 0)"
    return f"{mean['mean']:.4g} ± {mean['sd']:.2g} (n {mean['n']})"


def _numbers(mean: Mean) -> dict[str, Any]:
    numbers = {"mean": mean.mean, "sd": mean.sd}
    return {
        **{name: None if math.isnan(value) else value for name, value in numbers.items()},
        "n": mean.n,
        "left_out": mean.dropped,
    }


def _cell(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def _score(row: dict[str, str]) -> Score:
    pred, ref = (int(row[k]) if row[k] else None for k in ("pred_voxels", "ref_voxels"))
    value = float(row["value"]) if row["value"] else math.nan
    flags = tuple(row["flags"].split())
    return Score(row["case"], row["organ"], row["metric"], value, pred, ref, flags)
