"""Plots of the page as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from touchstone_jax.benchmark.boxes import Box
from touchstone_jax.benchmark.rows import Row

_LEFT, _WIDTH, _STEP = 190, 560, 20


def box_plot(boxes: Sequence[Box], label: str) -> str:
    """Horizontal boxes on one axis from the lowest whisker or outlier (at most 0) to 1."""
    low = min([0.0, *(min([b.low, *b.outliers[:1]]) for b in boxes)])
    high = max([1.0, *(max([b.high, *b.outliers[-1:]]) for b in boxes)])

    def x(value: float) -> str:
        return f"{_LEFT + _WIDTH * (value - low) / (high - low):.1f}"

    height = _STEP * len(boxes) + 34
    parts = [
        f'<svg viewBox="0 0 {_LEFT + _WIDTH + 20} {height}" width="{_LEFT + _WIDTH + 20}" '
        f'role="img" aria-label="{escape(label)}">'
    ]
    for tick in (0, 0.2, 0.4, 0.6, 0.8, 1):
        parts.append(
            f'<path d="M{x(tick)} 0V{height - 30}" stroke="#e3e5ea"/>'
            f'<text x="{x(tick)}" y="{height - 16}" text-anchor="middle">{tick:g}</text>'
        )
    parts += [_box(b, _STEP * i + _STEP / 2, x) for i, b in enumerate(boxes)]
    return "".join([*parts, "</svg>"])


def _box(box: Box, y: float, x) -> str:
    outliers = "".join(f"M{x(value)} {y:.0f}h1" for value in box.outliers)
    told = f"{box.name}: n {box.n}, median {box.median:.4f}, quartiles {box.q1:.4f}, {box.q3:.4f}"
    width = max(0.5, float(x(box.q3)) - float(x(box.q1)))
    return (
        f"<g><title>{escape(told)}</title>"
        f'<text x="{_LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{escape(box.name)} '
        f"({box.n})</text>"
        f'<path d="M{x(box.low)} {y:.0f}H{x(box.high)}" stroke="#2f4b8f"/>'
        f'<rect x="{x(box.q1)}" y="{y - 6:.0f}" width="{width:.1f}" height="12" fill="#c9d5f0" '
        'stroke="#2f4b8f"/>'
        f'<path d="M{x(box.median)} {y - 6:.0f}v12" stroke="#c0392b" stroke-width="2"/>'
        f'<path d="{outliers}" stroke="#68717e" stroke-width="2"/></g>'
    )


def size_chart(rows: Sequence[Row], key: str, label: str) -> str:
    """One column of sizes.csv over the number of cases (logarithmic); with a band for "tau"."""
    points = [row for row in rows if row[key] == row[key]]
    top = 1.0 if key == "tau" else max([1e-9, *(row[key] for row in points)]) * 1.05
    ends = [math.log(row["n"]) for row in (rows[0], rows[-1])]
    span = max(1e-9, ends[1] - ends[0])

    def place(n: int, value: float) -> str:
        return f"{45 + 300 * (math.log(n) - ends[0]) / span:.1f} {190 - 160 * value / top:.1f}"

    parts = [f'<svg viewBox="0 0 370 230" width="370" role="img" aria-label="{escape(label)}">']
    parts.append(f'<text x="195" y="14" text-anchor="middle">{escape(label)}</text>')
    for share in (0, 0.5, 1):
        y = 190 - 160 * share
        parts.append(f'<path d="M45 {y:.0f}H345" stroke="#e3e5ea"/>')
        parts.append(f'<text x="40" y="{y + 4:.0f}" text-anchor="end">{share * top:.2g}</text>')
    if key == "tau":
        above = [place(row["n"], row["tau_high"]) for row in points]
        below = [place(row["n"], max(0.0, row["tau_low"])) for row in reversed(points)]
        parts.append(f'<path d="M{"L".join([*above, *below])}Z" fill="#c9d5f0"/>')
    line = "L".join(place(row["n"], row[key]) for row in points)
    parts.append(f'<path d="M{line}" fill="none" stroke="#2f4b8f" stroke-width="2"/>')
    for row in points:
        at_x, at_y = place(row["n"], row[key]).split()
        told = f"n {row['n']}: {row[key]:.4f}"
        parts.append(f'<circle cx="{at_x}" cy="{at_y}" r="3"><title>{told}</title></circle>')
        parts.append(f'<text x="{at_x}" y="207" text-anchor="middle">{row["n"]}</text>')
    parts.append('<text x="195" y="224" text-anchor="middle">cases in the test set</text></svg>')
    return "".join(parts)
