"""Slices of CTs as pictures: grey values of an abdominal window, organs in colours.

Pictures are laid out as radiologists look at them: the patient's right on the left, the front at
the top of axial and on the left of sagittal slices, the head at the top; pixels are square in mm.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer, Real, UInt8

if TYPE_CHECKING:
    from PIL import Image

WINDOW_HU = (-160.0, 240.0)
"""HU shown as black and white: an abdominal window, level 40, width 400."""

AXIAL_SIDE, LONGEST_SIDE = 320, 2000
_OPACITY, _GAP, _LINE = 0.45, 8, 16


def grey(hu: Real[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """HU of any shape as 0..255, black below and white above `WINDOW_HU`; NaN is black."""
    black, white = WINDOW_HU
    known = np.nan_to_num(hu.astype(np.float64), nan=black)
    shown = np.clip((known - black) / (white - black), 0, 1)
    return np.rint(255 * shown).astype(np.uint8)


def colours(count: int) -> UInt8[np.ndarray, "count 3"]:
    """RGB of the labels 0..count - 1, neighbours far apart in hue; that of 0 is not used."""
    hues = [colorsys.hsv_to_rgb(i * 0.381966 % 1, 0.55 + 0.4 * (i % 2), 1) for i in range(count)]
    return np.rint(255 * np.array(hues)).astype(np.uint8).reshape(count, 3)


def draw_labels(
    hu: Real[np.ndarray, "x y z"],
    labels: Integer[np.ndarray, "x y z"],
    spacing_mm: tuple[float, float, float],
    names: Mapping[str, int],
) -> Image.Image:
    """An axial, a coronal and a sagittal slice, without and with labels, and a legend, as PIL.

    Each slice is the one that shows most labelled voxels, of equals the lowest; the middle one
    where nothing is labelled. An axial slice is `AXIAL_SIDE` pixels wide, or less where another
    side would have more than `LONGEST_SIDE` (a CT cropped to a few columns).

    Args:
        hu: canonical axes.
        labels: 0 for the background.
        spacing_mm: along x, y, z.
        names: label of each organ; those in the volume are listed with their size in ml.

    Raises:
        ValueError: the two differ in shape.
    """
    from PIL import Image

    if hu.shape != labels.shape:
        raise ValueError(f"labels {labels.shape} on a CT of {hu.shape}; expected the same shape")
    palette = colours(1 + max([*names.values(), int(labels.max(initial=0))]))
    extents = [n * mm for n, mm in zip(hu.shape, spacing_mm, strict=True)]
    scale = min(AXIAL_SIDE / extents[0], LONGEST_SIDE / max(extents))
    panels = []
    for axis in (2, 1, 0):
        at = _fullest(labels, axis)
        plane, marked = (_upright(volume.take(at, axis)) for volume in (hu, labels))
        across, down = (spacing_mm[k] for k in range(3) if k != axis)
        size = (
            max(1, round(plane.shape[1] * across * scale)),
            max(1, round(plane.shape[0] * down * scale)),
        )
        shown = Image.fromarray(grey(plane)).resize(size, Image.Resampling.BILINEAR)
        marks = Image.fromarray(marked.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        panels.append((np.asarray(shown.convert("RGB")), np.asarray(marks)))
    return _sheet(panels, palette, _legend(labels, spacing_mm, names))


def _fullest(labels: Integer[np.ndarray, "x y z"], axis: int) -> int:
    others = tuple(k for k in range(3) if k != axis)
    counts = np.count_nonzero(labels, axis=others)
    return int(counts.argmax()) if counts.any() else labels.shape[axis] // 2


def _upright(plane: np.ndarray) -> np.ndarray:
    """Rows run down, x to the patient's right and y to the front: all axes are turned over."""
    return np.ascontiguousarray(plane.T[::-1, ::-1])


def _legend(labels, spacing_mm, names: Mapping[str, int]) -> list[tuple[int, str]]:
    ml = float(np.prod(spacing_mm)) / 1000
    found = np.bincount(labels.ravel(), minlength=1 + max(names.values(), default=0))
    return [(i, f"{name} {found[i] * ml:.0f} ml") for name, i in names.items() if found[i]]


def _sheet(panels, palette: np.ndarray, legend: list[tuple[int, str]]) -> Image.Image:
    """Grey slices in a row, coloured ones below, names and sizes at the bottom."""
    from PIL import Image, ImageDraw

    widths, heights = [p.shape[1] for p, _ in panels], [p.shape[0] for p, _ in panels]
    wide, tall = sum(widths) + _GAP * (len(panels) - 1), max(heights)
    columns = max(1, wide // 180)
    lines = -(-len(legend) // columns)
    sheet = Image.new("RGB", (wide, 2 * tall + 2 * _GAP + _LINE * lines))
    left = 0
    for shown, marks in panels:
        blend = np.where((marks > 0)[..., None], _OPACITY, 0.0)
        mixed = np.rint((1 - blend) * shown + blend * palette[marks]).astype(np.uint8)
        mixed[_edges(marks)] = palette[marks][_edges(marks)]
        for top, pixels in ((0, shown), (tall + _GAP, mixed)):
            sheet.paste(Image.fromarray(pixels), (left, top + (tall - len(pixels)) // 2))
        left += shown.shape[1] + _GAP
    pen = ImageDraw.Draw(sheet)
    for place, (label, text) in enumerate(legend):
        row, column = divmod(place, columns)
        at = (column * 180 + 4, 2 * tall + 2 * _GAP + row * _LINE)
        colour = tuple(int(c) for c in palette[label])
        pen.rectangle((at[0], at[1] + 3, at[0] + 8, at[1] + 11), fill=colour)
        pen.text((at[0] + 14, at[1]), text, fill=(255, 255, 255))
    return sheet


def _edges(marks: UInt8[np.ndarray, "h w"]) -> np.ndarray:
    """Labelled pixels with another label above, below or beside them."""
    inner = np.pad(marks, 1)
    core = inner[1:-1, 1:-1]
    sides = (inner[:-2, 1:-1], inner[2:, 1:-1], inner[1:-1, :-2], inner[1:-1, 2:])
    return (core > 0) & np.any([core != side for side in sides], axis=0)
