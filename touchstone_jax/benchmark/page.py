"""One self-contained HTML page: everything to read, sort and choose; opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from touchstone_jax.benchmark.analysis import Analysis
from touchstone_jax.benchmark.boxes import algorithm_boxes, group_boxes
from touchstone_jax.benchmark.markup import LEGEND
from touchstone_jax.benchmark.names import AVERAGE
from touchstone_jax.benchmark.page_assets import SCRIPT, STYLE
from touchstone_jax.benchmark.page_plots import box_plot, size_chart
from touchstone_jax.benchmark.page_tables import heat_table, leaderboard, plain_table
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.benchmark.significance import columns

# The browser itself refuses whatever would be fetched.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(analysis: Analysis, title: str) -> str:
    """The HTML text.

    Args:
        analysis: what is shown.
        title: heading.
    """
    results = analysis.results
    sections = [
        ("caveats", "Before reading the numbers", _caveats(analysis)),
        ("boards", "Leaderboard", _boards(analysis)),
        ("significance", "Who is significantly better", _significance(analysis)),
        ("boxes", "Spread", _boxes(analysis)),
        ("ranks", "Stability of the ranking", _ranks(analysis)),
        ("sizes", "Size of the test set", _sizes(analysis)),
        ("groups", "Groups of patients", _groups(analysis)),
        ("shift", "Another test set", _shift(analysis)),
        ("cases", "Where n comes from", _cases(analysis)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{head}</a>' for name, head, _ in shown)
    body = "".join(
        f'<section id="{name}"><h2>{head}</h2>{text}</section>' for name, head, text in shown
    )
    about = (
        f"{len(results.algorithms)} algorithms, {len(results.cases)} cases, "
        f"{len(results.organs)} organs, {' and '.join(m.upper() for m in results.metrics)}; "
        f"{analysis.options.resamples} resamples, seed {analysis.options.seed}"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f"<header><div><h1>{escape(title)}</h1><p>{about}</p></div></header><nav>{links}</nav>"
        f"<main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _about(text: str) -> str:
    return f'<p class="about">{text}</p>'


def _chooser(shows: str, **choices: Sequence[str]) -> str:
    """Menus that show one of the elements with data-of=``shows``; all are shown without script."""
    menus = []
    for name, values in choices.items():
        options = "".join(
            f'<option value="{escape(v)}">{escape(v.replace("_", " "))}</option>' for v in values
        )
        menus.append(f'<label>{name} <select name="{name}">{options}</select></label>')
    return f'<p class="chooser" data-shows="{shows}" hidden>{"".join(menus)}</p>'


def _item(shows: str, text: str, **choice: str) -> str:
    data = "".join(f' data-{name}="{escape(value)}"' for name, value in choice.items())
    caption = escape(", ".join(choice.values()).replace("_", " "))
    return f'<figure data-of="{shows}"{data}><figcaption>{caption}</figcaption>{text}</figure>'


def _organs(analysis: Analysis) -> list[str]:
    return sorted(columns(analysis.results), key=lambda organ: organ != AVERAGE)


def _caveats(analysis: Analysis) -> str:
    return f'<ul class="caveats">{"".join(f"<li>{escape(c)}</li>" for c in analysis.caveats)}</ul>'


def _boards(analysis: Analysis) -> str:
    parts = [_about(f"{escape(LEGEND)} Click a column to sort by it; hover for intervals.")]
    views = {"own": "tables", "common": "tables_common"}
    parts.append(_chooser("board", metric=analysis.results.metrics, cases=list(views)))
    for metric in analysis.results.metrics:
        for view, table in views.items():
            text = leaderboard(analysis.tables[table], metric, f"board-{metric}-{view}")
            parts.append(_item("board", text, metric=metric, cases=view))
    return "".join(parts)


def _significance(analysis: Analysis) -> str:
    if len(analysis.results.algorithms) < 2:
        return ""
    parts = [
        _about(
            "Yellow: the algorithm of the column is significantly better than that of the row "
            "(one-sided paired Wilcoxon, Holm over all ordered pairs of the panel, p &lt; 0.05); "
            "blue: it is not. By descending median. Hover for the corrected p."
        ),
        _chooser("heat", metric=analysis.results.metrics, organ=_organs(analysis)),
    ]
    for metric in analysis.results.metrics:
        for organ in _organs(analysis):
            text = heat_table(analysis.panels[metric, organ])
            parts.append(_item("heat", text, metric=metric, organ=organ))
    return "".join(parts)


def _boxes(analysis: Analysis) -> str:
    parts = [
        _about("Median, quartiles, whiskers to the last value within 1.5 IQR; n in brackets."),
        _chooser("box", metric=analysis.results.metrics, organ=_organs(analysis)),
    ]
    for metric in analysis.results.metrics:
        for organ in _organs(analysis):
            text = box_plot(algorithm_boxes(analysis, metric, organ), f"{metric} of {organ}")
            parts.append(_item("box", text, metric=metric, organ=organ))
    return "".join(parts)


def _ranks(analysis: Analysis) -> str:
    rows = analysis.tables["ranks"]
    if not rows:
        return ""
    organs = list(dict.fromkeys(row["organ"] for row in rows))
    organs.sort(key=lambda organ: organ != AVERAGE)
    parts = [
        _about(
            "Cases that all algorithms have, resampled: place on the sample, mean place, the "
            "interval of 95 % of the resamples, share of them won."
        ),
        _chooser("rank", metric=analysis.results.metrics, organ=organs),
    ]
    shown = ("algorithm", "cases", "place", "mean_place", "low", "high", "first")
    for metric in analysis.results.metrics:
        for organ in organs:
            some = [r for r in rows if (r["metric"], r["organ"]) == (metric, organ)]
            some.sort(key=lambda row: row["place"])
            text = plain_table(some, shown, f"ranks-{metric}-{organ}")
            parts.append(_item("rank", text, metric=metric, organ=organ))
    return "".join(parts)


def _sizes(analysis: Analysis) -> str:
    parts = []
    for metric in analysis.results.metrics:
        rows = [row for row in analysis.tables["sizes"] if row["metric"] == metric]
        if not rows:
            continue
        charts = [
            size_chart(rows, key, f"{metric.upper()}: {label}")
            for key, label in (
                ("tau", "Kendall's tau with the ranking of all cases"),
                ("width", "width of the 95 % interval of a mean"),
                ("significant", "share of ordered pairs significant"),
                ("winner_kept", "share of test sets with the same winner"),
            )
        ]
        parts.append("".join(charts) + plain_table(rows, tuple(rows[0])[2:], f"sizes-{metric}"))
    about = (
        "Test sets of n cases drawn from the common cases, ranked by the average: with replacement "
        "(beyond the number at hand too), for significance without."
    )
    return _about(about) + "".join(parts) if parts else ""


def _groups(analysis: Analysis) -> str:
    if analysis.metadata is None or not analysis.metadata.families:
        return ""
    parts = [
        _about(
            "The average algorithm's per-case average by group; groups of fewer than "
            f"{analysis.options.least} cases are left out. Control “organs” takes out which organs "
            "are visible. Kruskal-Wallis, then Mann-Whitney with Bonferroni's correction."
        ),
        _chooser(
            "group",
            metric=analysis.results.metrics,
            family=list(analysis.metadata.families),
            control=("none", "organs"),
        ),
    ]
    for metric in analysis.results.metrics:
        for family in analysis.metadata.families:
            for control in ("none", "organs"):
                text = _family(analysis, metric, family, control)
                parts.append(_item("group", text, metric=metric, family=family, control=control))
    shown = ("metric", "family", "algorithm", "control", "worst", "n_worst", "mean_worst", "best")
    worst = [row for row in analysis.tables["worst_groups"] if row["organ"] == AVERAGE]
    table = plain_table(worst, (*shown, "n_best", "mean_best", "gap", "p_bonferroni"), "worst")
    return "".join(parts) + f"<details><summary>Worst groups</summary>{table}</details>"


def _family(analysis: Analysis, metric: str, family: str, control: str) -> str:
    about = {"metric": metric, "family": family, "control": control}
    about |= {"algorithm": "average_algorithm", "organ": AVERAGE}
    tests: list[Row] = [
        row for row in analysis.tables["group_tests"] if about.items() <= row.items()
    ]
    plot = box_plot(group_boxes(analysis, metric, family, AVERAGE, control), f"{metric} {family}")
    if not tests:
        return plot + _about("Fewer than two groups have enough cases: no test.")
    gate, *pairs = tests
    told = f"Kruskal-Wallis p = {gate['p']:.3g}"
    if not gate["gate_open"]:
        return plot + _about(f"{told}: no difference shown, pairs are not looked at.")
    found = [row for row in pairs if row["p_bonferroni"] <= 0.05]
    name = f"pairs-{metric}-{family}-{control}"
    shown = ("group", "other", "n", "n_other", "p", "p_bonferroni", "stars", "superiority")
    return (
        plot
        + _about(
            f"{told}; {len(found)} of {len(pairs)} pairs differ after Bonferroni's correction."
        )
        + (plain_table(found, shown, name) if found else "")
    )


def _shift(analysis: Analysis) -> str:
    rows = analysis.tables["shift"]
    if not rows:
        return ""
    shown = ("metric", "organ", "algorithm", "n", "mean", "n_other", "mean_other", "drop", "low")
    table = plain_table(rows, (*shown, "high", "place", "place_other"), "shift-table")
    return _about("Drop: mean here minus mean there, with the 95 % interval.") + table


def _cases(analysis: Analysis) -> str:
    rows = analysis.tables["cases"]
    shown = ("metric", "algorithm", "organ", "cases", "listed", "absent", "n", "not_evaluated")
    table = plain_table(rows, (*shown, "missing", "zeros"), "cases-table")
    return (
        _about(
            "listed: rows in the algorithm's file; absent: cases that it lacks; not evaluated: "
            "nobody has a score; missing: others have one."
        )
        + f"<details><summary>All counts</summary>{table}</details>"
    )
