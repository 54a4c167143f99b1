"""Counts, means and quartiles of many columns with gaps at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Description:
    """What `describe` says of each column; all NaN where n is 0.

    ``sd`` is that of the population (ddof = 0), as in Touchstone's tables; quartiles are
    interpolated linearly (numpy's default, Hyndman and Fan's type 7).
    """

    n: Int[np.ndarray, "..."]
    mean: Float[np.ndarray, "..."]
    sd: Float[np.ndarray, "..."]
    median: Float[np.ndarray, "..."]
    q1: Float[np.ndarray, "..."]
    q3: Float[np.ndarray, "..."]
    zeros: Int[np.ndarray, "..."]


def describe(values: Float[np.ndarray, "case ..."]) -> Description:
    """Describe every column over the cases (first axis); NaN is left out.

    Raises:
        ValueError: an infinite value.
    """
    values = np.asarray(values, np.float64)
    if np.isinf(values).any():
        raise ValueError(f"{int(np.isinf(values).sum())} infinite values; expected finite or NaN")
    n = (~np.isnan(values)).sum(0)
    ordered = np.sort(values, axis=0)  # NaN comes last
    with np.errstate(invalid="ignore"):
        mean = np.where(n > 0, np.nansum(values, axis=0) / n, np.nan)
        sd = np.sqrt(np.where(n > 0, np.nansum((values - mean) ** 2, axis=0) / n, np.nan))
    q1, median, q3 = (quantile_sorted(ordered, n, q) for q in (0.25, 0.5, 0.75))
    return Description(n, mean, sd, median, q1, q3, (values == 0).sum(0))


def quantile_sorted(
    ordered: Float[np.ndarray, "case ..."],
    n: Int[np.ndarray, "..."],
    q: float | Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:
    """The quantile ``q`` (0..1, one for all or one a column) of sorted columns.

    Args:
        ordered: values, ascending along the first axis; those from ``n`` on are ignored.
        n: how many values of each column count; NaN is returned for 0.
        q: NaN gives NaN.
    """
    if not len(ordered):
        return np.full(np.shape(n), np.nan)
    usable = (n > 0) & ~np.isnan(q)
    place = np.where(usable, q * (n - 1), 0.0)
    below = np.floor(place).astype(int)
    above = np.minimum(below + 1, np.maximum(n - 1, 0))
    low = np.take_along_axis(ordered, below[None], 0)[0]
    high = np.take_along_axis(ordered, above[None], 0)[0]
    share = place - below
    # As numpy does: from the nearer end, so that 1 gives exactly the upper value.
    between = np.where(share < 0.5, low + (high - low) * share, high - (high - low) * (1 - share))
    return np.where(usable, between, np.nan)
