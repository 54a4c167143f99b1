"""Layers of 2-D networks that look at slices: channels last, (n, h, w, c).

They are those of networks for photographs, whose weights fit.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers.blocks import he_normal


def slice_conv(
    inputs: int,
    outputs: int,
    kernel: int,
    how: dict[str, Any],
    *,
    stride: int = 1,
    depthwise: bool = False,
    bias: bool = False,
) -> nnx.Conv:
    """Convolution (n, h, w, i) to (n, ceil(h / stride), ceil(w / stride), o), padded evenly.

    Args:
        inputs: channels i.
        outputs: channels o.
        kernel: one odd size.
        how: ``dtype`` and ``rngs``.
        stride: along both axes.
        depthwise: whether each channel is convolved by itself.
        bias: whether a bias is added.
    """
    fan_in = kernel**2 * (1 if depthwise else inputs)
    return nnx.Conv(
        inputs,
        outputs,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        feature_group_count=inputs if depthwise else 1,
        use_bias=bias,
        kernel_init=jax.nn.initializers.normal(fan_in**-0.5),
        **how,
    )


class FrozenNorm(nnx.Module):
    """Batch norm by stored statistics alone, in training too: (n, h, w, c) to the same shape.

    Args:
        channels: c.
    """

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))

    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """See the class."""
        factor = self.scale[...] * jax.lax.rsqrt(self.var[...] + 1e-5)
        shift = self.bias[...] - self.mean[...] * factor
        factor, shift = (a.reshape(1, 1, 1, -1) for a in (factor, shift))
        return (x.astype(jnp.float32) * factor + shift).astype(x.dtype)


class SliceUp(nnx.Module):
    """Transposed convolution with kernel and stride 2: (n, h, w, i) to (n, 2h, 2w, o).

    Args:
        inputs: channels i.
        outputs: channels o.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any]) -> None:
        self.kernel = he_normal(how["rngs"], (2, 2, inputs, outputs), 4 * outputs)
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32))
        self.dtype = how["dtype"]

    def __call__(self, x: Float[Array, "n h w i"]) -> Float[Array, "n h2 w2 o"]:
        """See the class."""
        kernel, bias = (a[...].astype(self.dtype) for a in (self.kernel, self.bias))
        made = jnp.einsum("nhwi,pqio->nhpwqo", x.astype(self.dtype), kernel)
        n, h, _, w, _, o = made.shape
        return made.reshape(n, 2 * h, 2 * w, o) + bias.reshape(1, 1, 1, -1)


def cut(x: Float[Array, "n h w c"], window: int) -> Float[Array, "n v t c"]:
    """Windows of ``window``² tokens, zeros behind the last rows and columns where some lack."""
    n, h, w, c = x.shape
    rows, columns = (math.ceil(side / window) for side in (h, w))
    x = jnp.pad(x, ((0, 0), (0, rows * window - h), (0, columns * window - w), (0, 0)))
    x = x.reshape(n, rows, window, columns, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, rows * columns, window**2, c)


def joined(x: Float[Array, "n v t c"], window: int, height: int, width: int) -> Array:
    """The slice (n, height, width, c) that `cut` cut."""
    n, _, _, c = x.shape
    rows, columns = (math.ceil(side / window) for side in (height, width))
    x = x.reshape(n, rows, columns, window, window, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, rows * window, columns * window, c)[:, :height, :width]
