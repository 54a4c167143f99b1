"""Depthwise 3-D convolutions: each channel with a window of its own.

As grouped convolutions they have no fast path in XLA, on CPUs least of all (jax issue 23713): 64
channels of 32³ voxels take 3.6 s, and 0.01 s as the sum of shifted copies that is here.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers.blocks import Triple, add_bias, he_normal, triple

TAPS = 27
"""Windows of more taps are left to XLA's grouped convolution: the sum would compile too long."""

LOWERINGS = ("auto", "taps", "grouped")


def depthwise(
    x: Float[Array, "b x y z c"],
    kernel: Float[Array, "kx ky kz 1 c"],
    strides: Triple = (1, 1, 1),
    *,
    dilation: int = 1,
    lowering: str = "auto",
) -> Float[Array, "b a b_ c_ c"]:
    """Each channel of x convolved with its own window, padded by dilation · (k - 1) // 2.

    Args:
        x: input.
        kernel: odd sizes.
        strides: along (x, y, z).
        dilation: between taps, on all axes.
        lowering: "taps" is a sum of shifted, weighted copies; "grouped" one grouped convolution;
            "auto" is "taps" up to `TAPS` taps.

    Raises:
        ValueError: an even kernel.
    """
    sizes = kernel.shape[:3]
    if any(k % 2 == 0 for k in sizes):
        raise ValueError(f"kernel {sizes}: expected odd sizes")
    if lowering == "auto":
        lowering = "taps" if kernel[..., 0, 0].size <= TAPS else "grouped"
    if lowering == "taps":
        return _by_taps(x, kernel[..., 0, :], strides, dilation)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        [(dilation * (k // 2),) * 2 for k in sizes],
        rhs_dilation=(dilation,) * 3,
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=x.shape[-1],
    )


def _by_taps(x: Array, kernel: Array, strides: Triple, dilation: int) -> Array:
    """The sum over taps; its derivatives are sums over taps as well, one program each."""
    if strides != (1, 1, 1):
        return _shifted_sum(x, kernel, strides, dilation)
    return _stride_one(x, kernel, dilation)


def _shifted_sum(x: Array, kernel: Array, strides: Triple, dilation: int) -> Array:
    pads = [dilation * (k // 2) for k in kernel.shape[:3]]
    padded = jnp.pad(x, ((0, 0), *((p, p) for p in pads), (0, 0)))
    spans = [(n - 1) // s * s + 1 for n, s in zip(x.shape[1:4], strides, strict=True)]
    total: Any = None
    for tap in itertools.product(*map(range, kernel.shape[:3])):
        box = tuple(
            slice(i * dilation, i * dilation + span, s)
            for i, span, s in zip(tap, spans, strides, strict=True)
        )
        part = padded[(slice(None), *box)] * kernel[tap].reshape(1, 1, 1, 1, -1)
        total = part if total is None else total + part
    return total


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _stride_one(x: Array, kernel: Array, dilation: int) -> Array:
    return _shifted_sum(x, kernel, (1, 1, 1), dilation)


def _forward(x: Array, kernel: Array, dilation: int) -> tuple[Array, tuple[Array, Array]]:
    return _stride_one(x, kernel, dilation), (x, kernel)


def _backward(dilation: int, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, kernel = saved
    sizes = kernel.shape[:3]
    pads = [dilation * (k // 2) for k in sizes]
    padded = jnp.pad(x, ((0, 0), *((p, p) for p in pads), (0, 0)))

    def of_tap(tap: Array) -> Array:
        corner: list[Any] = [0, *(tap[axis] * dilation for axis in range(3)), 0]
        part = jax.lax.dynamic_slice(padded, corner, x.shape) * g
        # Two steps: XLA vectorises the first, which leaves the channels' neighbours in place.
        exact = part.astype(jnp.float32) if part.dtype.itemsize < 4 else part
        return exact.sum((0, 1)).sum((0, 1))

    # A loop: unrolled, the 27 reductions compile ten times longer and run no faster.
    taps = jnp.asarray(list(itertools.product(*map(range, sizes))))
    for_kernel = jax.lax.map(of_tap, taps).reshape(kernel.shape).astype(kernel.dtype)
    return _stride_one(g, kernel[::-1, ::-1, ::-1], dilation), for_kernel


_stride_one.defvjp(_forward, _backward)


def depthwise_up(
    x: Float[Array, "b x y z c"], kernel: Float[Array, "kx ky kz 1 c"]
) -> Float[Array, "b x2 y2 z2 c"]:
    """Transposed depthwise convolution of stride 2: sides n become 2n - 1.

    Output voxel o is the sum over i of x[i] kernel[o - 2i + k // 2]. The eight parities of o are
    eight sums of shifted copies, laid side by side: nothing is dilated.
    """
    sizes, shape = kernel.shape[:3], x.shape
    pads = [k // 2 for k in sizes]
    padded = jnp.pad(x, ((0, 0), *((p, p) for p in pads), (0, 0)))
    parities = []
    for parity in itertools.product((0, 1), repeat=3):
        total: Any = None
        for tap in itertools.product(*map(range, sizes)):
            # The input that reaches output 2m + r by tap t is m + (r + k // 2 - t) / 2.
            doubled = [r + p - t for r, p, t in zip(parity, pads, tap, strict=True)]
            if any(d % 2 for d in doubled):
                continue
            box = tuple(
                slice(p + d // 2, p + d // 2 + n)
                for p, d, n in zip(pads, doubled, shape[1:4], strict=True)
            )
            part = padded[(slice(None), *box)] * kernel[tap].reshape(1, 1, 1, 1, -1)
            total = part if total is None else total + part
        parities.append(total)
    b, nx, ny, nz, c = shape
    made = jnp.stack(parities).reshape(2, 2, 2, b, nx, ny, nz, c)
    made = made.transpose(3, 4, 0, 5, 1, 6, 2, 7).reshape(b, 2 * nx, 2 * ny, 2 * nz, c)
    return made[:, :-1, :-1, :-1]


class DepthwiseConv(nnx.Module):
    """`depthwise` and a bias: (b, x, y, z, c) to (b, x', y', z', c), x' = ceil(x / stride).

    Args:
        channels: c.
        kernel: odd sizes along (x, y, z).
        strides: along (x, y, z).
        dilation: between taps.
        dtype: type of the computation and the result.
        lowering: of `depthwise`.
        bias: whether a bias is added.
        rngs: initialisation (He et al. 2015; bias 0).
    """

    def __init__(
        self,
        channels: int,
        kernel: int | Sequence[int] = 3,
        strides: int | Sequence[int] = 1,
        *,
        dilation: int = 1,
        dtype: Any = jnp.float32,
        lowering: str = "auto",
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        if lowering not in LOWERINGS:
            raise ValueError(f"lowering={lowering!r}; legal: {', '.join(LOWERINGS)}")
        sizes = triple(kernel, "kernel")
        self.kernel = he_normal(rngs, (*sizes, 1, channels), math.prod(sizes))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32)) if bias else None
        self.strides, self.dilation = triple(strides, "strides"), dilation
        self.dtype, self.lowering = jnp.dtype(dtype), lowering

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b a b_ c_ c"]:
        """See the class."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        made = depthwise(x, kernel, self.strides, dilation=self.dilation, lowering=self.lowering)
        return add_bias(made, self.bias)


class DepthwiseUp(nnx.Module):
    """`depthwise_up` with a bias: sides n become 2n - 1. Arguments as for `DepthwiseConv`."""

    def __init__(
        self,
        channels: int,
        kernel: int | Sequence[int] = 3,
        *,
        dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = triple(kernel, "kernel")
        self.kernel = he_normal(rngs, (*sizes, 1, channels), math.prod(sizes))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x2 y2 z2 c"]:
        """See the class."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return add_bias(depthwise_up(x, kernel), self.bias)
