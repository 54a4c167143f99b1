"""Where the windows of a sliding-window prediction stand, and what each of their voxels weighs.

All of it is separable: windows stand on the product of three lists of starts, and a window's
weight is the product of three Gaussians, so that sums of weights are products of sums, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Float64


def window_starts(size: int, window: int, overlap: float) -> tuple[int, ...]:
    """First voxels of the windows along one axis, as nnU-Net places them (Isensee et al. 2021).

    As few as overlap by ``overlap`` at least, the first at 0, the last at the end, evenly spaced
    (rounded to voxels).

    Args:
        size: voxels of the volume, at least ``window``.
        window: voxels of the window.
        overlap: share of a window that the next one covers, 0 <= overlap < 1.
    """
    gaps = math.ceil((size - window) / largest_step(window, overlap))
    return tuple(round(i * (size - window) / max(gaps, 1)) for i in range(gaps + 1))


def largest_step(window: int, overlap: float) -> int:
    """Voxels between two starts at most: at least 1."""
    return max(1, math.floor(window * (1 - overlap) + 1e-9))


def gaussian(window: int) -> Float32[np.ndarray, " window"]:
    """Weights (window,) along one axis: 1 at the centre, a Gaussian of sigma = window / 8.

    nnU-Net's importance map; symmetric, so a mirrored window has the same weights, and never 0.
    """
    at = (np.arange(window) - (window - 1) / 2) / (window / 8)
    return np.exp(-0.5 * at**2).astype(np.float32)


def summed_weights(starts: Sequence[int], window: int, size: int) -> Float64[np.ndarray, " size"]:
    """Sum (size,) of the weights of all windows at each voxel along one axis; above 0."""
    total = np.zeros(size)
    for start in starts:
        total[start : start + window] += gaussian(window)
    return total


class Column(NamedTuple):
    """Windows that are accumulated together along one axis, and the voxels they decide.

    Attributes:
        starts: of the windows; the first is where the accumulator begins.
        low: first voxel that no window outside of the column touches ...
        high: ... and the one after the last; columns follow each other without a gap.
    """

    starts: tuple[int, ...]
    low: int
    high: int


def columns(starts: Sequence[int], window: int, size: int, tile: int) -> list[Column]:
    """Cut one axis into columns whose windows fit into an accumulator of ``tile`` voxels.

    One column if the volume fits. Else windows at the seams belong to two columns (and are
    computed twice), so that each voxel still gets all of its windows.

    Args:
        starts: of `window_starts`.
        window: voxels of the window.
        size: voxels of the volume.
        tile: at least twice the window, or the size.
    """
    found, low = [], 0
    while low < size:
        first = next(i for i, start in enumerate(starts) if start + window > low)
        inside = [s for s in starts[first:] if s + window - starts[first] <= tile]
        after = first + len(inside)
        high = size if after == len(starts) else starts[after]
        found.append(Column(tuple(inside), low, high))
        low = high
    return found


def tile_size(
    cross_section: Sequence[int],
    window: Sequence[int],
    channels: int,
    accumulator_bytes: int,
) -> tuple[int, int]:
    """Voxels (x, y) of a float32 accumulator (x, y, window z, channels) within a size in bytes.

    The cross-section where it fits, else less, but never less than what `columns` needs: twice
    the window. It is no smaller than the window either.
    """
    area = accumulator_bytes // (4 * window[2] * channels)
    want = [max(c, w) for c, w in zip(cross_section, window, strict=False)]
    if want[0] * want[1] <= area:
        return want[0], want[1]
    least = [min(n, 2 * w) for n, w in zip(want, window, strict=False)]
    side = math.isqrt(area)
    x = max(least[0], min(want[0], side))
    y = max(least[1], min(want[1], area // x))
    # What one axis did not need, the other may have.
    return max(x, min(want[0], area // y)), y
