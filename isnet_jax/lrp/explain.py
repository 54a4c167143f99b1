"""Relevance maps of a model: one forward, one pull-back a map.

``logits, pull = jax.vjp(view, x)`` and ``R = x * pull(start)``: the view's rules are consumed by
this inner vjp only, so the logits keep their ordinary derivative and a loss on ``R`` its true
second-order one (see `isnet_jax.lrp.ops`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.lrp import taps
from isnet_jax.lrp.composite import Composite, create, rule_layers
from isnet_jax.lrp.conservation import absorbed as absorption
from isnet_jax.lrp.rules import ZB

Array = jax.Array

STRATEGIES = ("loop", "vmap")


# ---------------------------------------------------------------- what is explained


@dataclass(frozen=True)
class Logit:
    """One map: the logit of ``classes`` (b,), or of the arg-max if None."""

    def quantities(
        self, logits: Array, classes: Array | None = None, rng: Array | None = None
    ) -> Array:
        """(1, b) explained quantities of logits (b, k)."""
        chosen = logits.argmax(-1) if classes is None else classes
        return jnp.take_along_axis(logits, chosen[:, None], -1).T


@dataclass(frozen=True)
class EachLogit:
    """One map a class: the start of the Original ISNet."""

    def quantities(
        self, logits: Array, classes: Array | None = None, rng: Array | None = None
    ) -> Array:
        """(k, b) explained quantities of logits (b, k)."""
        return logits.T


@dataclass(frozen=True)
class AllLogits:
    """One map of all logits at once."""

    def quantities(
        self, logits: Array, classes: Array | None = None, rng: Array | None = None
    ) -> Array:
        """(1, b) explained quantities of logits (b, k)."""
        return logits.sum(-1)[None]


@dataclass(frozen=True)
class Selective:
    """One map: the class-selective quantity of ``classes``, by default the LOWEST logit's.

    ``eta_c = log(P_c / (1 - P_c)) = y_c - logsumexp_{k != c} y_k``, exact and free of overflow.
    With ``epsilon > 0``, ``log(P_c + epsilon) - log(1 - P_c + epsilon)``: the original's form,
    whose derivative dies for confident samples (Faster ISNet, Bassi et al. 2024).
    """

    epsilon: float = 0.0

    def quantities(
        self, logits: Array, classes: Array | None = None, rng: Array | None = None
    ) -> Array:
        """(1, b) explained quantities of logits (b, k), k >= 2."""
        if logits.shape[-1] < 2:
            raise ValueError("the selective start compares classes: it needs at least 2 logits")
        chosen = logits.argmin(-1) if classes is None else classes
        own = jax.nn.one_hot(chosen, logits.shape[-1], dtype=bool)
        if self.epsilon > 0:
            p = jnp.where(own, jax.nn.softmax(logits, -1), 0).sum(-1)
            return (jnp.log(p + self.epsilon) - jnp.log(1 - p + self.epsilon))[None]
        others = jax.nn.logsumexp(jnp.where(own, -jnp.inf, logits), -1)
        return (jnp.where(own, logits, 0).sum(-1) - others)[None]


@dataclass(frozen=True)
class Stochastic:
    """One map: the top logit with probability 1/2, else one of the others drawn evenly, a sample.

    The original draws the top logit with 5/11 (Flex) or one coin a batch (Block). Without a key
    the top logit is explained.
    """

    def quantities(
        self, logits: Array, classes: Array | None = None, rng: Array | None = None
    ) -> Array:
        """(1, b) explained quantities of logits (b, k)."""
        if classes is None and rng is not None:
            classes = self.draw(logits, rng)
        return Logit().quantities(logits, classes)

    def draw(self, logits: Array, rng: Array) -> Array:
        """(b,) int32 classes."""
        batch, count = logits.shape
        top = logits.argmax(-1).astype(jnp.int32)
        if count == 1:
            return top
        coin, other = jax.random.split(rng)
        step = jax.random.randint(other, (batch,), 1, count, jnp.int32)
        return jnp.where(jax.random.bernoulli(coin, 0.5, (batch,)), top, (top + step) % count)


@dataclass(frozen=True)
class TopProbability:
    """One map: the largest softmax probability (ISNet Softmax Grad*Input)."""

    def quantities(
        self, logits: Array, classes: Array | None = None, rng: Array | None = None
    ) -> Array:
        """(1, b) explained quantities of logits (b, k)."""
        return jax.nn.softmax(logits, -1).max(-1)[None]


Start = Logit | EachLogit | AllLogits | Selective | Stochastic | TopProbability


class Quantity(Protocol):
    """The structure of a `Start`, for explained quantities of one's own; hashable."""

    def quantities(
        self, logits: Array, classes: Array | None = None, rng: Array | None = None
    ) -> Array:
        """(m, b) explained quantities of logits (b, k)."""


