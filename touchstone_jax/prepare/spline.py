"""B-spline interpolation along one axis: which voxels are summed, and with which weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Float64, Int

_SLAB_BYTES = 2**25
# The cubic filter's response decays by 0.27 a voxel: 0.27^12 is 1e-7.
_PAD = 12


def resample_axis(
    array: Float32[np.ndarray, "..."], axis: int, new: int, order: int, antialias: bool
) -> Float32[np.ndarray, "..."]:
    """One axis of a volume (x, y, z) on ``new`` voxels; order and antialias as `resample_image`."""
    from scipy import ndimage

    old = array.shape[axis]
    if old == new:
        return array
    sigma = max(0.0, (old / new - 1) / 2) if antialias and order else 0.0
    taps, weights = taps_of(old, new, order)
    shape = list(array.shape)
    shape[axis] = new
    out = np.empty(shape, np.float32)
    # Slabs across another axis bound the float64 copies.
    across = 0 if axis else 1
    step = max(1, _SLAB_BYTES // (8 * array.size // array.shape[across]))
    for start in range(0, array.shape[across], step):
        slab = [slice(None)] * 3
        slab[across] = slice(start, start + step)
        part = array[tuple(slab)].astype(np.float64)
        if sigma:
            part = ndimage.gaussian_filter1d(part, sigma, axis, mode="nearest")
        if order == 3 and old > 1:
            part = _spline_coefficients(part, axis)
        out[tuple(slab)] = gather(part, axis, taps, weights)
    return out


def _spline_coefficients(part: Float64[np.ndarray, "x y z"], axis: int):
    """Cubic B-spline coefficients under a border that repeats: padded, so "mirror" cannot reach."""
    from scipy import ndimage

    width = [(0, 0)] * 3
    width[axis] = (_PAD, _PAD)
    return ndimage.spline_filter1d(np.pad(part, width, mode="edge"), 3, axis, mode="mirror")


def taps_of(
    old: int, new: int, order: int
) -> tuple[Int[np.ndarray, "k n"], Float64[np.ndarray, "k n"]]:
    """Which voxels of ``old`` each of ``new`` sums, (k, new), and their weights, (k, new).

    Order 3 points into spline coefficients that are padded by 12 on either side (Unser 1999, Eq. 3
    with n = 3 for the weights).
    """
    at = (np.arange(new) + 0.5) * (old / new) - 0.5
    if order == 0:
        # Half-way positions go to the upper voxel, whatever their last bit says.
        nearest = np.clip(np.floor(at + 0.5 + 1e-9), 0, old - 1).astype(int)
        return nearest[None], np.ones((1, new))
    if order == 1 or old == 1:
        at = np.clip(at, 0, old - 1)
    low = np.floor(at).astype(int)
    t = at - low
    if order == 1 or old == 1:
        return np.stack([low, np.minimum(low + 1, old - 1)]), np.stack([1 - t, t])
    weights = np.stack(
        [
            (1 - t) ** 3 / 6,
            (3 * t**3 - 6 * t**2 + 4) / 6,
            (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6,
            t**3 / 6,
        ]
    )
    return np.stack([low + _PAD + k for k in (-1, 0, 1, 2)]), weights


def gather(
    array: Float[np.ndarray, "x y z"],
    axis: int,
    taps: Int[np.ndarray, "k n"],
    weights: Float64[np.ndarray, "k n"],
) -> Float[np.ndarray, "a b c"]:
    """Weighted sums along an axis, in the order of the taps."""
    shape = [1, 1, 1]
    shape[axis] = taps.shape[1]
    total: Any = None
    for tap, weight in zip(taps, weights, strict=True):
        if total is None or np.any(weight):
            part = np.take(array, tap, axis)
            part *= weight.astype(array.dtype).reshape(shape)
            total = part if total is None else np.add(total, part, out=total)
    return total
