"""Head, body and tail of the pancreas, from its mask and the superior mesenteric artery (SMA).

The head ends where the pancreas crosses the SMA; what is left is cut at its centre of mass
across its own axis (spec/report.md 8, after RadGPT). Every voxel
of the pancreas is asked on which side of the two cuts it lies, so it belongs to exactly one part;
RadGPT cuts volumes turned on a grid of 2 mm instead and leaves a few voxels out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64
from scipy import ndimage

from touchstone_jax.report.regions import Region, fitted

SMA_LENGTH_MM = 30.0
"""Of the part of the SMA that runs behind the pancreas, the top so far down counts."""

MOST_TURN_DEG = 45.0
"""An axis further than this from left-right is not followed: the patient's axis is taken."""

TOUCH_MM = 12.0
"""Head and tail nearer than this: the pancreas is folded, and is cut across left-right."""


def pancreas_parts(
    pancreas: Region, sma: Region, spacing_mm: Sequence[float]
) -> dict[int, Region] | None:
    """Regions of head (1), body (2) and tail (3); None if one of the masks is empty.

    Args:
        pancreas: in voxels of the CT, x to the patient's right.
        sma: of the same volume.
        spacing_mm: of the CT.
    """
    if not pancreas.mask.size or not sma.mask.size:
        return None
    spacing = np.asarray(spacing_mm, np.float64)
    points = (np.argwhere(pancreas.mask) + pancreas.start) * spacing
    points[:, 0] *= -1  # to the patient's left, as the cuts are described
    landmark = _landmark(pancreas, sma, spacing[2]) * spacing
    landmark[:, 0] *= -1
    along = _left(points)
    place = points @ along
    head = place < (landmark @ along).min() / 2 + (landmark @ along).max() / 2
    label = np.ones(len(points), int)
    rest = ~head
    if rest.any():
        label[rest] = np.where(_beyond_middle(points[rest]), 3, 2)
        if _folded(points[head], points[label == 3]):
            x = points[rest, 0]
            label[rest] = np.where(x > (x.min() + x.max()) / 2, 3, 2)
    parts = np.zeros(pancreas.mask.shape, int)
    parts[pancreas.mask] = label
    return {k: fitted(parts == k, pancreas.start, pancreas.shape) for k in (1, 2, 3)}


def _landmark(pancreas: Region, sma: Region, spacing_z_mm: float) -> Float64[np.ndarray, "n 3"]:
    """Voxels of the SMA behind the pancreas: where their shadows on the x-z plane meet."""
    shadow = np.zeros((pancreas.shape[0], pancreas.shape[2]), bool)
    behind = _shadow(sma, shadow)
    both = behind & _shadow(pancreas, shadow)
    chosen = both if both.any() else behind
    slices = np.flatnonzero(chosen.any(axis=0))
    lowest = slices[-1] + 1 - max(1, round(SMA_LENGTH_MM / spacing_z_mm))
    chosen[:, : max(0, lowest)] = False
    pieces, count = ndimage.label(chosen)
    if count > 1:
        chosen = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    voxels = np.argwhere(sma.mask) + sma.start
    return voxels[chosen[voxels[:, 0], voxels[:, 2]]].astype(np.float64)


def _shadow(region: Region, empty: Bool[np.ndarray, "x z"]) -> Bool[np.ndarray, "x z"]:
    out = empty.copy()
    flat = region.mask.any(axis=1)
    x, z = region.start[0], region.start[2]
    out[x : x + flat.shape[0], z : z + flat.shape[1]] = flat
    return out


def _left(points: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, " 3"]:
    """First principal axis, to the patient's left; the patient's own axis if it is too steep."""
    plain = np.array([1.0, 0, 0])
    if len(points) < 3:
        return plain
    axis = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)[2][0]
    axis *= np.sign(axis[0]) or 1
    return axis if axis[0] >= np.cos(np.radians(MOST_TURN_DEG)) else plain


def _beyond_middle(points: Float64[np.ndarray, "n 3"]) -> Bool[np.ndarray, " n"]:
    along = points @ _left(points)
    return along > along.mean()


def _folded(head: Float64[np.ndarray, "n 3"], tail: Float64[np.ndarray, "m 3"]) -> bool:
    from scipy.spatial import cKDTree

    if not len(head) or not len(tail):
        return False
    near, _ = cKDTree(head).query(tail, distance_upper_bound=TOUCH_MM)
    return bool(np.isfinite(near).any())
