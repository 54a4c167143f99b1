"""Bootstrap of means over cases, for many columns at once: one product of matrices.

Cases are resampled, not scores: a case keeps its organs and its algorithms together, so that what
correlates within a case does so in every resample. How often each case was drawn is a row of a
matrix; times the table of scores that is every resample's every mean, gaps included. The same
draws serve all columns, so differences and ranks of columns may be taken resample by resample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.stats.describe import quantile_sorted

if TYPE_CHECKING:
    from jaxtyping import Float

METHODS = ("bca", "percentile")


@dataclass(frozen=True, eq=False)
class Interval:
    """A confidence interval of each column and the resampled estimates it comes from."""

    estimate: Float[np.ndarray, " column"]
    low: Float[np.ndarray, " column"]
    high: Float[np.ndarray, " column"]
    distribution: Float[np.ndarray, "resample column"]


def draw_counts(
    cases: int, resamples: int, *, seed: int | Sequence[int], size: int | None = None
) -> Float[np.ndarray, "resample case"]:
    """How often each case is drawn, with replacement; each row sums to ``size`` (None: ``cases``).

    The draws are those of ``scipy.stats.bootstrap(rng=numpy.random.default_rng(seed))``.

    Raises:
        ValueError: a number below 1.
    """
    size = cases if size is None else size
    for name, value in (("cases", cases), ("resamples", resamples), ("size", size)):
        if value < 1:
            raise ValueError(f"{name}={value}; expected at least 1")
    rng, counts = np.random.default_rng(seed), np.empty((resamples, cases))
    for start in range(0, resamples, 100):  # what is drawn at once stays in the cache
        block = counts[start : start + 100]
        drawn = rng.integers(0, cases, (len(block), size))
        drawn += np.arange(0, block.size, cases)[:, None]
        block[:] = np.bincount(drawn.ravel(), minlength=block.size).reshape(block.shape)
    return counts


def weighted_means(
    weights: Float[np.ndarray, "resample case"], values: Float[np.ndarray, "case column"]
) -> Float[np.ndarray, "resample column"]:
    """The mean of each column under each row of weights without its NaN; NaN of nothing."""
    there = ~np.isnan(values)
    # Few patterns of gaps are shared by many columns: the weight of each is summed once.
    bits = np.ascontiguousarray(np.packbits(there, axis=0).T)
    patterns: dict[bytes, int] = {}
    which = [patterns.setdefault(row.tobytes(), len(patterns)) for row in bits]
    _, first = np.unique(which, return_index=True)
    known = np.concatenate([np.where(there, values, 0.0), there[:, first]], axis=1)
    totals, sums = np.split(weights @ known, [len(which)], axis=1)
    return totals / np.where(sums == 0, np.nan, sums)[:, which]


def left_out_means(values: Float[np.ndarray, "case column"]) -> Float[np.ndarray, "case column"]:
    """The mean of each column without each case in turn (the jackknife); NaN is left out.

    Leaving out a case that the column lacks changes nothing; without its only one it is NaN.
    """
    there = ~np.isnan(values)
    n, known = there.sum(0), np.where(there, values, 0.0)
    rest = (n - there).astype(float)
    rest[rest == 0] = np.nan
    return (known.sum(0) - known) / rest


def bootstrap_means(
    values: Float[np.ndarray, "case column"],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    method: str = "bca",
    seed: int = 0,
) -> Interval:
    """Confidence intervals of the means of all columns; NaN is left out.

    Args:
        values: (case, column).
        resamples: how many.
        level: coverage, in 0..1.
        method: "bca" (Efron 1987: corrected for bias and skewness) or "percentile".
        seed: of the draws.

    Raises:
        ValueError: no table, no case, an infinite value, or an illegal argument.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values) or np.isinf(values).any():
        raise ValueError(
            f"values of shape {values.shape}; expected (cases, columns), finite or NaN"
        )
    estimate = weighted_means(np.ones((1, len(values))), values)[0]
    distribution = weighted_means(draw_counts(len(values), resamples, seed=seed), values)
    left_out = left_out_means(values) if method == "bca" else None
    low, high = interval(distribution, estimate, left_out, level=level, method=method)
    return Interval(estimate, low, high, distribution)


def interval(
    distribution: Float[np.ndarray, "resample column"],
    estimate: Float[np.ndarray, " column"],
    left_out: Float[np.ndarray, "case column"] | None = None,
    *,
    level: float = 0.95,
    method: str = "bca",
) -> tuple[Float[np.ndarray, " column"], Float[np.ndarray, " column"]]:
    """(low, high) of each column from its resampled values.

    Resamples with NaN (nothing of the column was drawn) are left out. Where all resamples agree
    both ends are that value.

    Args:
        distribution: the statistic of each resample.
        estimate: the statistic of the sample.
        left_out: the statistic without each case in turn (the jackknife); needed by "bca".
        level: coverage, in 0..1.
        method: of `METHODS`.

    Raises:
        ValueError: an illegal level or method, or no ``left_out`` for "bca".
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}; expected a number between 0 and 1")
    if method not in METHODS or (method == "bca" and left_out is None):
        raise ValueError(f"method={method!r} of {METHODS}; 'bca' needs left_out")
    ordered = np.sort(distribution, axis=0)
    n = (~np.isnan(ordered)).sum(0)
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    quantiles = np.broadcast_to(tails[:, None], (2, len(estimate)))
    if method == "bca":
        quantiles = _bca(distribution, estimate, left_out, n, tails)
    low, high = (quantile_sorted(ordered, n, q) for q in quantiles)
    constant = (n > 0) & (
        ordered[0] == np.take_along_axis(ordered, np.maximum(n - 1, 0)[None], 0)[0]
    )
    return np.where(constant, ordered[0], low), np.where(constant, ordered[0], high)


def _bca(distribution, estimate, left_out, n, tails):
    """Quantiles (2, column) that the tails of a biased, skewed distribution stand for."""
    from scipy.special import ndtr, ndtri

    with np.errstate(invalid="ignore", divide="ignore"):
        below = (distribution < estimate).sum(0) + (distribution <= estimate).sum(0)
        bias = ndtri(below / (2 * n))
        mean = np.nansum(left_out, axis=0) / (~np.isnan(left_out)).sum(0)
        influence = np.nan_to_num(mean - left_out)  # NaN: the column's only case was left out
        square = influence * influence
        skew = (square * influence).sum(0) / (6 * square.sum(0) ** 1.5)
        shifted = bias + ndtri(tails)[:, None]
        return ndtr(bias + shifted / (1 - skew * shifted))
