"""Rankings: places, how alike two rankings are, and how stable one is under resampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True, eq=False)
class Stability:
    """Places (1 is best) of each method over the resamples.

    Attributes:
        place: that of the whole sample.
        mean_place: mean over the resamples.
        low, high: the interval that holds the places of at least ``level`` of the resamples.
        first: share of the resamples that the method wins; winners that tie share one.
        shares: (method, place - 1): share of the resamples in which it has that place (a tie
            counts for the place rounded up).
        tau: Kendall's tau-b of each resample's ranking with that of the whole sample.
    """

    place: Float[np.ndarray, " method"]
    mean_place: Float[np.ndarray, " method"]
    low: Float[np.ndarray, " method"]
    high: Float[np.ndarray, " method"]
    first: Float[np.ndarray, " method"]
    shares: Float[np.ndarray, "method place"]
    tau: Float[np.ndarray, " resample"]


def places(values: Float[np.ndarray, "*batch method"]) -> Float[np.ndarray, "*batch method"]:
    """Places along the last axis: 1 for the highest; equal values share the mean of theirs.

    A method without a value (NaN) comes last.
    """
    from scipy.stats import rankdata

    return rankdata(-np.nan_to_num(np.asarray(values, np.float64), nan=-np.inf), axis=-1)


def kendall(
    rankings: Float[np.ndarray, "*batch method"], reference: Float[np.ndarray, " method"]
) -> Float[np.ndarray, "*batch"]:
    """Kendall's tau-b of each ranking with the reference, -1..1; NaN where all are tied."""
    i, j = np.triu_indices(len(reference), 1)
    ours = np.sign(rankings[..., i] - rankings[..., j])
    theirs = np.sign(reference[i] - reference[j])
    norm = np.sqrt((ours != 0).sum(-1) * (theirs != 0).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ours * theirs).sum(-1) / np.where(norm > 0, norm, np.nan)


def rank_stability(
    distribution: Float[np.ndarray, "resample method"],
    estimate: Float[np.ndarray, " method"],
    *,
    level: float = 0.95,
) -> Stability:
    """How stable the ranking by a score is (Maier-Hein et al. 2018; Wiesenfarth et al. 2021).

    Args:
        distribution: the score of each method in each resample of the same cases, higher is
            better.
        estimate: its score on the whole sample.
        level: coverage of the interval of places.

    Raises:
        ValueError: shapes that do not fit.
    """
    if distribution.ndim != 2 or estimate.shape != distribution.shape[1:]:
        raise ValueError(
            f"distribution {distribution.shape} and estimate {estimate.shape}; expected "
            "(resamples, methods) and (methods,)"
        )
    drawn, count = places(distribution), len(estimate)
    best = drawn == drawn.min(axis=1, keepdims=True)
    held = np.ceil(drawn)[:, :, None] == np.arange(1, count + 1)
    tails = ((1 - level) / 2, (1 + level) / 2)
    return Stability(
        place=places(estimate),
        mean_place=drawn.mean(0),
        low=np.quantile(drawn, tails[0], axis=0, method="inverted_cdf"),
        high=np.quantile(drawn, tails[1], axis=0, method="higher"),
        first=(best / best.sum(1, keepdims=True)).mean(0),
        shares=held.mean(0),
        tau=kendall(drawn, places(estimate)),
    )
