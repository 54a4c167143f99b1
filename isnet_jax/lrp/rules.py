"""LRP rules as data: frozen dataclasses that say how relevance crosses one layer.

Legend used in all formulas: ``x`` layer input, ``w`` weight, ``b`` bias, ``z`` layer output before
the activation, ``R`` relevance at the output, ``s = R / denominator``, ``m = R / value`` the
multiplier.

A rule never touches arrays outside ``multiplier``; which layer gets which rule is decided by a
`Composite`, and the custom derivatives live in `isnet_jax.lrp.ops`.

Sources: Bach et al. 2015 (epsilon), Montavon et al. 2017 (z+, z^B, w^2), Bassi et al. 2024
(Nature Communications 15:291, the form of z^B that keeps the bias in its denominator).
"""

from __future__ import annotations

import math
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

    @property
    def detach_bias(self) -> bool:
        """Whether biases and folded norms are constants of the map; rules without it: no."""
        return False

    def explained(self, linear: Linear, x: Array, w: Array, b: Array | None, z: Array) -> Array:
        """The output value that relevance = multiplier * value refers to, in the shape of ``z``."""
        return z


@dataclass(frozen=True)
class Pass(Rule):
    """The layer's ordinary derivative: LRP-0 for linear layers, winner-take-all for max pooling."""

    kinds: ClassVar[frozenset[str]] = frozenset(
        {
            "conv",
            "dense",
            "norm",
            "relu",
            "max_pool",
            "avg_pool",
            "resize",
            "add",
            "layer_norm",
            "activation",
            "attention",
            "embedding",
        }
    )


_SIGNED_KINDS = frozenset({"conv", "dense", "norm", "avg_pool", "resize", "add"})
_OUTPUT_KINDS = Pass.kinds - {"layer_norm", "activation", "attention", "embedding"}


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
    kinds: ClassVar[frozenset[str]] = _OUTPUT_KINDS

    def __post_init__(self) -> None:
        _check_epsilon(self)


@dataclass(frozen=True)
class Norm(Rule):
    """`Epsilon` without the bias: ``R_j = x_j sum_k w_kj R_k / (sum_j w_kj x_j + epsilon sign)``.

    Conserves relevance up to epsilon; zennit's rule for sums and average pools.

    Attributes:
        epsilon: stabiliser, > 0.
        detach_bias: as in `Epsilon`.
    """

    epsilon: float = 1e-6
    detach_bias: bool = field(default=False, repr=False)
    kinds: ClassVar[frozenset[str]] = _OUTPUT_KINDS - {"relu"}

    def __post_init__(self) -> None:
        _check_epsilon(self)
        if self.epsilon == 0:
            raise ValueError("Norm.epsilon=0; its denominator has no bias and may vanish")


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """Positive and negative contributions apart, ``alpha - beta = 1`` (Bach et al. 2015, eq. 60).

    With p, n the positive and negative contributions ``w_kj x_j`` and P, N their sums with the
    positive and negative part of the bias:
    ``R_j = sum_k (alpha p_kj / (P_k + epsilon) - beta n_kj / (N_k - epsilon)) R_k``.

    Attributes:
        alpha: >= 1.
        beta: alpha - 1.
        epsilon: stabiliser, >= 0.
        detach_bias: as in `Epsilon`.
        nonnegative: promise that the input is >= 0, which halves the work; not checked.
    """

    alpha: float = 2.0
    beta: float = 1.0
    epsilon: float = 0.01
    detach_bias: bool = field(default=False, repr=False)
    nonnegative: bool = field(default=False, repr=False)
    kinds: ClassVar[frozenset[str]] = _SIGNED_KINDS

    def __post_init__(self) -> None:
        _check_epsilon(self)
        if not (self.alpha >= 1 and abs(self.alpha - self.beta - 1) <= 1e-9):
            raise ValueError(
                f"{type(self).__name__} needs alpha >= 1 and beta = alpha - 1, got "
                f"alpha={self.alpha} and beta={self.beta}"
            )

    def multiplier(
        self, linear: Linear, x: Array, w: Array, b: Array | None, z: Array, relevance: Array
    ) -> Array:
        """Multiplier at the input, shape of ``x``, from the relevance at the output."""
        w_pos, w_neg = jnp.maximum(w, 0), jnp.minimum(w, 0)
        b_pos, b_neg = (None, None) if b is None else (jnp.maximum(b, 0), jnp.minimum(b, 0))
        total = self._sums(linear, x, w_pos, w_neg, b_pos)
        s = _divide(relevance, total + self.epsilon)
        result = self._pull(linear, s, x, w_pos, w_neg)
        if self.beta == 0:
            return result
        total = self._sums(linear, x, w_neg, w_pos, b_neg)
        s = _divide(relevance, total - self.epsilon)
        return self.alpha * result - self.beta * self._pull(linear, s, x, w_neg, w_pos)

    def _sums(self, linear: Linear, x: Array, w_up: Array, w_down: Array, b: Array | None) -> Array:
        """Contributions: positive inputs through ``w_up``, negative ones through ``w_down``."""
        if self.nonnegative:
            total = linear(x, w_up)
        else:
            total = linear(jnp.maximum(x, 0), w_up) + linear(jnp.minimum(x, 0), w_down)
        return total if b is None else total + along_channels(b, total.ndim)

    def _pull(self, linear: Linear, s: Array, x: Array, w_up: Array, w_down: Array) -> Array:
        up = linear.pull(s, w_up, x.shape)
        return up if self.nonnegative else jnp.where(x >= 0, up, linear.pull(s, w_down, x.shape))


