"""Statistics of scores: paired tests, corrections, bootstrap, rankings, groups, test-set size.

Plain numpy in float64 and scipy's tests; nothing of files, organs or CT.
"""

from touchstone_jax.stats.bootstrap import (
    Interval,
    bootstrap_means,
    draw_counts,
    interval,
    left_out_means,
    weighted_means,
)
from touchstone_jax.stats.correction import bonferroni, holm
from touchstone_jax.stats.describe import Description, describe
from touchstone_jax.stats.groups import (
    GroupTest,
    PairOfGroups,
    compare_groups,
    compare_many_groups,
    stars,
)
from touchstone_jax.stats.paired import Paired, compare_pairs, signed_rank
from touchstone_jax.stats.ranks import Stability, kendall, places, rank_stability
from touchstone_jax.stats.sizes import SizeEffect, size_effects

__all__ = [
    "Description",
    "GroupTest",
    "Interval",
    "PairOfGroups",
    "Paired",
    "SizeEffect",
    "Stability",
    "bonferroni",
    "bootstrap_means",
    "compare_groups",
    "compare_many_groups",
    "compare_pairs",
    "describe",
    "draw_counts",
    "holm",
    "interval",
    "kendall",
    "left_out_means",
    "places",
    "rank_stability",
    "signed_rank",
    "size_effects",
    "stars",
    "weighted_means",
]
