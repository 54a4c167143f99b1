"""Paired comparison of every method with every other on the cases that both have.

One-sided Wilcoxon signed-rank tests both ways, as in Touchstone's significance maps (Bassi et al.
2024, "plot/SignificanceMaps.py"), by scipy: zero differences are dropped ("wilcox"), no
continuity correction; exact up to 50 pairs without ties or zeros (up to 13 pairs with them, by
all sign flips), beyond by the normal approximation with the variance corrected for ties.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int

EXACT_UP_TO = 50  # above it scipy's "auto" is the normal approximation, whatever the ties


@dataclass(frozen=True, eq=False)
class Paired:
    """What `compare_pairs` says; row i, column j: is method i better than method j?

    Attributes:
        n_pairs: cases that both methods have; 0 on the diagonal.
        n_nonzero: those where they differ.
        w_plus: sum of the ranks of |difference| where i is better.
        p: one-sided p-value; NaN on the diagonal and without a common case, 1 where all
            differences are zero.
        mean_difference: mean of i - j over the pairs.
        rank_biserial: (W+ - W-) / (W+ + W-) in -1..1, the matched-pairs effect size (Kerby 2014).
        superiority: share of pairs where i is better, plus half of the ties.
    """

    n_pairs: Int[np.ndarray, "method method"]
    n_nonzero: Int[np.ndarray, "method method"]
    w_plus: Float[np.ndarray, "method method"]
    p: Float[np.ndarray, "method method"]
    mean_difference: Float[np.ndarray, "method method"]
    rank_biserial: Float[np.ndarray, "method method"]
    superiority: Float[np.ndarray, "method method"]


def compare_pairs(scores: Float[np.ndarray, "method case"]) -> Paired:
    """Compare all methods in pairs, higher is better; NaN is a case that the method lacks.

    Raises:
        ValueError: no table, or an infinite score.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 2:
        raise ValueError(f"scores of shape {scores.shape}; expected (methods, cases)")
    if np.isinf(scores).any():
        raise ValueError(f"{int(np.isinf(scores).sum())} infinite scores; expected finite or NaN")
    count = len(scores)
    found = {name: np.full((count, count), np.nan) for name in Paired.__dataclass_fields__}
    for (first, second), differences in _by_common_cases(scores):
        for name, values in _one_sided(differences).items():
            found[name][first, second] = values
        for name, values in _one_sided(-differences).items():
            found[name][second, first] = values
    for name in ("n_pairs", "n_nonzero"):
        found[name] = np.nan_to_num(found[name]).astype(int)
    return Paired(**found)


def _by_common_cases(scores: Float[np.ndarray, "method case"]):
    """((first, second), differences (pair, case)): the pairs that share the same cases together.

    Together they are one call of scipy: 171 pairs of 19 methods take one or two.
    """
    there = ~np.isnan(scores)
    batches = defaultdict(list)
    for i in range(len(scores)):
        for j in range(i + 1, len(scores)):
            batches[(there[i] & there[j]).tobytes()].append((i, j))
    for common, pairs in batches.items():
        cases = np.frombuffer(common, bool)
        first, second = np.array(pairs).T
        yield (first, second), scores[first][:, cases] - scores[second][:, cases]


def _one_sided(d: Float[np.ndarray, "pair case"]) -> dict[str, Float[np.ndarray, " pair"]]:
    """The fields of `Paired` for rows of differences."""
    pairs, n = d.shape
    found = {"n_pairs": np.full(pairs, float(n)), "n_nonzero": (d != 0).sum(1).astype(float)}
    for name in ("w_plus", "p", "mean_difference", "rank_biserial", "superiority"):
        found[name] = np.full(pairs, np.nan)
    if not n:
        return found
    w_plus, p = signed_rank(d)
    total = found["n_nonzero"] * (found["n_nonzero"] + 1) / 2
    found |= {"w_plus": w_plus, "p": p, "mean_difference": d.mean(1)}
    found["rank_biserial"] = np.where(total > 0, 2 * w_plus / np.maximum(total, 1) - 1, 0.0)
    found["superiority"] = ((d > 0) + 0.5 * (d == 0)).mean(1)
    return found


def signed_rank(
    differences: Float[np.ndarray, "pair case"], *, method: str = "auto"
) -> tuple[Float[np.ndarray, " pair"], Float[np.ndarray, " pair"]]:
    """(W+, p) of each row: Wilcoxon's signed-rank test of "greater than zero", by scipy.

    Args:
        differences: finite, at least one column; a row of zeros gets W+ = 0 and p = 1 (scipy has
            no answer, Touchstone's script writes 100).
        method: "auto", "exact" or "asymptotic", see the module.
    """
    from scipy.stats import wilcoxon

    w_plus, p = np.zeros(len(differences)), np.ones(len(differences))
    some = np.flatnonzero((differences != 0).any(1))
    # Up to 50 columns "auto" looks at the ties of all rows together: there a row at a time.
    together = method != "auto" or differences.shape[1] > EXACT_UP_TO
    for rows in [some] if together else some[:, None]:
        if not len(rows):
            continue
        test = wilcoxon(
            differences[rows], axis=1, alternative="greater", correction=False, method=method
        )
        w_plus[rows], p[rows] = test.statistic, test.pvalue
    return w_plus, p
