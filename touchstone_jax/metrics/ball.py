"""The voxel offsets that lie within a tolerance in mm."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np


class Ball(NamedTuple):
    """The offsets, in voxels, that lie within a tolerance: runs along one axis.

    ``starts`` are offsets with 0 along ``axis``; with each go all those up to its ``half`` voxels
    away from it along the axis. Hashable: programs are compiled for offsets, not for spacings,
    so that cases whose spacings differ a little share one.
    """

    axis: int
    starts: tuple[tuple[int, ...], ...]
    half: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of offsets."""
        return sum(2 * half + 1 for half in self.half)

    def offsets(self) -> list[tuple[int, ...]]:
        """All of them, one by one."""
        return [
            (*start[: self.axis], k, *start[self.axis + 1 :])
            for start, half in zip(self.starts, self.half, strict=True)
            for k in range(-half, half + 1)
        ]

    def margin(self) -> tuple[int, ...]:
        """Largest number of voxels along each axis."""
        reach = [max(abs(start[a]) for start in self.starts) for a in range(len(self.starts[0]))]
        reach[self.axis] = max(self.half)
        return tuple(reach)


def ball(tolerance_mm: float, spacing_mm: tuple[float, ...], shape: tuple[int, ...]) -> Ball:
    """Offsets with ||offset · spacing_mm|| <= tolerance_mm that matter in a volume of ``shape``.

    Lengths are summed in float64 and compared in float32, as MONAI does: then sqrt(1.8² + 2.4²)
    is 3 although float64 says 3 + 4e-16, spacing read from a float32 header ties as well, and
    1.500001 is more than 1.5.
    """
    axis = min(range(len(shape)), key=lambda a: spacing_mm[a])
    # min first: the tolerance may be infinite.
    reach = [
        max(0, int(min(n - 1, tolerance_mm / s + 1)))
        for n, s in zip(shape, spacing_mm, strict=True)
    ]
    spans = [range(-r, r + 1) if a != axis else range(1) for a, r in enumerate(reach)]
    starts = np.array(list(itertools.product(*spans)))
    half = np.full(len(starts), -1)
    for k in range(reach[axis] + 1):
        steps = starts.copy()
        steps[:, axis] = k
        length = np.sqrt(((steps * np.array(spacing_mm)) ** 2).sum(1)).astype(np.float32)
        half += length <= np.float32(tolerance_mm)
    kept = half >= 0
    return Ball(axis, tuple(map(tuple, starts[kept].tolist())), tuple(half[kept].tolist()))
