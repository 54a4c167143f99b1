"""Self-attention, relative positions and the pre-norm transformer block.

Tokens are (*b, t, c): any number of leading axes, e.g. samples and windows. Scores, softmax and
the statistics of norms are float32 whatever the compute type is.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from touchstone_jax.layers.blocks import Triple
from touchstone_jax.layers.dropout import Dropout


def attend(
    query: Float[Array, "*b t h d"],
    key: Float[Array, "*b s h d"],
    value: Float[Array, "*b s h d"],
    bias: Float[Array, "..."] | None = None,
) -> Float[Array, "*b t h d"]:
    """softmax(query · key / sqrt(d) + bias) · value (Vaswani et al. 2017, eq. 1), head by head.

    On NVIDIA GPUs from Ampere on, in half precision, it is cuDNN's flash attention, which stores no
    (t, s) matrix, where that takes the shapes: d a multiple of 8 up to 128, and with a bias even t
    and s.

    Args:
        query: t tokens of h heads with d channels.
        key: s tokens.
        value: s tokens.
        bias: added to the scores; its shape broadcasts to (*b, h, t, s).
    """
    lead = query.shape[:-3]
    if bias is not None:
        bias = bias.reshape((*(1,) * (3 - bias.ndim), *bias.shape))
        if math.prod(bias.shape[:-3]) == 1:
            bias = bias.reshape(1, *bias.shape[-3:])
        else:
            bias = jnp.broadcast_to(bias, (*lead, *bias.shape[-3:]))
            bias = bias.reshape(-1, *bias.shape[-3:])
    flash = flash_fits(query, key, bias)
    if bias is not None:
        half = query.dtype.itemsize < 4
        bias = bias.astype(jnp.float32 if half and not flash else query.dtype)
    q, k, v = (a.reshape(-1, *a.shape[-3:]) for a in (query, key, value))
    how: Literal["cudnn", "xla"] = "cudnn" if flash else "xla"
    # JAX's own code promotes half precision to float32 for the scores.
    with jax.numpy_dtype_promotion("standard"):
        made = jax.nn.dot_product_attention(q, k, v, bias, implementation=how)
    return made.reshape(query.shape)


def flash_fits(query: Array, key: Array, bias: Array | None = None) -> bool:
    """Whether `attend` runs these arrays, or ones of these shapes and types, by flash attention."""
    if query.dtype not in (jnp.bfloat16, jnp.float16) or not _has_flash(jax.devices()[0]):
        return False
    (t, _, d), s = query.shape[-3:], key.shape[-3]
    return d % 8 == 0 and d <= 128 and (bias is None or (t % 2 == 0 and s % 2 == 0))


def _has_flash(device: jax.Device) -> bool:
    """NVIDIA tells its GPUs' capability as "8.0", AMD as "gfx90a", CPUs none."""
    number = re.fullmatch(r"(\d+)\.\d+", str(getattr(device, "compute_capability", "")))
    return number is not None and int(number[1]) >= 8


