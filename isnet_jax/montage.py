"""Pictures of explanations: a heatmap beside its image, and many images × rules on one sheet.

Heatmaps are drawn by `isnet_jax.draw.heatmap_rgb`, in the same colours, with a bar that says what
they mean. Relevance is a sum over pixels: a map that is drawn coarser is summed over the pixels
that become one, so that nothing of it is lost between them. Pillow is imported where letters are
drawn.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, UInt8

from isnet_jax.draw import heatmap_rgb

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

PERCENTILE = 99.5
SHADES = 16  # of each sign
GRAIN = 2  # pixels of the sheet, the side of a block of a map
_INK, _FAINT, _EDGE = (32, 32, 32), (110, 110, 110), (205, 205, 205)
_GAP = 8  # pixels between cells


@dataclass(frozen=True)
class Line:
    """One row of the sheet.

    Attributes:
        image: what the model saw, RGB in [0, 1].
        captions: up to two lines under the image.
        maps: one relevance map a rule, summed over the channels.
        notes: one short text a rule, under its map.
    """

    image: Float[np.ndarray, "h w 3"]
    captions: tuple[str, ...]
    maps: tuple[Float[np.ndarray, "h w"], ...]
    notes: tuple[str, ...]


def full_colour(relevance: Float[np.ndarray, "h w"], percentile: float = PERCENTILE) -> float:
    """The |R| that gets the full colour: a percentile, so that a few pixels do not hide the rest.

    A map of mostly zeros falls back on its largest |R|, one of zeros on 1.
    """
    size = np.abs(np.asarray(relevance, np.float64))
    size = size[np.isfinite(size)]
    if not size.size:
        return 1.0
    found = float(np.percentile(size, percentile)) or float(size.max())
    return found if found > 0 else 1.0


def pooled(relevance: Float[np.ndarray, "h w"], side: int) -> Float[np.ndarray, "new_h new_w"]:
    """A map made smaller until its longer side is `side`; sums over what becomes one pixel.

    A pixel that lies on an edge is shared out by area, so the total stays (to rounding). A map
    that is no larger is returned as it is.
    """
    h, w = relevance.shape
    if max(h, w) <= side:
        return np.asarray(relevance, np.float64)
    new_h, new_w = (max(1, round(side * n / max(h, w))) for n in (h, w))
    return _shares(h, new_h) @ np.asarray(relevance, np.float64) @ _shares(w, new_w).T


def _shares(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """Which share of each old pixel falls into each new one; columns sum to 1."""
    edges = np.linspace(0, old, new + 1)
    left, right = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)[None]
    return np.clip(np.minimum(right, pixel + 1) - np.maximum(left, pixel), 0, None)


# ---------------------------------------------------------------- letters


def _font(size: int, *, bold: bool = False) -> FreeTypeFont | ImageFont:
    """DejaVu Sans where matplotlib brought it (it has Greek letters), else Pillow's own."""
    from PIL import ImageFont

    spec = importlib.util.find_spec("matplotlib")
    for place in spec.submodule_search_locations or () if spec else ():
        name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
        path = Path(place) / "mpl-data" / "fonts" / "ttf" / name
        if path.is_file():
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def _put(
    pen: ImageDraw,
    at: tuple[float, float],
    text: str,
    width: int,
    size: int,
    *,
    colour: tuple[int, int, int] = _INK,
    bold: bool = False,
    anchor: str = "mt",
) -> None:
    """Write one line, smaller if it is wider than `width`, at last cut before a double space."""
    for smaller in range(size, 8, -1):
        font = _font(smaller, bold=bold)
        if font.getlength(text) <= width:
            break
    name, gap, end = text.partition("  ")
    while len(name) > 1 and font.getlength(name + gap + end) > width:
        name = name[:-2] + "…"
    text = name + gap + end
    pen.text(at, text, colour, font, anchor=anchor)


