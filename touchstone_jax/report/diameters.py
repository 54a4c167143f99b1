"""The two axial diameters of a lesion: the longest, and its extent across it in the same slice.

Miller et al. 1981 (WHO) measure both in the axial slice where the first is largest. Outlines are
iso-contours at one half of the binary slice: a run of n pixels of s mm measures n · s mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from touchstone_jax.report.regions import Region

Point = tuple[float, float]


@dataclass(frozen=True)
class Diameters:
    """Both diameters of a lesion.

    Attributes:
        longest_mm: the longest distance within an axial slice.
        perpendicular_mm: extent across it, in the same slice.
        slice_index: z of the slice, in voxels of the grid measured on.
        ends: of the longest diameter, (x, y) in voxels of that grid.
        across: ends of the extent, drawn where the lesion is widest.
    """

    longest_mm: float
    perpendicular_mm: float
    slice_index: int
    ends: tuple[Point, Point]
    across: tuple[Point, Point]


def diameters(lesion: Region, spacing_mm: Sequence[float]) -> Diameters:
    """Both diameters over all pieces that the lesion has in a slice.

    The longest is the largest distance between two points of the outline, the other the width of
    the outline at right angles to it. Of equal slices the lowest is taken.

    Args:
        lesion: at least one voxel.
        spacing_mm: of its volume (x, y, z).
    """
    best, found = -1.0, None
    scale = np.asarray(spacing_mm[:2], np.float64)
    extent = (np.asarray(lesion.mask.shape[:2]) + 1) * scale
    for z in range(lesion.mask.shape[2]):
        if best >= np.hypot(*extent):
            break
        points = _outline(lesion.mask[:, :, z]) * scale
        if len(points):
            hull = _hull(points)
            squared = ((hull[:, None] - hull[None]) ** 2).sum(axis=2)
            i, j = np.unravel_index(int(squared.argmax()), squared.shape)
            if squared[i, j] > best**2 + 1e-9 or found is None:
                best, found = float(np.sqrt(squared[i, j])), (z, hull, hull[i], hull[j])
    assert found is not None  # a region has no empty box
    z, hull, a, b = found
    across = _across(hull, a, b)
    offset = np.asarray(lesion.start[:2], np.float64)
    ends = [_point(p / scale + offset) for p in (a, b, *across)]
    width = float(np.linalg.norm(across[1] - across[0]))
    return Diameters(best, width, lesion.start[2] + z, (ends[0], ends[1]), (ends[2], ends[3]))


def _point(place: Float64[np.ndarray, " 2"]) -> tuple[float, float]:
    x, y = place.tolist()
    return x, y


def _outline(mask: Bool[np.ndarray, "a b"]) -> Float64[np.ndarray, "n 2"]:
    """Points of the contour at one half, in pixels: the middles of all edges between in and out."""
    framed = np.pad(mask, 1)
    points = []
    for axis in range(2):
        at = np.argwhere(np.diff(framed, axis=axis)).astype(np.float64) - 1
        at[:, axis] += 0.5
        points.append(at)
    return np.concatenate(points)


def _hull(points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "m 2"]:
    from scipy.spatial import ConvexHull

    # Four points surround each pixel, so they never lie on one line.
    return points[ConvexHull(points).vertices]


def _across(hull: Float64[np.ndarray, "n 2"], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The extent of a hull at right angles to the line a-b, as a line through its middle."""
    along = (b - a) / max(float(np.linalg.norm(b - a)), 1e-12)
    normal = np.array([-along[1], along[0]])
    shadow = hull @ normal
    low, high = int(shadow.argmin()), int(shadow.argmax())
    middle = ((hull[low] + hull[high]) / 2) @ along
    return np.stack([middle * along + shadow[k] * normal for k in (low, high)])


def published_diameters(lesion: Region) -> Diameters:
    """The diameters of the released generator, on a grid of 1 mm (spec/report.md 3.3 and 3.4).

    The longest is taken over the first contour of each slice alone: a lesion of several pieces in a
    slice is measured on the one with the smallest x. The other is the number of rows between the
    first and the last of the slice turned by the long axis' angle, so a line has 0 mm.
    """
    from skimage.measure import find_contours

    best, found = -1.0, (0, np.zeros(2), np.zeros(2))
    start, stop = lesion.padded((1, 1, 0))
    mask = lesion.window(start, stop)
    for z in range(mask.shape[2]):
        contours = find_contours(mask[:, :, z].astype(np.float64), 0.5)
        if not contours:
            continue
        points = contours[0]
        squared = ((points[:, None] - points[None]) ** 2).sum(axis=2)
        i, j = np.unravel_index(int(squared.argmax()), squared.shape)
        if np.sqrt(squared[i, j]) > best:
            best, found = float(np.sqrt(squared[i, j])), (z, points[i], points[j])
    z, a, b = found
    width, across = _turned_extent(lesion, start[2] + z, a, b, start)
    offset = np.asarray(start[:2], np.float64)
    ends = [_point(p + offset) for p in (a, b, *across)]
    return Diameters(max(best, 0.0), width, start[2] + z, (ends[0], ends[1]), (ends[2], ends[3]))


def _turned_extent(lesion: Region, z: int, a, b, start) -> tuple[float, np.ndarray]:
    """Rows between the first and last pixel of the whole slice, turned so that a-b lies level."""
    from skimage.transform import rotate

    whole = np.zeros(lesion.shape[:2], bool)
    box = tuple(slice(s, e) for s, e in zip(lesion.start[:2], lesion.stop[:2], strict=True))
    whole[box] = lesion.mask[:, :, z - lesion.start[2]]
    angle = np.degrees(np.arctan2(b[0] - a[0], b[1] - a[1]))
    turned = rotate(whole, angle, resize=True)  # of booleans: nearest neighbour
    rows = np.flatnonzero(turned.any(axis=1))
    width = float(rows[-1] - rows[0]) if len(rows) else 0.0
    outline = _outline(lesion.mask[:, :, z - lesion.start[2]])
    outline += np.asarray(lesion.start[:2], np.float64) - np.asarray(start[:2], np.float64)
    return width, _across(_hull(outline), np.asarray(a), np.asarray(b))
