"""The voxels that a report is measured on.

"corrected" measures on the CT's own voxels, with spacing in mm: nothing is interpolated, so every
number can be counted again in the files. "published" resamples to 1 mm as the released generator
does, so that a voxel is 1 mm³; the sampling is corner to corner, which makes the scale wrong by up
to 1 %. Staging in "published" has yet another grid of 1 mm. Only boxes are ever resampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int, Real

from touchstone_jax.report.regions import Index, Region, fitted


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid over a volume, axis by axis.

    Attributes:
        shape: its voxels along (x, y, z).
        spacing_mm: nominal distance between them in mm.
        nearest: per axis, the volume's index that each voxel looks at; -1 outside.
        position: per axis, the same as a real number, for linear interpolation.
    """

    shape: Index
    spacing_mm: tuple[float, float, float]
    nearest: tuple[Int[np.ndarray, " n"], ...]
    position: tuple[Float64[np.ndarray, " n"], ...]

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel in mm³."""
        return float(np.prod(self.spacing_mm))

    def region(self, source: Region) -> Region:
        """A region of the volume on this grid, nearest neighbour."""
        chosen, start = [], []
        for axis, index in enumerate(self.nearest):
            inside = (index >= source.start[axis]) & (index < source.stop[axis])
            hit = np.flatnonzero(inside)
            if not len(hit):
                return Region(np.zeros((0, 0, 0), bool), (0, 0, 0), self.shape)
            start.append(int(hit[0]))
            chosen.append(index[hit] - source.start[axis])
        return fitted(source.mask[np.ix_(*chosen)], start, self.shape)

    def hu(
        self, ct: Real[np.ndarray, "x y z"], start: Index, stop: Index
    ) -> Float[np.ndarray, "a b c"]:
        """The CT in a box of the grid, linear, float64; the CT's own voxels where they coincide."""
        if self.is_native:
            return ct[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
        taps = [self._taps(axis, start[axis], stop[axis]) for axis in range(3)]
        low = [int(t[0].min()) for t in taps]
        high = [int(t[1].max()) + 1 for t in taps]
        out = ct[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.float64)
        out = np.ascontiguousarray(out)
        # The axis that grows most goes last, so that the others have less to do.
        for axis in sorted(range(3), key=lambda a: len(taps[a][0]) / (high[a] - low[a])):
            first, second, weight = taps[axis]
            along = [1, 1, 1]
            along[axis] = -1
            near = np.take(out, first - low[axis], axis)
            far = np.take(out, second - low[axis], axis)
            far -= near
            far *= weight.reshape(along)
            near += far
            out = near
        return out

    def _taps(self, axis: int, start: int, stop: int):
        at = self.position[axis][start:stop]
        first = np.floor(at).astype(int)
        second = np.minimum(first + 1, int(self.nearest[axis].max()))
        return first, second, at - first

    @property
    def is_native(self) -> bool:
        """Whether it is the volume's own grid."""
        return all(np.array_equal(p, np.arange(len(p))) for p in self.position)


def native_grid(shape: Sequence[int], spacing_mm: Sequence[float]) -> Grid:
    """The volume's own voxels."""
    index = tuple(np.arange(n) for n in shape)
    position = tuple(i.astype(np.float64) for i in index)
    (x, y, z), (dx, dy, dz) = map(int, shape), map(float, spacing_mm)
    return Grid((x, y, z), (dx, dy, dz), index, position)


def report_grid(shape: Sequence[int], spacing_mm: Sequence[float]) -> Grid:
    """The 1 mm grid that "published" measures on: round(n · spacing) voxels, corner to corner.

    Voxel i of m looks at i (n - 1) / (m - 1), and its nearest neighbour is floor(that + 1/2), as in
    `scipy.ndimage.zoom`.
    """
    size = tuple(max(1, round(n * float(s))) for n, s in zip(shape, spacing_mm, strict=True))
    position, nearest = [], []
    for n, m in zip(shape, size, strict=True):
        step = (n - 1) / (m - 1) if m > 1 else 0.0
        at = np.minimum(np.arange(m) * step, n - 1)
        position.append(at)
        nearest.append(np.floor(at + 0.5).astype(int))
    x, y, z = size
    return Grid((x, y, z), (1.0, 1.0, 1.0), tuple(nearest), tuple(position))


def staging_grid(shape: Sequence[int], spacing_mm: Sequence[float]) -> Grid:
    """The 1 mm grid that "published" stages on: it begins at the first voxel's centre.

    It has ceil((n - 1) · spacing) + 1 voxels; what lies behind the last centre is outside.
    """
    size = tuple(int(np.ceil((n - 1) * s)) + 1 for n, s in zip(shape, spacing_mm, strict=True))
    position, nearest = [], []
    for n, m, s in zip(shape, size, spacing_mm, strict=True):
        at = np.arange(m) / float(s)
        position.append(np.minimum(at, n - 1))
        nearest.append(np.where(at <= n - 1, np.floor(at + 0.5), -1).astype(int))
    x, y, z = size
    return Grid((x, y, z), (1.0, 1.0, 1.0), tuple(nearest), tuple(position))
