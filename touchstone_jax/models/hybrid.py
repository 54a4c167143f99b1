"""LHU-Net's hybrid attention: a large deformable window and a transformer side by side."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import SLOPE, BatchNorm, Conv, Triple
from touchstone_jax.layers.deformable import DeformableConv
from touchstone_jax.layers.depthwise import DepthwiseConv
from touchstone_jax.layers.dropout import Dropout

DROPOUT = 0.1


class ResidualBlock(nnx.Module):
    """conv-norm-act-conv-norm plus the input, then act; BatchNorm, convolutions without bias.

    (b, x, y, z, i) to (b, x, y, z, o); the input goes through a convolution of 1 and a norm where
    i is not o.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, how: dict[str, Any]) -> None:
        thin, rngs = {**how, "bias": False}, how["rngs"]
        self.conv1 = Conv(inputs, outputs, kernel, **thin)
        self.conv2 = Conv(outputs, outputs, kernel, **thin)
        self.norm1, self.norm2 = BatchNorm(outputs, rngs), BatchNorm(outputs, rngs)
        widens = inputs != outputs
        self.conv3 = Conv(inputs, outputs, 1, **thin) if widens else None
        self.norm3 = BatchNorm(outputs, rngs) if widens else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x y z o"]:
        """See the class."""
        made = jax.nn.leaky_relu(self.norm1(self.conv1(x)), SLOPE)
        made = self.norm2(self.conv2(made))
        shortcut = x
        if self.conv3 is not None and self.norm3 is not None:
            shortcut = self.norm3(self.conv3(x))
        return jax.nn.leaky_relu(made + shortcut.astype(made.dtype), SLOPE)


class LargeKernelAttention(nnx.Module):
    """Each voxel times what a large deformable window says (Azad et al. 2024, "D-LKA Net").

    (b, x, y, z, c) to the same shape. Narrow stages, which are the fine ones, have larger windows.
    """

    def __init__(self, channels: int, how: dict[str, Any]) -> None:
        plain = {"dtype": how["dtype"], "rngs": how["rngs"]}
        near, far, dilation = (5, 7, 3) if channels < 33 else (5, 5, 3)
        if channels >= 65:
            near, far, dilation = 3, 3, 2
        self.proj_1 = Conv(channels, channels, 1, **how)
        self.conv0 = DepthwiseConv(channels, near, **plain)
        self.conv_spatial = DepthwiseConv(channels, far, dilation=dilation, **plain)
        self.deform_conv = DeformableConv(channels, channels, **plain)
        self.conv1 = Conv(channels, channels, 1, **how)
        self.proj_2 = Conv(channels, channels, 1, **how)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        y = jax.nn.gelu(self.proj_1(x), approximate=False)
        gate = self.conv1(self.deform_conv(self.conv_spatial(self.conv0(y))))
        # The original multiplies inside the gating unit and again outside.
        return self.proj_2(y * (y * gate))


class Attention(nnx.Module):
    """Attention over ``projection`` mixtures of the tokens, or over channels where that is 0.

    (b, n, c) to the same shape (Shaker et al. 2024, "UNETR++", as LHU-Net has it).

    Args:
        tokens: n.
        channels: c, a multiple of ``heads``.
        heads: parts of the channels that attend apart.
        projection: mixtures of tokens that serve as keys and values.
        dropout: rate on the attention in training.
        rngs: initialisation.
    """

    def __init__(
        self,
        tokens: int,
        channels: int,
        heads: int,
        projection: int,
        dropout: float,
        rngs: nnx.Rngs,
    ) -> None:
        self.heads = heads
        self.temperature = nnx.Param(jnp.ones((heads, 1, 1)))
        self.E = nnx.Linear(tokens, projection, rngs=rngs) if projection else None
        self.qkv = nnx.Linear(channels, 3 * channels, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(channels, channels, rngs=rngs)
        self.norm = nnx.LayerNorm(channels, epsilon=1e-5, rngs=rngs)
        self.dropout = Dropout(dropout, rngs=rngs)

    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """See the class."""
        b, n, c = x.shape
        parts = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads)
        query, key, value = parts.transpose(2, 0, 3, 4, 1)  # each (b, head, c per head, n)
        query = _over_tokens(query)
        if self.E is None:
            score = query @ _over_tokens(key).swapaxes(-1, -2)
        else:
            key, value = self.E(key), self.E(value)
            score = query.swapaxes(-1, -2) @ key
        score = jax.nn.softmax(score * self.temperature[...][None], axis=-1)
        score = self.dropout(score)
        if self.E is None:
            mixed = (score @ value).transpose(0, 3, 1, 2)  # (b, n, head, c per head)
        else:
            # The original reads (c per head, head, n) as if it were (n, c): kept, weights rely
            # on it.
            mixed = (score @ value.swapaxes(-1, -2)).transpose(0, 3, 1, 2)
        return self.out(self.norm(mixed.reshape(b, n, c)))


def _over_tokens(x: Array) -> Array:
    """Each channel's vector over the tokens to length 1, as PyTorch's ``normalize`` does."""
    length = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
    return x / jnp.maximum(length, 1e-12)


class Hybrid(nnx.Module):
    """x · (1 + delta · `LargeKernelAttention` + gamma · `Attention`), norm, residual block.

    (b, x, y, z, c) to the same shape, for one shape only: positions and projections are learned
    for each token.

    Args:
        shape: (x, y, z).
        channels: c.
        heads: of `Attention`.
        projection: of `Attention`; 0 for attention over channels.
        how: type, lowering and rngs of `Conv`.
    """

    def __init__(
        self, shape: Triple, channels: int, heads: int, projection: int, how: dict[str, Any]
    ) -> None:
        rngs, tokens = how["rngs"], math.prod(shape)
        self.norm = nnx.LayerNorm(channels, epsilon=1e-5, rngs=rngs)
        self.bnorm = BatchNorm(channels, rngs)
        self.gamma = nnx.Param(jnp.ones((channels, 1, 1, 1)))
        self.delta = nnx.Param(jnp.ones((channels, 1, 1, 1)))
        self.pos_embed = nnx.Param(jnp.full((1, tokens, channels), 1e-6))
        self.attn = Attention(tokens, channels, heads, projection, DROPOUT / 2, rngs)
        self.lka = LargeKernelAttention(channels, how)
        self.conv3 = ResidualBlock(channels, channels, 3, how)
        self.dropout = Dropout(DROPOUT, whole_channels=True, rngs=rngs)
        self.conv1 = Conv(channels, channels, 1, **how)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        tokens = x.reshape(len(x), -1, x.shape[-1]).astype(jnp.float32)
        seen = self.attn(self.norm(tokens + self.pos_embed[...])).reshape(x.shape)
        gamma, delta = (p[...].reshape(1, 1, 1, 1, -1) for p in (self.gamma, self.delta))
        mixed = delta * self.lka(x).astype(jnp.float32) + gamma * seen
        normed = self.bnorm(x.astype(jnp.float32) * (1 + mixed))
        made = self.conv1(self.dropout(self.conv3(normed)))
        return (normed + made.astype(jnp.float32)).astype(x.dtype)
