"""Are two stored grids the same voxels of the patient, up to flips and permutations of axes?"""

from __future__ import annotations

import itertools

import numpy as np

from touchstone_jax.findings import refusal
from touchstone_jax.io.geometry import Geometry, Reorientation

TOLERANCE_MM = 0.1
"""Grids whose voxels lie no further apart than this are the same grid: header noise."""


def corner_distance_mm(a: Geometry, b: Geometry) -> float:
    """Largest distance in mm between equal voxels of two grids of one shape.

    An affine difference is largest at a corner of the box, so eight voxels tell.
    """
    box = itertools.product(*((0, n - 1) for n in a.shape))
    corners = np.array([(*corner, 1) for corner in box], np.float64)
    return float(np.linalg.norm((corners @ (a.affine - b.affine).T)[:, :3], axis=1).max())


def same_geometry(
    a: Geometry,
    b: Geometry,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    case: str = "case",
    names: tuple[str, str] = ("CT", "mask"),
) -> Reorientation:
    """What brings an array stored on grid ``b`` onto grid ``a``: flips and permutations alone.

    Args:
        a: the grid to come to.
        b: the grid of the array.
        tolerance_mm: how far equal voxels may lie apart, in mm.
        case: id for the message.
        names: what the two are, for the message.

    Raises:
        VolumeError: no flip or permutation makes them one grid ("shape_mismatch" or
            "affine_mismatch"); shapes, spacings, orientations and distance are told.
    """
    best, found = np.inf, Reorientation()
    for x, y, z in itertools.permutations(range(3)):
        for flip_x, flip_y, flip_z in itertools.product((False, True), repeat=3):
            turn = Reorientation((x, y, z), (flip_x, flip_y, flip_z))
            moved = b.reoriented(turn)
            if moved.shape == a.shape:
                distance = corner_distance_mm(a, moved)
                # Strictly: of equals (axes of one voxel) the first, which is the identity.
                if distance < best:
                    best, found = distance, turn
    if best <= tolerance_mm:
        return found
    raise _mismatch(a, b, best, tolerance_mm, case, names)


def _mismatch(a: Geometry, b: Geometry, distance, tolerance_mm: float, case: str, names):
    told = "; ".join(
        f"{name}: shape {g.shape}, spacing {_mm(g.spacing_mm)} mm, {g.orientation}"
        for name, g in zip(names, (a, b), strict=True)
    )
    if not np.isfinite(distance):
        return refusal(
            case,
            "shape_mismatch",
            f"{names[1]} and {names[0]} have other shapes in every axis order ({told})",
            f"resample the {names[1]} onto the grid of the {names[0]}, or export it again",
        )
    return refusal(
        case,
        "affine_mismatch",
        f"{names[1]} lies {distance:.3g} mm off the {names[0]} at the worst corner, more than "
        f"{tolerance_mm:g} mm, in every flip and axis order ({told})",
        f"if the voxels do belong together, copy the affine of the {names[0]}; else resample",
    )


def _mm(values) -> str:
    return "×".join(f"{v:.4g}" for v in values)