@dataclass(frozen=True)
class ZPlus(AlphaBeta):
    """z+ (alpha=1, beta=0) in the form valid for inputs of either sign.

    ``R_j = sum_k (x+_j w+_kj + x-_j w-_kj) R_k / (sum_j (...) + b+_k + epsilon)``; equal to the
    textbook form when ``x >= 0``. With a folded BatchNorm, ``w`` is the folded weight.

    Attributes:
        own_sum: at the output layer, start from its positive sum instead of the logit (Dual
            ISNet): ``R_k = m_k (sum_j (...) + b+_k)``.
    """

    alpha: float = field(default=1.0, init=False, repr=False)
    beta: float = field(default=0.0, init=False, repr=False)
    own_sum: bool = field(default=False, repr=False)
    kinds: ClassVar[frozenset[str]] = _OUTPUT_KINDS - {"relu"}

    def explained(self, linear: Linear, x: Array, w: Array, b: Array | None, z: Array) -> Array:
        """What a multiplier of 1 at the output stands for, in the shape of ``z``."""
        if not self.own_sum:
            return z
        b_pos = None if b is None else jnp.maximum(b, 0)
        return self._sums(linear, x, jnp.maximum(w, 0), jnp.minimum(w, 0), b_pos)


@dataclass(frozen=True)
class Gamma(Rule):
    """Favours contributions of the output's own sign (Montavon et al. 2019), any sign of input.

    Outputs z > 0: ``(x+ (w + gamma w+) + x- (w + gamma w-)) / (sum + b + gamma b+ + epsilon)``;
    z < 0: ``(x+ (w + gamma w-) + x- (w + gamma w+)) / (sum + b + gamma b- - epsilon)``.

    Attributes:
        gamma: >= 0, finite; 0 is `Epsilon`, a large one approaches z+ on positive outputs.
        epsilon: stabiliser, >= 0.
        detach_bias: as in `Epsilon`.
        nonnegative: promise that the input is >= 0, which halves the work; not checked.
    """

    gamma: float = 0.25
    epsilon: float = 1e-6
    detach_bias: bool = field(default=False, repr=False)
    nonnegative: bool = field(default=False, repr=False)
    kinds: ClassVar[frozenset[str]] = _SIGNED_KINDS

    def __post_init__(self) -> None:
        _check_epsilon(self)
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"Gamma.gamma={self.gamma!r}; must be >= 0, finite")

    def multiplier(
        self, linear: Linear, x: Array, w: Array, b: Array | None, z: Array, relevance: Array
    ) -> Array:
        """Multiplier at the input, shape of ``x``, from the relevance at the output."""
        w_up, w_down = w + self.gamma * jnp.maximum(w, 0), w + self.gamma * jnp.minimum(w, 0)
        up, down = jnp.maximum(x, 0), jnp.minimum(x, 0)
        result: Array | float = 0
        for mine, own, other, part in (
            (z > 0, w_up, w_down, jnp.maximum),
            (z < 0, w_down, w_up, jnp.minimum),
        ):
            total = linear(up, own) if self.nonnegative else linear(up, own) + linear(down, other)
            if b is not None:
                total = total + along_channels(b + self.gamma * part(b, 0), total.ndim)
            s = jnp.where(mine, _divide(relevance, total + self.epsilon * sign(total)), 0)
            pulled = linear.pull(s, own, x.shape)
            if not self.nonnegative:
                pulled = jnp.where(x >= 0, pulled, linear.pull(s, other, x.shape))
            result = result + pulled
        return jnp.asarray(result)


