"""The scores of a benchmark as arrays: algorithms x cases x organs for each metric."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.benchmark.names import AVERAGE
from touchstone_jax.legal import unknown

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True, eq=False)
class Results:
    """Scores of algorithms on the cases of one test set.

    Attributes:
        metrics: such as "dsc", "nsd".
        algorithms, cases, organs: names along the axes of the arrays.
        scores: metric to (algorithm, case, organ) in 0..1; NaN where an organ was not evaluated,
            or the algorithm lacks the case.
        listed: metric to (algorithm, case): the algorithm's file has a row for the case.
    """

    metrics: tuple[str, ...]
    algorithms: tuple[str, ...]
    cases: tuple[str, ...]
    organs: tuple[str, ...]
    scores: dict[str, Float[np.ndarray, "algorithm case organ"]]
    listed: dict[str, Bool[np.ndarray, "algorithm case"]]

    def of(self, metric: str, organ: str) -> Float[np.ndarray, "algorithm case"]:
        """The scores of one organ; of "average" each case's mean over its organs.

        Raises:
            ValueError: unknown metric or organ.
        """
        if metric not in self.metrics:
            raise unknown("metric", metric, self.metrics)
        scores = self.scores[metric]
        if organ == AVERAGE:
            return mean_of_there(scores)
        if organ not in self.organs:
            raise unknown("organ", organ, (*self.organs, AVERAGE))
        return scores[:, :, self.organs.index(organ)]

    def evaluated(self, metric: str) -> Bool[np.ndarray, "algorithm case"]:
        """Cases of which the algorithm has at least one score."""
        return (~np.isnan(self.scores[metric])).any(axis=2)

    def subset(self, cases: Collection[str]) -> Results:
        """The results on some of the cases only.

        Raises:
            ValueError: none of them is there, or an algorithm has no score on them.
        """
        wanted = set(cases)
        kept = np.array([case in wanted for case in self.cases], bool)
        if not kept.any():
            raise ValueError(f"none of the {len(wanted)} cases of the subset is in the results")
        smaller = replace(
            self,
            cases=tuple(case for case, keep in zip(self.cases, kept, strict=True) if keep),
            scores={metric: scores[:, kept] for metric, scores in self.scores.items()},
            listed={metric: listed[:, kept] for metric, listed in self.listed.items()},
        )
        for metric in self.metrics:
            refuse_incomparable(smaller, metric)
        return smaller

    def common(self) -> Results:
        """The same, but a score counts only where every algorithm has one.

        On its own cases the algorithm that failed on the hard ones looks best.
        """
        scores = {}
        for metric, table in self.scores.items():
            everyone = ~np.isnan(table).any(axis=0)
            scores[metric] = np.where(everyone, table, np.nan)
        return replace(self, scores=scores)


def mean_of_there(values: Float[np.ndarray, "*batch n"]) -> Float[np.ndarray, "*batch"]:
    """Mean over the last axis without its NaN; NaN where there is nothing else."""
    there = ~np.isnan(values)
    n = there.sum(-1)
    return np.where(n > 0, np.where(there, values, 0.0).sum(-1) / np.maximum(n, 1), np.nan)


def refuse_incomparable(results: Results, metric: str) -> None:
    """Stop before any test if there is nothing to compare.

    Raises:
        ValueError: an algorithm without a score, or two that share no case.
    """
    there = results.evaluated(metric).astype(float)
    for name, count in zip(results.algorithms, there.sum(1), strict=True):
        if not count:
            raise ValueError(f"{metric}: {name} has no score in any of {there.shape[1]} cases")
    apart = np.argwhere(there @ there.T == 0)
    if len(apart):
        first, second = (results.algorithms[i] for i in apart[0])
        raise ValueError(
            f"{metric}: {first} and {second} have no evaluated case in common, so they cannot be "
            "compared; expected results on one test set"
        )
