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
    from scipy.stats import kruskal, mannwhitneyu

    if len(groups) < 2:
        raise ValueError(f"groups {list(groups)}; expected at least two to compare")
    for name, values in groups.items():
        if not len(values) or not np.isfinite(values).all():
            raise ValueError(f"group {name!r}: {len(values)} scores; expected finite ones, not 0")
    names, df = list(groups), len(groups) - 1
    everything = np.concatenate(list(groups.values()))
    gate = (0.0, 1.0) if np.ptp(everything) == 0 else kruskal(*groups.values())
    tests = [(a, b, mannwhitneyu(groups[a], groups[b])) for a, b in combinations(names, 2)]
    adjusted = bonferroni(np.array([test.pvalue for *_, test in tests]))
    pairs = tuple(
        PairOfGroups(
            a,
            b,
            float(test.statistic),
            float(test.statistic / (len(groups[a]) * len(groups[b]))),
            float(test.pvalue),
            float(p),
        )
        for (a, b, test), p in zip(tests, adjusted, strict=True)
    )
    return GroupTest(float(gate[0]), df, float(gate[1]), bool(gate[1] < ALPHA), pairs)


def stars(p: float) -> str:
    """Touchstone's marks: **** up to 1e-4, *** 1e-3, ** 1e-2, * 0.05, else "ns"."""
    limits = (("****", 1e-4), ("***", 1e-3), ("**", 1e-2), ("*", 0.05))
    return next((mark for mark, limit in limits if p <= limit), "ns")