def dense(
    inputs: int, outputs: int, *, bias: bool = True, dtype: Any = jnp.float32, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer as transformers start them: normal weights of deviation 0.02, bias 0."""
    start = jax.nn.initializers.normal(0.02)
    return nnx.Linear(
        inputs, outputs, use_bias=bias, kernel_init=start, dtype=jnp.dtype(dtype), rngs=rngs
    )


def gelu(x: Array) -> Array:
    """Elementwise, the exact form by the error function (Hendrycks and Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


class LayerNorm(nnx.LayerNorm):
    """Each token to mean 0 and variance 1 over its channels, then scaled and shifted.

    (*b, c) to the same shape and type; statistics in float32, the variance is the biased one.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5, *, rngs: nnx.Rngs) -> None:
        super().__init__(channels, epsilon=epsilon, use_fast_variance=False, rngs=rngs)

    def __call__(  # type: ignore[override]  # no masks here
        self, x: Float[Array, "*b c"]
    ) -> Float[Array, "*b c"]:
        """See the class."""
        return super().__call__(x.astype(jnp.float32)).astype(x.dtype)


class SelfAttention(nnx.Module):
    """Multi-head self-attention: (*b, t, c) to the same shape.

    Args:
        channels: c, a multiple of ``heads``.
        heads: parts of the channels that attend apart.
        qkv_bias: whether queries, keys and values have a bias.
        heads_fastest: whether the head is the fast index of the channels that go into the last
            linear layer, as UNesT has it; elsewhere it is the slow one.
        dtype: type of the computation and the result.
        rngs: initialisation.

    Raises:
        ValueError: heads that do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        qkv_bias: bool = True,
        heads_fastest: bool = False,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        if heads < 1 or channels % heads:
            raise ValueError(f"heads={heads} does not divide {channels} channels")
        self.heads, self.heads_fastest = heads, heads_fastest
        self.qkv = dense(channels, 3 * channels, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.proj = dense(channels, channels, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*b t c"], bias: Float[Array, "..."] | None = None
    ) -> Float[Array, "*b t c"]:
        """See the class; ``bias`` is that of `attend`."""
        *lead, channels = x.shape
        parts = self.qkv(x).reshape(*lead, 3, self.heads, channels // self.heads)
        made = attend(parts[..., 0, :, :], parts[..., 1, :, :], parts[..., 2, :, :], bias)
        if self.heads_fastest:
            made = made.swapaxes(-1, -2)
        return self.proj(made.reshape(x.shape))


class RelativeBias(nnx.Module):
    """A learned number for each head and each offset between two tokens of a window.

    Liu et al. 2021, "Swin Transformer", eq. 4, in three dimensions.

    Args:
        window: sides (x, y, z).
        heads: of the attention.
        rngs: initialisation.
    """

    def __init__(self, window: Triple, heads: int, *, rngs: nnx.Rngs) -> None:
        offsets = math.prod(2 * side - 1 for side in window)
        self.window, self.heads = window, heads
        start = 0.02 * jax.random.normal(rngs.params(), (offsets, heads), jnp.float32)
        self.relative_position_bias_table = nnx.Param(start)

    def __call__(self, tokens: int | None = None) -> Float[Array, "h t t"]:
        """What `attend` adds between the first ``tokens`` of the window; None for all."""
        index = relative_index(self.window)[:tokens, :tokens]
        return jnp.moveaxis(self.relative_position_bias_table[...][index], -1, 0)


def relative_index(window: Triple) -> Int[np.ndarray, "t t"]:
    """Number of the offset from the second token to the first, offsets and tokens x slowest."""
    at = np.stack(np.meshgrid(*map(np.arange, window), indexing="ij"), -1).reshape(-1, 3)
    offsets = at[:, None] - at[None] + np.asarray(window) - 1
    return np.ravel_multi_index(np.moveaxis(offsets, -1, 0), [2 * side - 1 for side in window])


class Mlp(nnx.Module):
    """Linear, exact GELU, linear: (*b, c) to the same shape."""

    def __init__(
        self, channels: int, hidden: int, *, dtype: Any = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.linear1 = dense(channels, hidden, dtype=dtype, rngs=rngs)
        self.linear2 = dense(hidden, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """See the class."""
        return self.linear2(gelu(self.linear1(x)))


class TransformerBlock(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): (*b, t, c) to the same shape.

    Args:
        channels: c.
        heads: of `SelfAttention`.
        hidden: channels inside the `Mlp`.
        qkv_bias: of `SelfAttention`.
        heads_fastest: of `SelfAttention`.
        epsilon: added to the variances.
        skip: share of the samples (first axis) that either half leaves as they are in training
            (Huang et al. 2016, "Stochastic Depth").
        dtype: type of the computation and the result.
        rngs: initialisation.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        *,
        qkv_bias: bool = True,
        heads_fastest: bool = False,
        epsilon: float = 1e-5,
        skip: float = 0.0,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        how = {"dtype": dtype, "rngs": rngs}
        self.norm1 = LayerNorm(channels, epsilon, rngs=rngs)
        self.attn = SelfAttention(
            channels, heads, qkv_bias=qkv_bias, heads_fastest=heads_fastest, **how
        )
        self.norm2 = LayerNorm(channels, epsilon, rngs=rngs)
        self.mlp = Mlp(channels, hidden, **how)
        self.drop1 = Dropout(skip, whole_samples=True, rngs=rngs)
        self.drop2 = Dropout(skip, whole_samples=True, rngs=rngs)

    def __call__(
        self, x: Float[Array, "*b t c"], bias: Float[Array, "..."] | None = None
    ) -> Float[Array, "*b t c"]:
        """See the class; ``bias`` is that of `attend`."""
        x = x + self.drop1(self.attn(self.norm1(x), bias)).astype(x.dtype)
        return x + self.drop2(self.mlp(self.norm2(x))).astype(x.dtype)
