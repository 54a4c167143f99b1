"""What a dataset is to a task: the arrays of its splits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

TRAIN = "train"
VAL = "val"


class Column(Protocol):
    """One value of every item: a NumPy array, or something that reads items when asked for them.

    Attributes:
      shape: (n, …) as an array's.
    """

    shape: tuple[int, ...]

    def __len__(self) -> int:
        """Number of items."""

    def __getitem__(self, index: Any) -> np.ndarray:
        """The item at an int, or the items (m, …) at an integer array or a slice."""


@dataclass(frozen=True)
class Splits:
    """The columns of every split.

    Attributes:
      arrays: split -> {"image" float32 (n, h, w, c) in [0, 1], "label" int32 (n,), or float32
        (n, k) of 0 and 1 where an image can show several findings, and where known "mask" float32
        (n, h, w, 1) in {0, 1}}; "train" and "val" among them. These two may also hold
        "privileged", the image without its bias (what an unbiased teacher learns from), and
        "bias" int32 (n,), the class that the bias tells.
      num_classes: labels lie in 0..num_classes-1, or k.
      test: the splits to report at the end.
    """

    arrays: Mapping[str, Mapping[str, Column]]
    num_classes: int
    test: tuple[str, ...]

    @property
    def multi_label(self) -> bool:
        """Whether labels are (n, k) of 0 and 1."""
        return len(self.arrays[TRAIN]["label"].shape) == 2
