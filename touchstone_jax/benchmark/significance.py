"""Which algorithm is significantly better than which: one panel for each metric and organ.

As Touchstone's significance maps (spec: Bassi et al. 2024, Fig. 3): one-sided paired Wilcoxon
tests both ways on the cases that two algorithms share, Holm over all ordered pairs of the panel,
p < 0.05. Beyond the paper: Holm over all panels of a metric, intervals of the mean difference,
effect sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.benchmark.names import AVERAGE
from touchstone_jax.benchmark.results import Results
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.stats.bootstrap import bootstrap_means
from touchstone_jax.stats.correction import holm
from touchstone_jax.stats.describe import describe
from touchstone_jax.stats.paired import Paired, compare_pairs

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Panel:
    """All tests of one metric and organ; row i, column j: is algorithm i better than j?

    Attributes:
        paired: tests and effect sizes.
        p_holm: corrected within the panel.
        significant: p_holm < 0.05.
        medians, means: of each algorithm on its own cases.
        low, high: 95 % interval of the mean difference over the shared cases (BCa, by case).
    """

    metric: str
    organ: str
    algorithms: tuple[str, ...]
    paired: Paired
    p_holm: Float[np.ndarray, "algorithm algorithm"]
    significant: Bool[np.ndarray, "algorithm algorithm"]
    medians: Float[np.ndarray, " algorithm"]
    means: Float[np.ndarray, " algorithm"]
    low: Float[np.ndarray, "algorithm algorithm"]
    high: Float[np.ndarray, "algorithm algorithm"]

    @property
    def order(self) -> tuple[int, ...]:
        """Algorithms by descending median: the columns of the heat map."""
        last = np.nan_to_num(self.medians, nan=-np.inf)
        return tuple(int(i) for i in np.argsort(-last, kind="stable"))

    @property
    def best(self) -> int | None:
        """The algorithm with the highest mean; None where no organ was scored."""
        return None if np.isnan(self.means).all() else int(np.nanargmax(self.means))

    @property
    def not_worse(self) -> tuple[int, ...]:
        """Those that the best is not significantly better than: Touchstone's runners-up."""
        best = self.best
        others = [i for i in range(len(self.algorithms)) if i != best]
        if best is None:
            return ()
        tested = ~np.isnan(self.paired.p[best])
        return tuple(i for i in others if tested[i] and not self.significant[best, i])


def panel(
    results: Results, metric: str, organ: str, *, resamples: int = 2000, seed: int = 0
) -> Panel:
    """The tests of one metric and organ ("average": of the per-case means).

    Without ``resamples`` (0) the intervals of the differences are NaN.

    Raises:
        ValueError: unknown metric or organ.
    """
    scores = results.of(metric, organ)
    paired = compare_pairs(scores)
    p_holm, of_each = holm(paired.p), describe(scores.T)
    low, high = _differences(scores, resamples, seed)
    with np.errstate(invalid="ignore"):
        significant = p_holm < ALPHA
    return Panel(
        metric=metric,
        organ=organ,
        algorithms=results.algorithms,
        paired=paired,
        p_holm=p_holm,
        significant=significant,
        medians=of_each.median,
        means=of_each.mean,
        low=low,
        high=high,
    )


def _differences(scores: Float[np.ndarray, "algorithm case"], resamples: int, seed: int):
    """(low, high) of the mean difference of every ordered pair; NaN on the diagonal."""
    low, high = (np.full((len(scores),) * 2, np.nan) for _ in range(2))
    first, second = np.triu_indices(len(scores), 1)
    if len(first) and resamples:
        difference = (scores[first] - scores[second]).T
        found = bootstrap_means(difference, resamples=resamples, seed=seed)
        low[first, second], high[first, second] = found.low, found.high
        low[second, first], high[second, first] = -found.high, -found.low
    return low, high


def columns(results: Results) -> tuple[str, ...]:
    """What has a panel: the organs and "average" (a macro average has no cases to pair)."""
    return (*results.organs, AVERAGE)


def significance_rows(panels: list[Panel]) -> list[Row]:
    """The rows of significance.csv; "p_holm_all" is corrected over all panels of the metric."""
    rows = []
    for metric in dict.fromkeys(p.metric for p in panels):
        own = [p for p in panels if p.metric == metric]
        everywhere = holm(np.stack([p.paired.p for p in own]))
        for one, overall in zip(own, everywhere, strict=True):
            rows += _rows_of(one, overall)
    return rows


def _rows_of(one: Panel, overall: Float[np.ndarray, "algorithm algorithm"]) -> list[Row]:
    rows, paired = [], one.paired
    for i, j in np.argwhere(~np.eye(len(one.algorithms), dtype=bool)):
        rows.append(
            {
                "metric": one.metric,
                "organ": one.organ,
                "algorithm": one.algorithms[i],
                "other": one.algorithms[j],
                "n_pairs": int(paired.n_pairs[i, j]),
                "p": float(paired.p[i, j]),
                "p_holm": float(one.p_holm[i, j]),
                "significant": bool(one.significant[i, j]),
                "p_holm_all": float(overall[i, j]),
                "n_nonzero": int(paired.n_nonzero[i, j]),
                "w_plus": float(paired.w_plus[i, j]),
                "mean_difference": float(paired.mean_difference[i, j]),
                "low": float(one.low[i, j]),
                "high": float(one.high[i, j]),
                "rank_biserial": float(paired.rank_biserial[i, j]),
                "superiority": float(paired.superiority[i, j]),
            }
        )
    return rows
