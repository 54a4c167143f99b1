"""The Swin transformer of volumes (Liu et al. 2021; Hatamizadeh et al. 2022), as MONAI has it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, cast

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from touchstone_jax.layers.attention import LayerNorm, RelativeBias, TransformerBlock, dense
from touchstone_jax.layers.windows import unwindows, windows

MASKED = -100.0
"""Added to scores between voxels that the shift brought together (the original's number)."""

MERGINGS = {
    "fixed": (
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (1, 0, 1),
        (0, 1, 1),
        (1,) * 3,
    ),
    "legacy": (
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 0, 1),
        (0, 1, 0),
        (0, 0, 1),
        (1,) * 3,
    ),
}
"""Which of 2 x 2 x 2 voxels (x, y, z) a merging puts side by side. MONAI up to 1.4 had "legacy",
with two taken twice and two left out: weights trained so need it."""


class SwinBlock(TransformerBlock):
    """A transformer block whose attention stays in windows: (b, x, y, z, c) to the same shape.

    Along a side that has no more voxels than the window, the window is the side and nothing is
    shifted; relative positions are then the corner of the whole window's table, as the original
    takes it.

    Args:
        channels: c.
        heads: of the attention.
        window: voxels along each side.
        shifted: whether the windows are moved by half a window, cyclically.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(
        self, channels: int, heads: int, window: int, shifted: bool, how: dict[str, Any]
    ) -> None:
        super().__init__(channels, heads, 4 * channels, **how)
        self.bias = RelativeBias((window,) * 3, heads, rngs=how["rngs"])
        self.window, self.shifted = window, shifted

    def __call__(  # type: ignore[override]  # a volume, where the block without windows has tokens
        self, x: Float[Array, "b x y z c"]
    ) -> Float[Array, "b x y z c"]:
        """See the class."""
        x = x + self._in_windows(self.norm1(x))
        return x + self.mlp(self.norm2(x))

    def _in_windows(self, x: Array) -> Array:
        sides = x.shape[1:4]
        size = tuple(min(self.window, n) for n in sides)
        shift = tuple(self.window // 2 * (self.shifted and n > self.window) for n in sides)
        # Zeros up to a whole number of windows; they are looked at like any voxel.
        pads = [(0, -n % s) for n, s in zip(sides, size, strict=True)]
        x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
        whole, bias = x.shape[1:4], self.bias(int(np.prod(size)))
        if any(shift):
            x = jnp.roll(x, [-s for s in shift], (1, 2, 3))
            here = jnp.asarray(regions(whole, size, shift))
            apart = here[:, :, None] != here[:, None]
            bias = bias[None] + jnp.where(apart, MASKED, 0.0)[:, None]
        made = unwindows(self.attn(windows(x, size), bias), size, whole)
        if any(shift):
            made = jnp.roll(made, shift, (1, 2, 3))
        return made[:, : sides[0], : sides[1], : sides[2]]


def regions(
    sides: Sequence[int], window: Sequence[int], shift: Sequence[int]
) -> Int[np.ndarray, "n t"]:
    """Number of the region of each voxel of each window after a cyclic shift.

    Voxels of a window with one number were neighbours before the shift.
    """
    number = np.zeros(sides, np.int32)
    for axis, (n, w, s) in enumerate(zip(sides, window, shift, strict=True)):
        at = np.arange(n)
        here = ((at >= n - w).astype(np.int32) + (at >= n - s)) * (s > 0)
        number = 3 * number + here.reshape([-1 if a == axis else 1 for a in range(3)])
    return np.asarray(windows(cast(Array, number[None, ..., None]), window))[0, :, :, 0]


class Merging(nnx.Module):
    """Eight voxels side by side, normalised, to twice the channels.

    (b, x, y, z, c) to (b, x / 2, y / 2, z / 2, 2c); even sides.

    Args:
        channels: c.
        order: a key of `MERGINGS`.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(self, channels: int, order: str, how: dict[str, Any]) -> None:
        self.order = order
        self.norm = LayerNorm(8 * channels, rngs=how["rngs"])
        self.reduction = dense(8 * channels, 2 * channels, bias=False, **how)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b a b_ c_ d"]:
        """See the class."""
        parts = [x[:, i::2, j::2, k::2] for i, j, k in MERGINGS[self.order]]
        return self.reduction(self.norm(jnp.concatenate(parts, -1)))


def swin_stage(
    channels: int, depth: int, heads: int, window: int, order: str, how: dict[str, Any]
) -> list[nnx.Module]:
    """Blocks, every other one shifted, and the merging after them."""
    shifts = itertools.islice(itertools.cycle((False, True)), depth)
    blocks = [SwinBlock(channels, heads, window, shifted, how) for shifted in shifts]
    return [*blocks, Merging(channels, order, how)]
