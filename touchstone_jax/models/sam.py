"""Two-way attention between prompts and image, of "Segment Anything" (Kirillov et al. 2023).

Appendix A; what SegVol (volumes) and SAM-Adapter (slices) share, adapters among it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from touchstone_jax.layers.attention import LayerNorm, attend, dense, gelu


class Frequencies(nnx.Variable):
    """Random frequencies of positions, which are not trained."""


class Token(nnx.Module):
    """Learned tokens (count, c) that depend on nothing."""

    def __init__(self, count: int, width: int, rngs: nnx.Rngs) -> None:
        start = jax.random.normal(rngs.params(), (count, width), jnp.float32)
        self.weight = nnx.Param(start)


class Positions(nnx.Module):
    """Places in [0, 1]^n to (c,): sines and cosines of random projections (Tancik et al. 2020).

    Args:
        axes: n.
        width: c, even.
        rngs: initialisation.
    """

    def __init__(self, axes: int, width: int, rngs: nnx.Rngs) -> None:
        start = jax.random.normal(rngs.params(), (axes, width // 2), jnp.float32)
        self.positional_encoding_gaussian_matrix = Frequencies(start)

    def __call__(self, places: Float[Array, "*b n"]) -> Float[Array, "*b c"]:
        """See the class."""
        phase = (2 * places - 1) @ self.positional_encoding_gaussian_matrix[...] * (2 * jnp.pi)
        return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)

    def grid(self, sides: Sequence[int]) -> Float[Array, "1 t c"]:
        """Of the centres of a grid's cells, the first axis slowest.

        The first two axes change places, as in the original.
        """
        centres = [(jnp.arange(n, dtype=jnp.float32) + 0.5) / n for n in sides]
        places = jnp.stack(jnp.meshgrid(*centres, indexing="ij"), axis=-1)
        return self(swapped(places)).reshape(1, -1, self.width)

    @property
    def width(self) -> int:
        """Channels c."""
        return 2 * self.positional_encoding_gaussian_matrix.shape[-1]


def swapped(places: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """The first two coordinates exchanged."""
    return jnp.concatenate([places[..., 1::-1], places[..., 2:]], axis=-1)


class Adapter(nnx.Module):
    """Linear to a quarter of the channels, exact GELU, Linear back (Houlsby et al. 2019).

    (*b, c) to the same shape. The second linear layer starts at 0, so that a fresh adapter changes
    nothing.
    """

    def __init__(self, width: int, how: dict[str, Any]) -> None:
        self.D_fc1 = dense(width, width // 4, **how)
        zeros = jax.nn.initializers.zeros
        self.D_fc2 = nnx.Linear(width // 4, width, kernel_init=zeros, **how)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """See the class."""
        return self.D_fc2(gelu(self.D_fc1(x)))


class CrossAttention(nnx.Module):
    """Attention of t tokens to s others: (b, t, c), (b, s, c), (b, s, c) to (b, t, c).

    Args:
        width: c.
        inside: channels of queries, keys and values, a multiple of ``heads``.
        heads: parts of them that attend apart.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(self, width: int, inside: int, heads: int, how: dict[str, Any]) -> None:
        self.heads = heads
        self.q_proj, self.k_proj = dense(width, inside, **how), dense(width, inside, **how)
        self.v_proj, self.out_proj = dense(width, inside, **how), dense(inside, width, **how)

    def __call__(
        self,
        query: Float[Array, "b t c"],
        key: Float[Array, "b s c"],
        value: Float[Array, "b s c"],
        there: Bool[Array, "b s"] | None = None,
    ) -> Float[Array, "b t c"]:
        """See the class; tokens that are not ``there`` are not seen."""
        parts = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (p.reshape(*p.shape[:2], self.heads, -1) for p in parts)
        bias = None
        if there is not None:
            bias = jnp.where(there, jnp.float32(0), jnp.float32(-1e9))[:, None, None]
            bias = jnp.broadcast_to(bias, (len(bias), 1, query.shape[1], key.shape[1]))
        made = attend(q, k, v, bias)
        return self.out_proj(made.reshape(*query.shape[:2], -1))


