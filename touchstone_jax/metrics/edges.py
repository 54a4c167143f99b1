"""Voxel edges of label maps, and which of them lie within a tolerance of each other.

A voxel has one label, so one map holds the edges of all classes: a voxel keeps its label if a
neighbour across a face has another one, else it becomes "none". "Is the other surface within the
tolerance?" is a dilation by the offsets whose length is at most the tolerance: two voxels match
if their kept labels are equal. Neither needs a distance transform, nor a pass a class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import lax

from touchstone_jax.metrics.ball import Ball

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int, Shaped, UInt

# Above, the program of one comparison an offset gets long: then one class after another.
UNROLLED = 64

# Steps to a voxel that is not there; twice it still fits int32.
FAR = 2**29


def compact(
    mask: Shaped[Array, "*space"], num_classes: int | None
) -> tuple[UInt[Array, "*space"], int]:
    """Labels in the smallest type, and the value "none" = number of classes.

    Labels out of range become "none"; of a boolean mask True becomes class 0, False "none".
    """
    if num_classes is None:
        return jnp.where(mask, jnp.uint8(0), jnp.uint8(1)), 1
    dtype = jnp.uint8 if num_classes < 2**8 else jnp.uint16
    # Before any comparison: 300 is no uint8.
    wide = mask.astype(jnp.int32) if mask.dtype.itemsize < 4 else mask
    legal = (wide >= 0) & (wide < num_classes)
    return jnp.where(legal, mask.astype(dtype), dtype(num_classes)), num_classes


def shifted(
    around: Shaped[Array, "*padded"], offset: tuple[int, ...], margin: tuple[int, ...]
) -> Shaped[Array, "*space"]:
    """What lies ``offset`` voxels from each voxel, in a volume padded by ``margin`` an axis."""
    start = [m + o for m, o in zip(margin, offset, strict=True)]
    sizes = [n - 2 * m for n, m in zip(around.shape, margin, strict=True)]
    return lax.slice(around, start, [a + n for a, n in zip(start, sizes, strict=True)])


def padded(
    volume: Shaped[Array, "*space"], margin: tuple[int, ...], value: int
) -> Shaped[Array, "*padded"]:
    """The volume with ``margin`` voxels of ``value`` on both sides of each axis."""
    return jnp.pad(volume, [(m, m) for m in margin], constant_values=volume.dtype.type(value))


def voxel_edges(labels: UInt[Array, "*space"], none: int) -> UInt[Array, "*space"]:
    """Labels of voxels with another label across a face, "none" elsewhere.

    Beyond the border is no class: voxels on it are edges. For one class this is its mask minus
    its erosion by the cross of 2 · rank + 1 voxels (MONAI's ``get_mask_edges``).
    """
    ones = (1,) * labels.ndim
    around = padded(labels, ones, none)
    differs = jnp.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        for step in (-1, 1):
            offset = tuple(step if a == axis else 0 for a in range(labels.ndim))
            differs |= shifted(around, offset, ones) != labels
    return jnp.where(differs, labels, labels.dtype.type(none))


def within(
    seekers: UInt[Array, "*space"], targets: UInt[Array, "*space"], near: Ball, none: int
) -> Bool[Array, "*space"]:
    """Voxels of ``seekers`` that have the same label in ``targets`` at an offset of the ball."""
    if near.size > UNROLLED:
        return lax.fori_loop(
            0,
            none,
            lambda c, hit: hit | _same_class(seekers, targets, c.astype(seekers.dtype), near),
            jnp.zeros(seekers.shape, bool),
        )
    offsets = near.offsets()
    margin = near.margin()
    around = padded(targets, margin, none)
    hit = jnp.zeros(seekers.shape, bool)
    for offset in offsets:
        hit |= shifted(around, offset, margin) == seekers
    return hit & (seekers != none)


def _same_class(seekers, targets, label, near: Ball) -> Bool[Array, "*space"]:
    """`within` for one class: steps along an axis first, then the runs of the ball."""
    steps = steps_to(targets == label, near.axis)
    margin = tuple(0 if a == near.axis else m for a, m in enumerate(near.margin()))
    around = padded(steps, margin, FAR)
    starts = jnp.asarray(np.add(near.starts, margin), jnp.int32)
    half = jnp.asarray(near.half, jnp.int32)

    def one_more(i, hit):
        there = lax.dynamic_slice(around, list(starts[i]), seekers.shape)
        return hit | (there <= half[i])

    hit = lax.fori_loop(0, len(near.half), one_more, jnp.zeros(seekers.shape, bool))
    return hit & (seekers == label)


def steps_to(target: Bool[Array, "*space"], axis: int) -> Int[Array, "*space"]:
    """Voxels from each to the nearest True along ``axis``; int32, `FAR` or more if none."""
    here = lax.broadcasted_iota(jnp.int32, target.shape, axis)
    before = lax.cummax(jnp.where(target, here, -FAR), axis=axis)
    after = lax.cummin(jnp.where(target, here, 2 * FAR), axis=axis, reverse=True)
    return jnp.minimum(here - before, after - here)


def counts(
    pred: tuple[UInt[Array, "*space"], Bool[Array, "*space"]],
    ref: tuple[UInt[Array, "*space"], Bool[Array, "*space"]],
    none: int,
) -> UInt[Array, "2 2 classes"]:
    """Edge voxels of [prediction, reference], [missed, hit], class; uint32.

    Args:
        pred: edges (labels or ``none``) of the prediction, and which of them are hit.
        ref: the same for the reference.
        none: number of classes.
    """
    bins = 2 * (none + 1)
    p, r = (
        edges.astype(jnp.int32) + jnp.where(hits, jnp.int32(none + 1), jnp.int32(0))
        for edges, hits in (pred, ref)
    )
    if bins <= 2**7:  # one pass over the volume instead of two
        joint = jnp.bincount((p * bins + r).ravel(), length=bins**2).reshape(bins, bins)
        both = jnp.stack([joint.sum(1), joint.sum(0)])
    else:
        both = jnp.stack([jnp.bincount(x.ravel(), length=bins) for x in (p, r)])
    return both.astype(jnp.uint32).reshape(2, 2, none + 1)[..., :-1]
