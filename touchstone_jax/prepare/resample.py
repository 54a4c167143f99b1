"""Resampling of volumes and label maps to another number of voxels over the same extent.

The box that the voxels fill stays: voxel i of n' looks at (i + 1/2) n / n' - 1/2 of n, as in
nnU-Net (Isensee et al. 2021) and scikit-image. Interpolation is separable, one axis after the
other: a B-spline of order 3, 1 or 0 with the border repeated. Two departures from nnU-Net, both
on purpose: where an axis gets fewer voxels, a Gaussian of sigma (n / n' - 1) / 2 voxels goes first
(nnU-Net aliases); and label maps take the class with the largest interpolated share, the
background among them (nnU-Net leaves a voxel where no class has a half as background).

All sums run in a fixed order in float64 on slabs, so the result is the same on every run and for
every number of threads, and memory stays near that of the volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Real, UInt8

from touchstone_jax.io.label_values import label_counts
from touchstone_jax.prepare.spline import gather, resample_axis, taps_of


def resample_image(
    image: Real[np.ndarray, "x y z"],
    shape: Sequence[int],
    *,
    order: int | Sequence[int] = 3,
    antialias: bool = True,
) -> Float32[np.ndarray, "a b c"]:
    """An image (x, y, z) on ``shape`` voxels: float32 (a, b, c).

    Args:
        image: real values, finite.
        shape: voxels wanted along each axis.
        order: of the B-spline: 3 cubic, 1 linear, 0 nearest; one for all axes or one an axis.
        antialias: smooth axes that get fewer voxels; never where the order is 0.

    Raises:
        ValueError: another rank or order, or a size below 1.
    """
    orders = _orders(image.shape, shape, order)
    # Transposed, volumes lie in C order (`touchstone_jax.io`), which NumPy is fast at.
    out, shape, orders = np.asarray(image, np.float32).T, shape[::-1], orders[::-1]
    # The axis that shrinks most goes first: the others then have less to do.
    for axis in sorted(range(3), key=lambda a: shape[a] / out.shape[a]):
        out = resample_axis(out, axis, shape[axis], orders[axis], antialias)
    return out.T


def resample_labels(
    labels: UInt8[np.ndarray, "x y z"],
    shape: Sequence[int],
    *,
    order: int | Sequence[int] = 1,
) -> UInt8[np.ndarray, "a b c"]:
    """A label map (x, y, z) on ``shape`` voxels: at each the class with the largest share.

    A share is the class' mask interpolated with ``order`` (1 or 0 an axis). Of equal shares an
    organ goes before the background, and the lower label before the higher. Classes are taken one
    after the other inside their own boxes, so memory does not grow with their number.

    Raises:
        ValueError: another rank or order, or a size below 1.
    """
    orders = _orders(labels.shape, shape, order)
    if max(orders) > 1:
        raise ValueError(f"order={order}; label maps are interpolated with order 1 or 0")
    # Transposed, volumes lie in C order (`touchstone_jax.io`), which NumPy is fast at.
    labels, shape, orders = labels.T, tuple(shape)[::-1], orders[::-1]
    if shape == labels.shape:
        return labels.copy(order="K").T
    out = np.zeros(shape, np.uint8)
    best = np.zeros(shape, np.float32)
    rest = np.ones(shape, np.float32)
    for label in np.flatnonzero(label_counts(labels)[1:]) + 1:
        box, share = _share(labels == label, shape, orders)
        if share is None:
            continue
        larger = share > best[box]
        out[box][larger] = label
        best[box][larger] = share[larger]
        rest[box] -= share
    # What is left is the background's; not by a hair of rounding, where an organ has as much.
    out[rest > best + np.float32(1e-6)] = 0
    return out.T


def _share(mask: np.ndarray, shape: Sequence[int], orders: Sequence[int]):
    """Box of the result that a class can reach, and its interpolated mask there (float32).

    No mask comes back where order 0 steps over a thin class.
    """
    box, share = [], mask
    for axis in range(3):
        inside = np.flatnonzero(share.any(axis=tuple(a for a in range(3) if a != axis)))
        taps, weights = taps_of(mask.shape[axis], shape[axis], orders[axis])
        hit = (taps >= inside[0]) & (taps <= inside[-1]) & (weights != 0)
        reached = np.flatnonzero(hit.any(axis=0))
        if not len(reached):
            return (), None
        low, high = int(reached[0]), int(reached[-1]) + 1
        box.append(slice(low, high))
        # One voxel more on either side, where the class is absent: taps outside may look there.
        start, stop = max(int(inside[0]) - 1, 0), min(int(inside[-1]) + 2, mask.shape[axis])
        share = np.take(share, np.arange(start, stop), axis)
        near = np.clip(taps[:, low:high] - start, 0, stop - start - 1)
        share = gather(share.astype(np.float32), axis, near, weights[:, low:high])
    return tuple(box), share


def _orders(old: Sequence[int], new: Sequence[int], order: int | Sequence[int]) -> tuple[int, ...]:
    orders = (order,) * 3 if isinstance(order, int) else tuple(order)
    if len(old) != 3 or len(new) != 3 or len(orders) != 3:
        raise ValueError(f"shape {tuple(old)} to {tuple(new)}, order {order}: expected three axes")
    if min(*old, *new) < 1:
        raise ValueError(f"shape {tuple(old)} to {tuple(new)}: expected at least one voxel an axis")
    if not set(orders) <= {0, 1, 3}:
        raise ValueError(f"order={order}; legal values: 0, 1, 3")
    return orders