@dataclass(frozen=True)
class WSquare(Rule):
    """w^2 for an input layer of unbounded inputs: ``R_j = sum_k w_kj^2 R_k / sum_j w_kj^2``.

    Terminal. Padded pixels take no share (Montavon et al. 2017, section 5.1).

    Attributes:
        epsilon: stabiliser, >= 0.
        bias: "ignore", or "squared" to count b^2 in the denominator as the original ISNet does.
    """

    epsilon: float = 0.0
    bias: str = "ignore"
    terminal: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"conv", "dense"})

    def __post_init__(self) -> None:
        _check_epsilon(self)
        check("w^2 bias", self.bias, ("ignore", "squared"))

    def multiplier(
        self, linear: Linear, x: Array, w: Array, b: Array | None, z: Array, relevance: Array
    ) -> Array:
        """Relevance at the input, shape of ``x``, from the relevance at the output."""
        w = self._shares(w)
        total = linear(jnp.ones((1, *x.shape[1:]), x.dtype), w)
        if b is not None and self.bias == "squared":
            total = total + along_channels(jnp.square(b), total.ndim)
        return linear.pull(_divide(relevance, total + self.epsilon), w, x.shape)

    def _shares(self, w: Array) -> Array:
        return jnp.square(w)


@dataclass(frozen=True)
class Flat(WSquare):
    """An equal share for every input in the receptive field (Lapuschkin et al. 2019); terminal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check("bias of Flat", self.bias, ("ignore",))

    def _shares(self, w: Array) -> Array:
        return jnp.ones_like(w)


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


@dataclass(frozen=True)
class AttnLRP(Rule):
    """AttnLRP (Achtibat et al. 2024) on normalisations, activations and attention."""

    kinds: ClassVar[frozenset[str]] = frozenset({"layer_norm", "activation", "attention"})


@dataclass(frozen=True)
class CPLRP(Rule):
    """CP-LRP (Ali et al. 2022): as `AttnLRP`, with the attention weights as constants."""

    kinds: ClassVar[frozenset[str]] = AttnLRP.kinds


def _check_epsilon(rule: Any) -> None:
    if not 0 <= rule.epsilon < math.inf:
        raise ValueError(f"{type(rule).__name__}.epsilon={rule.epsilon!r}; must be >= 0, finite")


def _divide(numerator: Array, denominator: Array) -> Array:
    """``numerator / denominator`` with 0/0 = 0 and finite derivatives there."""
    safe = jnp.where(denominator == 0, 1, denominator)
    return jnp.where(denominator == 0, 0, numerator / safe)


RULES: dict[str, Callable[..., Rule]] = {
    "epsilon": Epsilon,
    "norm": Norm,
    "zplus": ZPlus,
    "alpha_beta": AlphaBeta,
    "gamma": Gamma,
    "zb": ZB,
    "w_square": WSquare,
    "flat": Flat,
    "attn_lrp": AttnLRP,
    "cp_lrp": CPLRP,
    "pass": Pass,
}