# ---------------------------------------------------------------- the core


class Maps(NamedTuple):
    """What `relevance` returns.

    Attributes:
        logits: (b, k), with their ordinary derivative.
        relevance: (b, m, *x.shape[1:]).
        quantities: (b, m), what each map decomposes.
        hidden: path -> relevance at that layer's output, (b, m, *its shape[1:]).
        aux: whatever the model function returned beside the logits.
    """

    logits: Array
    relevance: Array
    quantities: Array
    hidden: dict[str, Array]
    aux: Any


def relevance(
    f: Callable[..., tuple[Array, Any]],
    x: Array,
    start: Quantity,
    *,
    terminal: bool,
    classes: Array | None = None,
    strategy: str = "loop",
    hidden: tuple[str, ...] = (),
    rng: Array | None = None,
) -> Maps:
    """Relevance maps of ``f`` at ``x`` with one forward; pure, differentiable, jit and vmap safe.

    Args:
        f: x -> (logits (b, k), aux), a composite's view of a model; with ``hidden``,
            (x, zeros) -> (logits, (aux, kept)) as `isnet_jax.lrp.taps.call` makes it.
        x: (b, *space, c) float.
        start: the explained quantity.
        terminal: `Composite.terminal` of the view: the pulled-back value is the relevance itself.
        classes: (b,) int classes for `Logit`, `Selective` and `Stochastic`.
        strategy: "loop" unrolls the maps (fastest on CPU), "vmap" batches them.
        hidden: slash paths of layers whose output's relevance is wanted too.
        rng: key for `Stochastic`.

    Raises:
        ValueError: unknown strategy, or a hidden path that is no layer.
    """
    check("map strategy", strategy, STRATEGIES)
    if hidden:
        zeros = taps.zero_outputs(f, x, hidden)
        logits, pull, (aux, kept) = jax.vjp(f, x, zeros, has_aux=True)
    else:
        logits, pull, aux = jax.vjp(f, x, has_aux=True)
        kept = {}
    quantities, pull_quantities = jax.vjp(lambda y: start.quantities(y, classes, rng), logits)

    def one(selector: Array) -> tuple[Array, dict[str, Array]]:
        (ct,) = pull_quantities(selector)
        m, *caught = pull(ct)
        inner = {path: kept[path] * caught[0][path] for path in kept}
        return m if terminal else x * m, inner

    count = quantities.shape[0]
    selectors = jnp.broadcast_to(
        jnp.eye(count, dtype=logits.dtype)[:, :, None], (count, *quantities.shape)
    )
    if strategy == "vmap":
        stacked = jax.vmap(one, out_axes=1)(selectors)
    else:
        each = [one(selectors[i]) for i in range(count)]
        stacked = jax.tree.map(lambda *maps: jnp.stack(maps, axis=1), *each)
    return Maps(logits, stacked[0], quantities.T, stacked[1], aux)


# ---------------------------------------------------------------- for people


class Explanation(NamedTuple):
    """Result of `explain`.

    Attributes:
        relevance: shape of x, or (b, k, *x.shape[1:]) for ``target="each"``.
        logits: (b, k).
        conservation_gap: (b,) or (b, k): explained quantity minus the relevance that arrived,
            in units of the logit: what biases and stabilisers absorbed. (A rule that makes its
            own start, as `isnet_dual_zplus`, explains another quantity than the logit.)
        hidden: path -> relevance at that layer's output, (b, ...) or (b, k, ...).
        absorbed: path of every layer that can carry a rule -> (b,) or (b, k), its part of the
            gap, if asked for. What they leave of the gap was lost between them, by plain
            functions of the model that are not homogeneous, or behind them: the selective
            quantity is not homogeneous in the logits.
    """

    relevance: Array
    logits: Array
    conservation_gap: Array
    hidden: dict[str, Array]
    absorbed: dict[str, Array]


