"""Is an algorithm worse on some patients? Scores by group, tests between groups.

Touchstone's analysis (Bassi et al. 2024, Fig. 2): Kruskal-Wallis as a gate, then two-sided
Mann-Whitney tests with Bonferroni's correction, groups of fewer than ``least`` cases dropped, the
"average algorithm" being the mean over the algorithms of each case and organ.

Groups are scanned differently: trauma patients have other fields of view, so another mix of
organs enters their averages. `control` "organs" takes that out: from every score the algorithm's
mean of that organ is subtracted before a case's organs are averaged, and the mean of those means
is added back. What is left cannot come from easy or hard organs being visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from touchstone_jax.benchmark.names import AVERAGE
from touchstone_jax.benchmark.results import Results, mean_of_there
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.stats.describe import describe
from touchstone_jax.stats.groups import GroupTest, compare_many_groups, stars

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

AVERAGE_ALGORITHM = "average_algorithm"
CONTROLS = ("none", "organs")
Groups = Mapping[str, "Bool[np.ndarray, ' case']"]


def average_algorithm(
    scores: Float[np.ndarray, "algorithm case organ"],
) -> Float[np.ndarray, "case organ"]:
    """Mean over the algorithms that have a score."""
    return mean_of_there(np.moveaxis(scores, 0, -1))


def controlled(scores: Float[np.ndarray, "*batch case organ"]) -> Float[np.ndarray, "*batch case"]:
    """Per-case averages freed from which organs are visible, see the module."""
    organs = mean_of_there(np.swapaxes(scores, -1, -2))
    residuals = mean_of_there(scores - organs[..., None, :])
    return residuals + mean_of_there(organs)[..., None]


def columns_of(
    results: Results, metric: str
) -> tuple[
    tuple[str, ...], Float[np.ndarray, "algorithm case column"], tuple[tuple[str, str], ...]
]:
    """(algorithms, values, columns): all that groups are compared on.

    The average algorithm comes first; a column is an (organ, control).
    """
    scores = results.scores[metric]
    scores = np.concatenate([average_algorithm(scores)[None], scores])
    last = np.stack([mean_of_there(scores), controlled(scores)], axis=2)
    columns = [(organ, "none") for organ in results.organs]
    columns += [(AVERAGE, control) for control in CONTROLS]
    names = (AVERAGE_ALGORITHM, *results.algorithms)
    return names, np.concatenate([scores, last], axis=2), tuple(columns)


def group_rows(
    results: Results,
    metric: str,
    family: str,
    groups: Groups,
    listed: Mapping[str, int],
    *,
    least: int = 5,
) -> list[Row]:
    """The rows of groups.csv for one family: every algorithm, organ and group."""
    names, values, columns = columns_of(results, metric)
    rows = []
    for group, members in groups.items():
        found = describe(np.moveaxis(values[:, members], 1, 0))
        for i, algorithm in enumerate(names):
            for j, (organ, control) in enumerate(columns):
                row: Row = {
                    "metric": metric,
                    "family": family,
                    "organ": organ,
                    "algorithm": algorithm,
                }
                row |= {"group": group, "n": int(found.n[i, j]), "zeros": int(found.zeros[i, j])}
                for name in ("mean", "sd", "median", "q1", "q3"):
                    row[name] = float(getattr(found, name)[i, j])
                row |= {"n_listed": listed[group], "control": control}
                rows.append(row | {"kept": bool(row["n"] >= least)})
    return rows


def comparison_rows(
    results: Results, metric: str, family: str, groups: Groups, *, least: int = 5
) -> tuple[list[Row], list[Row]]:
    """The rows of group_tests.csv and worst_groups.csv for one family.

    The average algorithm is tested on every organ, the others on their averages. A family with
    fewer than two groups of ``least`` cases has no test.
    """
    names, values, columns = columns_of(results, metric)
    wanted = [
        (i, j)
        for i in range(len(names))
        for j, (organ, _) in enumerate(columns)
        if organ == AVERAGE or not i
    ]
    table = np.array([values[i, :, j] for i, j in wanted])
    rows: dict[int, tuple[list[Row], Row]] = {}
    for same in _same_cases(table):
        kept = kept_groups(table[same], groups, least=least)
        if len(kept) < 2:
            continue
        n = {name: some.shape[1] for name, some in kept.items()}
        for k, (index, test) in enumerate(zip(same, compare_many_groups(kept), strict=True)):
            i, j = wanted[index]
            about = {"metric": metric, "family": family, "organ": columns[j][0]}
            about |= {"algorithm": names[i], "control": columns[j][1]}
            means = {name: float(some[k].mean()) for name, some in kept.items()}
            rows[index] = (_rows_of(about, test, n), _worst(about, test, means, n))
    ordered = [rows[index] for index in sorted(rows)]
    return [row for tests, _ in ordered for row in tests], [worst for _, worst in ordered]


def _same_cases(table: Float[np.ndarray, "row case"]) -> list[list[int]]:
    """Rows that have scores in the same cases, together."""
    found: dict[bytes, list[int]] = {}
    for index, row in enumerate(table):
        found.setdefault(np.isnan(row).tobytes(), []).append(index)
    return list(found.values())


def kept_groups(
    values: Float[np.ndarray, "row case"], groups: Groups, *, least: int
) -> dict[str, Float[np.ndarray, "row case"]]:
    """The scores of each group that has at least ``least`` of them.

    Args:
        values: scores; all rows have theirs in the same cases, NaN elsewhere.
        groups: name to the mask of its cases.
        least: smaller groups are left out, empty ones always.
    """
    there = ~np.isnan(values).any(axis=0)
    scored = {name: values[:, members & there] for name, members in groups.items()}
    return {name: some for name, some in scored.items() if some.shape[1] >= max(1, least)}


def _rows_of(about: Row, test: GroupTest, n: Mapping[str, int]) -> list[Row]:
    nan = float("nan")
    gate: Row = {
        "test": "kruskal",
        "group": "",
        "other": "",
        "n": sum(n.values()),
        "n_other": "",
        "statistic": test.h,
        "df": test.df,
        "p": test.p,
        "p_bonferroni": nan,
        "stars": stars(test.p),
        "superiority": nan,
        "gate_open": test.gate_open,
    }
    rows = [about | gate]
    for pair in test.pairs:
        found: Row = {"test": "mannwhitney", "group": pair.first, "other": pair.second}
        found |= {"n": n[pair.first], "n_other": n[pair.second], "statistic": pair.u, "df": ""}
        found |= {"p": pair.p, "p_bonferroni": pair.p_bonferroni}
        found |= {"stars": stars(pair.p_bonferroni), "superiority": pair.superiority}
        rows.append(about | found | {"gate_open": test.gate_open})
    return rows


def _worst(about: Row, test: GroupTest, means: Mapping[str, float], n: Mapping[str, int]) -> Row:
    low, high = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    p = next((t.p_bonferroni for t in test.pairs if {t.first, t.second} == {low, high}), 1.0)
    found: Row = {"groups": len(means), "gap": means[high] - means[low]}
    found |= {"worst": low, "n_worst": n[low], "mean_worst": means[low]}
    found |= {"best": high, "n_best": n[high], "mean_best": means[high]}
    return about | found | {"p_bonferroni": p, "gate_open": test.gate_open}
