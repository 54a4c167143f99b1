"""In which sub-segments of its organ a lesion lies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from touchstone_jax.report.regions import Region

SHARE = 0.10
"""A sub-segment is named if it holds more than this share of the lesion's located voxels."""

OVERLAPS = ("first", "last", "sum")


def locate(lesion: Region, parts: Mapping[int, Region], overlap: str = "last") -> tuple[int, ...]:
    """Numbers of the sub-segments that hold more than a tenth of the lesion, rising.

    Only voxels that lie in some sub-segment count; none there, none named (RadGPT's rule, its
    limit truncated to an integer as there).

    Args:
        lesion: at least one voxel.
        parts: number of a sub-segment, from 1, to its region.
        overlap: of a voxel in several sub-segments the "first" has it, or the "last"; "sum" is what
            the released generator does to liver segments: the first has it if the new segment
            overlaps the highest one so far, else the numbers are added.

    Raises:
        ValueError: another value of ``overlap``.
    """
    if overlap not in OVERLAPS:
        raise ValueError(f"overlap={overlap!r}; legal values: {', '.join(OVERLAPS)}")
    labels = _labels(lesion, parts, overlap)
    counts = np.bincount(labels[lesion.mask & (labels > 0)])
    limit = int(SHARE * counts.sum())
    return tuple(int(k) for k in np.flatnonzero(counts > limit) if k)


def _labels(lesion: Region, parts: Mapping[int, Region], overlap: str) -> Int[np.ndarray, "a b c"]:
    labels = np.zeros(lesion.mask.shape, int)
    highest: Region | None = None
    for number, part in sorted(parts.items()):
        if not part.mask.size:
            continue
        there = part.like(lesion)
        if overlap == "sum" and (highest is None or not part.overlaps(highest)):
            labels[there] += number
        elif overlap == "last":
            labels[there] = number
        else:
            labels[there & (labels == 0)] = number
        highest = part
    return labels
