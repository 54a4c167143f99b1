"""The synthetic background bias on any dataset: a marker at the border of the image.

What `isnet_jax.data.bias` does to digits by widening the picture is here drawn into pictures as
they are; where a marker covers the foreground, the mask gives way to it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from isnet_jax.data.bias import MODES, NO_MARKER, marker_classes, markers
from isnet_jax.data.pictures import nearest
from isnet_jax.data.splits import TRAIN, VAL, Column, Splits

_CELLS = 36  # markers are drawn on a grid of so many cells a side and scaled up


def with_bias(
    splits: Splits,
    *,
    kind: str = "position",
    strength: float = 1.0,
    train_mode: str = "biased",
    seed: int = 0,
) -> Splits:
    """The dataset with white markers in the background that tell the classes.

    "train" and "val" as `train_mode` says; each test split T becomes T (no marker), T_biased and
    T_deceiving.

    Args:
      splits: a dataset with one label an image.
      kind: of `isnet_jax.data.KINDS`.
      strength: share of the training images whose marker tells their class.
      train_mode: "biased", or "standard" for a reference without markers.
      seed: of the markers; image i depends only on (seed, i).

    Raises:
      ValueError: multi-label data, more classes than markers, or an illegal option.
    """
    if splits.multi_label:
        raise ValueError("bias: a marker tells one class; these labels are (n, k) findings")
    height, width = splits.arrays[TRAIN]["image"].shape[1:3]
    if min(height, width) < _CELLS:
        raise ValueError(f"bias: images of {height} x {width} pixels; markers need {_CELLS}")
    drawn = markers(kind, _CELLS, splits.num_classes)

    def marked(columns: Any, mode: str, share: float = 1.0) -> dict[str, Any]:
        labels = np.asarray(columns["label"])
        bias, variant = marker_classes(labels, mode, share, splits.num_classes, seed)
        which = (variant * drawn.shape[1]).astype(int)

        def paint(index: int, image: np.ndarray, value: float) -> np.ndarray:
            if bias[index] == NO_MARKER:
                return image
            cells = drawn[bias[index], which[index]][..., None]
            at = nearest(cells, *image.shape[:2])
            return np.where(at, np.float32(value), image)

        made = {**columns, "image": Painted(columns["image"], paint, 1.0), "bias": bias}
        if "mask" in columns:
            made["mask"] = Painted(columns["mask"], paint, 0.0)
        return made

    arrays: dict[str, Any] = {}
    for name, columns in splits.arrays.items():
        if name in (TRAIN, VAL):
            arrays[name] = marked(columns, train_mode, strength)
            arrays[name]["privileged"] = columns["image"]
        else:
            arrays[name] = columns
            for mode in MODES:
                if mode != "standard":
                    arrays[f"{name}_{mode}"] = marked(columns, mode)
    test = [t if t != VAL else "" for t in splits.test]
    names = tuple(f"{t}{end}" for t in test if t for end in ("_biased", "", "_deceiving"))
    return Splits(arrays, splits.num_classes, names or (VAL,))


class Painted:
    """A column whose items are painted on when they are read.

    Args:
      column: what is painted on.
      paint: (index, item, value) -> item.
      value: of the paint.
    """

    def __init__(
        self, column: Column, paint: Callable[[int, np.ndarray, float], np.ndarray], value: float
    ) -> None:
        self._column, self._paint, self._value = column, paint, value
        self.shape = column.shape

    def __len__(self) -> int:
        return len(self._column)

    def __getitem__(self, index: Any) -> np.ndarray:
        """One item for an int, (m, …) for a slice or an array of ints."""
        if isinstance(index, int | np.integer):
            return self._paint(int(index), self._column[int(index)], self._value)
        rows = np.arange(len(self))[index]
        items = [self[int(row)] for row in rows]
        return np.stack(items) if items else np.zeros((0, *self.shape[1:]), np.float32)
