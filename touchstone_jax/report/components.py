"""From a lesion mask to lesions: 26-connected components, noise left out, the largest first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool
from scipy import ndimage

from touchstone_jax.report.regions import Region, fitted

CUBE = np.ones((3, 3, 3), bool)
"""A voxel and its 26 neighbours."""


def lesions_of(
    region: Region,
    spacing_mm: Sequence[float],
    *,
    min_component_mm3: float = 10.0,
    erosion: bool = True,
) -> list[Region]:
    """The lesions of a mask in falling order of volume.

    A component counts if it has at least ``min_component_mm3`` and does not vanish under one
    3 × 3 × 3 erosion on a grid of 1 mm: it holds a cube of 3 mm (RadGPT's rule against the specks
    of a segmentation). Where volumes are equal the later label goes first, as in RadGPT.

    Args:
        region: the voxels of all lesions.
        spacing_mm: of its volume; with 1 mm the erosion is on the volume's own voxels.
        min_component_mm3: 0 keeps every volume.
        erosion: apply the erosion.

    Raises:
        ValueError: a negative or non-finite smallest volume.
    """
    if not 0 <= min_component_mm3 < np.inf:
        raise ValueError(f"min_component_mm3={min_component_mm3}; expected a number from 0")
    labels, count = ndimage.label(region.mask, CUBE)
    if not count:
        return []
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = ndimage.find_objects(labels)
    voxel_mm3 = float(np.prod(spacing_mm))
    kept = []
    for index in np.argsort(sizes, kind="stable")[::-1]:
        if sizes[index] * voxel_mm3 < min_component_mm3:
            break
        box = boxes[index]
        mask = labels[box] == index + 1
        if not erosion or survives_erosion(mask, spacing_mm):
            start = [s + b.start for s, b in zip(region.start, box, strict=True)]
            kept.append(fitted(mask, start, region.shape))
    return kept


def survives_erosion(mask: Bool[np.ndarray, "a b c"], spacing_mm: Sequence[float]) -> bool:
    """Whether a mask (a, b, c) holds a cube of 3 mm, seen on a grid of 1 mm; outside is empty."""
    fine = mask
    for axis, spacing in enumerate(spacing_mm):
        if spacing != 1:
            steps = max(1, round(mask.shape[axis] * spacing))
            centres = ((np.arange(steps) + 0.5) / spacing).astype(int)
            fine = np.take(fine, np.minimum(centres, mask.shape[axis] - 1), axis)
    if min(fine.shape) < 3:
        return False
    return bool(ndimage.binary_erosion(fine, CUBE).any())
