"""Do groups of cases differ? A gate for all groups together, then every pair.

Kruskal-Wallis, and if it says so two-sided Mann-Whitney tests with Bonferroni's correction, as in
Touchstone's group plots (Bassi et al. 2024, "plot/PlotGroup.py"), by scipy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.stats.correction import bonferroni

if TYPE_CHECKING:
    from jaxtyping import Float

ALPHA = 0.05
EXACT_UP_TO = 8  # above it scipy's "auto" is the normal approximation, whatever the ties


@dataclass(frozen=True)
class PairOfGroups:
    """Mann-Whitney test of two groups; ``u`` is the statistic of the first.

    ``superiority`` is the share of pairs of cases, one of each group, in which the first is
    higher, plus half of the ties: 0.5 if nothing differs.
    """

    first: str
    second: str
    u: float
    superiority: float
    p: float
    p_bonferroni: float


@dataclass(frozen=True)
class GroupTest:
    """Kruskal-Wallis test (``h``, ``df``, ``p``) and the tests of every pair.

    ``gate_open``: p < 0.05; only then do the pairs count.
    """

    h: float
    df: int
    p: float
    gate_open: bool
    pairs: tuple[PairOfGroups, ...]


def compare_groups(groups: Mapping[str, Float[np.ndarray, " case"]]) -> GroupTest:
    """Test whether the scores of groups of cases differ.

    Where all scores are equal nothing differs: H is 0 and p is 1.

    Args:
        groups: name to scores, finite; at least two groups, none empty.

    Raises:
        ValueError: fewer than two groups, an empty group, or a score that is not finite.
    """
    return compare_many_groups({name: np.asarray(x)[None] for name, x in groups.items()})[0]


def compare_many_groups(groups: Mapping[str, Float[np.ndarray, "row case"]]) -> list[GroupTest]:
    """`compare_groups` of every row: many scores of the same groups of cases.

    Together they take a call of scipy for each pair of groups, where its checks cost more than
    the test.

    Raises:
        ValueError: as `compare_groups`.
    """
    if len(groups) < 2:
        raise ValueError(f"groups {list(groups)}; expected at least two to compare")
    for name, values in groups.items():
        if not values.shape[1] or not np.isfinite(values).all():
            raise ValueError(
                f"group {name!r}: {values.shape[1]} scores; expected finite ones, not 0"
            )
    h, p = _kruskal(list(groups.values()))
    names = list(combinations(groups, 2))
    tests = [_mann_whitney(groups[a], groups[b]) for a, b in names]
    found = []
    for row in range(len(h)):
        adjusted = bonferroni(np.array([of_pair[row] for _, of_pair in tests]))
        pairs = tuple(
            PairOfGroups(
                *(a, b, float(u[row])),
                float(u[row] / (groups[a].shape[1] * groups[b].shape[1])),
                *(float(of_pair[row]), float(corrected)),
            )
            for (a, b), (u, of_pair), corrected in zip(names, tests, adjusted, strict=True)
        )
        gate = float(p[row])
        found.append(GroupTest(float(h[row]), len(groups) - 1, gate, gate < ALPHA, pairs))
    return found


def _kruskal(groups: list[Float[np.ndarray, "row case"]]):
    """(H, p) of each row."""
    from scipy.stats import kruskal

    everything = np.concatenate(groups, axis=1)
    h, p = np.zeros(len(everything)), np.ones(len(everything))
    some = np.ptp(everything, axis=1) > 0  # scipy has no answer where all are equal
    if some.any():
        h[some], p[some] = kruskal(*(values[some] for values in groups), axis=1)
    return h, p


def _mann_whitney(first: Float[np.ndarray, "row case"], second: Float[np.ndarray, "row case"]):
    """(U, p) of each row."""
    from scipy.stats import mannwhitneyu

    rows = len(first)
    u, p = np.full(rows, first.shape[1] * second.shape[1] / 2), np.ones(rows)
    # Where all are equal nothing differs; there scipy 1.17 says 1 and 1.18 NaN.
    some = np.flatnonzero(np.ptp(np.concatenate([first, second], axis=1), axis=1) > 0)
    # Of small groups scipy looks at the ties of all rows together to decide for the exact test.
    together = min(first.shape[1], second.shape[1]) > EXACT_UP_TO
    for chosen in [some] if together and len(some) else some[:, None]:
        u[chosen], p[chosen] = mannwhitneyu(first[chosen], second[chosen], axis=1)
    return u, p


def stars(p: float) -> str:
    """Touchstone's marks: **** up to 1e-4, *** 1e-3, ** 1e-2, * 0.05, else "ns"."""
    limits = (("****", 1e-4), ("***", 1e-3), ("**", 1e-2), ("*", 0.05))
    return next((mark for mark, limit in limits if p <= limit), "ns")
