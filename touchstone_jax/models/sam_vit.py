"""The image encoder of "Segment Anything" with adapters: a plain transformer with windows.

Kirillov et al. 2023, appendix A; Li et al. 2022, "Exploring Plain Vision Transformer Backbones".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers.attention import LayerNorm, attend, dense, gelu
from touchstone_jax.layers.slices import cut, joined
from touchstone_jax.models.sam import Adapter
from touchstone_jax.models.tiny_vit import Neck, Run

PATCH = 16
"""Pixels of a token's side."""


class PositionedAttention(nnx.Module):
    """Attention whose scores know how far apart two tokens are along each axis.

    (n, v, side², c) to the same shape. The query's product with a learned vector for the distance
    along each axis is added to the score.

    Args:
        width: c.
        heads: parts of the channels that attend apart.
        side: of the windows, in tokens.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(self, width: int, heads: int, side: int, how: dict[str, Any]) -> None:
        self.qkv, self.proj = dense(width, 3 * width, **how), dense(width, width, **how)
        shape = (2 * side - 1, width // heads)
        self.rel_pos_h = nnx.Param(jnp.zeros(shape, jnp.float32))
        self.rel_pos_w = nnx.Param(jnp.zeros(shape, jnp.float32))
        self.heads, self.side = heads, side

    def __call__(self, x: Float[Array, "n v t c"]) -> Float[Array, "n v t c"]:
        """See the class."""
        parts = self.qkv(x).reshape(*x.shape[:-1], 3, self.heads, -1)
        query, key, value = (parts[..., i, :, :] for i in range(3))
        side = self.side
        away = np.arange(side)[:, None] - np.arange(side)[None] + side - 1
        down, across = (p[...][away].astype(query.dtype) for p in (self.rel_pos_h, self.rel_pos_w))
        square = query.reshape(*x.shape[:2], side, side, self.heads, -1)
        rows = jnp.einsum("nvhwkd,hpd->nvkhwp", square, down)[..., None]
        columns = jnp.einsum("nvhwkd,wqd->nvkhwq", square, across)[..., None, :]
        bias = (rows + columns).reshape(*x.shape[:2], self.heads, side**2, side**2)
        return self.proj(attend(query, key, value, bias).reshape(x.shape))


class Block(nnx.Module):
    """Norm and attention, norm and MLP; an adapter behind and one beside.

    (n, h, w, c) to the same shape.

    Args:
        width: c.
        heads: of the attention.
        side: of the windows, in tokens.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(self, width: int, heads: int, side: int, how: dict[str, Any]) -> None:
        rngs = how["rngs"]
        self.norm1, self.norm2 = (
            LayerNorm(width, 1e-6, rngs=rngs),
            LayerNorm(width, 1e-6, rngs=rngs),
        )
        self.attn = PositionedAttention(width, heads, side, how)
        self.lin1, self.lin2 = dense(width, 4 * width, **how), dense(4 * width, width, **how)
        self.Space_Adapter, self.MLP_Adapter = Adapter(width, how), Adapter(width, how)

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """See the class."""
        side = self.attn.side
        seen = self.attn(self.norm1(cut(x, side)))
        x = x + joined(seen + self.Space_Adapter(seen), side, *x.shape[1:3])
        normed = self.norm2(x)
        return x + self.lin2(gelu(self.lin1(normed))) + self.MLP_Adapter(normed) / 2


class SamViT(nnx.Module):
    """(n, side, side, i) to (n, side / 16, side / 16, outputs).

    Args:
        inputs: channels i.
        side: pixels, a multiple of 16.
        width: channels of a token.
        heads: of the attention.
        depth: blocks.
        window: side of the windows, in tokens.
        whole: numbers of the blocks without windows.
        outputs: channels that the decoder takes.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(
        self,
        inputs: int,
        side: int,
        *,
        width: int = 768,
        heads: int = 12,
        depth: int = 12,
        window: int = 14,
        whole: Sequence[int] = (2, 5, 8, 11),
        outputs: int = 256,
        how: dict[str, Any],
    ) -> None:
        tokens = side // PATCH
        self.proj = nnx.Conv(inputs, width, (PATCH, PATCH), strides=PATCH, padding="VALID", **how)
        self.pos_embed = nnx.Param(jnp.zeros((1, tokens, tokens, width), jnp.float32))
        sides = [tokens if i in whole else window for i in range(depth)]
        self.blocks = nnx.List(Block(width, heads, side, how) for side in sides)
        self.neck = Neck(width, outputs, how)

    def __call__(
        self, x: Float[Array, "n h w i"], run: Run = lambda module, x: module(x)
    ) -> Float[Array, "n a b o"]:
        """See the class; ``run`` calls each block."""
        x = self.proj(x)
        x = x + self.pos_embed[...].astype(x.dtype)
        for block in self.blocks:
            x = run(block, x)
        return self.neck(x)


SAM_VIT_NAMES = (("encoder/proj$", "encoder/patch_embed/proj"), ("/lin([12])$", r"/mlp/lin\1"))
"""Our paths inside a `SamViT` -> the original's."""
