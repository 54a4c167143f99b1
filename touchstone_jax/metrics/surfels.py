"""Surface elements on the half-voxel grid: DeepMind's convention (Nikolov et al. 2018, 2021).

At each corner between 2^rank voxels, the pattern of voxels inside gives a piece of surface
("surfel") by marching cubes (Lorensen and Cline 1987) with its vertices midway between voxels.
Its area, mm² (in 2-D a length, mm), depends on the pattern and the spacing. The area vectors
below are derived here: corners of the cube that are joined by its edges form one of six pieces,
each with its own polygon, and patterns of more than half the corners are as their complements.
"""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from touchstone_jax.metrics.edges import padded

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, UInt


def surfel_codes(mask: Bool[Array, "*space"]) -> UInt[Array, "*corners"]:
    """Pattern of the voxels around each corner, uint8; one more corner than voxels an axis.

    The voxel at offset (a, b, c) from the lowest has bit 2^(4a + 2b + c) ((a, b): 2^(2a + b)).
    Outside the volume is background. 0 and the full pattern are no surface.
    """
    around = padded(mask, (1,) * mask.ndim, False)
    codes = jnp.zeros([n + 1 for n in mask.shape], jnp.uint8)
    for bit, offset in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        window = tuple(slice(o, o + n + 1) for o, n in zip(offset, mask.shape, strict=True))
        codes |= jnp.where(around[window], jnp.uint8(1 << bit), jnp.uint8(0))
    return codes


def border(codes: UInt[Array, "*corners"]) -> Bool[Array, "*corners"]:
    """Corners with a surface element: neither all voxels around are outside nor all inside."""
    full = 2 ** (2**codes.ndim) - 1
    return (codes != 0) & (codes != full)


@lru_cache(maxsize=64)
def surfel_areas(spacing_mm: tuple[float, ...]) -> Float[np.ndarray, " patterns"]:
    """Area (2-D: length) of the surface in each pattern of `surfel_codes`: (16,) or (256,), mm².

    Raises:
        ValueError: another number of axes than 2 or 3.
    """
    rank = len(spacing_mm)
    if rank not in (2, 3):
        raise ValueError(f"spacing_mm={spacing_mm}; surface elements exist in 2-D and 3-D")
    corners = list(itertools.product((0, 1), repeat=rank))
    areas = np.zeros(2 ** len(corners))
    for code in range(len(areas)):
        inside = {c for bit, c in enumerate(corners) if code >> bit & 1}
        if 2 * len(inside) > len(corners):
            inside = set(corners) - inside
        areas[code] = sum(_area(piece, spacing_mm) for piece in _pieces(inside))
    return areas


def _pieces(inside: set[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """The corners in groups joined by edges of the cube."""
    rest, pieces = sorted(inside), []
    while rest:
        piece = [rest.pop()]
        for corner in piece:  # grows while it is walked
            joined = [c for c in rest if np.abs(np.subtract(c, corner)).sum() == 1]
            piece += joined
            rest = [c for c in rest if c not in joined]
        pieces.append(piece)
    return pieces


def _area(piece: list[tuple[int, ...]], spacing_mm: tuple[float, ...]) -> float:
    """Area of the polygon that parts a group of joined corners from the others."""
    rank = len(spacing_mm)
    # An area vector's component along an axis grows with the spacings of the other axes.
    across = np.prod(spacing_mm) / np.array(spacing_mm)
    vectors = _area_vectors_2d(piece) if rank == 2 else _area_vectors_3d(piece)
    return float(sum(np.linalg.norm(np.array(v) * across) for v in vectors))


def _edges(piece: list[tuple[int, ...]]) -> list[tuple[int, int, int]]:
    """(axis, index, index) of the cube's edges between corners of a piece."""
    found = []
    for i, j in itertools.combinations(range(len(piece)), 2):
        apart = np.abs(np.subtract(piece[i], piece[j]))
        if apart.sum() == 1:
            found.append((int(apart.argmax()), i, j))
    return found


def _area_vectors_2d(piece: list[tuple[int, ...]]) -> list[np.ndarray]:
    if len(piece) == 1:
        return [np.full(2, 0.5)]
    # Two side by side along an axis: the contour runs along it.
    ((axis, _, _),) = _edges(piece)
    return [1.0 - np.eye(2)[axis]]


def _area_vectors_3d(piece: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Absolute area vectors, in units of the voxel; parallel triangles are one."""
    ones, unit = np.ones(3), np.eye(3)
    edges = _edges(piece)
    axes = [axis for axis, _, _ in edges]
    if len(piece) == 1:  # a corner cut off
        return [ones / 8]
    if len(piece) == 2:  # a roof along the edge
        return [(ones - unit[axes[0]]) / 2]
    if len(piece) == 3:  # three of a face: half of it, and a slope
        (normal,) = {0, 1, 2} - set(axes)
        return [unit[normal] / 2, ones * 3 / 8]
    if len(edges) == 4:  # a face: the plane
        (normal,) = {0, 1, 2} - set(axes)
        return [unit[normal]]
    ends = [corner for _, i, j in edges for corner in (i, j)]
    if max(ends.count(corner) for corner in ends) == 3:  # one corner and its neighbours: a hexagon
        return [ones * 3 / 4]
    # A chain along three axes: a bent hexagon of a middle part and two roofs.
    (middle,) = (axis for axis, i, j in edges if ends.count(i) == ends.count(j) == 2)
    roofs = [(unit[middle] + unit[axis]) / 4 for axis in range(3) if axis != middle]
    return [ones / 2, *roofs]
