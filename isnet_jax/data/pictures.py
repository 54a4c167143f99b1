"""Columns that read image files when an item is asked for: a dataset need not fit in memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isnet_jax.images import read, resized

CHANNELS = (1, 3)


class _Files:
    """A column of files; a subclass turns one into an array."""

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int, int]) -> None:
        self.paths = tuple(paths)
        self.shape = (len(self.paths), *shape)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> np.ndarray:
        """One item for an int, (m, h, w, c) for a slice or an array of ints."""
        if isinstance(index, int | np.integer):
            return self._read(self.paths[int(index)])
        rows = np.arange(len(self))[index]
        if not len(rows):
            return np.zeros((0, *self.shape[1:]), np.float32)
        return np.stack([self._read(self.paths[row]) for row in rows])

    def _read(self, path: Path) -> np.ndarray:
        raise NotImplementedError


class Pictures(_Files):
    """Images float32 (n, *size, channels) in [0, 1], squeezed to the size.

    Args:
      paths: PNG or JPEG files.
      size: (height, width) in pixels.
      channels: 3, or 1 for the mean of red, green and blue.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int], channels: int) -> None:
        super().__init__(paths, (*size, channels))

    def _read(self, path: Path) -> np.ndarray:
        image = resized(read(path), *self.shape[1:3])
        return image if self.shape[3] == 3 else image.mean(axis=2, keepdims=True)


class Masks(_Files):
    """Masks float32 (n, *size, 1) of 0 and 1: brighter than half of white is foreground.

    Args:
      paths: PNG or JPEG files.
      size: (height, width) in pixels; the mask is scaled by nearest neighbours.
    """

    def __init__(self, paths: Sequence[Path], size: tuple[int, int]) -> None:
        super().__init__(paths, (*size, 1))

    def _read(self, path: Path) -> np.ndarray:
        mask = read(path).mean(axis=2, keepdims=True) > 0.5
        return nearest(mask, *self.shape[1:3]).astype(np.float32)


class Boxes:
    """Masks float32 (n, *size, 1) that are 1 inside each image's boxes.

    Args:
      boxes: an image's (left, top, right, bottom), each in [0, 1] of the width or height.
      size: (height, width) in pixels.
    """

    def __init__(
        self, boxes: Sequence[Sequence[tuple[float, float, float, float]]], size: tuple[int, int]
    ) -> None:
        self.boxes = tuple(boxes)
        self.shape = (len(self.boxes), *size, 1)

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Any) -> np.ndarray:
        """One item for an int, (m, h, w, 1) for a slice or an array of ints."""
        if not isinstance(index, int | np.integer):
            rows = np.arange(len(self))[index]
            return np.stack([self[int(row)] for row in rows]) if len(rows) else self._none()
        height, width = self.shape[1:3]
        mask = np.zeros((height, width, 1), np.float32)
        for left, top, right, bottom in self.boxes[int(index)]:
            rows = slice(int(top * height), int(np.ceil(bottom * height)))
            mask[rows, int(left * width) : int(np.ceil(right * width))] = 1
        return mask

    def _none(self) -> np.ndarray:
        return np.zeros((0, *self.shape[1:]), np.float32)


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


def check_opens(paths: Sequence[Path], case: str) -> None:
    """Every file must be there and begin like an image; pixels are not read.

    Raises:
      FileNotFoundError, ValueError: the first that is not; the message names it and how many.
    """
    from PIL import Image

    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(f"{case}: no file {path}")
        try:
            with Image.open(path, formats=("PNG", "JPEG")):
                pass
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{case}: {path} is no PNG or JPEG image ({error})") from None
