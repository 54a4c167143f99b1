"""Tables of the page: leaderboards, heat maps, and rows as they are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from touchstone_jax.benchmark.figures import heat_map
from touchstone_jax.benchmark.markup import grid, percent
from touchstone_jax.benchmark.rows import Row
from touchstone_jax.benchmark.significance import Panel


def leaderboard(rows: Sequence[Row], metric: str, name: str) -> str:
    """A sortable table; each cell holds the mean to all digits as ``data-value``."""
    algorithms, organs, cells = grid(rows, metric)
    heads = "".join(
        f'<th data-key="{escape(organ)}">{escape(organ.replace("_", " "))}</th>' for organ in organs
    )
    body = []
    for algorithm in algorithms:
        found = "".join(_score(cells[algorithm, organ]) for organ in organs)
        body.append(f"<tr><td>{escape(algorithm)}</td>{found}</tr>")
    counts = []
    for organ in organs:
        n = sorted({cells[algorithm, organ]["n"] for algorithm in algorithms})
        counts.append(f"<td>{n[0] if len(n) == 1 else f'{n[0]}–{n[-1]}'}</td>")
    return (
        f'<div class="scroll"><table class="sortable board" id="{name}"><thead><tr>'
        f'<th data-key="algorithm" data-first="up">algorithm</th>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody>"
        f"<tfoot><tr><td>n</td>{''.join(counts)}</tr></tfoot></table></div>"
    )


def _score(row: Row) -> str:
    told = (
        f"n {row['n']}, 95 % interval {percent(row['low'])} to {percent(row['high'])}, median "
        f"{percent(row['median'])}, quartiles {percent(row['q1'])} to {percent(row['q3'])}, "
        f"zeros {row['zeros']}"
    )
    return (
        f'<td class="{row["mark"]}" data-value="{_number(row["mean"])}" title="{told}">'
        f"{percent(row['mean'])} <small>± {percent(row['sd'])}</small></td>"
    )


def heat_table(panel: Panel) -> str:
    """Yellow: the column's algorithm is significantly better than the row's; p on hovering."""
    order, cells = list(panel.order), heat_map(panel)
    names = [escape(panel.algorithms[i]) for i in order]
    heads = "".join(f"<th>{name}</th>" for name in names)
    lines = []
    for y, row in enumerate(order[::-1]):
        line = [f"<tr><th>{names[len(order) - 1 - y]}</th>"]
        for x, column in enumerate(order):
            if row == column:
                line.append('<td class="same"></td>')
                continue
            p = panel.p_holm[column, row]
            kind = "none" if np.isnan(cells[y, x]) else ("win" if cells[y, x] > 0 else "lose")
            line.append(f'<td class="{kind}" data-p="{_number(float(p))}" title="p {p:.2g}"></td>')
        lines.append("".join([*line, "</tr>"]))
    return (
        f'<table class="heat"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def plain_table(rows: Sequence[Row], columns: Sequence[str], name: str) -> str:
    """Rows with some of their columns, sortable; numbers keep all digits in ``data-value``."""
    heads = "".join(
        f'<th data-key="{escape(c)}">{escape(c.replace("_", " "))}</th>' for c in columns
    )
    body = "".join(
        "<tr>" + "".join(_cell(row[column]) for column in columns) + "</tr>" for row in rows
    )
    return (
        f'<div class="scroll"><table class="sortable" id="{name}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return f"<td>{'yes' if value else 'no'}</td>"
    if isinstance(value, int | float):
        shown = "–" if value != value else (f"{value:.4g}" if isinstance(value, float) else value)
        return f'<td data-value="{_number(value)}">{shown}</td>'
    return f"<td>{escape(str(value).replace('_', ' '))}</td>"


def _number(value: float) -> str:
    return "NaN" if value != value else repr(value)
