"""How far a tumor reaches around a vessel, in degrees, for vessels that run in any direction.

At every point of the vessel's centre line rays are cast in the plane across it; a ray touches the
tumor if it meets it before it is `GAP_MM` beyond the vessel's wall. The angle is 360 degrees times
the share of rays that touch, averaged over `LENGTH_MM` of the vessel, at the worst place. Radiology
reads the same off an axial slice, which is right only for vessels that run along z (and is what the
released generator does: it misses contact with horizontal branches).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int
from scipy import ndimage

from touchstone_jax.report.regions import Region

GAP_MM = 1.5
"""Tumor and wall that are no further apart than this touch: about a pixel of a CT."""

REACH_MM = 30.0
"""How far around the tumor the vessel is looked at."""

LENGTH_MM = 4.0
RAYS = 72
_STEP_MM = 0.25
_RIDGE_MM = 0.3
_MOST_POINTS = 400
_TOO_LONG = 2.0
"""Rays longer than so many inscribed radii run along the vessel, not across it."""


def contact_angle_deg(vessel: Region, tumor: Region, spacing_mm: Sequence[float]) -> int:
    """The largest angle, 0..360 degrees, at which ``tumor`` touches ``vessel``; 0 for no contact.

    Args:
        vessel: a region of the volume, in its voxels; may be empty.
        tumor: the same.
        spacing_mm: of the volume.
    """
    if not vessel.mask.size or not tumor.mask.size:
        return 0
    start, stop = tumor.padded([int(np.ceil(REACH_MM / s)) for s in spacing_mm])
    pieces = [r.window(start, stop) for r in (vessel, tumor)]
    if not pieces[0].any():
        return 0
    wall, mass = (_fine(piece, spacing_mm) for piece in pieces)
    away_mm = ndimage.distance_transform_edt(mass < 0.5)
    if not ((wall >= 0.5) & (away_mm <= GAP_MM + 1)).any():
        return 0
    angle = 360 * _share(wall, mass, away_mm)
    return int(np.clip(round(angle), 0, 360))


def _fine(
    mask: Bool[np.ndarray, "a b c"], spacing_mm: Sequence[float]
) -> Float32[np.ndarray, "..."]:
    """A mask on voxels of 1 mm over the same extent, linear: its edge stays where it is."""
    out = mask.astype(np.float32)
    for axis, spacing in enumerate(spacing_mm):
        n = mask.shape[axis]
        at = (np.arange(max(1, int(np.ceil(n * spacing)))) + 0.5) / spacing - 0.5
        at = np.clip(at, 0, n - 1)
        low = np.minimum(np.floor(at).astype(int), max(n - 2, 0))
        high = np.minimum(low + 1, n - 1)
        weight = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        out = np.take(out, low, axis) * (1 - weight) + np.take(out, high, axis) * weight
    return out


def _share(wall, mass, away_mm) -> float:
    """The largest share of the circumference that touches, over the centre line near the tumor."""
    inside = wall >= 0.5
    radius_mm = ndimage.distance_transform_edt(inside)
    line = _ridge(radius_mm)
    if len(line):
        at = tuple(line.T)
        close = away_mm[at] <= radius_mm[at] + GAP_MM + LENGTH_MM
        touching = _rays(line, close, wall, mass, radius_mm)
        if touching is not None:
            return touching
    # A blob without a centre line: the share of its surface.
    surface = inside & ~ndimage.binary_erosion(inside)
    return float((away_mm[surface] <= GAP_MM + 1).mean())


def _ridge(radius_mm: Float64[np.ndarray, "a b c"]) -> Int[np.ndarray, "n 3"]:
    """Voxels about as far from the wall as any neighbour: the centre line, one to a few abreast.

    Thinning would be thinner, but scikit-image's can erase a straight tube of even width.
    """
    highest = ndimage.maximum_filter(radius_mm, 3)
    return np.argwhere((radius_mm > 0) & (radius_mm > highest - _RIDGE_MM))


def _rays(
    line: Int[np.ndarray, "n 3"],
    close: Bool[np.ndarray, " n"],
    wall: Float32[np.ndarray, "a b c"],
    mass: Float32[np.ndarray, "a b c"],
    radius_mm: Float64[np.ndarray, "a b c"],
) -> float | None:
    """The largest mean share of touching rays; None if no point has a usable cross-section."""
    from scipy.spatial import cKDTree

    tree = cKDTree(line)
    points, shares = [], []
    looked_at = line[close]
    for point in looked_at[:: -(-len(looked_at) // _MOST_POINTS) or 1]:
        inscribed = float(radius_mm[tuple(point)])
        around = line[tree.query_ball_point(point, max(6.0, 2 * inscribed))]
        if len(around) < 3:
            continue
        axis = np.linalg.svd(around - around.mean(axis=0), full_matrices=False)[2][0]
        share = _cross_section(point, axis, inscribed, wall, mass)
        if share is not None:
            points.append(point)
            shares.append(share)
    if not points:
        return None
    tree, values = cKDTree(points), np.asarray(shares)
    near = tree.query_ball_point(points, LENGTH_MM / 2)
    return float(max(values[index].mean() for index in near))


def _cross_section(point, axis, inscribed_mm: float, wall, mass) -> float | None:
    """Share of the rays across the vessel that touch the tumor; None if the plane runs along it."""
    turn = np.arange(RAYS) * 2 * np.pi / RAYS
    first = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    first /= np.linalg.norm(first)
    second = np.cross(axis, first)
    directions = np.cos(turn)[:, None] * first + np.sin(turn)[:, None] * second
    steps = np.arange(0, _TOO_LONG * inscribed_mm + 3 + GAP_MM, _STEP_MM)
    at = point[:, None, None] + directions.T[:, :, None] * steps
    vessel = ndimage.map_coordinates(wall, at, order=1, mode="nearest")
    tumor = ndimage.map_coordinates(mass, at, order=1, mode="nearest")
    left = np.where((vessel < 0.5).any(axis=1), (vessel < 0.5).argmax(axis=1), len(steps))
    reach = steps[None, :] <= (left * _STEP_MM + GAP_MM)[:, None]
    if (left * _STEP_MM > _TOO_LONG * inscribed_mm + 1).mean() > 0.1:
        return None
    return float(((tumor >= 0.5) & reach).any(axis=1).mean())
