"""A checksum of every array of a state, the same on any mesh: is what was read what was written?"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def checksums(state: Any) -> dict[str, int]:
    """Path -> 32 bits over all bits of the array, each weighted by where it stands.

    Any single wrong bit changes the sum (the weights are odd), and sums modulo 2**32 do not depend
    on how the array is split over devices and hosts. All hosts must call it together.
    """
    leaves = jax.tree_util.tree_leaves_with_path(state)
    sums = jax.device_get(_sums([leaf for _, leaf in leaves]))
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return {name: int(one) for name, one in zip(names, sums, strict=True)}


@jax.jit
def _sums(leaves: list[jax.Array]) -> jax.Array:
    return jnp.stack([_sum(leaf) for leaf in leaves])


def _sum(array: jax.Array) -> jax.Array:
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.stack([array.real, array.imag], axis=-1)
    size = array.dtype.itemsize
    # Eight bytes become a last axis of two times four.
    word = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    words = jax.lax.bitcast_convert_type(array, word).astype(jnp.uint32)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis in range(words.ndim):
        stride = math.prod(words.shape[axis + 1 :]) % 2**32
        step = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += step * np.uint32(stride)
    return jnp.sum(words * (2 * place + 1), dtype=jnp.uint32)
