"""Layers of transformers (and of GroupNorm networks) that carry a static LRP rule.

In the multiplier domain AttnLRP (Achtibat et al. 2024) is three lines: LayerNorm's 1 / sigma is a
constant of the map, an activation f passes ``f(z) / z``, and a bilinear product halves the
multiplier, once for each factor. Softmax keeps its plain derivative. CP-LRP (Ali et al. 2022)
takes the attention weights as constants instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.lrp import maps, ops
from isnet_jax.lrp.layers import Dense
from isnet_jax.lrp.rules import CPLRP, AttnLRP, Rule, along_channels

Array = jax.Array


def _normalise(layer: LayerNorm | GroupNorm, x: Array, axes: tuple[int, ...]) -> Array:
    """``(x - mean) / sigma`` over ``axes``; under AttnLRP sigma is a constant of the map."""
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).mean(axes, keepdims=True)
    inverse = jax.lax.rsqrt(variance + layer.epsilon)
    if isinstance(layer.rule, AttnLRP | CPLRP):
        inverse = ops.constant_in_map(inverse)
    return (x - mean) * inverse


def _affine(layer: LayerNorm | GroupNorm, x: Array) -> Array:
    x = x if layer.scale is None else x * along_channels(layer.scale[...], x.ndim)
    return x if layer.bias is None else x + along_channels(layer.bias[...], x.ndim)


class LayerNorm(nnx.LayerNorm):
    """LayerNorm over the last axis, (..., c) to (..., c)."""

    kind = "layer_norm"

    def __init__(self, features: int, *, epsilon: float = 1e-6, rngs: nnx.Rngs) -> None:
        super().__init__(features, epsilon=epsilon, rngs=rngs)
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no masks here
        """Normalises x (..., c)."""
        return _affine(self, _normalise(self, x, (x.ndim - 1,)))


class GroupNorm(nnx.GroupNorm):
    """GroupNorm, (b, *space, c) to the same."""

    kind = "layer_norm"

    def __init__(
        self, features: int, groups: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs
    ) -> None:
        super().__init__(features, num_groups=groups, epsilon=epsilon, rngs=rngs)
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:  # type: ignore[override]  # no masks here
        """Normalises x (b, *space, c)."""
        grouped = x.reshape(*x.shape[:-1], self.num_groups, -1)
        axes = (*range(1, x.ndim - 1), x.ndim)
        return _affine(self, _normalise(self, grouped, axes).reshape(x.shape))


class InstanceNorm(GroupNorm):
    """GroupNorm with a group a channel, (b, *space, c) to the same."""

    def __init__(self, features: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs) -> None:
        super().__init__(features, features, epsilon=epsilon, rngs=rngs)


GATES: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * (1 + jax.lax.erf(x / math.sqrt(2))),
    "silu": jax.nn.sigmoid,
}
"""Activations of the form ``x * gate(x)``."""


class Activation(nnx.Module):
    """``x * gate(x)``: GELU (exact) or SiLU, any shape."""

    kind = "activation"

    def __init__(self, name: str) -> None:
        check("activation", name, GATES)
        self.name = name
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:
        """Applies the activation."""
        gate = GATES[self.name](x)
        # f(z) / z is the gate itself: no division, so z = 0 needs no stabiliser.
        return x * (ops.constant_in_map(gate) if isinstance(self.rule, AttnLRP | CPLRP) else gate)


class Embedding(nnx.Module):
    """A class token before the patches' tokens, and a position added to each.

    (b, t, c) to (b, t + 1, c). Both are constants of the network, so they absorb relevance as a
    bias does.

    Args:
        tokens: t + 1.
        features: c.
        rngs: initialisation.
    """

    kind = "embedding"

    def __init__(self, tokens: int, features: int, *, rngs: nnx.Rngs) -> None:
        self.class_token = nnx.Param(jnp.zeros((1, 1, features)))
        self.position = nnx.Param(0.02 * jax.random.normal(rngs.params(), (1, tokens, features)))
        self.rule: Rule | None = None

    def __call__(self, x: Array) -> Array:
        """Embeds x (b, t, c)."""
        first = jnp.broadcast_to(self.class_token[...], (len(x), 1, x.shape[-1]))
        position = jnp.broadcast_to(self.position[...], (len(x), *self.position.shape[1:]))
        return jnp.concatenate((first, x), axis=1) + position


class Attention(nnx.Module):
    """Multi-head self-attention, (b, t, c) to (b, t, c).

    Args:
        features: c, a multiple of heads.
        heads: number of heads.
        rngs: initialisation.

    Raises:
        ValueError: features is no multiple of heads.
    """

    kind = "attention"

    def __init__(self, features: int, heads: int, *, rngs: nnx.Rngs) -> None:
        if features % heads:
            raise ValueError(f"attention: {features} features are no multiple of {heads} heads")
        self.heads = heads
        self.qkv = Dense(features, 3 * features, rngs=rngs)
        self.out = Dense(features, features, rngs=rngs)
        self.rule: Rule | None = None
        self.rounding: maps.Rounding | None = None

    def __call__(self, x: Array) -> Array:
        """Attends x (b, t, c) to itself."""
        batch, tokens, features = x.shape
        width = features // self.heads
        q, k, v = (
            part.reshape(batch, tokens, self.heads, width)
            for part in jnp.split(self.qkv(x), 3, axis=-1)
        )
        scores = self._einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(width)
        if isinstance(self.rule, AttnLRP):
            scores = ops.halve_in_map(scores)
        weights = jax.nn.softmax(scores, axis=-1)
        if isinstance(self.rule, CPLRP):
            weights = ops.constant_in_map(weights)
        mixed = self._einsum("bhqk,bkhd->bqhd", weights, v)
        if isinstance(self.rule, AttnLRP):
            mixed = ops.halve_in_map(mixed)
        return self.out(mixed.reshape(batch, tokens, features))

    def _einsum(self, subscripts: str, a: Array, b: Array) -> Array:
        return maps.multiply(partial(jnp.einsum, subscripts), self.rounding)(a, b)
