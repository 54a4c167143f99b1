"""Layers of 3-D networks: channels last, (b, x, y, z, c); float32 parameters, any compute type.

Statistics of norms and everything that makes logits are float32 whatever the compute type is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

Triple = tuple[int, int, int]
SLOPE = 0.01
"""Negative slope of nnU-Net's leaky ReLU."""

LOWERINGS = ("auto", "direct", "planes")


def triple(value: int | Sequence[int], what: str) -> Triple:
    """Three sizes along (x, y, z) from one for all or one an axis.

    Raises:
        ValueError: other than one or three integers from 1; the message starts with ``what``.
    """
    sizes = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(sizes) != 3 or not all(type(n) is int and n >= 1 for n in sizes):
        raise ValueError(f"{what}={value!r}; expected an integer from 1, or three")
    return sizes


def convolve(
    x: Float[Array, "b x y z i"],
    kernel: Float[Array, "kx ky kz i o"],
    strides: Triple = (1, 1, 1),
    *,
    lowering: str = "direct",
) -> Float[Array, "b a b_ c o"]:
    """3-D convolution, padded by (k - 1) // 2 on both sides, with strides (x, y, z).

    Args:
        x: input.
        kernel: odd sizes.
        strides: along (x, y, z).
        lowering: "direct" is one 3-D convolution. "planes" is the same sum as 2-D convolutions of
            (y, z) planes: XLA on CPUs (jax 0.10) has a fast path for 2-D only. There it takes
            0.10 of the time with 8 channels and 0.50 with 256 (benchmarks/upsampling.py).

    Raises:
        ValueError: an even kernel, or other axes or channels than the kernel's.
    """
    sizes, inputs = kernel.shape[:3], kernel.shape[3]
    if x.ndim != 5 or x.shape[-1] != inputs:
        raise ValueError(f"convolution of {x.shape}: expected (batch, x, y, z, {inputs} channels)")
    if any(k % 2 == 0 for k in sizes):
        raise ValueError(f"kernel {sizes}: expected odd sizes")
    pads = [(k // 2, k // 2) for k in sizes]
    if lowering == "direct":
        numbers = ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=numbers)
    return _by_planes(x, kernel, strides, pads)


def _by_planes(x: Array, kernel: Array, strides: Triple, pads: list[tuple[int, int]]) -> Array:
    batch, depth, channels = x.shape[0], x.shape[1], x.shape[-1]
    out = (depth - 1) // strides[0] + 1
    padded = jnp.pad(x, ((0, 0), pads[0], (0, 0), (0, 0), (0, 0)))
    span = (out - 1) * strides[0] + 1
    taps = [padded[:, i : i + span : strides[0]] for i in range(kernel.shape[0])]
    # Few channels: side by side they fill a matrix product. Many: a sum saves the copy.
    if channels < 64:
        taps, kernels = [jnp.concatenate(taps, -1)], [jnp.concatenate(list(kernel), -2)]
    else:
        kernels = list(kernel)
    total: Any = None
    for tap, weights in zip(taps, kernels, strict=True):
        plane = jax.lax.conv_general_dilated(
            tap.reshape(batch * out, *tap.shape[2:]),
            weights,
            strides[1:],
            pads[1:],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        total = plane if total is None else total + plane
    return total.reshape(batch, out, *total.shape[1:])


def upsample(
    x: Float[Array, "b x y z i"], kernel: Float[Array, "sx sy sz i o"]
) -> Float[Array, "b x_sx y_sy z_sz o"]:
    """Transposed convolution whose kernel is as large as its strides (sx, sy, sz).

    Output voxel s·i + r is the product of input voxel i with the kernel at r, so it is one matrix
    product and a reshape; as a convolution it would be dilated, which has no fast path and takes
    7 to 48 times as long on CPUs (benchmarks/upsampling.py).
    """
    made = jnp.einsum("bxyzi,pqrio->bxpyqzro", x, kernel)
    b, *sizes, o = made.shape
    return made.reshape(b, *(n * s for n, s in zip(sizes[::2], sizes[1::2], strict=True)), o)


def he_normal(rngs: nnx.Rngs, shape: Sequence[int], fan_in: int) -> nnx.Param:
    """Normal weights of variance 2 / ((1 + slope²) fan_in): He et al. 2015, for a leaky ReLU.

    All of nnU-Net's convolutions start so.
    """
    # XLA compiles a flat draw in a sixth of the time of one with five dimensions.
    flat = jax.random.normal(rngs.params(), (math.prod(shape),), jnp.float32)
    return nnx.Param(flat.reshape(shape) * (2 / ((1 + SLOPE**2) * fan_in)) ** 0.5)


def add_bias(x: Float[Array, "b x y z c"], bias: nnx.Param | None) -> Float[Array, "b x y z c"]:
    """``x`` plus the bias (c,) in its type; unchanged if there is none."""
    return x if bias is None else x + bias[...].astype(x.dtype).reshape(1, 1, 1, 1, -1)


class Conv(nnx.Module):
    """Convolution (b, x, y, z, i) to (b, x', y', z', o) with x' = ceil(x / stride).

    Args:
        inputs: channels i.
        outputs: channels o.
        kernel: odd sizes along (x, y, z).
        strides: along (x, y, z).
        dtype: type of the computation and the result.
        lowering: of `convolve`; "auto" is "planes" on CPUs and "direct" elsewhere.
        bias: whether a bias is added.
        rngs: initialisation (He et al. 2015; bias 0).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | Sequence[int] = 3,
        strides: int | Sequence[int] = 1,
        *,
        dtype: Any = jnp.float32,
        lowering: str = "auto",
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = triple(kernel, "kernel")
        if lowering not in LOWERINGS:
            raise ValueError(f"lowering={lowering!r}; legal: {', '.join(LOWERINGS)}")
        self.kernel = he_normal(rngs, (*sizes, inputs, outputs), math.prod(sizes) * inputs)
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None
        self.strides, self.dtype = triple(strides, "strides"), jnp.dtype(dtype)
        self.lowering = lowering

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        if kernel.shape[:3] == (1, 1, 1):
            sx, sy, sz = self.strides
            return add_bias(x[:, ::sx, ::sy, ::sz] @ kernel[0, 0, 0], self.bias)
        lowering = self.lowering
        if lowering == "auto":
            lowering = "planes" if jax.default_backend() == "cpu" else "direct"
        return add_bias(convolve(x, kernel, self.strides, lowering=lowering), self.bias)


class UpConv(nnx.Module):
    """Transposed convolution with kernel = strides: (b, x, y, z, i) to (b, x·sx, y·sy, z·sz, o).

    Args:
        inputs: channels i.
        outputs: channels o.
        strides: (sx, sy, sz).
        dtype: type of the computation and the result.
        bias: whether a bias is added.
        rngs: initialisation (He et al. 2015 with PyTorch's fan-in; bias 0).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: int | Sequence[int] = 2,
        *,
        dtype: Any = jnp.float32,
        bias: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = triple(strides, "strides")
        # PyTorch takes a transposed convolution's outputs for its inputs here, so nnU-Net does.
        self.kernel = he_normal(rngs, (*sizes, inputs, outputs), math.prod(sizes) * outputs)
        self.bias = nnx.Param(jnp.zeros(outputs, jnp.float32)) if bias else None
        self.dtype = jnp.dtype(dtype)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x_sx y_sy z_sz o"]:
        """See the class."""
        made = upsample(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        return add_bias(made, self.bias)


def standardise(x: Float[Array, "b x y z c"], epsilon: float = 1e-5) -> Float[Array, "b x y z c"]:
    """Each channel of each sample to mean 0 and variance 1: instance norm without parameters.

    Statistics in float32, the variance is the biased one plus ``epsilon``. A constant channel
    becomes 0.
    """
    exact = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
    centred = exact - exact.mean((1, 2, 3), keepdims=True)
    variance = jnp.square(centred).mean((1, 2, 3), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + epsilon)).astype(x.dtype)


class InstanceNorm(nnx.Module):
    """`standardise`, then scaled and shifted: (b, x, y, z, c) to the same shape and type.

    Args:
        channels: c.
        epsilon: added to the variance.
    """

    def __init__(self, channels: int, epsilon: float = 1e-5) -> None:
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        exact = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
        params = (self.scale, self.bias)
        scale, bias = (p[...].astype(exact.dtype).reshape(1, 1, 1, 1, -1) for p in params)
        return (standardise(exact, self.epsilon) * scale + bias).astype(x.dtype)


class BatchNorm(nnx.BatchNorm):
    """PyTorch's batch norm: a tenth of each batch enters the running statistics.

    (b, x, y, z, c) to the same shape and type; statistics in float32. It is made in evaluation
    mode.

    Args:
        channels: c.
        rngs: passed on; nothing is drawn.
    """

    def __init__(self, channels: int, rngs: nnx.Rngs) -> None:
        super().__init__(channels, use_running_average=True, momentum=0.9, epsilon=1e-5, rngs=rngs)

    def __call__(  # type: ignore[override]  # no masks here
        self, x: Float[Array, "b x y z c"]
    ) -> Float[Array, "b x y z c"]:
        """See the class."""
        exact = x.astype(jnp.float32) if x.dtype.itemsize < 4 else x
        return super().__call__(exact).astype(x.dtype)


class ConvNormAct(nnx.Module):
    """Convolution, norm and leaky ReLU: by default nnU-Net's unit. Arguments as for `Conv`.

    With ``act=False`` the leaky ReLU is left out. ``norm`` takes the place of an `InstanceNorm`,
    ``slope`` that of `SLOPE`; with 0 it is a ReLU.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | Sequence[int] = 3,
        strides: int | Sequence[int] = 1,
        *,
        dtype: Any = jnp.float32,
        lowering: str = "auto",
        bias: bool = True,
        act: bool = True,
        norm: nnx.Module | None = None,
        slope: float = SLOPE,
        rngs: nnx.Rngs,
    ) -> None:
        how = {"dtype": dtype, "lowering": lowering, "bias": bias, "rngs": rngs}
        self.conv = Conv(inputs, outputs, kernel, strides, **how)
        self.norm = InstanceNorm(outputs) if norm is None else norm
        self.act, self.slope = act, slope

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        x = self.norm(self.conv(x))
        return jax.nn.leaky_relu(x, self.slope) if self.act else x
