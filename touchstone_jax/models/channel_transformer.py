"""UCTransNet's channel transformer: the channels of four skips attend to each other.

Wang et al. 2022, "UCTransNet: Rethinking the Skip Connections in U-Net", section "CCT".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import BatchNorm, ConvNormAct, Triple, standardise
from touchstone_jax.layers.attention import LayerNorm, Mlp, dense
from touchstone_jax.layers.dropout import Dropout
from touchstone_jax.layers.resize import nearest
from touchstone_jax.layers.windows import PatchConv

EPSILON = 1e-6
"""Of the layer norms."""

Tokens = tuple[Float[Array, "b n _"], ...]
"""Of the four scales: as many tokens of each, with its own channels."""


class Embedding(nnx.Module):
    """A skip's patches as tokens, with their positions: (b, x, y, z, c) to (b, n, c)."""

    def __init__(
        self, channels: int, size: int, tokens: int, dropout: float, how: dict[str, Any]
    ) -> None:
        plain = {"dtype": how["dtype"], "rngs": how["rngs"]}
        self.patch_embeddings = PatchConv(channels, channels, size, **plain)
        self.position_embeddings = nnx.Param(jnp.zeros((1, tokens, channels), jnp.float32))
        self.dropout = Dropout(dropout, rngs=how["rngs"])

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b n c"]:
        """See the class."""
        made = self.patch_embeddings(x).reshape(len(x), -1, x.shape[-1])
        return self.dropout(made + self.position_embeddings[...].astype(made.dtype))


class ChannelAttention(nnx.Module):
    """Each scale's channels attend to those of all scales, over the tokens.

    The score of two channels, (c, all) a head, is normed over the whole matrix before its softmax,
    so that no kernel of plain attention computes it. Every head sees all channels; their mean goes
    on.

    Args:
        widths: channels of the scales.
        heads: how many.
        dropout: rate on the attention in training.
        how: type and rngs of the linear layers.
    """

    def __init__(
        self, widths: Sequence[int], heads: int, dropout: float, how: dict[str, Any]
    ) -> None:
        def per_head(channels: int) -> nnx.List:
            return nnx.List([dense(channels, channels, bias=False, **how) for _ in range(heads)])

        self.queries = nnx.List([per_head(width) for width in widths])
        self.key, self.value = per_head(sum(widths)), per_head(sum(widths))
        self.out = nnx.List([dense(width, width, bias=False, **how) for width in widths])
        self.dropout = Dropout(dropout, rngs=how["rngs"])

    def __call__(self, scales: Tokens, every: Float[Array, "b n a"]) -> Tokens:
        """What to add to each scale; ``every`` holds the channels of all."""
        key, value = _by_head(self.key, every), _by_head(self.value, every)
        made = []
        for queries, out, scale in zip(self.queries, self.out, scales, strict=True):
            query = _by_head(queries, scale)
            exact = {"preferred_element_type": jnp.float32}
            score = jnp.einsum("bnhc,bnha->bhca", query, key, **exact) * every.shape[-1] ** -0.5
            matrices = score.reshape(-1, *score.shape[2:], 1, 1)
            score = standardise(matrices).reshape(score.shape)
            share = self.dropout(jax.nn.softmax(score, axis=-1)).astype(value.dtype)
            mixed = jnp.einsum("bhca,bnha->bnc", share, value, **exact) / len(queries)
            made.append(out(mixed.astype(value.dtype)))
        return tuple(made)


class ChannelBlock(nnx.Module):
    """`ChannelAttention`, then an `Mlp` for each scale, each after norms and added."""

    def __init__(
        self, widths: Sequence[int], heads: int, dropout: float, how: dict[str, Any]
    ) -> None:
        rngs = how["rngs"]
        self.attn_norms, self.ffn_norms = _norms(widths, rngs), _norms(widths, rngs)
        self.attn_norm = LayerNorm(sum(widths), EPSILON, rngs=rngs)
        self.channel_attn = ChannelAttention(widths, heads, dropout, how)
        self.ffns = nnx.List([Mlp(width, 4 * width, **how) for width in widths])

    def __call__(self, *scales: Float[Array, "b n _"]) -> Tokens:
        """See the class."""
        every = self.attn_norm(jnp.concatenate(scales, axis=-1))
        normed = tuple(norm(x) for norm, x in zip(self.attn_norms, scales, strict=True))
        added = self.channel_attn(normed, every)
        scales = tuple(x + more for x, more in zip(scales, added, strict=True))
        layers = zip(self.ffns, self.ffn_norms, scales, strict=True)
        return tuple(x + ffn(norm(x)) for ffn, norm, x in layers)


class Reconstruction(nnx.Module):
    """Tokens (b, n, c) back to (b, x, y, z, c): convolution of 1, norm, ReLU, every voxel copied.

    The original copies first: the convolution and the statistics of the norm are the same.
    """

    def __init__(self, channels: int, grid: Triple, size: int, how: dict[str, Any]) -> None:
        self.grid, self.size = grid, size
        norm = BatchNorm(channels, how["rngs"])
        self.unit = ConvNormAct(channels, channels, 1, norm=norm, slope=0.0, **how)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        made = self.unit(x.reshape(len(x), *self.grid, -1))
        return nearest(made, (self.size,) * 3)


class ChannelTransformer(nnx.Module):
    """What is added to each of four skips, the finest first; fixed to one size of them.

    Args:
        widths: channels of the skips.
        grid: patches (x, y, z), the same of every skip.
        sizes: sides of the patches of each skip.
        heads: of `ChannelAttention`.
        layers: `ChannelBlock` in a row.
        dropout: rate on tokens and attention in training.
        how: type, lowering and rngs of convolutions.
    """

    def __init__(
        self,
        widths: Sequence[int],
        grid: Triple,
        sizes: Sequence[int],
        heads: int,
        layers: int,
        dropout: float,
        how: dict[str, Any],
    ) -> None:
        tokens, both = grid[0] * grid[1] * grid[2], list(zip(widths, sizes, strict=True))
        self.embeddings = nnx.List(
            [Embedding(width, size, tokens, dropout, how) for width, size in both]
        )
        linear = {"dtype": how["dtype"], "rngs": how["rngs"]}
        self.layers = nnx.List(
            [ChannelBlock(widths, heads, dropout, linear) for _ in range(layers)]
        )
        self.norms = _norms(widths, how["rngs"])
        self.reconstructions = nnx.List(
            [Reconstruction(width, grid, size, how) for width, size in both]
        )


def _norms(widths: Sequence[int], rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([LayerNorm(width, EPSILON, rngs=rngs) for width in widths])


def _by_head(layers: nnx.List, x: Float[Array, "b n c"]) -> Float[Array, "b n h c"]:
    """All heads' linear layers in one matrix product."""
    kernel = jnp.concatenate([layer.kernel[...] for layer in layers], axis=-1).astype(x.dtype)
    return (x @ kernel).reshape(*x.shape[:2], len(layers), -1)
