"""LRP rules as data: frozen dataclasses that say how relevance crosses one layer.

Legend used in all formulas: ``x`` layer input, ``w`` weight, ``b`` bias, ``z`` layer output before
the activation, ``R`` relevance at the output, ``s = R / denominator``, ``m = R / value`` the
multiplier.

A rule never touches arrays outside ``multiplier``; which layer gets which rule is decided by a
`Composite`, and the custom derivatives live in `isnet_jax.lrp.ops`.

Sources: Bach et al. 2015 (epsilon), Montavon et al. 2017 (z+, z^B), Bassi et al. 2024
(Nature Communications 15:291, the form of z^B that keeps the bias in its denominator).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax.legal import check

Array = jax.Array


class Linear(Protocol):
    """A map that is linear in ``x`` for fixed ``w`` and in ``w`` for fixed ``x``; hashable."""

    def __call__(self, x: Array, w: Array) -> Array:
        """Returns the map's value."""

    def pull(self, s: Array, w: Array, x_shape: tuple[int, ...]) -> Array:
        """Returns the transpose of ``x -> self(x, w)`` applied to ``s``, of shape ``x_shape``."""


def sign(z: Array) -> Array:
    """Sign with ``sign(0) = +1``, so that a stabilised denominator is never zero; any shape."""
    return jnp.where(z >= 0, 1, -1).astype(z.dtype)


def magnitude(v: Array) -> Array:
    """|v|, any shape, with derivative 0 at 0 (that of `jnp.abs` is 1, and moves a zero map)."""
    return v * jnp.sign(v)


def along_channels(v: Array, ndim: int) -> Array:
    """Reshapes a channel vector (c,) to (1, ..., 1, c) of rank ``ndim``; scalars stay scalars."""
    return v if v.ndim == 0 else v.reshape((1,) * (ndim - 1) + (-1,))


@dataclass(frozen=True)
class Rule:
    """Base of all rules.

    `terminal` rules return the relevance itself instead of a multiplier: they end the propagation
    and may only stand at the model's input layer.
    """

    terminal: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = frozenset()


@dataclass(frozen=True)
class Pass(Rule):
    """The layer's ordinary derivative: LRP-0 for linear layers, winner-take-all for max pooling."""

    kinds: ClassVar[frozenset[str]] = frozenset(
        {"conv", "dense", "norm", "relu", "max_pool", "avg_pool", "add"}
    )


@dataclass(frozen=True)
class Epsilon(Rule):
    """LRP-epsilon: ``R_j = x_j sum_k w_kj R_k / (z_k + epsilon sign(z_k))``.

    In multipliers this is one factor ``|z| / (|z| + epsilon)`` at the layer's output. On a ReLU it
    is LRP-Flex (Bassi et al. 2024, IEEE Access 12:155151).

    Attributes:
        epsilon: stabiliser, >= 0; 0 is the plain derivative.
        detach_bias: treat the layer's own bias (and a folded norm's offset and statistics) in
            the denominator as constants of the *outer* derivative, as the original LRP Block does.
            The map itself does not change.
    """

    epsilon: float = 0.01
    detach_bias: bool = field(default=False, repr=False)
    kinds: ClassVar[frozenset[str]] = Pass.kinds

    def __post_init__(self) -> None:
        _check_epsilon(self)


@dataclass(frozen=True)
class ZPlus(Rule):
    """z+ (alpha=1, beta=0) in the form valid for inputs of either sign.

    ``R_j = sum_k (x+_j w+_kj + x-_j w-_kj) R_k / (sum_j (...) + b+_k + epsilon)``; equal to the
    textbook form when ``x >= 0``. With a folded BatchNorm, ``w`` is the folded weight.

    Attributes:
        epsilon: stabiliser, >= 0.
        detach_bias: as in `Epsilon`.
    """

    epsilon: float = 0.01
    detach_bias: bool = field(default=False, repr=False)
    kinds: ClassVar[frozenset[str]] = Pass.kinds - {"relu"}

    def __post_init__(self) -> None:
        _check_epsilon(self)

    def multiplier(
        self, linear: Linear, x: Array, w: Array, b: Array | None, z: Array, relevance: Array
    ) -> Array:
        """Multiplier at the input, shape of ``x``, from the relevance at the output."""
        del z
        w_pos, w_neg = jnp.maximum(w, 0), jnp.minimum(w, 0)
        total = linear(jnp.maximum(x, 0), w_pos) + linear(jnp.minimum(x, 0), w_neg)
        if b is not None:
            total = total + along_channels(jnp.maximum(b, 0), total.ndim)
        s = _divide(relevance, total + self.epsilon)
        return jnp.where(x >= 0, linear.pull(s, w_pos, x.shape), linear.pull(s, w_neg, x.shape))


