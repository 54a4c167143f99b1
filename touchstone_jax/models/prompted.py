"""What a promptable network is asked for: organs by name, points in and beside them, boxes."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer

POSITIVES, NEGATIVES = 11, 10
"""Points that training draws of an organ at most."""

KINDS = ((1, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1))
"""(name, points, box): what training asks an organ by; Du et al. 2024, appendix B."""


class Asked(NamedTuple):
    """Prompts of each organ, the background left out. An organ without any is not looked for.

    Attributes:
        named: whether the name is given.
        points: voxels (x, y, z) of the volume that the network sees; a voxel's centre is whole.
        signs: of the points: 1 inside of the organ, 0 outside, -1 for no point at all.
        boxes: first and last voxels (x, y, z, x, y, z).
        boxed: whether the box is given.
    """

    named: Bool[Array, "b o"]
    points: Float[Array, "b o n 3"]
    signs: Int[Array, "b o n"]
    boxes: Float[Array, "b o 6"]
    boxed: Bool[Array, "b o"]


def names_only(batch: int, organs: int) -> Asked:
    """All organs by their names."""
    shape = (batch, organs)
    return Asked(
        named=jnp.ones(shape, bool),
        points=jnp.zeros((*shape, 0, 3), jnp.float32),
        signs=jnp.zeros((*shape, 0), jnp.int32),
        boxes=jnp.zeros((*shape, 6), jnp.float32),
        boxed=jnp.zeros(shape, bool),
    )


def drawn_prompts(rng: Array, labels: Integer[Array, "b x y z"], organs: int) -> Asked:
    """Prompts as a user might give them, for training: of each organ one of `KINDS`.

    1 to 11 points in the organ, 0 to 10 outside, all equally likely, and the box around it. Of an
    organ that is not there only the name is given.

    Args:
        rng: of the draws.
        labels: 0..k - 1; other values are of no organ.
        organs: k - 1.
    """
    batch = labels.shape[0]
    keys = jax.random.split(rng, (organs, batch))
    numbers = jnp.arange(1, organs + 1, dtype=labels.dtype)

    def of_organ(one: tuple[Array, Array]) -> Asked:
        keys, number = one
        return jax.vmap(lambda key, seen: _drawn(key, seen == number))(keys, labels)

    by_organ = jax.lax.map(of_organ, (keys, numbers))
    return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), by_organ)


def _drawn(key: Array, mask: Bool[Array, "x y z"]) -> Asked:
    """Prompts of one organ in one sample, without the first two axes."""
    kind_key, count_key, in_key, out_key = jax.random.split(key, 4)
    size = mask.sum(dtype=jnp.int32)
    kind = jnp.asarray(KINDS, bool)[jax.random.randint(kind_key, (), 0, len(KINDS))]
    kind = jnp.where(size > 0, kind, jnp.asarray((True, False, False)))
    inside = _voxels(in_key, mask, size, POSITIVES)
    outside = _voxels(out_key, ~mask, mask.size - size, NEGATIVES)
    most = jnp.asarray((POSITIVES, NEGATIVES))
    counts = jax.random.randint(count_key, (2,), jnp.asarray((1, 0)), most + 1)
    positive = jnp.arange(POSITIVES) < counts[0]
    negative = (jnp.arange(NEGATIVES) < counts[1]) & (size < mask.size)
    signs = [jnp.where(positive, 1, -1), jnp.where(negative, 0, -1)]
    return Asked(
        named=kind[0],
        points=jnp.concatenate([inside, outside]),
        signs=jnp.where(kind[1], jnp.concatenate(signs), -1).astype(jnp.int32),
        boxes=_box(mask),
        boxed=kind[2],
    )


def _voxels(key: Array, mask: Array, size: Array, count: int) -> Float[Array, "count 3"]:
    """Places of ``count`` voxels of the mask, which has ``size``; any where it has none."""
    ranks = jax.random.randint(key, (count,), 0, jnp.maximum(size, 1))
    flat = jnp.cumsum(mask.reshape(-1), dtype=jnp.int32)
    found = jnp.searchsorted(flat, ranks, side="right")
    found = jnp.minimum(found, mask.size - 1)
    return jnp.stack(jnp.unravel_index(found, mask.shape), axis=-1).astype(jnp.float32)


def _box(mask: Bool[Array, "x y z"]) -> Float[Array, " 6"]:
    """First and last voxels."""
    first, last = [], []
    for axis, side in enumerate(mask.shape):
        seen = mask.any(tuple(a for a in range(3) if a != axis))
        first.append(jnp.argmax(seen))
        last.append(side - 1 - jnp.argmax(seen[::-1]))
    return jnp.stack([*first, *last]).astype(jnp.float32)
