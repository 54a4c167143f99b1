"""Deformable 3-D convolution: every tap looks where an offset of its own says (Dai et al. 2017)."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers.blocks import Conv, add_bias


def sample(x: Float[Array, "b x y z c"], points: Float[Array, "b n 3"]) -> Float[Array, "b n c"]:
    """Values at points (x, y, z) in voxels: trilinear between centres, zero outside the volume."""
    sides = x.shape[1:4]
    flat = x.reshape(len(x), -1, x.shape[-1])
    low = jnp.floor(points)
    part = points - low
    low = low.astype(jnp.int32)
    total: Any = None
    for corner in itertools.product((0, 1), repeat=3):
        at = low + jnp.asarray(corner, jnp.int32).reshape(1, 1, 3)
        inside = jnp.ones(at.shape[:2], bool)
        weight = jnp.ones(at.shape[:2], points.dtype)
        index = jnp.zeros(at.shape[:2], jnp.int32)
        for axis, side in enumerate(sides):
            one = at[..., axis]
            inside &= (one >= 0) & (one < side)
            weight *= part[..., axis] if corner[axis] else 1 - part[..., axis]
            index = index * side + jnp.clip(one, 0, side - 1)
        weight = jnp.where(inside, weight, 0).astype(x.dtype)
        found = jax.vmap(lambda values, i: values[i])(flat, index) * weight[..., None]
        total = found if total is None else total + found
    return total


def deformable(
    x: Float[Array, "b x y z i"],
    offsets: Float[Array, "b x y z t3"],
    kernel: Float[Array, "k k k i o"],
) -> Float[Array, "b x y z o"]:
    """Sum over taps t of x at (voxel + tap + offset of t) times the kernel at t.

    Of a k³ kernel the taps are counted in row-major order; ``offsets`` are in voxels, three
    numbers (x, y, z) a tap. With all of them zero this is the plain convolution. Taps are added
    one at a time: as large as all samples side by side would be k³ copies of x.
    """
    sides = kernel.shape[:3]
    b, *shape, _ = x.shape
    grid = jnp.stack(jnp.meshgrid(*map(jnp.arange, shape), indexing="ij"), -1)
    grid = grid.reshape(1, -1, 3).astype(offsets.dtype)
    taps = jnp.asarray(list(itertools.product(*map(range, sides))))
    middle = jnp.asarray([s // 2 for s in sides])
    moves = (taps - middle.reshape(1, 3)).astype(offsets.dtype)
    each = jnp.moveaxis(offsets.reshape(b, -1, len(taps), 3), 2, 0)

    def add(total: Array, tap: tuple[Array, Array, Array]) -> tuple[Array, None]:
        offset, move, weights = tap
        return total + sample(x, grid + move.reshape(1, 1, 3) + offset) @ weights, None

    start = jnp.zeros((b, grid.shape[1], kernel.shape[-1]), x.dtype)
    weights = kernel.reshape(len(taps), *kernel.shape[3:])
    # Samples are computed again for the gradients: stored, they would be 27 times x.
    total, _ = jax.lax.scan(jax.checkpoint(add), start, (each, moves, weights))
    return total.reshape(b, *shape, -1)


class DeformableConv(Conv):
    """`deformable` whose offsets are a convolution of its input: (b, x, y, z, i) to (b, …, o).

    A fresh one has offsets of zero, so it starts as a plain convolution. Offsets and positions are
    float32 whatever the type is.

    Args:
        inputs: channels i.
        outputs: channels o.
        kernel: one odd size.
        dtype: type of the samples and the result.
        rngs: initialisation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(inputs, outputs, kernel, dtype=dtype, rngs=rngs)
        self.conv_offset = Conv(inputs, 3 * kernel**3, kernel, rngs=rngs)
        self.conv_offset.kernel[...] = jnp.zeros(self.conv_offset.kernel.shape)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        """See the class."""
        offsets = self.conv_offset(x)
        kernel = self.kernel[...].astype(self.dtype)
        return add_bias(deformable(x.astype(self.dtype), offsets, kernel), self.bias)
