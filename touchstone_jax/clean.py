"""Clean a predicted label map organ by organ: largest component, smallest size, holes.

Anatomy that a network does not know: an organ is one piece and has no holes. None of it is done
unless asked for, because it is wrong where it is not true: two arteries with one label, a spleen
with a second one beside it, an organ cut in two by the end of the scan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from touchstone_jax.components import components
from touchstone_jax.metrics.boxes import label_boxes

ALL = "*"
"""Stands for every organ that is not named."""


@dataclass(frozen=True)
class Cleaning:
    """What is done to one organ.

    Attributes:
        largest: keep only the largest component (26-connected; of equals the first in memory).
        min_ml: drop components smaller than this, in ml.
        fill_holes: fill background that the organ encloses on all sides (6-connected).
    """

    largest: bool = False
    min_ml: float = 0.0
    fill_holes: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError on another type or a negative size."""
        for name in ("largest", "fill_holes"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}; expected True or False")
        size = self.min_ml
        if isinstance(size, bool) or not isinstance(size, int | float) or not 0 <= size < 1e6:
            raise ValueError(f"min_ml={size!r}; expected ml, 0 or more")


@dataclass(frozen=True)
class Cleaned:
    """Voxels of one organ that were removed and added."""

    removed: int = 0
    filled: int = 0


def cleanings(options: Mapping[str, Mapping[str, Any]]) -> dict[str, Cleaning]:
    """Organ to `Cleaning` from plain mappings, as a card has them.

    Raises:
        ValueError: an unknown option or an illegal value; the organ is named.
    """
    legal = [f.name for f in fields(Cleaning)]
    found = {}
    for organ, asked in options.items():
        if not isinstance(asked, Mapping) or not set(asked) <= set(legal):
            got = dict(asked) if isinstance(asked, Mapping) else asked
            raise ValueError(f"clean: {organ}: {got!r}; legal options: {', '.join(legal)}")
        try:
            found[organ] = Cleaning(**asked)
        except ValueError as error:
            raise ValueError(f"clean: {organ}: {error}") from error
    return found


def clean(
    labels: UInt8[np.ndarray, "x y z"],
    spacing_mm: Sequence[float],
    indices: Mapping[str, int],
    options: Mapping[str, Cleaning],
) -> tuple[UInt8[np.ndarray, "x y z"], dict[str, Cleaned]]:
    """A cleaned copy of a label map (x, y, z), and what changed, organ by organ.

    First components are removed from all organs (they become background), then holes are filled,
    in the order of labels; a filled voxel was background, never another organ's.

    Args:
        labels: uint8 labels.
        spacing_mm: of the voxels, in mm.
        indices: organ to label.
        options: organ, or "*" for all others, to what is done.

    Raises:
        ValueError: an organ that ``indices`` does not have, or no three spacings above 0.
    """
    check_organs(options, indices)
    if len(spacing_mm) != 3 or not all(0 < s < np.inf for s in spacing_mm):
        raise ValueError(f"spacing_mm={tuple(spacing_mm)}; expected three numbers above 0")
    voxel_ml = float(np.prod(np.asarray(spacing_mm, np.float64))) / 1000
    found = labels.copy(order="K")
    asked = {
        organ: options.get(organ, options.get(ALL, Cleaning()))
        for organ in sorted(indices, key=indices.__getitem__)
    }
    removed, filled = {}, {}
    # Transposed, volumes lie in C order (`touchstone_jax.io`), which the libraries are fast at.
    boxes = label_boxes(labels.T, max(indices.values()))
    for organ, how in asked.items():
        label = indices[organ]
        if label in boxes and (how.largest or how.min_ml):
            removed[organ] = _remove(found.T[boxes[label]], label, how, voxel_ml)
    for organ, how in asked.items():
        label = indices[organ]
        if label in boxes and how.fill_holes:
            filled[organ] = _fill(found.T[boxes[label]], label)
    changed = {
        organ: Cleaned(removed.get(organ, 0), filled.get(organ, 0))
        for organ, how in asked.items()
        if how != Cleaning()
    }
    return found, changed


def check_organs(options: Mapping[str, Any], indices: Mapping[str, int]) -> None:
    """Refuse options for an organ that there is not.

    Raises:
        ValueError: naming it and the legal ones.
    """
    if unknown := sorted(set(options) - {ALL, *indices}):
        raise ValueError(f"clean: unknown organ {unknown[0]!r}; legal: {ALL}, {', '.join(indices)}")


def _remove(box: UInt8[np.ndarray, "z y x"], label: int, how: Cleaning, voxel_ml: float) -> int:
    """Remove components of a label from a view of the label map; how many voxels."""
    pieces, count = components(box == label)
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)
    # Room for rounding: a component of exactly the size stays.
    keep: Bool[np.ndarray, " n"] = sizes * voxel_ml >= how.min_ml * (1 - 1e-9)
    if how.largest and count:
        keep &= np.arange(count + 1) == 1 + np.argmax(sizes[1:])
    keep[0] = True
    gone = ~keep[pieces]
    box[gone] = 0
    return int(np.count_nonzero(gone))


def _fill(box: UInt8[np.ndarray, "z y x"], label: int) -> int:
    """Fill the holes of a label in a view of the label map; how many voxels."""
    import fill_voids

    mask = box == label
    if not mask.any():
        return 0
    holes = fill_voids.fill(np.ascontiguousarray(mask)).astype(bool) & (box == 0)
    box[holes] = label
    return int(np.count_nonzero(holes))
