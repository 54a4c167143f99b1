"""The leaderboard: means, spreads, intervals and places of every algorithm on every organ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.benchmark.names import AVERAGE, MACRO
from touchstone_jax.benchmark.results import Results, mean_of_there
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.benchmark.significance import Panel
from touchstone_jax.metrics.aggregate import Mean, aggregate
from touchstone_jax.stats.bootstrap import (
    draw_counts,
    interval,
    left_out_means,
    weighted_means,
)
from touchstone_jax.stats.describe import Description, describe
from touchstone_jax.stats.ranks import places

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Estimates:
    """Everything known of one metric; columns are the organs, "average" and "macro".

    Attributes:
        columns: their names.
        means: algorithm by algorithm, a `Mean` for each column.
        spread: quartiles and zeros, (algorithm, column); of "macro" those of the class means.
        low, high: 95 % interval of the mean, (algorithm, column), BCa, cases resampled.
        distribution: the resampled means, (resample, algorithm, column).
    """

    metric: str
    columns: tuple[str, ...]
    means: tuple[tuple[Mean, ...], ...]
    spread: Description
    low: Float[np.ndarray, "algorithm column"]
    high: Float[np.ndarray, "algorithm column"]
    distribution: Float[np.ndarray, "resample algorithm column"]

    @property
    def values(self) -> Float[np.ndarray, "algorithm column"]:
        """The means."""
        return np.array([[mean.mean for mean in row] for row in self.means])


def estimate(results: Results, metric: str, *, resamples: int = 2000, seed: int = 0) -> Estimates:
    """Means with their intervals; cases are resampled as wholes, the same for all algorithms."""
    scores = results.scores[metric]
    means, cases = [], []
    for table in scores:
        summary = aggregate(table, results.organs)
        means.append((*summary.by_class.values(), summary.per_case, summary.macro))
        cases.append(np.column_stack([table, summary.case_means]))
    distribution, left_out = _resampled(np.array(cases), resamples, seed)
    class_means = np.array([[mean.mean for mean in row[:-2]] for row in means])
    values = np.array([[mean.mean for mean in row] for row in means])
    low, high = interval(_flat(distribution), values.ravel(), _flat(left_out))
    return Estimates(
        metric=metric,
        columns=(*results.organs, AVERAGE, MACRO),
        means=tuple(means),
        spread=_spread(np.array(cases), class_means),
        low=low.reshape(values.shape),
        high=high.reshape(values.shape),
        distribution=distribution,
    )


def _flat(array: Float[np.ndarray, "resample algorithm column"]) -> Float[np.ndarray, "resample n"]:
    return array.reshape(len(array), -1)


def _resampled(cases: Float[np.ndarray, "algorithm case column"], resamples: int, seed: int):
    """Means of the resamples and of the sample without each case, with macro as last column."""
    algorithms, count, columns = cases.shape
    values = cases.transpose(1, 0, 2).reshape(count, -1)
    drawn = weighted_means(draw_counts(count, resamples, seed=seed), values)
    found = []
    for flat in (drawn, left_out_means(values)):
        means = flat.reshape(-1, algorithms, columns)
        macro = mean_of_there(means[..., :-1])
        found.append(np.concatenate([means, macro[..., None]], axis=2))
    return found


def _spread(cases, class_means) -> Description:
    by_case, by_class = describe(cases.transpose(1, 0, 2)), describe(class_means.T)
    joined = {
        name: np.concatenate([getattr(by_case, name), getattr(by_class, name)[:, None]], axis=1)
        for name in Description.__dataclass_fields__
    }
    return Description(**joined)


def table_rows(
    results: Results, found: Estimates, panels: Mapping[str, Panel] | None = None
) -> list[Row]:
    """The rows of tables.csv for one metric.

    Args:
        results: what ``found`` was estimated from.
        found: the estimates.
        panels: organ to its tests: marks the "best" mean and those "not_worse" (not significantly
            so, Holm within the panel); without, and for "macro", only the best.
    """
    place = np.stack([places(column) for column in found.values.T], axis=1)
    rows = []
    for i, algorithm in enumerate(results.algorithms):
        for j, organ in enumerate(found.columns):
            mean, spread = found.means[i][j], found.spread
            rows.append(
                {
                    "metric": found.metric,
                    "algorithm": algorithm,
                    "organ": organ,
                    "n": mean.n,
                    "mean": mean.mean,
                    "sd": mean.sd,
                    "median": float(spread.median[i, j]),
                    "q1": float(spread.q1[i, j]),
                    "q3": float(spread.q3[i, j]),
                    "zeros": int(spread.zeros[i, j]),
                    "low": float(found.low[i, j]),
                    "high": float(found.high[i, j]),
                    "place": float(place[i, j]) if mean.n else float("nan"),
                    "mark": _mark(i, found.values[:, j], (panels or {}).get(organ)),
                }
            )
    return rows


def _mark(algorithm: int, means: Float[np.ndarray, " algorithm"], panel: Panel | None) -> str:
    if np.isnan(means[algorithm]):
        return ""
    if means[algorithm] == np.nanmax(means):
        return "best"
    return "not_worse" if panel is not None and algorithm in panel.not_worse else ""


def case_rows(results: Results, metric: str) -> list[Row]:
    """The rows of cases.csv: where each algorithm's n comes from.

    ``listed`` + ``absent`` = ``cases``; a listed case has a score (n), was "missing" (another
    algorithm has a score there) or "not_evaluated" (nobody has).
    """
    there = ~np.isnan(results.scores[metric])
    there = np.concatenate([there, there.any(axis=2, keepdims=True)], axis=2)
    anybody, listed = there.any(axis=0), results.listed[metric][:, :, None]
    zero = np.concatenate(
        [results.scores[metric] == 0, results.of(metric, AVERAGE)[..., None] == 0], axis=2
    )
    missing, never = listed & ~there & anybody, listed & ~anybody
    rows = []
    for i, algorithm in enumerate(results.algorithms):
        for j, organ in enumerate((*results.organs, AVERAGE)):
            rows.append(
                {
                    "metric": metric,
                    "algorithm": algorithm,
                    "organ": organ,
                    "cases": len(results.cases),
                    "listed": int(listed[i].sum()),
                    "absent": int((~listed[i]).sum()),
                    "n": int(there[i, :, j].sum()),
                    "not_evaluated": int(never[i, :, j].sum()),
                    "missing": int(missing[i, :, j].sum()),
                    "zeros": int(zero[i, :, j].sum()),
                }
            )
    return rows
