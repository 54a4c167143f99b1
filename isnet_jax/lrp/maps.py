"""The bilinear maps that rules are written over: z = linear(x, w), and its transpose in x.

Each is a frozen dataclass, so static and hashable. Here too: how products are rounded, and which
values rematerialisation keeps.

Layout: channels last, kernels (*window, in, out).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from isnet_jax.lrp.rules import along_channels

Array = jax.Array

# ---------------------------------------------------------------- rematerialisation

_PRODUCT = "isnet_jax.product"


def keep_products(primitive: Any, *args: Any, **params: Any) -> Any:
    """A policy for `jax.checkpoint`: keep what convolutions and products made, redo the rest.

    What lies between them (normalisation, stabilisers, ReLUs, concatenations) is most of an
    ISNet's memory and little of its arithmetic.
    """
    if primitive.name in ("conv_general_dilated", "dot_general"):
        return True
    return _keep_named(primitive, *args, **params)


_keep_named = jax.checkpoint_policies.save_only_these_names(_PRODUCT)


# ---------------------------------------------------------------- bilinear maps


@dataclass(frozen=True)
class Rounding:
    """In which dtype products are multiplied; sums, values and relevance keep the wide dtype.

    Attributes:
        dtype: name of the narrow dtype, e.g. "bfloat16".
        forward: also for the network's own values. False rounds in derivatives only: every ReLU
            and maximum then stays on the side that it is on in the wide dtype.
    """

    dtype: str
    forward: bool = True


def multiply(
    product: Callable[..., Array], rounding: Rounding | None
) -> Callable[[Array, Array], Array]:
    """``product(a, b)`` with operands rounded as `Rounding` says; None changes nothing."""
    if rounding is None:
        return product

    def narrow(a: Array, b: Array) -> Array:
        rounded = product(a.astype(rounding.dtype), b.astype(rounding.dtype))
        return rounded.astype(a.dtype)

    if rounding.forward:
        return narrow
    wide = jax.custom_vjp(product)
    # The fwd is the decorated form, for derivatives of any order to round (cf. `_conv_fwd`).
    wide.defvjp(lambda a, b: (wide(a, b), (a, b)), lambda ab, ct: jax.vjp(narrow, *ab)[1](ct))
    return wide


def narrowed(linear: MatMap | ConvMap) -> MatMap | ConvMap:
    """The map as derivatives use it: rounding whatever its own forward pass does."""
    if linear.rounding is None or linear.rounding.forward:
        return linear
    return replace(linear, rounding=replace(linear.rounding, forward=True))


@dataclass(frozen=True)
class MatMap:
    """``x @ w``: x (..., in), w (in, out)."""

    rounding: Rounding | None = None

    def __call__(self, x: Array, w: Array) -> Array:
        """Returns (..., out)."""
        return multiply(jnp.matmul, self.rounding)(x, w)

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Transpose in x: s (..., out) to (..., in)."""
        return narrowed(self)(s, w.T)


@dataclass(frozen=True)
class ScaleMap:
    """``x * w`` along the channels: x (..., c), w (c,); the linear part of a BatchNorm."""

    def __call__(self, x: Array, w: Array) -> Array:
        """Returns (..., c)."""
        return x * along_channels(w, x.ndim)

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Transpose in x: s (..., c) to (..., c)."""
        return self(s, w)


@dataclass(frozen=True)
class AveragePoolMap:
    """Average over windows times a scalar weight: x (b, *space, c), w ()."""

    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    def __call__(self, x: Array, w: Array) -> Array:
        """Returns (b, *pooled, c); padded zeros count, as in torch's default."""
        full = (1, *self.window, 1)
        pad = ((0, 0), *self.padding, (0, 0))
        zero = np.zeros((), x.dtype)
        total = lax.reduce_window(x, zero, lax.add, full, (1, *self.strides, 1), pad)
        size = 1
        for side in self.window:
            size *= side
        return total * (w / size)

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Transpose in x: s (b, *pooled, c) to x_shape."""
        return _transpose(lambda x: self(x, w), s, x_shape)


@dataclass(frozen=True)
class AdaptivePoolMap:
    """Average over ``size`` windows that cover each axis, times a scalar weight w ().

    Window i of n over length L spans floor(i L / n) to ceil((i + 1) L / n), as in torch.
    """

    size: tuple[int, ...]

    def __call__(self, x: Array, w: Array) -> Array:
        """Returns x (b, *space, c) as (b, *size, c)."""
        for axis, weights in self._weights(x):
            # Averages want full precision: accelerators' default is TF32 or bfloat16.
            pooled = jnp.tensordot(x, weights, ((axis,), (1,)), precision=lax.Precision.HIGHEST)
            x = jnp.moveaxis(pooled, -1, axis)
        return x * w

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Transpose in x: s (b, *size, c) to x_shape."""
        return _transpose(lambda x: self(x, w), s, x_shape)

    def _weights(self, x: Array) -> Iterator[tuple[int, Array]]:
        for axis, n in enumerate(self.size, start=1):
            length = x.shape[axis]
            index, place = np.arange(n)[:, None], np.arange(length)[None]
            start, stop = index * length // n, -((-(index + 1) * length) // n)
            inside = (place >= start) & (place < stop)
            if length != n:
                yield axis, jnp.asarray(inside / inside.sum(1, keepdims=True), x.dtype)


