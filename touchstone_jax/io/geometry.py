"""Where the voxels of a stored array lie in the patient, and turning arrays to other axes.

The rules of axes and affines are stated in `touchstone_jax.io.volumes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped


@dataclass(frozen=True)
class Reorientation:
    """Permuting and flipping axes: axis k of the result is axis ``axes[k]``, reversed if
    ``flips[k]``.
    """

    axes: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    def apply(self, array: Shaped[np.ndarray, "x y z"]) -> Shaped[np.ndarray, "a b c"]:
        """A view of ``array`` (x, y, z) in the new axes; no voxel is copied."""
        steps = tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)
        return np.transpose(array, self.axes)[steps]

    def inverse(self) -> Reorientation:
        """The way back: ``r.inverse().apply(r.apply(a))`` is ``a``."""
        x, y, z = (int(k) for k in np.argsort(self.axes))
        return Reorientation((x, y, z), (self.flips[x], self.flips[y], self.flips[z]))

    def is_identity(self) -> bool:
        """Whether nothing is moved."""
        return self == Reorientation()


@dataclass(frozen=True, eq=False)
class Geometry:
    """The grid of a stored volume.

    Attributes:
        shape: voxels along each stored axis.
        affine: float64 (4, 4), voxel index to mm in RAS+ (x to the patient's right, y to the
            front, z to the head).
        header: the orientation fields of the NIfTI header as they were stored, so that a file
            written on this grid has the same bits in them; empty for a grid made in memory.
    """

    shape: tuple[int, int, int]
    affine: Float64[np.ndarray, "4 4"]
    header: Mapping[str, Any] = field(default_factory=dict)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each stored axis, in mm."""
        x, y, z = (float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def orientation(self) -> str:
        """Direction in which each stored axis grows, such as "RAS" or "LPS"."""
        turn = canonical(self)
        letters = [""] * 3
        for world, (axis, flip) in enumerate(zip(turn.axes, turn.flips, strict=True)):
            letters[axis] = ("RAS", "LPI")[flip][world]
        return "".join(letters)

    def reoriented(self, turn: Reorientation) -> Geometry:
        """The grid of ``turn.apply(array)``; its header fields are gone with the old axes."""
        affine = self.affine.copy()
        for k, (axis, flip) in enumerate(zip(turn.axes, turn.flips, strict=True)):
            affine[:, k] = self.affine[:, axis] * (-1 if flip else 1)
            if flip:
                affine[:, 3] += self.affine[:, axis] * (self.shape[axis] - 1)
        x, y, z = (self.shape[axis] for axis in turn.axes)
        return Geometry((x, y, z), affine)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; float64 survives JSON bit by bit."""
        return {
            "shape": list(self.shape),
            "affine": self.affine.tolist(),
            "header": dict(self.header),
        }

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Geometry:
        """The inverse of `to_json`."""
        affine = np.asarray(stored["affine"], np.float64)
        return Geometry(tuple(stored["shape"]), affine, dict(stored["header"]))


def canonical(geometry: Geometry) -> Reorientation:
    """The permutation and flips that bring an array of this grid closest to RAS+ axes.

    Of the six pairings of stored axes with world axes the one with the largest sum of absolute
    direction cosines is taken, the first of equals.
    """
    cosines = _directions(geometry.affine)
    axes = max(
        itertools.permutations(range(3)),
        key=lambda axes: sum(abs(cosines[world, axis]) for world, axis in enumerate(axes)),
    )
    x, y, z = axes
    flips = (bool(cosines[0, x] < 0), bool(cosines[1, y] < 0), bool(cosines[2, z] < 0))
    return Reorientation((x, y, z), flips)


def obliqueness_deg(geometry: Geometry) -> float:
    """Largest angle between a stored axis and the world axis nearest to it, in degrees."""
    cosines = np.abs(_directions(geometry.affine)).max(axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines.min(), -1, 1))))


def shear_deg(geometry: Geometry) -> float:
    """Largest departure from 90 degrees of an angle between two stored axes, in degrees."""
    columns = _directions(geometry.affine)
    cosines = [abs(float(columns[:, i] @ columns[:, j])) for i, j in ((0, 1), (0, 2), (1, 2))]
    return float(np.degrees(np.arcsin(np.clip(max(cosines), 0, 1))))


def _directions(affine: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "3 3"]:
    """Unit direction of each stored axis, as columns."""
    columns = affine[:3, :3]
    return columns / np.linalg.norm(columns, axis=0)
