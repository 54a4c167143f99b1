"""Volumes cut into equal boxes, by reshapes: patches that become tokens, windows of tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers.blocks import Triple, he_normal, triple


def windows(x: Float[Array, "b x y z c"], size: Sequence[int]) -> Float[Array, "b n t c"]:
    """Windows (x slowest) and the voxels in each, t = product of ``size``, x slowest.

    Raises:
        ValueError: a side that is no multiple of the window's.
    """
    b, *sides, c = x.shape
    if any(n % s for n, s in zip(sides, size, strict=True)):
        raise ValueError(f"volume {tuple(sides)} cannot be cut into windows of {size}")
    (nx, ny, nz), (sx, sy, sz) = (n // s for n, s in zip(sides, size, strict=True)), size
    split = x.reshape(b, nx, sx, ny, sy, nz, sz, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return split.reshape(b, nx * ny * nz, sx * sy * sz, c)


def unwindows(
    x: Float[Array, "b n t c"], size: Sequence[int], sides: Sequence[int]
) -> Float[Array, "b x y z c"]:
    """The volume of these ``sides`` that `windows` cut."""
    b, _, _, c = x.shape
    (nx, ny, nz), (sx, sy, sz) = (n // s for n, s in zip(sides, size, strict=True)), size
    split = x.reshape(b, nx, ny, nz, sx, sy, sz, c).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return split.reshape(b, *sides, c)


def patches(x: Float[Array, "b x y z i"], size: Triple) -> Float[Array, "b a b_ c v"]:
    """All numbers of each patch side by side, v = (x, y, z, i) with the channel fastest.

    Raises:
        ValueError: a side that is no multiple of the patch's.
    """
    sides = tuple(n // s for n, s in zip(x.shape[1:4], size, strict=True))
    return windows(x, size).reshape(len(x), *sides, -1)


class PatchConv(nnx.Module):
    """Convolution with kernel = strides: (b, x, y, z, i) to (b, x / sx, y / sy, z / sz, o).

    One matrix product, as no patch overlaps another.

    Args:
        inputs: channels i.
        outputs: channels o.
        strides: (sx, sy, sz).
        dtype: type of the computation and the result.
        bias: whether a bias is added.
        rngs: initialisation (He et al. 2015; bias 0).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: int | Sequence[int],
        *,
        dtype: Any = jnp.float32,
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        self.strides, self.dtype = triple(strides, "strides"), jnp.dtype(dtype)
        shape = (*self.strides, inputs, outputs)
        self.kernel = he_normal(rngs, shape, math.prod(shape[:-1]))
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class.

        Raises:
            ValueError: a side that is no multiple of its stride.
        """
        kernel = self.kernel[...].astype(self.dtype)
        made = patches(x.astype(self.dtype), self.strides) @ kernel.reshape(-1, kernel.shape[-1])
        if self.bias is None:
            return made
        return made + self.bias[...].astype(self.dtype).reshape(1, 1, 1, 1, -1)
