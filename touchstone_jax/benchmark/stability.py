"""How far the ranking can be trusted, and how that depends on the size of the test set.

Both on the cases that every algorithm has, so that no place comes from an easier set of cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np

from touchstone_jax.benchmark.names import AVERAGE
from touchstone_jax.benchmark.results import Results
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.benchmark.table import Estimates
from touchstone_jax.stats.ranks import rank_stability
from touchstone_jax.stats.sizes import size_effects

SIZES = (10, 20, 50, 100, 200, 400, 800, 1600, 3200)


def rank_rows(results: Results, common: Estimates) -> list[Row]:
    """The rows of ranks.csv for one metric: places of the means over the resamples of ``common``.

    ``first`` is the share of resamples that the algorithm wins, ``tau`` the mean of Kendall's tau-b
    between the resamples' rankings and that of all cases (the same for all of a column).
    """
    rows = []
    for j, organ in enumerate(common.columns):
        drawn = common.distribution[:, :, j]
        drawn = drawn[~np.isnan(drawn).any(axis=1)]  # an organ of few cases may not be drawn
        if not len(drawn):
            continue
        found = rank_stability(drawn, common.values[:, j])
        for i, algorithm in enumerate(results.algorithms):
            rows.append(
                {
                    "metric": common.metric,
                    "organ": organ,
                    "algorithm": algorithm,
                    "cases": common.means[i][j].n,
                    "place": float(found.place[i]),
                    "mean_place": float(found.mean_place[i]),
                    "low": float(found.low[i]),
                    "high": float(found.high[i]),
                    "first": float(found.first[i]),
                    "tau": float(np.nan_to_num(found.tau).mean()),
                }
            )
    return rows


def size_rows(
    results: Results,
    metric: str,
    *,
    sizes: Sequence[int] = SIZES,
    draws: int = 1000,
    tests: int = 20,
    seed: int = 0,
) -> list[Row]:
    """The rows of sizes.csv for one metric: of the per-case averages, `touchstone_jax.stats.sizes`.

    The number of common cases is added to the sizes; nothing for one algorithm or one case.
    """
    scores = results.common().of(metric, AVERAGE)
    scores = scores[:, ~np.isnan(scores).any(axis=0)]
    count = scores.shape[1]
    if len(scores) < 2 or count < 2:
        return []
    found = size_effects(scores, sorted({*sizes, count}), draws=draws, tests=tests, seed=seed)
    return [{"metric": metric, "cases": count, **asdict(effect)} for effect in found]
