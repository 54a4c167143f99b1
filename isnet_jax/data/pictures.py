"""Columns that read image files when an item is asked for: a dataset need not fit in memory."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isnet_jax.images import opened, read, resized

CHANNELS = (1, 3)
_TAIL = 1024  # bytes of a file's end


class Lazy:
    """A column whose items are made when they are asked for.

    Args:
      count: items.
      shape: of an item.
      item: 0..count - 1 to an array float32 of that shape.
    """

    def __init__(
        self, count: int, shape: tuple[int, ...], item: Callable[[int], np.ndarray]
    ) -> None:
        self.shape, self._item = (count, *shape), item

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> np.ndarray:
        """One item for an int, (m, *shape) for a slice or an array of ints."""
        if isinstance(index, int | np.integer):
            return self._item(range(len(self))[int(index)])
        rows = np.arange(len(self))[index]
        if not len(rows):
            return np.zeros((0, *self.shape[1:]), np.float32)
        return np.stack([self._item(int(row)) for row in rows])


def pictures(paths: Sequence[Path], size: tuple[int, int], channels: int) -> Lazy:
    """Images float32 (n, *size, channels) in [0, 1], squeezed to the size.

    Args:
      paths: PNG or JPEG files.
      size: (height, width) in pixels.
      channels: 3, or 1 for the mean of red, green and blue.
    """
    read_one = partial(_picture, tuple(paths), size, channels)
    return Lazy(len(paths), (*size, channels), read_one)


def _picture(paths: Sequence[Path], size: tuple[int, int], channels: int, index: int) -> np.ndarray:
    image = resized(_read(paths[index]), *size)
    return image if channels == 3 else image.mean(axis=2, keepdims=True)


def _read(path: Path) -> np.ndarray:
    """As `read`; of thousands of files in many folders the message names the whole path."""
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{path.parent}: {error}") from error


def masks(paths: Sequence[Path], size: tuple[int, int]) -> Lazy:
    """Masks float32 (n, *size, 1) of 0 and 1: brighter than half of white is foreground.

    Args:
      paths: PNG or JPEG files.
      size: (height, width) in pixels; the mask is scaled by nearest neighbours.
    """
    return Lazy(len(paths), (*size, 1), partial(_mask, tuple(paths), size))


def _mask(paths: Sequence[Path], size: tuple[int, int], index: int) -> np.ndarray:
    mask = _read(paths[index]).mean(axis=2, keepdims=True) > 0.5
    return nearest(mask, *size).astype(np.float32)


def boxes(
    places: Sequence[Sequence[tuple[float, float, float, float]]], size: tuple[int, int]
) -> Lazy:
    """Masks float32 (n, *size, 1) that are 1 inside each image's boxes.

    Args:
      places: an image's (left, top, right, bottom), each in [0, 1] of the width or height.
      size: (height, width) in pixels.
    """
    return Lazy(len(places), (*size, 1), partial(_inside, tuple(places), size))


def _inside(
    places: Sequence[Sequence[tuple[float, float, float, float]]],
    size: tuple[int, int],
    index: int,
) -> np.ndarray:
    height, width = size
    mask = np.zeros((height, width, 1), np.float32)
    for left, top, right, bottom in places[index]:
        rows = slice(int(top * height), int(np.ceil(bottom * height)))
        mask[rows, int(left * width) : int(np.ceil(right * width))] = 1
    return mask


def nearest(array: np.ndarray, height: int, width: int) -> np.ndarray:
    """(h, w, c) to (height, width, c), each pixel the nearest one's value."""
    rows, columns = (
        (np.arange(new) * old + old // 2) // new
        for new, old in ((height, array.shape[0]), (width, array.shape[1]))
    )
    return array[np.ix_(np.minimum(rows, len(array) - 1), np.minimum(columns, array.shape[1] - 1))]


def sides(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a card's ``size``, one number or two.

    Raises:
      ValueError: no such numbers.
    """
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= 4096 for side in pair):
        raise ValueError(f"size={size!r}; must be 1 to 4096 pixels, one number or (height, width)")
    return pair


def check_channels(channels: int) -> None:
    """Raises ValueError unless it is 1 or 3."""
    if channels not in CHANNELS:
        raise ValueError(f"channels={channels!r}; must be 1 (grey) or 3 (RGB)")


def _ends(path: Path, kind: str) -> bool:
    """Whether the file's last bytes hold its kind's end mark; others may follow it."""
    mark = b"IEND" if kind == "PNG" else b"\xff\xd9"
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - _TAIL, 0))
        return mark in file.read()


def check_opens(paths: Sequence[Path], case: str) -> None:
    """Every file must be there, begin like an image and end like one.

    Pixels are read only of what does not: a download that broke off is told here, not in the middle
    of a training.

    Raises:
      FileNotFoundError, ValueError: the first that is not; the message names it and how many.
    """
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{case}: no file {path}")
        try:
            with opened(path) as file:
                whole = _ends(path, file.format or "")
            if not whole:
                read(path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{case}: {path} is no PNG or JPEG image ({error})") from None
