"""Surfaces of masks in numpy: their elements, NSD and distances, on a box around both masks."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from touchstone_jax.metrics.ball import Ball, ball
from touchstone_jax.metrics.surfels import border, surfel_areas

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

# Above, one float64 distance transform is faster than a lookup an offset.
_LOOKUPS = 500


class Surface(NamedTuple):
    """Where a mask has surface, and how much at each place.

    ``at`` is a map of voxels, or in DeepMind's convention of corners, one more an axis; ``size``
    goes with its True places in C order: 1 a voxel, or the area in mm² (2-D: length in mm).
    """

    at: Bool[np.ndarray, "*places"]
    size: Float[np.ndarray, " n"]


def surface_of(
    mask: Bool[np.ndarray, "*box"], spacing_mm: tuple[float, ...], convention: str
) -> Surface:
    """Surface of a mask beyond whose box is background."""
    if convention != "deepmind":
        at = _edges(mask)
        return Surface(at, np.ones(np.count_nonzero(at)))
    codes = np.zeros([n + 1 for n in mask.shape], np.uint8)
    for bit, offset in enumerate(itertools.product((1, 0), repeat=mask.ndim)):
        window = tuple(slice(o, o + n) for o, n in zip(offset, mask.shape, strict=True))
        codes[window] |= mask.astype(np.uint8) << bit
    ends = np.asarray(border(cast("Array", codes)))  # of NumPy, NumPy's
    return Surface(ends, surfel_areas(spacing_mm)[codes[ends]])


def surface_dice(
    pred: Surface, ref: Surface, spacing_mm: tuple[float, ...], tolerance_mm: float
) -> float:
    """NSD of two surfaces on one box; NaN without any, as in all conventions."""
    whole = pred.size.sum() + ref.size.sum()
    if not whole:
        return float("nan")
    near = ball(tolerance_mm, spacing_mm, pred.at.shape)
    far = _beyond if near.size > _LOOKUPS else _missed
    missed = sum(
        seekers.size[far(seekers.at, targets.at, near, spacing_mm, tolerance_mm)].sum()
        for seekers, targets in ((pred, ref), (ref, pred))
    )
    return float((whole - missed) / whole)


def surface_distances(
    pred: Surface, ref: Surface, spacing_mm: tuple[float, ...], convention: str
) -> tuple[float, float]:
    """HD95 and ASSD in mm, of two surfaces on one box that are not empty."""
    import edt

    # Beyond the box nothing is nearer: both surfaces lie inside of it.
    ways = [
        edt.edt(~targets.at, anisotropy=spacing_mm, black_border=False, parallel=1)[seekers.at]
        for seekers, targets in ((pred, ref), (ref, pred))
    ]
    distances = [way.astype(np.float64) for way in ways]
    sizes = (pred.size, ref.size)
    if convention == "deepmind":
        hd95 = max(_by_area(d, s, 0.95) for d, s in zip(distances, sizes, strict=True))
    else:
        hd95 = max(np.percentile(d, 95) for d in distances)
    return float(hd95), float(np.average(np.concatenate(distances), weights=np.concatenate(sizes)))


def _edges(mask: np.ndarray) -> np.ndarray:
    """The mask without its erosion by the cross."""
    inner = mask.copy()
    for axis in range(mask.ndim):
        lines, kept = np.moveaxis(mask, axis, 0), np.moveaxis(inner, axis, 0)
        if len(lines):
            kept[[0, -1]] = False
        kept[1:] &= lines[:-1]
        kept[:-1] &= lines[1:]
    return mask & ~inner


def _missed(
    seekers: np.ndarray,
    targets: np.ndarray,
    near: Ball,
    spacing: tuple[float, ...],
    tolerance: float,
) -> np.ndarray:
    """Which seekers have no target at any offset: one lookup an offset of those still seeking."""
    margin = near.margin()
    around = np.pad(targets, [(m, m) for m in margin])
    strides = np.array([int(np.prod(around.shape[a + 1 :])) for a in range(around.ndim)])
    places = (np.argwhere(seekers) + margin) @ strides
    seeking, flat = np.arange(len(places)), around.ravel()
    for offset in sorted(near.offsets(), key=lambda o: np.square(np.multiply(o, spacing)).sum()):
        if not seeking.size:
            break
        seeking = seeking[~flat[places[seeking] + int(np.dot(offset, strides))]]
    return seeking


def _beyond(
    seekers: np.ndarray,
    targets: np.ndarray,
    near: Ball,
    spacing: tuple[float, ...],
    tolerance: float,
) -> np.ndarray:
    """The same by distance, compared in float32 as `ball` does."""
    from scipy import ndimage

    if not targets.any():
        return np.arange(np.count_nonzero(seekers))
    distance = ndimage.distance_transform_edt(~targets, sampling=spacing)[seekers]
    return np.flatnonzero(distance.astype(np.float32) > np.float32(tolerance))


def _by_area(distances: np.ndarray, areas: np.ndarray, share: float) -> float:
    """Smallest distance up to which the areas reach their share."""
    order = np.argsort(distances, kind="stable")
    reached = np.cumsum(areas[order])
    first = np.searchsorted(reached, share * reached[-1])
    return float(distances[order][min(first, len(order) - 1)])