class TwoWayBlock(nnx.Module):
    """Tokens among themselves, tokens to the image, an MLP, and the image to the tokens.

    Args:
        width: channels.
        heads: of the attention.
        hidden: channels inside the MLP.
        first: whether this is the first block, which does not add the tokens' positions to begin.
        adapted: whether there are adapters; one serves tokens and image alike, as in the original.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, first: bool, adapted: bool, how: dict[str, Any]
    ) -> None:
        rngs = how["rngs"]
        self.self_attn = CrossAttention(width, width, heads, how)
        self.cross_attn_token_to_image = CrossAttention(width, width // 2, heads, how)
        self.cross_attn_image_to_token = CrossAttention(width, width // 2, heads, how)
        self.norm1, self.norm2 = LayerNorm(width, rngs=rngs), LayerNorm(width, rngs=rngs)
        self.norm3, self.norm4 = LayerNorm(width, rngs=rngs), LayerNorm(width, rngs=rngs)
        self.lin1, self.lin2 = dense(width, hidden, **how), dense(hidden, width, **how)
        self.MLP_Adapter = Adapter(width, how) if adapted else None
        self.Adapter = Adapter(width, how) if adapted else None
        self.first = first

    def __call__(
        self,
        tokens: Float[Array, "b t c"],
        image: Float[Array, "b s c"],
        started: Float[Array, "b t c"],
        places: Float[Array, "b s c"],
        there: Bool[Array, "b t"] | None,
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b s c"]]:
        """See the class; ``started`` are the tokens before the first block, their positions."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens, there)
        else:
            query = tokens + started
            tokens = tokens + self.self_attn(query, query, tokens, there)
        tokens = self.norm1(tokens)
        key = image + places
        tokens = tokens + self.cross_attn_token_to_image(tokens + started, key, image)
        tokens = self.norm2(self._adapted(tokens))
        made = self.lin2(jax.nn.relu(self.lin1(tokens)))
        if self.MLP_Adapter is not None:
            made = made + self.MLP_Adapter(tokens) / 2
        tokens = self.norm3(tokens + made)
        image = image + self.cross_attn_image_to_token(key, tokens + started, tokens, there)
        return tokens, self.norm4(self._adapted(image))

    def _adapted(self, x: Array) -> Array:
        return x if self.Adapter is None else x + self.Adapter(x)


class TwoWay(nnx.Module):
    """`TwoWayBlock`s, then the tokens look at the image once more.

    Args:
        width: channels.
        heads: of the attention.
        hidden: channels inside the MLPs.
        blocks: how many.
        adapted: of `TwoWayBlock`.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        blocks: int,
        how: dict[str, Any],
        adapted: bool = False,
    ) -> None:
        self.layers = nnx.List(
            TwoWayBlock(width, heads, hidden, i == 0, adapted, how) for i in range(blocks)
        )
        self.final_attn_token_to_image = CrossAttention(width, width // 2, heads, how)
        self.norm_final_attn = LayerNorm(width, rngs=how["rngs"])

    def __call__(
        self,
        tokens: Float[Array, "b t c"],
        image: Float[Array, "b s c"],
        places: Float[Array, "b s c"],
        there: Bool[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b t c"], Float[Array, "b s c"]]:
        """Tokens and image after all blocks; tokens that are not ``there`` are not seen."""
        started = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, started, places, there)
        seen = self.final_attn_token_to_image(tokens + started, image + places, image)
        return self.norm_final_attn(tokens + seen), image


def check_decoder(label: str, width: int, heads: int) -> None:
    """Refuse a decoder whose heads do not fit.

    Raises:
        ValueError: half the width is no multiple of the heads, or the width none of 8.
    """
    if width % 8 or width // 2 % heads:
        raise ValueError(
            f"{label}: width={width}; expected a multiple of 8 and of twice {heads} heads"
        )
