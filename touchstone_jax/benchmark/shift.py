"""The same algorithms on two test sets: what is lost from one to the other, organ by organ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.benchmark.names import AVERAGE, MACRO, METRICS, ORGANS
from touchstone_jax.benchmark.reading import csv_rows
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.benchmark.table import Estimates
from touchstone_jax.legal import unknown
from touchstone_jax.stats.ranks import places

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Published:
    """Means of another test set: from its results, or from a table without its cases.

    Attributes:
        means: (metric, algorithm, organ) to (mean in 0..1, number of cases or NaN).
        distribution: the same keys to resampled means; empty where only a table is known.
    """

    means: Mapping[tuple[str, str, str], tuple[float, float]]
    distribution: Mapping[tuple[str, str, str], Float[np.ndarray, " resample"]]


def published(estimates: Mapping[str, Estimates], algorithms: tuple[str, ...]) -> Published:
    """Estimates of each metric in the form that `shift_rows` compares."""
    means, drawn = {}, {}
    for metric, found in estimates.items():
        for i, algorithm in enumerate(algorithms):
            for j, organ in enumerate(found.columns):
                key = (metric, algorithm, organ)
                means[key] = (found.means[i][j].mean, float(found.means[i][j].n))
                drawn[key] = found.distribution[:, i, j]
    return Published(means, drawn)


def read_table(path: str | Path) -> Published:
    """A table of means: a CSV with the columns metric, algorithm, organ, mean and perhaps n.

    The ``tables.csv`` of another run is one; so is a table copied from a paper.

    Raises:
        ValueError: no CSV file, a missing column, a row of another length, an unknown metric or
            organ, a mean outside 0..1, a row twice.
    """
    path, means = Path(path), {}
    rows = csv_rows(path)
    _, header = next(rows, (0, []))
    for name in ("metric", "algorithm", "organ", "mean"):
        if header.count(name) != 1:
            raise ValueError(
                f"{path}: {'two columns' if name in header else 'missing column'} {name!r}"
            )
    for line, cells in rows:
        where = f"{path}:{line}"
        if len(cells) != len(header):
            raise ValueError(f"{where}: {len(cells)} cells; expected {len(header)}")
        row = dict(zip(header, cells, strict=True))
        for what, legal in (("metric", METRICS), ("organ", (*ORGANS, AVERAGE, MACRO))):
            if row[what] not in legal:
                raise ValueError(f"{where}: {unknown(what, row[what], legal)}")
        key = (row["metric"], row["algorithm"], row["organ"])
        if key in means:
            raise ValueError(f"{where}: {', '.join(key)} twice")
        means[key] = (_number(row["mean"], where), _number(row.get("n"), where, most=np.inf))
    return Published(means, {})


def _number(text: str | None, where: str, *, most: float = 1.0) -> float:
    try:
        value = float(text) if text else float("nan")
    except ValueError:
        raise ValueError(f"{where}: {text!r} is no number") from None
    if not (0 <= value <= most or np.isnan(value)):
        raise ValueError(f"{where}: {text}; expected a number in 0..{most:g}")
    return value


def shift_rows(ours: Published, theirs: Published) -> list[Row]:
    """The rows of shift.csv: ``drop`` = our mean - their mean, where both are known.

    low and high: 95 % percentile interval, the cases of both sets resampled independently; NaN
    where a set is known by its table only. Places are among the algorithms that both sets have.

    Raises:
        ValueError: nothing in common.
    """
    shared = [
        key
        for key, (mean, _) in ours.means.items()
        if not np.isnan([mean, theirs.means.get(key, (np.nan,))[0]]).any()
    ]
    if not shared:
        names = [sorted({key[1] for key in both.means}) for both in (ours, theirs)]
        raise ValueError(
            f"the two test sets share no algorithm and organ: {', '.join(names[0][:5])} … and "
            f"{', '.join(names[1][:5])} …"
        )
    rows = []
    for metric, organ in dict.fromkeys((key[0], key[2]) for key in shared):
        keys = [key for key in shared if (key[0], key[2]) == (metric, organ)]
        place, other = (places(np.array([s.means[k][0] for k in keys])) for s in (ours, theirs))
        for key, first, second in zip(keys, place, other, strict=True):
            rows.append(_row(key, ours, theirs, float(first), float(second)))
    return rows


def _row(key: tuple[str, str, str], ours: Published, theirs: Published, place: float, other: float):
    (mean, n), (mean_other, n_other) = ours.means[key], theirs.means[key]
    low = high = float("nan")
    if key in ours.distribution and key in theirs.distribution:
        first, second = ours.distribution[key], theirs.distribution[key]
        # The draws of both start from one seed; another order makes them independent.
        second = np.random.default_rng(1).permutation(second)[: len(first)]
        low, high = (
            float(q) for q in np.nanquantile(first[: len(second)] - second, [0.025, 0.975])
        )
    return {
        "metric": key[0],
        "organ": key[2],
        "algorithm": key[1],
        "n": n,
        "mean": mean,
        "n_other": n_other,
        "mean_other": mean_other,
        "drop": mean - mean_other,
        "low": low,
        "high": high,
        "place": place,
        "place_other": other,
    }