def explain(
    model: nnx.Module,
    x: Array | np.ndarray,
    *,
    target: int | str | Array | np.ndarray | None = None,
    composite: str | Composite = "epsilon",
    strategy: str = "loop",
    hidden: tuple[str, ...] = (),
    absorbed: bool = False,
) -> Explanation:
    """LRP heatmaps of a model built from `isnet_jax.lrp.layers`; the model is not changed.

    BatchNorms use their running averages. Eager: it checks values; `relevance` is the form for
    inside jit.

    Args:
        model: maps x to logits (b, k).
        x: (b, *space, c) float, finite.
        target: None, the predicted class; an int or (b,) ints, that class; "each", one map a
            class; "all", the sum of all logits; "selective", the least likely class against the
            others.
        composite: a `Composite` or a preset's name (see `isnet_jax.lrp.composite.PRESETS`).
        strategy: "loop" or "vmap" for ``target="each"``.
        hidden: slash paths of layers whose output's relevance is wanted too.
        absorbed: also tell what every layer absorbed, at the cost of a second program.

    Raises:
        ValueError: bad x, unknown target or composite, a class outside the logits, an unmatched
            layer.
    """
    composite = create(composite) if isinstance(composite, str) else composite
    if isinstance(hidden, str):
        raise ValueError(f"hidden must be a sequence of paths, got the string {hidden!r}")
    if isinstance(x, jax.core.Tracer):
        raise ValueError("explain checks values, so it is no function for jit: use `relevance`")
    x = jnp.asarray(x)
    if x.ndim < 2 or not x.size:
        raise ValueError(f"x has shape {x.shape}, expected (batch, ..., channels), none of them 0")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating point, got {x.dtype}")
    dtypes = {v.dtype for v in jax.tree.leaves(nnx.to_pure_dict(nnx.state(model, nnx.Param)))}
    if dtypes and x.dtype not in dtypes:
        raise ValueError(
            f"x is {x.dtype}, but the model's parameters are {sorted(map(str, dtypes))}"
        )
    if not bool(jnp.isfinite(x).all()):
        raise ValueError("x has non-finite values (NaN or infinity)")
    _check_box(composite, model, x)
    start, classes = _target(target, x.shape[0])
    twin: Any = composite.view(model)
    twin.eval()
    graphdef, state = nnx.split(twin)
    maps = _explain(
        graphdef,
        nnx.to_pure_dict(state),
        x,
        classes,
        start,
        composite.terminal(model),
        strategy,
        tuple(hidden),
    )
    count = maps.logits.shape[-1]
    if classes is not None and not bool(((classes >= 0) & (classes < count)).all()):
        raise ValueError(f"target has a class outside 0..{count - 1}: {np.asarray(classes)}")
    arrived = maps.relevance.sum(tuple(range(2, maps.relevance.ndim)))
    gap, lost = maps.quantities - arrived, {}
    if absorbed:
        paths = tuple(path for path, _ in rule_layers(twin))
        terminal = twin.input_layer if composite.terminal(model) else None
        lost = _absorbed(graphdef, nnx.to_pure_dict(state), x, classes, start, paths, terminal)
    if isinstance(start, EachLogit):
        return Explanation(maps.relevance, maps.logits, gap, maps.hidden, lost)
    first = jax.tree.map(lambda a: a[:, 0], (maps.relevance, gap, maps.hidden, lost))
    return Explanation(first[0], maps.logits, *first[1:])


def _check_box(composite: Composite, model: nnx.Module, x: Array) -> None:
    """Raises ValueError for inputs outside the box of a z^B rule, whose maps mean nothing."""
    for match in composite.matches(model):
        if isinstance(match.rule, ZB):
            low, high = (np.asarray(bound, x.dtype) for bound in (match.rule.low, match.rule.high))
            values = np.asarray(x)
            if (values < low).any() or (values > high).any():
                raise ValueError(
                    f"x lies in [{values.min():g}, {values.max():g}], outside the box "
                    f"[{match.rule.low}, {match.rule.high}] of the z^B rule at {match.path!r}"
                )


@partial(jax.jit, static_argnums=(0, 4, 5, 6, 7))
def _explain(graphdef, state, x, classes, start, terminal, strategy, hidden):
    def plain(x):
        return nnx.merge(graphdef, state)(x), None

    def tapped(x, zeros):
        logits, kept = taps.call(nnx.merge(graphdef, state), x, zeros)
        return logits, (None, kept)

    f = tapped if hidden else plain
    return relevance(
        f, x, start, terminal=terminal, classes=classes, strategy=strategy, hidden=hidden
    )


@partial(jax.jit, static_argnums=(0, 4, 5, 6))
def _absorbed(graphdef, state, x, classes, start, paths, terminal):
    def f(x, meters):
        return taps.flows(nnx.merge(graphdef, state), x, paths, meters)

    return absorption(f, x, lambda y: start.quantities(y, classes), paths, terminal)


def _target(target, batch: int) -> tuple[Start, Array | None]:
    words: dict[str, Start] = {
        "each": EachLogit(),
        "all": AllLogits(),
        "selective": Selective(),
    }
    if isinstance(target, str):
        if target not in words:
            raise ValueError(
                f"unknown target {target!r}; legal values: None, a class, one class a sample, "
                f"{', '.join(map(repr, words))}"
            )
        return words[target], None
    if target is None:
        return Logit(), None
    classes = jnp.asarray(target)
    if not jnp.issubdtype(classes.dtype, jnp.integer) or classes.shape not in ((), (batch,)):
        raise ValueError(
            f"target must be one int or ({batch},) ints, got {classes.dtype} {classes.shape}"
        )
    return Logit(), jnp.broadcast_to(classes, (batch,))
