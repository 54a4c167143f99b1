"""Data: sources of images, synthetic bias, and the way from arrays to a grain dataset."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from isnet_jax.data.bias import (
    KINDS,
    MODES,
    NO_MARKER,
    biased_digits,
    canvas_side,
    check_images_and_masks,
)
from isnet_jax.data.coloured import coloured_digits
from isnet_jax.data.datasets import DATASETS, load
from isnet_jax.data.marked import with_bias
from isnet_jax.data.sources import Images, fashion_mnist, mnist, split
from isnet_jax.data.splits import TRAIN, VAL, Column, Splits
from isnet_jax.data.ties import with_ties

if TYPE_CHECKING:
    import grain

__all__ = [
    "DATASETS",
    "TRAIN",
    "VAL",
    "Column",
    "Splits",
    "load",
    "KINDS",
    "MODES",
    "NO_MARKER",
    "Images",
    "as_dataset",
    "biased_digits",
    "canvas_side",
    "check_images_and_masks",
    "coloured_digits",
    "fashion_mnist",
    "mnist",
    "split",
    "with_bias",
    "with_ties",
]


class _Rows:
    """Random access to dicts of rows; views of the arrays, so that an access copies nothing."""

    def __init__(self, arrays: Mapping[str, Column]) -> None:
        self._arrays = arrays
        self._length = len(next(iter(arrays.values())))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: array[index] for name, array in self._arrays.items()}


def as_dataset(arrays: Mapping[str, Column]) -> "grain.MapDataset":
    """The rows of `arrays` (each (n, ...)) as a grain dataset of n dicts, in order.

    Raises:
      ValueError: no arrays, no rows, or arrays of different lengths.
    """
    import grain  # a second of imports that a library user without training can do without

    lengths = {name: array.shape[0] if array.shape else None for name, array in arrays.items()}
    if len(set(lengths.values())) != 1 or not all(lengths.values()):
        raise ValueError(f"as_dataset: lengths {lengths}, expected one and the same, at least 1")
    return grain.MapDataset.source(_Rows(arrays))
