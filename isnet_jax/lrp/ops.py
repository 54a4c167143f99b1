"""Operations whose inner derivative is an LRP rule and whose outer derivative is the true one.

Trick (see docs in `isnet_jax.lrp.explain`): a heatmap is computed by ONE ``jax.vjp`` of the model.
That inner vjp consumes the custom rules below; every ``fwd`` returns the undecorated value, so a
``jax.grad`` around it sees the ordinary derivatives of the logits and differentiates the rules
themselves. Cotangents are multipliers ``m = R / value``, so everything linear and homogeneous
(add, concatenate, mean, reshape, average pooling) already is LRP by plain autodiff.

Layout: channels last, kernels (*window, in, out).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from isnet_jax.lrp.rules import (
    Epsilon,
    Linear,
    Norm,
    Pass,
    Rule,
    ZPlus,
    magnitude,
    sign,
)

Array = jax.Array


# ---------------------------------------------------------------- constants of the heatmap


@jax.custom_vjp
def constant_in_map(value: Array) -> Array:
    """Identity whose inner derivative is zero: a constant for the heatmap, not for the loss.

    `jax.lax.stop_gradient` would also cut the outer derivative. Any shape and dtype.
    """
    return value


constant_in_map.defvjp(lambda value: (value, None), lambda _, m: (None,))


@jax.custom_vjp
def halve_in_map(value: Array) -> Array:
    """Identity whose inner derivative is halved: a bilinear product shares between its factors.

    Of any shape.
    """
    return value


halve_in_map.defvjp(lambda value: (value, None), lambda _, m: (0.5 * m,))


# ---------------------------------------------------------------- rules


@jax.custom_vjp
def stabilize(z: Array, denominator: Array | None, epsilon: Array | float) -> Array:
    """Identity on ``z`` whose inner derivative is ``m z / (d + epsilon sign(d))``.

    Args:
        z: any shape.
        denominator: ``d``, equal in value to ``z`` but possibly with another outer derivative;
            None means ``z`` itself.
        epsilon: scalar, or an array that broadcasts with ``z``; > 0.
    """
    return z


def _stabilize_fwd(z, denominator, epsilon):
    return z, (z, denominator, epsilon)


def _stabilize_bwd(residuals, m):
    z, d, epsilon = residuals
    # Without a separate denominator |z|/(|z|+eps) has one kink instead of two.
    factor = magnitude(z) / (magnitude(z) + epsilon) if d is None else z / (d + epsilon * sign(d))
    return m * factor, None, None


stabilize.defvjp(_stabilize_fwd, _stabilize_bwd)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _weighted_rule(rule, linear, x, w, b, z, denominator):
    """Returns ``z``; the inner derivative goes to ``x`` by the rule and nowhere else."""
    return z


def _weighted_fwd(rule, linear, x, w, b, z, denominator):
    # z arrives computed by plain operations: the outer derivative flows through it, and a rule
    # that needs z gets it as a residual instead of computing it again.
    return z, (x, w, b, z, denominator)


def _weighted_bwd(rule, linear, residuals, m):
    x, w, b, z, denominator = residuals
    d = z if denominator is None else denominator
    relevance = m * rule.explained(linear, x, w, b, z)
    return rule.multiplier(linear, x, w, b, d, relevance), None, None, None, None


_weighted_rule.defvjp(_weighted_fwd, _weighted_bwd)


def apply_rule(
    rule: Rule | None,
    z: Array,
    *,
    linear: Linear,
    x: Array,
    w: Array,
    b: Array | None = None,
    denominator: Array | None = None,
) -> Array:
    """Attaches a rule to a layer ``z = linear(x, w) + b`` whose value is already known.

    Args:
        rule: None or `Pass` leave ``z`` alone.
        z: the layer's output, computed by plain operations.
        linear: the bilinear map, e.g. a `ConvMap`.
        x: the layer's input.
        w: the weight, with any norm folded in.
        b: the bias, with any norm folded in, or None.
        denominator: ``z`` again, if its outer derivative shall differ (see `stabilize`).

    Returns:
        ``z``, same shape and value.
    """
    if rule is None or isinstance(rule, Pass):
        return z
    if isinstance(rule, Norm):
        denominator = linear(x, w) if b is not None else None
    if isinstance(rule, Epsilon | Norm):
        return z if rule.epsilon == 0 else stabilize(z, denominator, rule.epsilon)
    return _weighted_rule(rule, linear, x, w, b, z, denominator)


def apply_output_rule(rule: Rule | None, z: Array) -> Array:
    """Attaches `Epsilon`, or `ZPlus` of a winner-take-all layer, to an output ``z``; any shape."""
    if isinstance(rule, ZPlus):
        kept = z if rule.epsilon == 0 else stabilize(z, None, rule.epsilon)
        return jnp.where(z >= 0, kept, constant_in_map(z))
    if isinstance(rule, Epsilon | Norm) and rule.epsilon != 0:
        return stabilize(z, None, rule.epsilon)
    return z


# ---------------------------------------------------------------- pooling


def max_pool(
    x: Array,
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: tuple[tuple[int, int], ...],
) -> Array:
    """Max pooling, (b, *space, c) to (b, *pooled, c).

    The first maximum of a window wins a tie; contributions of overlapping windows add (the
    original's unpooling overwrites them).
    """
    full, pad = (1, *window, 1), ((0, 0), *padding, (0, 0))
    lowest = np.array(-np.inf, x.dtype)
    return lax.reduce_window(x, lowest, lax.max, full, (1, *strides, 1), pad)
