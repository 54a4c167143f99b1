"""Percentiles of the values at some voxels, without sorting: the number of voxels is not static."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp
from jax import lax

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Shaped


def linear_percentile(
    distance: Float[Array, "*space"], surface: Bool[Array, "*space"], share: tuple[Array, Array]
) -> Float[Array, ""]:
    """Percentile of the distances at True voxels, between the two around share · (n - 1).

    The default of numpy and torch (Hyndman and Fan 1996, definition 7). ``share`` in 0..1 is a
    fraction, numerator and denominator below 2^15. Meaningless without a True voxel.
    """
    n = surface.sum(dtype=jnp.int32)
    last, (top, bottom) = n - 1, (jnp.asarray(x, jnp.int32) for x in share)
    # share · last in whole numbers, without overflow: a float32 position would be cut.
    whole, rest = last // bottom, (last % bottom) * top
    rank = whole * top + rest // bottom
    fraction = (rest % bottom).astype(distance.dtype) / bottom.astype(distance.dtype)
    low = smallest(distance, surface.astype(jnp.int32), rank + 1)
    beyond = jnp.where(surface & (distance > low), distance, jnp.asarray(jnp.inf, distance.dtype))
    upto = jnp.sum(surface & (distance <= low), dtype=jnp.int32)
    high = jnp.where((upto > rank + 1) | (rank + 1 >= n), low, beyond.min(initial=jnp.inf))
    return low + (high - low) * fraction


def smallest(
    distance: Float[Array, "*space"], weight: Shaped[Array, "*space"], enough: Shaped[Array, ""]
) -> Float[Array, ""]:
    """Smallest distance (>= 0) up to which the weights sum to ``enough`` and more than 0.

    Infinite if they never do. By bisection over the bits of the float, whose order is that of the
    numbers from 0 up: a handful of sums instead of sorting a whole volume.
    """
    kind = jnp.int32 if distance.dtype == jnp.float32 else jnp.int64
    bits = lax.bitcast_convert_type(distance, kind)
    top = lax.bitcast_convert_type(jnp.asarray(jnp.inf, distance.dtype), kind)
    none = jnp.zeros((), weight.dtype)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        upto = jnp.where(bits <= middle, weight, none).sum(dtype=weight.dtype)
        reached = (upto >= enough) & (upto > 0)
        return jnp.where(reached, low, middle + 1), jnp.where(reached, middle, high)

    steps = 31 if kind == jnp.int32 else 63
    _, high = lax.fori_loop(0, steps, halve, (jnp.zeros((), kind), top))
    return lax.bitcast_convert_type(high, distance.dtype)