def _number(value: float) -> str:
    """Three digits with the typographic minus."""
    return f"{value:+.3g}".replace("-", "\N{MINUS SIGN}") if value else "0"


# ---------------------------------------------------------------- pixels


def _scaled(
    picture: UInt8[np.ndarray, "h w 3"], side: int, *, smooth: bool
) -> UInt8[np.ndarray, "new_h new_w 3"]:
    """The picture with a longer side of `side`; maps enlarged in blocks, images smoothly."""
    from PIL import Image

    h, w = picture.shape[:2]
    shape = tuple(max(1, round(side * n / max(h, w))) for n in (w, h))
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(picture).resize(shape, how))


def _place(canvas: np.ndarray, picture: np.ndarray, top: int, left: int, side: int) -> None:
    """Put the picture into the middle of a square of `side`, with a thin edge around it."""
    h, w = picture.shape[:2]
    top, left = top + (side - h) // 2, left + (side - w) // 2
    canvas[top - 1 : top + h + 1, left - 1 : left + w + 1] = _EDGE
    canvas[top : top + h, left : left + w] = picture


def _image(image: np.ndarray, side: int) -> UInt8[np.ndarray, "h w 3"]:
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return _scaled(pixels, side, smooth=True)


def _heatmap(
    relevance: np.ndarray, side: int, grain: int = 1
) -> tuple[UInt8[np.ndarray, "h w 3"], float]:
    """(colours, the relevance of one drawn block that has the full colour).

    A block has at least `grain` × `grain` pixels of the picture.
    """
    small = pooled(relevance, max(1, side // grain))
    scale = full_colour(small)
    # As few shades as the eye tells apart: the file is a third of the size.
    steps = np.rint(np.clip(small / scale, -1, 1) * SHADES) / SHADES
    return _scaled(heatmap_rgb(steps, scale=1.0), side, smooth=False), scale


def _bar(length: int, thick: int, *, upright: bool) -> UInt8[np.ndarray, "h w 3"]:
    values = np.linspace(-1, 1, length)[None].repeat(thick, 0)
    values = values.T[::-1] if upright else values
    return heatmap_rgb(values, scale=1.0)


# ---------------------------------------------------------------- pictures


def figure(
    image: Float[np.ndarray, "h w 3"],
    relevance: Float[np.ndarray, "h w"],
    *,
    title: str,
    subtitle: str,
    side: int = 460,
) -> UInt8[np.ndarray, "height width 3"]:
    """An image and one heatmap side by side, with a colour bar in units of relevance.

    Args:
        image: what the model saw, RGB in [0, 1].
        relevance: the map, summed over the channels.
        title: large, on top.
        subtitle: under it.
        side: longer side of both in pixels, at most.
    """
    from PIL import Image, ImageDraw

    # Blocks of one size: the map is enlarged by a whole number, or pooled.
    longer = max(relevance.shape)
    side = longer * max(1, side // longer) if longer <= side else side
    top, bar, legend = 64, 18, 92
    width = 2 * side + 3 * _GAP + bar + legend
    canvas = np.full((top + side + 2 * _GAP, width, 3), 255, np.uint8)
    _place(canvas, _image(image, side), top, _GAP, side)
    colours, scale = _heatmap(relevance, side)
    _place(canvas, colours, top, 2 * _GAP + side, side)
    left = 3 * _GAP + 2 * side
    _place(canvas, _bar(side, bar, upright=True), top, left - (side - bar) // 2, side)
    sheet = Image.fromarray(canvas)
    pen = ImageDraw.Draw(sheet)
    _put(pen, (_GAP, 10), title, width - 2 * _GAP, 20, bold=True, anchor="lt")
    _put(pen, (_GAP, 38), subtitle, width - 2 * _GAP, 14, colour=_FAINT, anchor="lt")
    for value, height in ((scale, 0), (0.0, side // 2), (-scale, side)):
        anchor = {0: "lt", side: "lb"}.get(height, "lm")
        text = _number(value)
        _put(pen, (left + bar + 6, top + height), text, legend - 8, 14, anchor=anchor)
    return np.asarray(sheet)


_LEAST_WIDTH = 520  # of the legend


def montage(
    lines: Sequence[Line], labels: Sequence[str], *, title: str = "", cell: int = 152
) -> UInt8[np.ndarray, "height width 3"]:
    """Images down, rules across, one colour bar below: uint8 (height, width, 3).

    Each map has its own scale, since relevance under different rules is not comparable: full
    colour at the `PERCENTILE` of its |R|.

    Args:
        lines: a row each, all with as many maps and notes as there are labels.
        labels: the rules' names, over their columns.
        title: over everything; "" for none.
        cell: side of a picture in pixels.

    Raises:
        ValueError: no line, or a line with another number of maps than labels.
    """
    from PIL import Image, ImageDraw

    wrong = [len(line.maps) for line in lines if len(line.maps) != len(labels)]
    if not lines or wrong:
        raise ValueError(f"montage: {len(lines)} lines, {wrong or 0} maps for {len(labels)} labels")
    step, first = cell + _GAP, _GAP
    head = (34 if title else 8) + 24
    below, foot = 36, 58
    height = head + len(lines) * (cell + below) + foot
    width = max(first + (1 + len(labels)) * step, _LEAST_WIDTH)
    canvas = np.full((height, width, 3), 255, np.uint8)
    for row, line in enumerate(lines):
        top = head + row * (cell + below)
        _place(canvas, _image(line.image, cell), top, first, cell)
        for column, relevance in enumerate(line.maps, start=1):
            _place(canvas, _heatmap(relevance, cell, GRAIN)[0], top, first + column * step, cell)
    long = min(360, width // 3)
    canvas[height - 50 : height - 36, (width - long) // 2 : (width - long) // 2 + long] = _bar(
        long, 14, upright=False
    )
    sheet = Image.fromarray(canvas)
    pen = ImageDraw.Draw(sheet)
    _label(pen, lines, labels, title, cell, head, below)
    _legend(pen, width, height, long)
    return np.asarray(sheet)


def _label(
    pen: ImageDraw,
    lines: Sequence[Line],
    labels: Sequence[str],
    title: str,
    cell: int,
    head: int,
    below: int,
) -> None:
    step = cell + _GAP
    if title:
        _put(pen, (_GAP, 8), title, (1 + len(labels)) * step, 18, bold=True, anchor="lt")
    for column, label in enumerate(("", *labels)):
        if label:
            middle = _GAP + column * step + cell / 2
            _put(pen, (middle, head - 9), label, cell, 14, bold=True, anchor="ms")
    for row, line in enumerate(lines):
        top = head + row * (cell + below) + cell + 4
        for number, caption in enumerate(line.captions[:2]):
            colour = _FAINT if number else _INK
            at = (_GAP + cell / 2, top + 15 * number)
            _put(pen, at, caption, cell, 13 - number, colour=colour, bold=not number)
        for column, note in enumerate(line.notes, start=1):
            _put(pen, (_GAP + column * step + cell / 2, top), note, cell, 12, colour=_FAINT)


def _legend(pen: ImageDraw, width: int, height: int, long: int) -> None:
    left, right = (width - long) // 2, (width + long) // 2
    middle = height - 43
    if left > 150:  # beside the bar, where there is room
        _put(pen, (left - 10, middle), "speaks against the class", left - 14, 13, anchor="rm")
        _put(pen, (right + 10, middle), "speaks for it", left - 14, 13, anchor="lm")
    for at, text in ((left, "\N{MINUS SIGN}s"), (width / 2, "0"), (right, "+s")):
        _put(pen, (at, height - 32), text, 60, 12, colour=_FAINT)
    told = (
        f"relevance R of a block of pixels; s: the {PERCENTILE:g}th percentile of |R| in each map"
    )
    _put(pen, (width / 2, height - 16), told, width - 2 * _GAP, 12, colour=_FAINT)
