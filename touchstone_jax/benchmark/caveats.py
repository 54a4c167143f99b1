"""What a reader of the tables must know, found in the results themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from touchstone_jax.benchmark.metadata import Metadata
from touchstone_jax.benchmark.names import AVERAGE, MACRO
from touchstone_jax.benchmark.reading import missing_organs
from touchstone_jax.benchmark.results import Results
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.benchmark.table import Estimates


def caveats(
    results: Results,
    metadata: Metadata | None,
    own: Mapping[str, Estimates],
    common: Mapping[str, Estimates],
    tables: Mapping[str, Sequence[Row]],
) -> list[str]:
    """One sentence or two each, those that hold for these results only."""
    told = []
    if absent := missing_organs(results):
        told.append(f"No result has a score of {', '.join(absent)}: averages lack them.")
    if len(results.algorithms) == 1:
        told.append("One algorithm only: there is nothing to compare it with, so no test was made.")
    for metric in results.metrics:
        told += _case_sets(results, metric)
        told += _leaders(results, metric, own[metric], common[metric])
    told += _contents(results)
    told += _corrections(tables["significance"])
    return told + _groups(results, metadata, tables)


def _case_sets(results: Results, metric: str) -> list[str]:
    told, listed = [], results.listed[metric].sum(1)
    short = np.flatnonzero(listed < len(results.cases))
    if len(short):
        names = ", ".join(f"{results.algorithms[i]} ({listed[i]})" for i in short)
        told.append(
            f"{metric.upper()}: of {len(results.cases)} cases some algorithms have fewer: {names}. "
            "Their means rest on other cases; compare on the common cases."
        )
    there = ~np.isnan(results.scores[metric])
    gaps = (there.any(axis=0) & ~there & results.listed[metric][:, :, None]).sum((1, 2))
    for i in np.flatnonzero(gaps):
        told.append(
            f"{metric.upper()}: {results.algorithms[i]} lacks {gaps[i]} scores that others have."
        )
    return told


def _leaders(results: Results, metric: str, own: Estimates, common: Estimates) -> list[str]:
    if len(results.algorithms) == 1 or np.isnan(common.values[:, :-1]).any():
        return []
    told = []
    for organ in (AVERAGE, MACRO):
        column = own.columns.index(organ)
        first, fair = (int(np.nanargmax(e.values[:, column])) for e in (own, common))
        if first != fair:
            n = common.means[fair][common.columns.index(AVERAGE)].n
            told.append(
                f"{metric.upper()}, {organ}: {results.algorithms[first]} is best "
                f"({100 * own.values[first, column]:.2f}) on its own cases, but on the {n} cases "
                f"that all have it is {results.algorithms[fair]} "
                f"({100 * common.values[fair, column]:.2f} against "
                f"{100 * common.values[first, column]:.2f})."
            )
    return told


def _contents(results: Results) -> list[str]:
    metric = results.metrics[0]
    organs = (~np.isnan(results.scores[metric])).any(axis=0).sum(1)
    told, scored = [], int((organs > 0).sum())
    if scored < len(organs):
        told.append(
            f"{len(organs) - scored} of {len(organs)} cases have no evaluated organ and enter "
            f"nothing: the tables rest on {scored} cases."
        )
    if single := int((organs == 1).sum()):
        told.append(
            f"{single} of {scored} cases show one organ only. They weigh as much as whole abdomens "
            "in the average, which therefore differs from macro."
        )
    told.append(
        "Only organs that were evaluated count: whether an organ was painted where there is none "
        "is not scored. A score of 0 is kept."
    )
    return told


def _corrections(significance: Sequence[Row]) -> list[str]:
    if not significance:
        return []
    panel = sum(row["significant"] for row in significance)
    everywhere = sum(row["p_holm_all"] < 0.05 for row in significance)
    return [
        f"{panel} of {len(significance)} ordered comparisons are significant with Holm's "
        f"correction within each panel, as in the paper; corrected over all panels of a metric "
        f"{everywhere} remain (column p_holm_all)."
    ]


def _groups(
    results: Results, metadata: Metadata | None, tables: Mapping[str, Sequence[Row]]
) -> list[str]:
    if metadata is None:
        return ["No metadata was given, so nothing is said of groups of patients."]
    told = []
    if unknown := sum(case not in metadata.rows for case in results.cases):
        told.append(f"{unknown} of {len(results.cases)} cases have no row in the metadata.")
    gates = {
        (row["metric"], row["family"], row["control"]): row["gate_open"]
        for row in tables["group_tests"]
        if row["test"] == "kruskal" and row["algorithm"] == "average_algorithm"
        and row["organ"] == AVERAGE
    }  # fmt: skip
    for (metric, family, control), is_open in gates.items():
        if control == "none" and is_open and not gates[metric, family, "organs"]:
            told.append(
                f"{metric.upper()}: the groups of {family} differ, but not once it is controlled "
                "for which organs are visible."
            )
    tested = {row["family"] for row in tables["group_tests"]}
    for family in metadata.families:
        if family not in tested:
            told.append(f"{family}: fewer than two groups have enough cases, so nothing is tested.")
    told.append(
        "Groups are compared unpaired and differ in more than what names them (field of view, "
        "scanner, disease): a difference is no proof of its cause."
    )
    return told
