"""What a test set of another size would have said of the same methods.

Test sets of n cases are drawn from the cases at hand, which stand for all that there are. Means,
rankings and interval widths come from draws with replacement, so n may exceed the number at hand;
significance comes from draws without it, since a case drawn twice is no second observation: it
stops at the number at hand, where every draw is the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.stats.bootstrap import draw_counts, weighted_means
from touchstone_jax.stats.correction import holm
from touchstone_jax.stats.paired import signed_rank
from touchstone_jax.stats.ranks import kendall, places

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class SizeEffect:
    """What test sets of ``n`` cases say, over the draws.

    Attributes:
        n: cases of the test set.
        tau, tau_low, tau_high: Kendall's tau-b with the ranking of all cases: mean, and the 2.5
            and 97.5 % quantiles.
        winner_kept: share of the draws won by the method that wins on all cases.
        width: mean over the methods of the width of the interval that holds 95 % of the means.
        significant: share of the ordered pairs found different (one-sided Wilcoxon, normal
            approximation, Holm, p < 0.05); at most one half. NaN beyond the number at hand.
    """

    n: int
    tau: float
    tau_low: float
    tau_high: float
    winner_kept: float
    width: float
    significant: float


def size_effects(
    scores: Float[np.ndarray, "method case"],
    sizes: Sequence[int],
    *,
    draws: int = 1000,
    tests: int = 20,
    seed: int = 0,
) -> list[SizeEffect]:
    """How ranking, interval width and significance depend on the number of cases.

    Args:
        scores: of the same cases for all methods, no NaN; higher is better.
        sizes: numbers of cases.
        draws: test sets of each size for means and rankings.
        tests: test sets of each size for significance, which costs more.
        seed: of the draws.

    Raises:
        ValueError: fewer than two methods, no case, NaN, or a size below 2.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2 or len(scores) < 2 or not scores.shape[1] or not np.isfinite(scores).all():
        raise ValueError(
            f"scores of shape {scores.shape}; expected at least two methods, the same cases for "
            "all, and no NaN"
        )
    if min(sizes) < 2:
        raise ValueError(f"sizes={list(sizes)}; expected at least 2 cases")
    return [_effect(scores, n, draws, tests, [seed, n]) for n in sizes]


def _effect(scores, n: int, draws: int, tests: int, seed: list[int]) -> SizeEffect:
    whole = places(scores.mean(1))
    means = weighted_means(draw_counts(scores.shape[1], draws, seed=seed, size=n), scores.T)
    drawn = places(means)
    tau = kendall(drawn, whole)
    tau = np.where(np.isnan(tau), 0.0, tau)  # all methods tied: the draw says nothing
    low, high = np.quantile(tau, [0.025, 0.975])
    winner = int(np.argmin(whole))
    ends = np.quantile(means, [0.025, 0.975], axis=0)
    return SizeEffect(
        n=n,
        tau=float(tau.mean()),
        tau_low=float(low),
        tau_high=float(high),
        winner_kept=float((drawn[:, winner] == drawn.min(1)).mean()),
        width=float((ends[1] - ends[0]).mean()),
        significant=_significant(scores, n, tests, seed),
    )


def _significant(scores, n: int, tests: int, seed: list[int]) -> float:
    """Share of ordered pairs that differ significantly, over draws without replacement."""
    methods, cases = scores.shape
    if n > cases:
        return float("nan")
    rng = np.random.default_rng(seed)
    first, second = np.triu_indices(methods, 1)
    shares = []
    for _ in range(1 if n == cases else tests):
        some = scores[:, rng.permutation(cases)[:n]]
        d = some[first] - some[second]
        p = [signed_rank(sign * d, method="asymptotic")[1] for sign in (1, -1)]
        shares.append((holm(np.array(p)) < 0.05).mean())
    return float(np.mean(shares))
