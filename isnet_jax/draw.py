"""Pictures as uint8 arrays: heatmaps, images, labelled grids, PNG files. No matplotlib.

Pillow is imported where letters are drawn and files written: colours need NumPy only.
"""

import io
from typing import TYPE_CHECKING

import numpy as np
from etils import epath
from jaxtyping import Float, UInt8

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

# Value -> colour, linear in between: dark blue, blue, white, red, dark red.
_STOPS = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
_COLOURS = np.array(
    [[5, 48, 97], [67, 147, 195], [255, 255, 255], [214, 96, 77], [103, 0, 31]], float
)
_GREY = 128
_INK = (32, 32, 32)
_GAP = 3  # pixels between cells
_FONT_SIZES = (15, 14, 13, 12, 11, 10)


def heatmap_rgb(
    relevance: Float[np.ndarray, "h w"] | Float[np.ndarray, "h w c"],
    *,
    scale: float | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """A heatmap (h, w), or (h, w, c) summed over c, in colours: uint8 (h, w, 3).

    Blue is negative, white zero, red positive, symmetrical around 0. A pixel that isn't finite is
    grey: a broken map should be seen, not stop a training run at its picture.

    Args:
      relevance: the map.
      scale: the |relevance| that gets the full colour, larger ones too; None: the map's largest
        finite |R|. A map of zeros is white.

    Raises:
      ValueError: another number of axes, or a scale that isn't positive and finite.
    """
    relevance = np.asarray(relevance, np.float64)
    if relevance.ndim not in (2, 3):
        raise ValueError(f"heatmap_rgb: shape {relevance.shape}, expected (h, w) or (h, w, c)")
    if relevance.ndim == 3:
        relevance = relevance.sum(axis=2)
    finite = np.isfinite(relevance)
    if scale is None:
        scale = np.abs(relevance, where=finite, out=np.zeros_like(relevance)).max(initial=0)
        scale = scale or 1.0
    elif not (np.isfinite(scale) and scale > 0):
        raise ValueError(f"heatmap_rgb: scale={scale}, expected a positive number")
    value = np.where(finite, relevance, 0) / scale
    rgb = np.stack([np.interp(value, _STOPS, channel) for channel in _COLOURS.T], axis=-1)
    rgb[~finite] = _GREY
    return np.rint(rgb).astype(np.uint8)


def image_rgb(
    image: Float[np.ndarray, "h w"] | Float[np.ndarray, "h w c"],
) -> UInt8[np.ndarray, "h w 3"]:
    """An image or mask in [0, 1], (h, w), (h, w, 1) or (h, w, 3), as uint8 (h, w, 3).

    Raises:
      ValueError: another shape, or values that are not finite or outside [0, 1].
    """
    image = np.asarray(image, np.float64)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"image_rgb: shape {image.shape}, expected (h, w), (h, w, 1) or (h, w, 3)")
    if image.size and not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"image_rgb: values in [{image.min():g}, {image.max():g}], expected [0, 1]"
        )
    return np.rint(np.broadcast_to(image, (*image.shape[:2], 3)) * 255).astype(np.uint8)


def grid(
    columns: dict[str, UInt8[np.ndarray, "n h w 3"]], *, cell: int = 128
) -> UInt8[np.ndarray, "height width 3"]:
    """One picture, uint8 (height, width, 3): a column per entry under its name, a row per item.

    Pixels are enlarged, never blended: each is a block whose sides differ by at most one. A name
    that is too wide for its column is set on several lines, then smaller, then cut.

    Args:
      columns: name -> pictures uint8 (n, h, w, 3), the same n in each; sizes may differ.
      cell: width and height of a picture in the grid, in pixels; not square ones are fitted in.

    Raises:
      ValueError: no columns, different n, n = 0, another shape or dtype, or cell < 16.
    """
    _check_columns(columns, cell)
    names, stacks = list(columns), list(columns.values())
    header = _header(names, cell)
    step = cell + _GAP
    width = len(names) * step + _GAP
    canvas = np.full((len(header) + len(stacks[0]) * step, width, 3), 255, np.uint8)
    canvas[: len(header)] = header
    for column, stack in enumerate(stacks):
        left = _GAP + column * step
        for row, picture in enumerate(stack):
            top = len(header) + row * step
            # A light mat, so that white maps on white paper still have an edge.
            canvas[top - 1 : top + cell + 1, left - 1 : left + cell + 1] = 217
            canvas[top : top + cell, left : left + cell] = _fit(picture, cell)
    return canvas


def save_png(array: UInt8[np.ndarray, "h w 3"], path: epath.PathLike) -> None:
    """Write a picture uint8 (h, w, 3) as a PNG file; missing folders are made.

    Raises:
      ValueError: another shape or dtype.
      OSError: the place cannot be written.
    """
    from PIL import Image

    array = np.asarray(array)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise ValueError(
            f"save_png: {array.dtype} of shape {array.shape}, expected uint8 (h, w, 3)"
        )
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


# ------------------------------------------------------------------------------ inside the grid


def _check_columns(columns: dict[str, np.ndarray], cell: int) -> None:
    if cell < 16:
        raise ValueError(f"grid: cell={cell}, expected at least 16 pixels")
    if not columns:
        raise ValueError("grid: no columns")
    for name, stack in columns.items():
        if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[3] != 3 or not stack.size:
            raise ValueError(
                f"grid: column {name!r}: {stack.dtype} of shape {stack.shape}, "
                "expected uint8 (n, h, w, 3)"
            )
    counts = {name: len(stack) for name, stack in columns.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"grid: columns of different lengths: {counts}")


def _fit(picture: np.ndarray, cell: int) -> np.ndarray:
    """uint8 (h, w, 3) in the middle of (cell, cell, 3), nearest neighbour, aspect kept."""
    h, w = picture.shape[:2]
    new_h, new_w = (max(1, round(cell * side / max(h, w))) for side in (h, w))
    rows = np.arange(new_h) * h // new_h
    cols = np.arange(new_w) * w // new_w
    result = np.full((cell, cell, 3), 255, np.uint8)
    top, left = (cell - new_h) // 2, (cell - new_w) // 2
    result[top : top + new_h, left : left + new_w] = picture[rows][:, cols]
    return result


def _wrap(name: str, font: "FreeTypeFont | ImageFont", width: int) -> list[str]:
    """Words filled into lines; a word alone may still be wider than `width`."""
    lines: list[str] = []
    for word in name.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _header(names: list[str], cell: int) -> np.ndarray:
    """The strip of names, uint8 (height, width, 3), each centred over its column."""
    from PIL import Image, ImageDraw, ImageFont

    # One size for all names, the largest at which every word fits into its column.
    for size in _FONT_SIZES:
        font = ImageFont.load_default(size)
        texts = [_wrap(name, font, cell) for name in names]
        if all(font.getlength(line) <= cell for lines in texts for line in lines):
            break
    line_height = round(1.25 * size)
    height = max(len(lines) for lines in texts) * line_height + 8
    step = cell + _GAP
    strip = Image.new("RGB", (len(names) * step + _GAP, height), "white")
    for column, lines in enumerate(texts):
        # A tile of its own: what is too wide even now is cut, not written over the neighbour.
        tile = Image.new("RGB", (cell, height), "white")
        pen = ImageDraw.Draw(tile)
        for number, line in enumerate(reversed(lines)):
            left = max(0.0, (cell - font.getlength(line)) / 2)
            pen.text((left, height - 5 - number * line_height), line, _INK, font, anchor="ls")
        strip.paste(tile, (_GAP + column * step, 0))
    return np.asarray(strip)
