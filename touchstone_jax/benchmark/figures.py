"""Figures for papers: each as PNG and PDF."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from touchstone_jax.benchmark.analysis import Analysis
from touchstone_jax.benchmark.boxes import Box, algorithm_boxes, group_boxes
from touchstone_jax.benchmark.names import AVERAGE
from touchstone_jax.benchmark.significance import Panel, columns

BETTER, NOT_BETTER = "#f5d60b", "#2f4b8f"
"""Colours of Touchstone's heat maps: significantly better, and not."""


def figures(analysis: Analysis) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, function that draws it) of every figure that the results allow."""
    for metric in analysis.results.metrics:
        yield f"boxes_{metric}", partial(draw_boxes, analysis, metric)
        if len(analysis.results.algorithms) > 1:
            yield f"significance_{metric}", partial(draw_significance, analysis, metric)
            yield f"ranks_{metric}", partial(draw_ranks, analysis, metric)
        if any(row["metric"] == metric for row in analysis.tables["sizes"]):
            yield f"sizes_{metric}", partial(draw_sizes, analysis, metric)
        if analysis.metadata is not None:
            yield f"groups_{metric}", partial(draw_groups, analysis, metric)


def save(figure: Any, folder: Path, name: str) -> None:
    """Write ``name``.png (150 dots an inch) and ``name``.pdf, without a date inside."""
    figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Software": None})
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None, "Producer": None})


def _figure(
    panel: tuple[float, float],
    rows: int,
    across: int,
    *,
    left: float = 0.5,
    below: float = 0.35,
) -> tuple[Any, list[Any]]:
    """A grid of panels of a size in inches, with room for labels to the left and below.

    Placed by arithmetic: matplotlib's layout engines draw everything several times to find out.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = panel
    full = (across * (width + left) + 0.15, rows * (height + below + 0.25))
    figure = Figure(figsize=full)
    FigureCanvasAgg(figure)
    axes = []
    for row in range(rows):
        for column in range(across):
            x = column * (width + left) + left
            y = (rows - 1 - row) * (height + below + 0.25) + below
            box = (x / full[0], y / full[1], width / full[0], height / full[1])
            axes.append(figure.add_axes(box))
    return figure, axes


def _room(names: Iterable[str], points: float) -> float:
    """Inches that the longest of the names takes in that type size."""
    return 0.12 + 0.6 * points / 72 * max((len(name) for name in names), default=1)


def _clear(axes: list[Any]) -> None:
    for left_over in axes:
        left_over.set_axis_off()


def _title(metric: str, organ: str) -> str:
    return f"{organ.replace('_', ' ')}, {metric.upper()}"


