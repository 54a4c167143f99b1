"""Flax NNX layers that carry a static LRP rule; ``rule = None`` is the plain layer at no cost.

The layers are `flax.nnx`'s own (same parameters, same initialisation) with the rule attached to
their output. `Conv` and `Dense` may hold the normalisation that follows them, because the
weight-sign rules need the folded weight: convolution + BatchNorm is ONE linear unit.

Layout: channels last, (batch, *space, channels).
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.lrp import maps, ops
from isnet_jax.lrp.rules import Epsilon, Linear, Norm, Pass, Rule, along_channels

Array = jax.Array

_he_normal = nnx.initializers.he_normal()
_lecun_normal = nnx.initializers.lecun_normal()


def _pairs(padding: int | Sequence[int], rank: int) -> tuple[tuple[int, int], ...]:
    sides = (padding,) * rank if isinstance(padding, int) else tuple(padding)
    return tuple((side, side) for side in sides)


def sides(value: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number an axis from one for all or one each."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def compute_in(
    model: nnx.Module, dtype: str | jnp.dtype | None, *, forward: bool = True
) -> nnx.Module:
    """Makes the model, in place, multiply in ``dtype``, e.g. "bfloat16"; returns it.

    Convolutions, dense layers and attention round their operands to ``dtype``; parameters,
    normalisation, rules, logits and relevance keep the wide dtype. ``forward=False`` rounds in
    derivatives only, the map's and the loss's: five sixths of an ISNet's arithmetic. None undoes
    it.

    Raises:
        ValueError: no floating dtype, or a model without a layer of ours.
    """
    rounding = None
    if dtype is not None:
        with contextlib.suppress(TypeError):  # no dtype at all
            if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
                rounding = maps.Rounding(jnp.dtype(dtype).name, forward)
        if rounding is None:
            raise ValueError(f"compute dtype {dtype!r} must be a floating one, e.g. 'bfloat16'")
    found = [m for _, m in nnx.iter_modules(model) if hasattr(m, "rounding")]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no layer of isnet_jax.lrp to round; of flax's own, "
            "isnet_jax.lrp.attach makes some"
        )
    for module in found:
        module.rounding = rounding
    return model


class BatchNorm(nnx.BatchNorm):
    """BatchNorm as an affine map per channel, (..., c) to (..., c).

    For the heatmap the statistics are constants (``statistics = "detach"``, proper LRP: samples do
    not leak into each other's maps) unless ``"through"`` asks for the derivative through the batch
    statistics, which is what the original LRP-Flex does in training. The outer derivative always
    sees the batch statistics. The variance is the biased one in value and running average.
    """

    kind = "norm"

    # Only what is honoured here is accepted: flax's own layers have options that the code below
    # would silently ignore (masks, axis names, other dtypes, "SAME").
    def __init__(
        self,
        features: int,
        *,
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        use_bias: bool = True,
        use_scale: bool = True,
        param_dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            features,
            momentum=momentum,
            epsilon=epsilon,
            use_bias=use_bias,
            use_scale=use_scale,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.rule: Rule | None = None
        self.statistics: str = "detach"

    def affine(self, u: Array, in_map: bool) -> tuple[Array, Array, Array, Array]:
        """Mean, gamma, 1 / sigma and beta, each (c,); updates the running averages."""
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            axes = tuple(range(u.ndim - 1))
            mean = u.mean(axes)
            var = jnp.square(u - along_channels(mean, u.ndim)).mean(axes)
            keep = self.momentum
            # set_value, not [...] =: that asks a tracer for its sharding, which costs seconds of
            # tracing in a deep net.
            frozen = jax.lax.stop_gradient((mean, var))
            self.mean.set_value(keep * self.mean[...] + (1 - keep) * frozen[0])
            self.var.set_value(keep * self.var[...] + (1 - keep) * frozen[1])
            if in_map and self.statistics == "detach":
                mean, var = ops.constant_in_map(mean), ops.constant_in_map(var)
        inverse = jax.lax.rsqrt(var + self.epsilon)
        gamma = jnp.ones_like(mean) if self.scale is None else self.scale[...]
        beta = jnp.zeros_like(mean) if self.bias is None else self.bias[...]
        return mean, gamma, inverse, beta

    def __call__(  # type: ignore[override]  # no masks here
        self, x: Array, use_running_average: bool | None = None
    ) -> Array:
        """Normalises x (..., c), by the running averages if told so here or by `eval`."""
        if use_running_average is None:
            return _linear_unit(self.rule, None, x, None, None, self)
        before, self.use_running_average = self.use_running_average, use_running_average
        try:
            return _linear_unit(self.rule, None, x, None, None, self)
        finally:
            self.use_running_average = before


class Conv(nnx.Conv):
    """Convolution, optionally with its BatchNorm: (b, *space, in) to (b, *pooled, out).

    Args:
        in_features: input channels.
        out_features: output channels.
        kernel_size: window, one int per spatial axis.
        strides: int or one per axis.
        padding: zeros on both sides, int or one per axis.
        dilation: int or one per axis.
        groups: feature groups.
        use_bias: own bias; default: only without a norm.
        norm: followed by a `BatchNorm`, as one unit.
        kernel_init: of the kernel.
        param_dtype: of kernel and bias.
        rngs: initialisation.
    """

    kind = "conv"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        use_bias: bool | None = None,
        norm: bool = False,
        kernel_init: nnx.Initializer = _he_normal,
        param_dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        rank = len(kernel_size)
        super().__init__(
            in_features,
            out_features,
            tuple(kernel_size),
            strides=sides(strides, rank),
            padding=_pairs(padding, rank),
            kernel_dilation=sides(dilation, rank),
            feature_group_count=groups,
            use_bias=not norm if use_bias is None else use_bias,
            kernel_init=kernel_init,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.norm = BatchNorm(out_features, rngs=rngs) if norm else None
        self.rule: Rule | None = None
        self.rounding: maps.Rounding | None = None

    def linear(self, x: Array) -> maps.ConvMap:
        """The bilinear map of this layer at x (b, *space, in): "SAME" depends on the size."""
        rank = len(self.kernel_size)
        strides, dilation = sides(self.strides or 1, rank), sides(self.kernel_dilation or 1, rank)
        padding: Any = self.padding  # of flax's forms ours are a string or one entry an axis
        if isinstance(padding, str):
            window = [d * (k - 1) + 1 for d, k in zip(dilation, self.kernel_size, strict=True)]
            padding = jax.lax.padtype_to_pads(x.shape[1:-1], window, strides, padding)
        pairs = tuple((p, p) if isinstance(p, int) else tuple(p) for p in padding)
        return maps.ConvMap(strides, pairs, dilation, self.feature_group_count, self.rounding)

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no output sharding
        """Applies the unit to x (b, *space, in)."""
        if x.ndim != len(self.kernel_size) + 2 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"convolution expects (batch, {len(self.kernel_size)} spatial axes, "
                f"{self.in_features} channels), got shape {x.shape}"
            )
        bias = None if self.bias is None else self.bias[...]
        return _linear_unit(self.rule, self.linear(x), x, self.kernel[...], bias, self.norm)


class ConvTranspose(nnx.ConvTranspose):
    """Transposed convolution, (b, *space, in) to (b, *size, out); kernel (*window, in, out).

    ``size = (space - 1) strides + dilation (window - 1) + 1 - 2 padding``, as torch's without
    output padding.

    Args:
        in_features: input channels.
        out_features: output channels.
        kernel_size: window, one int per spatial axis.
        strides: int or one per axis: how far neighbours in the input come to stand apart.
        padding: how much is cut from both sides of the result, int or one per axis.
        dilation: int or one per axis.
        use_bias: own bias; default: only without a norm.
        norm: followed by a `BatchNorm`, as one unit.
        rngs: initialisation.
    """

    kind = "conv"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        use_bias: bool | None = None,
        norm: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        rank = len(kernel_size)
        dilation = sides(dilation, rank)
        # flax pads the spread-out input instead of cutting the result.
        full = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
        cuts = zip(full, sides(padding, rank), strict=True)
        pads = tuple((f - cut, f - cut) for f, cut in cuts)
        super().__init__(
            in_features,
            out_features,
            tuple(kernel_size),
            strides=sides(strides, rank),
            padding=pads,
            kernel_dilation=dilation,
            use_bias=not norm if use_bias is None else use_bias,
            kernel_init=_he_normal,
            rngs=rngs,
        )
        self.norm = BatchNorm(out_features, rngs=rngs) if norm else None
        self.rule: Rule | None = None
        self.rounding: maps.Rounding | None = None

    def linear(self, x: Array) -> maps.TransposedConvMap:
        """The bilinear map of this layer at x (b, *space, in)."""
        rank = len(self.kernel_size)
        strides, dilation = (sides(v or 1, rank) for v in (self.strides, self.kernel_dilation))
        full = [d * (k - 1) for d, k in zip(dilation, self.kernel_size, strict=True)]
        padding = cast(Sequence[tuple[int, int]], self.padding)  # of flax's forms the one of pairs
        pads = [(f - low, f - high) for f, (low, high) in zip(full, padding, strict=True)]
        conv = maps.ConvMap(strides, tuple(pads), dilation, 1, self.rounding)
        size = tuple(
            (n - 1) * s + f + 1 - low - high
            for n, s, f, (low, high) in zip(x.shape[1:-1], strides, full, pads, strict=True)
        )
        return maps.TransposedConvMap(conv, size)

    def __call__(self, x: Array) -> Array:
        """Applies the unit to x (b, *space, in)."""
        if x.ndim != len(self.kernel_size) + 2 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"transposed convolution expects (batch, {len(self.kernel_size)} spatial axes, "
                f"{self.in_features} channels), got shape {x.shape}"
            )
        bias = None if self.bias is None else self.bias[...]
        return _linear_unit(self.rule, self.linear(x), x, self.kernel[...], bias, self.norm)


class Dense(nnx.Linear):
    """Fully connected layer, (..., in) to (..., out)."""

    kind = "dense"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        kernel_init: nnx.Initializer = _lecun_normal,
        param_dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            use_bias=use_bias,
            kernel_init=kernel_init,
            param_dtype=param_dtype,
            rngs=rngs,
        )
        self.rule: Rule | None = None
        self.rounding: maps.Rounding | None = None

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no output sharding
        """Applies the layer to x (..., in)."""
        bias = None if self.bias is None else self.bias[...]
        return _linear_unit(self.rule, maps.MatMap(self.rounding), x, self.kernel[...], bias, None)


def _linear_unit(
    rule: Rule | None,
    linear: Linear | None,
    x: Array,
    w: Array | None,
    b: Array | None,
    norm: BatchNorm | None,
) -> Array:
    """``norm(linear(x, w) + b)`` with the rule on the result; ``linear=None`` is the norm alone."""
    u = x if linear is None or w is None else linear(x, w)
    biased = u if b is None else u + along_channels(b, u.ndim)
    if norm is None:
        fold = _Fold(w, b, None)
        z = biased
    else:
        mean, gamma, inverse, beta = norm.affine(biased, in_map=rule is not None)
        fold = _Fold(w, b, (mean, gamma, inverse, beta))
        z = fold.normalise(biased)
    if rule is None or isinstance(rule, Pass):
        return z
    denominator = None
    if rule.detach_bias:
        fold = fold.detached()
        denominator = fold.apply(u)
    w, b = fold.weight_and_bias()
    return ops.apply_rule(
        rule, z, linear=linear or maps.ScaleMap(), x=x, w=w, b=b, denominator=denominator
    )


@dataclass(frozen=True)
class _Fold:
    """Weight, bias and following norm of a linear unit, to be folded into one weight and bias."""

    w: Array | None
    b: Array | None
    norm: tuple[Array, Array, Array, Array] | None  # mean, gamma, 1 / sigma, beta

    def normalise(self, biased: Array) -> Array:
        """The norm applied to ``linear(x, w) + b``."""
        if self.norm is None:
            return biased
        mean, gamma, inverse, beta = (along_channels(v, biased.ndim) for v in self.norm)
        return (biased - mean) * (gamma * inverse) + beta

    def apply(self, u: Array) -> Array:
        """Bias and norm applied to ``linear(x, w)``."""
        return self.normalise(u if self.b is None else u + along_channels(self.b, u.ndim))

    def detached(self) -> _Fold:
        """The same with all but the weight and gamma constant for every derivative."""
        frozen = jax.lax.stop_gradient
        b = None if self.b is None else frozen(self.b)
        if self.norm is None:
            return _Fold(self.w, b, None)
        mean, gamma, inverse, beta = self.norm
        return _Fold(self.w, b, (frozen(mean), gamma, frozen(inverse), frozen(beta)))

    def weight_and_bias(self) -> tuple[Array, Array | None]:
        """The folded weight (out channels last) and bias (c,)."""
        if self.norm is None:
            assert self.w is not None  # a norm or a weight there is
            return self.w, self.b
        mean, gamma, inverse, beta = self.norm
        scale = gamma * inverse
        w = scale if self.w is None else self.w * along_channels(scale, self.w.ndim)
        return w, (-mean if self.b is None else self.b - mean) * scale + beta


class ReLU(nnx.Module):
    """``max(x, 0)``, any shape. `Epsilon` here is LRP-Flex's factor ``a / (a + epsilon)``."""

    kind = "relu"

    def __init__(self) -> None:
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:
        """Rectifies x."""
        return ops.apply_output_rule(self.rule, jax.nn.relu(x))


class MaxPool(nnx.Module):
    """Max pooling with winner-take-all relevance, (b, *space, c) to (b, *pooled, c)."""

    kind = "max_pool"

    def __init__(
        self,
        window: Sequence[int],
        *,
        strides: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        self.window = tuple(window)
        self.strides = self.window if strides is None else sides(strides, len(self.window))
        self.padding = _pairs(padding, len(self.window))
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:
        """Pools x."""
        pooled = ops.max_pool(x, self.window, self.strides, self.padding)
        return ops.apply_output_rule(self.rule, pooled)


class AvgPool(nnx.Module):
    """Average pooling over windows, (b, *space, c) to (b, *pooled, c)."""

    kind = "avg_pool"

    def __init__(
        self,
        window: Sequence[int],
        *,
        strides: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        window = tuple(window)
        strides = window if strides is None else sides(strides, len(window))
        self.linear = maps.AveragePoolMap(window, strides, _pairs(padding, len(window)))
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:
        """Pools x."""
        one = jnp.ones((), x.dtype)
        return ops.apply_rule(self.rule, self.linear(x, one), linear=self.linear, x=x, w=one)


class AdaptiveAvgPool(nnx.Module):
    """Average pooling to a fixed size, (b, *space, c) to (b, prod(size) c), flattened.

    ``size = 1`` is the global average.
    """

    kind = "avg_pool"

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:
        """Pools and flattens x."""
        linear = maps.AdaptivePoolMap((self.size,) * (x.ndim - 2))
        one = jnp.ones((), x.dtype)
        z = ops.apply_rule(self.rule, linear(x, one), linear=linear, x=x, w=one)
        return z.reshape(z.shape[0], -1)


class Resize(nnx.Module):
    """Interpolation by a factor, (b, *space, c) to (b, *sizes, c), edges as torch's default.

    Args:
        scale: factor of each spatial side; the sides must come out whole.
        method: "nearest" or "linear".

    Raises:
        ValueError: another method, or a scale that is not positive.
    """

    kind = "resize"

    def __init__(self, scale: float, method: str = "linear") -> None:
        check("resize method", method, ("nearest", "linear"))
        if not scale > 0:
            raise ValueError(f"resize scale={scale}; must be positive")
        self.scale, self.method = scale, method
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:
        """Resizes x."""
        size = tuple(round(side * self.scale) for side in x.shape[1:-1])
        if any(
            abs(side * self.scale - new) > 1e-6
            for side, new in zip(x.shape[1:-1], size, strict=True)
        ):
            raise ValueError(f"resize: sides {x.shape[1:-1]} times {self.scale} are not whole")
        linear = maps.ResizeMap(size, self.method)
        one = jnp.ones((), x.dtype)
        return ops.apply_rule(self.rule, linear(x, one), linear=linear, x=x, w=one)


class Add(nnx.Module):
    """Residual sum of two arrays of one shape."""

    kind = "add"

    def __init__(self) -> None:
        self.rule: Rule | None = None

    def __call__(self, a: Array, b: Array) -> Array:
        """Returns a + b."""
        if self.rule is None or isinstance(self.rule, Pass | Epsilon | Norm):
            return ops.apply_output_rule(self.rule, a + b)
        # The others need the summands' signs; stacking them makes the sum one linear map.
        both = jnp.stack((a, b))
        return ops.apply_rule(
            self.rule, a + b, linear=maps.SumMap(), x=both, w=jnp.ones((), a.dtype)
        )
