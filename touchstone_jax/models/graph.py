"""NexToU's graph modules: every voxel looks at the voxels that are most like it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from touchstone_jax.layers import SLOPE, BatchNorm, ConvNormAct, InstanceNorm, Triple, he_normal
from touchstone_jax.models.resenc import block_means

GROUPS = 6
"""Of the convolution after each graph."""


class FixedTable(nnx.Variable):
    """Stored with the weights, but not trained."""


def nearest(
    x: Float[Array, "b n c"],
    keys: Float[Array, "b m c"],
    bias: Float[Array, "1 n m"],
    count: int,
) -> Int[Array, "b n count"]:
    """The keys nearest to each of x: unit vectors, squared distance plus bias, smallest first.

    Carries no gradient. float32, or the wider type of x.
    """
    x, keys = (_unit(jax.lax.stop_gradient(a)) for a in (x, keys))
    across = jnp.einsum("bnc,bmc->bnm", x, keys)
    square, key_square = jnp.square(x).sum(-1), jnp.square(keys).sum(-1)
    distance = square[:, :, None] - 2 * across + key_square[:, None, :]
    distance += jax.lax.stop_gradient(bias).astype(distance.dtype)
    return jax.lax.top_k(-distance, count)[1]


def _unit(x: Array) -> Array:
    exact = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    length = jnp.sqrt(jnp.square(exact).sum(-1, keepdims=True))
    return exact / jnp.maximum(length, 1e-12)


def relative_positions(channels: int, tokens: int, keys: int) -> Float[Array, "1 n m"]:
    """How far apart tokens lie, as NexToU guesses it: near ones have small numbers.

    Minus twice the mean product of sinusoidal codes (He et al. 2022) of the s³ places of a cube,
    s the integer cube root of the tokens, resized by cubic convolution to the tokens and the keys.
    """
    # In floating point as the original has it: the root of 64 is 3.
    codes = _cube_codes(channels, int(tokens ** (1 / 3)))
    product = _resized(codes, tokens) @ _resized(codes, keys).T
    return (-2 / channels * product)[None]


def _cube_codes(channels: int, side: int) -> Float[Array, "s3 c"]:
    place = jnp.arange(side, dtype=jnp.float32)
    # The original's grid has its first two axes exchanged.
    first, second, third = (a.reshape(-1) for a in jnp.meshgrid(place, place, place))
    width = channels // 6 * 2
    codes = [_code(width, at) for at in (first, second, third)]
    if 3 * width < channels:
        codes.append(_code(channels - 3 * width, first))
    return jnp.concatenate(codes, axis=-1)


def _code(width: int, at: Float[Array, " n"]) -> Float[Array, "n width"]:
    rate = 10000.0 ** (-jnp.arange(width // 2, dtype=jnp.float32) / (width / 2))
    angle = at[:, None] * rate[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def _resized(rows: Float[Array, "m c"], count: int) -> Float[Array, "n c"]:
    """Rows at ``count`` places by cubic convolution with a = -3/4 (Keys 1981), as PyTorch does."""
    a = -0.75
    at = (jnp.arange(count, dtype=jnp.float32) + 0.5) * (len(rows) / count) - 0.5
    low = jnp.floor(at)
    total: Any = None
    for shift in (-1, 0, 1, 2):
        d = jnp.abs(at - low - shift)
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        index = jnp.clip(low + shift, 0, len(rows) - 1).astype(jnp.int32)
        part = jnp.where(d <= 1, near, far)[:, None] * rows[index]
        total = part if total is None else total + part
    return total


class GroupedDense(nnx.Module):
    """(b, n, i) to (b, n, o), each of the groups of channels for itself."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Any, rngs: nnx.Rngs) -> None:
        inside = inputs // GROUPS
        self.kernel = he_normal(rngs, (1, 1, 1, inside, outputs), inside)
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "b n i"]) -> Float[Array, "b n o"]:
        """See the class."""
        b, n, inputs = x.shape
        x = x.astype(self.dtype).reshape(b, n, GROUPS, inputs // GROUPS)
        kernel = self.kernel[...].astype(self.dtype).reshape(inputs // GROUPS, GROUPS, -1)
        made = jnp.einsum("bngi,igo->bngo", x, kernel).reshape(b, n, -1)
        return made + self.bias[...].astype(self.dtype).reshape(1, 1, -1)


class GraphConv(nnx.Module):
    """Max-relative graph convolution (Li et al. 2019): (b, n, c) to (b, n, 2c).

    Each token and the largest of the differences of its nearest keys to it, channel by channel
    side by side, go through a grouped convolution of 1, a norm and a leaky ReLU.

    Args:
        channels: c, a multiple of 3.
        neighbours: keys that each token looks at.
        norm: "instance" or "batch".
        dtype: of the convolution.
        rngs: initialisation.
    """

    def __init__(
        self, channels: int, neighbours: int, norm: str, *, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.conv = GroupedDense(2 * channels, 2 * channels, dtype=dtype, rngs=rngs)
        if norm == "batch":
            self.norm: BatchNorm | InstanceNorm = BatchNorm(2 * channels, rngs)
        else:
            self.norm = InstanceNorm(2 * channels)
        self.neighbours = neighbours

    def __call__(
        self, x: Float[Array, "b n c"], keys: Float[Array, "b m c"], bias: Float[Array, "1 n m"]
    ) -> Float[Array, "b n c2"]:
        """See the class; ``bias`` is added to the distances."""
        index = nearest(x, keys, bias, self.neighbours)
        largest = jax.vmap(lambda rows, i: rows[i])(keys, index).max(2) - x
        b, n, c = x.shape
        made = self.conv(jnp.stack([x, largest], axis=-1).reshape(b, n, 2 * c))
        made = self.norm(made.reshape(b, n, 1, 1, 2 * c)).reshape(b, n, 2 * c)
        return jax.nn.leaky_relu(made, SLOPE).astype(x.dtype)


class PoolGrapher(nnx.Module):
    """A graph over the whole map: (b, x, y, z, c) to the same.

    Maps of more than 64 times the ``smallest`` are first pooled to the maxima of 2³ voxels, where
    the result is put back; keys are means over cubes of ``ratio``.

    Args:
        shape: (x, y, z).
        channels: c.
        neighbours: of `GraphConv`.
        ratio: side of the cubes.
        smallest: shape of the deepest level.
        how: type, lowering and rngs of `Conv`.
    """

    def __init__(
        self,
        shape: Triple,
        channels: int,
        neighbours: int,
        ratio: int,
        smallest: Triple,
        how: dict[str, Any],
    ) -> None:
        self.fc1 = ConvNormAct(channels, channels, 1, act=False, **how)
        plain = {"dtype": how["dtype"], "rngs": how["rngs"]}
        self.graph = GraphConv(channels, neighbours, "instance", **plain)
        self.fc2 = ConvNormAct(2 * channels, channels, 1, act=False, **how)
        large = math.prod(shape) > 64 * math.prod(smallest)
        px, py, pz = (2 if large and n % 2 == 0 else 1 for n in shape)
        self.pool = (px, py, pz)
        pooled = [n // p for n, p in zip(shape, self.pool, strict=True)]
        if any(n % ratio for n in pooled):
            raise ValueError(f"nextou: ratios: a map of {tuple(pooled)} has no cubes of {ratio}")
        tokens, keys = math.prod(pooled), math.prod(n // ratio for n in pooled)
        _check_neighbours(neighbours, keys)
        self.relative_pos = FixedTable(relative_positions(channels, tokens, keys))
        self.ratio = ratio

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        made, b, c = self.fc1(x), len(x), x.shape[-1]
        made, chosen = _pooled(made, self.pool)
        keys = block_means(made, (self.ratio,) * 3).reshape(b, -1, c)
        tokens = self.graph(made.reshape(b, -1, c), keys, self.relative_pos[...])
        made = _unpooled(tokens.reshape(*made.shape[:-1], 2 * c), chosen, self.pool)
        return x + self.fc2(made)


def _check_neighbours(neighbours: int, keys: int) -> None:
    if neighbours > keys:
        raise ValueError(f"nextou: neighbours={neighbours}, but a graph has only {keys} keys")


def _pooled(x: Array, pool: Triple) -> tuple[Array, Array | None]:
    """Maxima over blocks, and which voxel of the block (its first in memory) each came from."""
    if pool == (1, 1, 1):
        return x, None
    blocks = _blocks(x, pool)
    chosen = blocks.argmax(-1)
    return jnp.take_along_axis(blocks, chosen[..., None], -1)[..., 0], chosen


def _blocks(x: Array, pool: Triple) -> Float[Array, "b a b_ c_ c voxels"]:
    b, *sides, c = x.shape
    split = [n for side, p in zip(sides, pool, strict=True) for n in (side // p, p)]
    x = x.reshape(b, *split, c).transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return x.reshape(*x.shape[:5], -1)


def _unpooled(x: Array, chosen: Array | None, pool: Triple) -> Array:
    """Each value back where the maximum of the same channel stood, zeros elsewhere.

    x has twice the channels of what was pooled: both halves go where the one half stood.
    """
    if chosen is None:
        return x
    chosen = jnp.concatenate([chosen, chosen], axis=-1)[..., None]
    spread = jnp.where(chosen == jnp.arange(math.prod(pool)).reshape(1, 1, 1, 1, 1, -1), 1, 0)
    made = x[..., None] * spread.astype(x.dtype)
    b, *sides, c, _ = made.shape
    made = made.reshape(b, *sides, c, *pool).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return made.reshape(b, *(n * p for n, p in zip(sides, pool, strict=True)), c)


class SwinGrapher(nnx.Module):
    """A graph in each window, the windows shifted by half: (b, x, y, z, c) to the same.

    Args:
        window: (x, y, z), of which the sides are multiples.
        channels: c.
        neighbours: of `GraphConv`.
        how: type, lowering and rngs of `Conv`.
    """

    def __init__(self, window: Triple, channels: int, neighbours: int, how: dict[str, Any]) -> None:
        self.fc1 = ConvNormAct(channels, channels, 1, act=False, **how)
        plain = {"dtype": how["dtype"], "rngs": how["rngs"]}
        self.graph = GraphConv(channels, neighbours, "batch", **plain)
        self.fc2 = ConvNormAct(2 * channels, channels, 1, act=False, **how)
        tokens = math.prod(window)
        _check_neighbours(neighbours, tokens)
        self.relative_pos = FixedTable(relative_positions(channels, tokens, tokens))
        self.window = window

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        shift = [n // 2 for n in self.window]
        b, *sides, c = x.shape
        made = jnp.roll(x, [-n for n in shift], (1, 2, 3))
        split = [n for side, w in zip(sides, self.window, strict=True) for n in (side // w, w)]
        made = made.reshape(b, *split, c).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        counts = made.shape[:4]
        made = self.fc1(made.reshape(-1, *self.window, c))
        tokens = made.reshape(len(made), -1, c)
        tokens = self.graph(tokens, tokens, self.relative_pos[...])
        made = self.fc2(tokens.reshape(len(made), *self.window, 2 * c))
        made = made.reshape(*counts, *self.window, c).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        return x + jnp.roll(made.reshape(x.shape), shift, (1, 2, 3))


class FeedForward(nnx.Module):
    """Two convolutions of 1 with norms, four times the channels between: (b, x, y, z, c)."""

    def __init__(self, channels: int, how: dict[str, Any]) -> None:
        self.fc1 = ConvNormAct(channels, 4 * channels, 1, **how)
        self.fc2 = ConvNormAct(4 * channels, channels, 1, act=False, **how)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        return x + self.fc2(self.fc1(x))
