"""Boxes of a box plot: quartiles, whiskers to the last value within 1.5 IQR, the rest outliers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.benchmark.analysis import Analysis
from touchstone_jax.benchmark.groups import columns_of, kept_groups
from touchstone_jax.benchmark.names import AVERAGE

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Box:
    """One box (Tukey 1977): ``low`` and ``high`` are the whiskers' ends, ``outliers`` beyond."""

    name: str
    n: int
    q1: float
    median: float
    q3: float
    low: float
    high: float
    outliers: Float[np.ndarray, " n"]


def box(name: str, values: Float[np.ndarray, " case"]) -> Box | None:
    """The box of the values that are not NaN; None if there is none."""
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
    reach = 1.5 * (q3 - q1)
    inside = (values >= q1 - reach) & (values <= q3 + reach)
    low, high = values[inside].min(), values[inside].max()
    return Box(
        name,
        int(values.size),
        float(q1),
        float(median),
        float(q3),
        float(low),
        float(high),
        np.sort(values[~inside]),
    )


def algorithm_boxes(analysis: Analysis, metric: str, organ: str) -> list[Box]:
    """A box an algorithm, by descending median."""
    scores, names = analysis.results.of(metric, organ), analysis.results.algorithms
    found = [box(name, row) for name, row in zip(names, scores, strict=True)]
    return sorted((b for b in found if b), key=lambda b: -b.median)


def group_boxes(
    analysis: Analysis, metric: str, family: str, organ: str = AVERAGE, control: str = "none"
) -> list[Box]:
    """A box a group of the average algorithm; ages ascending, others by descending mean."""
    assert analysis.metadata is not None  # which has the family
    _, values, columns = columns_of(analysis.results, metric)
    column = values[0, :, columns.index((organ, control))]
    groups = analysis.metadata.families[family]
    kept = kept_groups(column[None], groups, least=analysis.options.least)
    kept = {name: some[0] for name, some in kept.items()}
    if family != "ages":
        kept = dict(sorted(kept.items(), key=lambda item: -item[1].mean()))
    return [found for name, some in kept.items() if (found := box(name, some))]
