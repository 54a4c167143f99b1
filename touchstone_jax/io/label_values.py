"""The voxels of a label map as integers, and how many there are of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Real, UInt

from touchstone_jax.findings import Finding, refusal

_PIECE = 2**18


def integers(
    image: Any, shape: tuple[int, int, int], path: Path, case: str
) -> tuple[Real[np.ndarray, "x y z"], tuple[Finding, ...]]:
    """Stored values (``shape``) as integers in 0..65535, and a warning if some were rounded.

    Args:
        image: nibabel's image.
        shape: of the stored array, without trailing axes of one voxel.
        path: its file, for messages.
        case: id for messages.

    Raises:
        VolumeError: a value more than 0.01 off an integer, not finite, or out of range.
    """
    stored = np.asanyarray(image.dataobj).reshape(shape)
    notes: tuple[Finding, ...] = ()
    values = stored
    if stored.dtype.kind == "f":
        # Of NaN no integer can be made; the comparison below then says so.
        with np.errstate(invalid="ignore", over="ignore"):
            values = np.rint(np.nan_to_num(stored, nan=-1, posinf=-1, neginf=-1)).astype(np.int64)
            off = np.abs(stored - values)
        if not (worst := float(np.nanmax(off, initial=0))) <= 0.01 or np.isnan(off).any():
            where = np.unravel_index(np.argmax(np.nan_to_num(off, nan=np.inf)), shape)
            raise refusal(
                case,
                "label_not_integer",
                f"{path.name} has the value {stored[where]:.6g} at voxel "
                f"{tuple(int(i) for i in where)}; expected integers",
                "store labels; threshold probabilities, and resample masks with nearest neighbour",
            )
        if worst > 0:
            told = f"{path.name} has labels up to {worst:.2g} off an integer, as floats"
            fix = "nothing to do: they are rounded; store integers"
            notes = (Finding(case, "label_rounded", "warning", told, fix),)
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
        told = f"{path.name} has the label {low if low < 0 else high}; expected 0..65535"
        raise refusal(case, "label_out_of_range", told, "store labels from 0 (background) upwards")
    return values, notes


def label_counts(labels: UInt[np.ndarray, "..."], classes: int = 1) -> Int64[np.ndarray, " k"]:
    """Voxels of each label 0..k-1, where k is at least ``classes``."""
    flat = labels.ravel(order="K")
    top = max(int(labels.max(initial=0)) + 1, classes)
    counts = np.zeros(top, np.int64)
    # bincount works on int64 copies: in pieces they stay in the cache.
    for start in range(0, flat.size, _PIECE):
        counts += np.bincount(flat[start : start + _PIECE], minlength=top)
    return counts
