"""Fewer and more voxels without weights: maxima of blocks, nearest neighbours, interpolation."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float64

from touchstone_jax.layers.blocks import Triple


def block_maxima(x: Float[Array, "b x y z c"], size: int = 2) -> Float[Array, "b a b_ c_ c"]:
    """The largest value of each channel in each block of size³ voxels; rests are dropped."""
    window = (1, size, size, size, 1)
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, window, "VALID")


class Maxima(nnx.Module):
    """`block_maxima` of 2³ voxels as a stage: (b, x, y, z, c) to (b, x / 2, y / 2, z / 2, c)."""

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b a b_ c_ c"]:
        """See the class."""
        return block_maxima(x)


def nearest(x: Float[Array, "b x y z c"], times: Triple) -> Float[Array, "b x_sx y_sy z_sz c"]:
    """Every voxel (sx, sy, sz) times."""
    (b, *sizes, c), (sx, sy, sz) = x.shape, times
    split = x.reshape(b, sizes[0], 1, sizes[1], 1, sizes[2], 1, c)
    spread = jnp.broadcast_to(split, (b, sizes[0], sx, sizes[1], sy, sizes[2], sz, c))
    return spread.reshape(b, *(n * s for n, s in zip(sizes, times, strict=True)), c)


def trilinear(x: Float[Array, "b x y z c"], shape: Sequence[int]) -> Float[Array, "b a b_ c_ c"]:
    """Interpolation whose first and last voxels along each axis are those of the input.

    PyTorch's ``align_corners=True``. As products with small matrices, for the gradient of a gather
    would be a scatter; half precision is summed in float32.
    """
    sums = jnp.float32 if x.dtype.itemsize < 4 else x.dtype
    for axis, size in enumerate(shape, start=1):
        weights = jnp.asarray(_weights(x.shape[axis], size), x.dtype)
        made = jnp.tensordot(x, weights, (axis, 1), preferred_element_type=sums)
        x = jnp.moveaxis(made, -1, axis).astype(x.dtype)
    return x


def _weights(inputs: int, outputs: int) -> Float64[np.ndarray, "outputs inputs"]:
    """What each output is a sum of, along one axis."""
    at = np.arange(outputs) * ((inputs - 1) / max(outputs - 1, 1))
    below = np.minimum(at.astype(int), max(inputs - 2, 0))
    share, rows = at - below, np.arange(outputs)
    found = np.zeros((outputs, inputs))
    found[rows, below] += 1 - share
    found[rows, np.minimum(below + 1, inputs - 1)] += share
    return found
