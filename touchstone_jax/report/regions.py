"""A mask as its bounding box and the voxels inside: all that measuring needs to hold in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

Index = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Region:
    """A set of voxels of a volume.

    Attributes:
        mask: bool (a, b, c), the voxels inside the box, C order.
        start: index of the box's first voxel in the volume.
        shape: of the volume.
    """

    mask: Bool[np.ndarray, "a b c"]
    start: Index
    shape: Index

    @property
    def stop(self) -> Index:
        """Index just after the box's last voxel."""
        return tuple(s + n for s, n in zip(self.start, self.mask.shape, strict=True))

    @property
    def voxels(self) -> int:
        """How many voxels belong to it."""
        return int(np.count_nonzero(self.mask))

    def window(self, start: Sequence[int], stop: Sequence[int]) -> Bool[np.ndarray, "a b c"]:
        """The mask in another box of the volume; a copy, False outside the region."""
        out = np.zeros([b - a for a, b in zip(start, stop, strict=True)], bool)
        low = [max(a, s) for a, s in zip(start, self.start, strict=True)]
        high = [min(b, s) for b, s in zip(stop, self.stop, strict=True)]
        if all(a < b for a, b in zip(low, high, strict=True)):
            ours = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, self.start, strict=True))
            its = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
            out[its] = self.mask[ours]
        return out

    def like(self, other: Region) -> Bool[np.ndarray, "a b c"]:
        """The mask in the box of another region of the same volume."""
        return self.window(other.start, other.stop)

    def overlaps(self, other: Region) -> bool:
        """Whether they have a voxel in common."""
        return bool((self.mask & other.like(self)).any())

    def minus(self, others: Iterable[Region]) -> Region:
        """The voxels that belong to none of the others, in a box that fits."""
        mask = self.mask.copy()
        for other in others:
            mask &= ~other.like(self)
        return fitted(mask, self.start, self.shape)

    def touches_border(self) -> bool:
        """Whether a voxel lies on a face of the volume: the scan may have cut it."""
        if not self.mask.size:
            return False
        edges = zip(self.start, self.stop, self.shape, strict=True)
        return any(a == 0 or b == n for a, b, n in edges)

    def padded(self, margin: Sequence[int]) -> tuple[Index, Index]:
        """The box with so many voxels more on every side, cut at the volume's faces."""
        ax, ay, az = (max(0, a - m) for a, m in zip(self.start, margin, strict=True))
        ends = zip(self.stop, margin, self.shape, strict=True)
        bx, by, bz = (min(n, b + m) for b, m, n in ends)
        return (ax, ay, az), (bx, by, bz)


def fitted(mask: Bool[np.ndarray, "a b c"], start: Sequence[int], shape: Sequence[int]) -> Region:
    """The region of a mask whose first voxel is at ``start``; its box holds no empty border."""
    first = [int(s) for s in start]
    nx, ny, nz = (int(n) for n in shape)
    # From the last axis to the first: each pass has less to look at.
    for axis in (2, 1, 0):
        inside = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        if not len(inside):
            return Region(np.zeros((0, 0, 0), bool), (0, 0, 0), (nx, ny, nz))
        low, high = int(inside[0]), int(inside[-1]) + 1
        mask = mask[(slice(None),) * axis + (slice(low, high),)]
        first[axis] += low
    return Region(np.ascontiguousarray(mask), (first[0], first[1], first[2]), (nx, ny, nz))


def union(regions: Sequence[Region]) -> Region:
    """The voxels of any of the regions, which are of one volume.

    Raises:
        ValueError: no region at all.
    """
    if not regions:
        raise ValueError("union of no regions; expected at least one")
    full = [r for r in regions if r.mask.size]
    if not full:
        return regions[0]
    x, y, z = (min(r.start[a] for r in full) for a in range(3))
    start = (x, y, z)
    stop = tuple(max(r.stop[a] for r in full) for a in range(3))
    mask = np.zeros([b - a for a, b in zip(start, stop, strict=True)], bool)
    for region in full:
        box = tuple(
            slice(a - s, b - s) for a, b, s in zip(region.start, region.stop, start, strict=True)
        )
        mask[box] |= region.mask
    return Region(mask, start, full[0].shape)