@dataclass(frozen=True)
class SumMap:
    """Sum over a leading axis of summands times a scalar weight: x (n, ...), w ()."""

    def __call__(self, x: Array, w: Array) -> Array:
        """Returns (...)."""
        return x.sum(0) * w

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Transpose in x: s (...) to (n, ...)."""
        return jnp.broadcast_to(s * w, x_shape)


@dataclass(frozen=True)
class ConvMap:
    """A convolution, closed under differentiation.

    JAX differentiates a *strided* transposed convolution with respect to its kernel into a dilated
    one that no fast path takes. Here convolution, input-transpose and kernel-transpose are each
    other's derivatives, so only these three appear at any order. For stride 1 JAX's own
    derivatives already are these three.
    """

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    rounding: Rounding | None = None

    def __call__(self, x: Array, w: Array) -> Array:
        """Convolves x (b, *space, in) with w (*window, in // groups, out): (b, *pooled, out)."""
        return _conv(self, x, w) if self._closed else _conv_raw(self, x, w)

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Transpose in x: s (b, *pooled, out) to x_shape."""
        conv = narrowed(self)
        if self._closed:
            return _conv_input(conv, tuple(x_shape), s, w)
        return _transpose(lambda x: _conv_raw(conv, x, w), s, x_shape)

    @property
    def _closed(self) -> bool:
        return any(stride != 1 for stride in self.strides) or narrowed(self) is not self


def _transpose(linear_in_x, s, x_shape):
    (x,) = jax.linear_transpose(linear_in_x, jax.ShapeDtypeStruct(x_shape, s.dtype))(s)
    return x


def _conv_raw(conv, x, w):
    space = "DHW"[-len(conv.strides) :]
    product = partial(
        lax.conv_general_dilated,
        window_strides=conv.strides,
        padding=conv.padding,
        rhs_dilation=conv.dilation,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=conv.groups,
    )
    rounds = conv.rounding is not None and conv.rounding.forward
    return multiply(product, conv.rounding if rounds else None)(x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(conv, x, w):
    return _conv_raw(conv, x, w)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv_input(conv, x_shape, s, w):
    return _transpose(lambda x: _conv_raw(conv, x, w), s, x_shape)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _conv_kernel(conv, w_shape, x, s):
    return _transpose(lambda w: _conv_raw(conv, x, w), s, w_shape)


def _product(value: Array) -> Array:
    return checkpoint_name(value, _PRODUCT)


# The fwds call the decorated functions, so that derivatives of any order stay inside the three.
# That is safe here, unlike for the rules above: these derivatives are the true ones.
def _conv_fwd(conv, x, w):
    return _product(_conv(conv, x, w)), (x, w)


def _conv_bwd(conv, residuals, s):
    x, w = residuals
    conv = narrowed(conv)
    return _product(_conv_input(conv, x.shape, s, w)), _conv_kernel(conv, w.shape, x, s)


def _conv_input_fwd(conv, x_shape, s, w):
    return _product(_conv_input(conv, x_shape, s, w)), (s, w)


def _conv_input_bwd(conv, x_shape, residuals, v):
    s, w = residuals
    return _product(_conv(conv, v, w)), _conv_kernel(conv, w.shape, v, s)


def _conv_kernel_fwd(conv, w_shape, x, s):
    return _conv_kernel(conv, w_shape, x, s), (x, s)


def _conv_kernel_bwd(conv, w_shape, residuals, u):
    x, s = residuals
    return _conv_input(conv, x.shape, s, u), _conv(conv, x, u)


_conv.defvjp(_conv_fwd, _conv_bwd)
_conv_input.defvjp(_conv_input_fwd, _conv_input_bwd)
_conv_kernel.defvjp(_conv_kernel_fwd, _conv_kernel_bwd)


@dataclass(frozen=True)
class TransposedConvMap:
    """A transposed convolution: the input-transpose of ``conv``, from its output to its input.

    Its derivatives are of `ConvMap`'s closed set: no dilated input at any order.

    Attributes:
        conv: the convolution that is transposed.
        size: spatial shape of the result, which the input's alone leaves open.
    """

    conv: ConvMap
    size: tuple[int, ...]

    def __call__(self, x: Array, w: Array) -> Array:
        """Spreads x (b, *space, in) by w (*window, in, out): (b, *size, out)."""
        shape = (x.shape[0], *self.size, w.shape[-1])
        return _conv_input(self.conv, shape, x, self._turned(w))

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Transpose in x: s (b, *size, out) to x_shape."""
        return _conv(narrowed(self.conv), s, self._turned(w))

    def _turned(self, w: Array) -> Array:
        # flax's transposed convolution correlates with its kernel; the transpose of a
        # correlation runs through it backwards.
        return jnp.flip(w, tuple(range(w.ndim - 2))).swapaxes(-1, -2)


@dataclass(frozen=True)
class ResizeMap:
    """Interpolation to a spatial ``size`` times a scalar weight: x (b, *space, c), w ().

    ``method`` is "nearest" or "linear", whose shares are never negative.
    """

    size: tuple[int, ...]
    method: str

    def __call__(self, x: Array, w: Array) -> Array:
        """Returns (b, *size, c)."""
        shape = (x.shape[0], *self.size, x.shape[-1])
        # Without the filter that jax.image applies when it shrinks: as torch's interpolate.
        return jax.image.resize(x, shape, self.method, antialias=False) * w

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Transpose in x: s (b, *size, c) to x_shape."""
        return _transpose(lambda x: self(x, w), s, x_shape)