@dataclass(frozen=True)
class ZB(Rule):
    """z^B for an input layer whose inputs lie in the box ``[low, high]`` (terminal).

    ``z' = z - low (W+ 1 + b+) - high (W- 1 + b-)``, ``s = R / (z' + epsilon sign(z'))``,
    ``R_j = x_j (W^T s)_j - low (W+^T s)_j - high (W-^T s)_j``. The box images are constant images
    before zero padding. ``bias="cancel"`` drops the whole bias from ``z'`` (zennit's ZBox), and is
    the only form for per-channel bounds, for which a scaled bias has no meaning.

    Attributes:
        low: lower bound of the input, a float or one float per input channel.
        high: upper bound, > low.
        epsilon: stabiliser, >= 0.
        bias: "scaled" (ISNet) or "cancel".
        detach_bias: as in `Epsilon`.
    """

    low: float | tuple[float, ...] = 0.0
    high: float | tuple[float, ...] = 1.0
    epsilon: float = 0.01
    bias: str = "scaled"
    detach_bias: bool = field(default=False, repr=False)
    terminal: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"conv", "dense"})

    def __post_init__(self) -> None:
        _check_epsilon(self)
        check("ZB bias", self.bias, ("scaled", "cancel"))
        per_channel = isinstance(self.low, tuple) or isinstance(self.high, tuple)
        if per_channel and self.bias == "scaled":
            raise ValueError("ZB with per-channel low/high needs bias='cancel'")
        low, high = np.asarray(self.low), np.asarray(self.high)
        if low.ndim == high.ndim == 1 and low.shape != high.shape:
            raise ValueError(f"ZB.low has {low.size} channels and ZB.high {high.size}")
        if not (low < high).all():
            raise ValueError(f"ZB needs low < high, got low={self.low} and high={self.high}")

    def multiplier(
        self, linear: Linear, x: Array, w: Array, b: Array | None, z: Array, relevance: Array
    ) -> Array:
        """Relevance (not multiplier: the rule is terminal) at the input, shape of ``x``."""
        sides = [
            (along_channels(jnp.asarray(bound, x.dtype), x.ndim), part(w, 0), part)
            for bound, part in ((self.low, jnp.maximum), (self.high, jnp.minimum))
            if bound != 0  # a zero side costs convolutions and adds nothing
        ]
        if b is not None:
            b = along_channels(b, z.ndim)
            z = z if self.bias == "scaled" else z - b
        for bound, w_part, part in sides:
            z = z - linear(jnp.ones((1, *x.shape[1:]), x.dtype) * bound, w_part)
            if b is not None and self.bias == "scaled":
                z = z - bound * part(b, 0)
        s = _divide(relevance, z + self.epsilon * sign(z))
        result = x * linear.pull(s, w, x.shape)
        for bound, w_part, _ in sides:
            result = result - bound * linear.pull(s, w_part, x.shape)
        return result


def _check_epsilon(rule: Any) -> None:
    if not rule.epsilon >= 0:
        raise ValueError(f"{type(rule).__name__}.epsilon={rule.epsilon!r}; must be >= 0")


def _divide(numerator: Array, denominator: Array) -> Array:
    """``numerator / denominator`` with 0/0 = 0 and finite derivatives there."""
    safe = jnp.where(denominator == 0, 1, denominator)
    return jnp.where(denominator == 0, 0, numerator / safe)


RULES: dict[str, Callable[..., Rule]] = {
    "epsilon": Epsilon,
    "zplus": ZPlus,
    "zb": ZB,
    "pass": Pass,
}