def draw_boxes(analysis: Analysis, metric: str) -> Any:
    """Box plots of every organ and the average, algorithms by descending median."""
    organs = columns(analysis.results)
    across = min(5, len(organs))
    rows = -(-len(organs) // across)
    names = analysis.results.algorithms
    left = _room((f"{name} (0000)" for name in names), 5)
    figure, axes = _figure((2.4, 0.3 + 0.14 * len(names)), rows, across, left=left)
    for axis, organ in zip(axes, organs, strict=False):
        _boxes(axis, algorithm_boxes(analysis, metric, organ))
        axis.set_title(_title(metric, organ), fontsize=8)
    _clear(axes[len(organs) :])
    return figure


def _boxes(axis: Any, boxes: list[Box]) -> None:
    described = [
        {"label": b.name, "med": b.median, "q1": b.q1, "q3": b.q3,
         "whislo": b.low, "whishi": b.high, "fliers": b.outliers}
        for b in reversed(boxes)
    ]  # fmt: skip
    axis.bxp(described, orientation="horizontal", widths=0.7, flierprops={"markersize": 1})
    axis.set_yticklabels([f"{b.name} ({b.n})" for b in reversed(boxes)], fontsize=5)
    axis.tick_params(axis="x", labelsize=6)


def draw_significance(analysis: Analysis, metric: str) -> Any:
    """Heat maps: yellow where the column's algorithm is significantly better than the row's."""
    organs = columns(analysis.results)
    across = min(5, len(organs))
    rows = -(-len(organs) // across)
    size = 0.3 + 0.1 * len(analysis.results.algorithms)
    room = _room(analysis.results.algorithms, 4)
    figure, axes = _figure((size, size), rows, across, left=room, below=room)
    for axis, organ in zip(axes, organs, strict=False):
        _heat_map(axis, analysis.panels[metric, organ])
    _clear(axes[len(organs) :])
    return figure


def heat_map(panel: Panel) -> np.ndarray:
    """(row, column) as drawn: 1 better, -1 not, NaN on the diagonal or untested.

    Columns are in `Panel.order`, rows in its reverse, as in the paper.
    """
    order = list(panel.order)
    cells = np.where(panel.significant, 1.0, -1.0)
    cells[np.isnan(panel.paired.p)] = np.nan
    return cells.T[np.ix_(order[::-1], order)]


def _heat_map(axis: Any, panel: Panel) -> None:
    from matplotlib.colors import ListedColormap

    names = [panel.algorithms[i] for i in panel.order]
    axis.imshow(heat_map(panel), cmap=ListedColormap([NOT_BETTER, BETTER]), vmin=-1, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=4)
    axis.set_yticks(range(len(names)), names[::-1], fontsize=4)
    axis.set_title(_title(panel.metric, panel.organ), fontsize=7)


def draw_ranks(analysis: Analysis, metric: str) -> Any:
    """Places by the average over the resamples: the mean place and the 95 % interval."""
    from matplotlib.ticker import MaxNLocator

    rows = [
        row
        for row in analysis.tables["ranks"]
        if row["metric"] == metric and row["organ"] == AVERAGE
    ]
    rows.sort(key=lambda row: -row["mean_place"])
    left = _room((row["algorithm"] for row in rows), 7)
    figure, (axis,) = _figure((4, 0.3 + 0.2 * len(rows)), 1, 1, left=left, below=0.5)
    for y, row in enumerate(rows):
        axis.plot([row["low"], row["high"]], [y, y], color=NOT_BETTER, linewidth=2)
        axis.plot(row["mean_place"], y, "o", color="black", markersize=3)
    axis.set_yticks(range(len(rows)), [row["algorithm"] for row in rows], fontsize=7)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel(
        f"place by average {metric.upper()}, common cases, 95 % of resamples", fontsize=8
    )
    return figure


def draw_sizes(analysis: Analysis, metric: str) -> Any:
    """What test sets of n cases say: agreement of the ranking, interval width, significance."""
    rows = [row for row in analysis.tables["sizes"] if row["metric"] == metric]
    n = [row["n"] for row in rows]
    figure, axes = _figure((2.9, 2.3), 1, 3, below=0.5)
    axes[0].fill_between(
        n, [row["tau_low"] for row in rows], [row["tau_high"] for row in rows], alpha=0.3
    )
    for axis, key, label in zip(
        axes,
        ("tau", "width", "significant"),
        ("Kendall's tau with the ranking of all cases", f"width of the 95 % interval of {metric}",
         "ordered pairs that differ significantly"),
        strict=True,
    ):  # fmt: skip
        axis.plot(n, [row[key] for row in rows], "o-", markersize=3)
        axis.set(xscale="log", xlabel="cases in the test set")
        axis.set_title(label, fontsize=8)
    return figure


def draw_groups(analysis: Analysis, metric: str) -> Any:
    """Box plots of the average algorithm's per-case average for every family of groups."""
    about = analysis.metadata
    assert about is not None  # there are no groups without
    families = list(about.families)
    across = min(3, max(1, len(families)))
    rows = max(1, -(-len(families) // across))
    names = (f"{group} (0000)" for family in families for group in about.listed[family])
    figure, axes = _figure((3, 2), rows, across, left=_room(names, 5))
    for axis, family in zip(axes, families, strict=False):
        boxes = group_boxes(analysis, metric, family)
        axis.set_title(f"{family.replace('_', ' ')}, {_title(metric, AVERAGE)}", fontsize=8)
        if boxes:
            _boxes(axis, boxes)
    _clear(axes[len(families) :])
    return figure
