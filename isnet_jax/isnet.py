"""ISNet: a classifier whose relevance maps are part of its loss.

``L = (1 - P) cross-entropy + P heatmap loss``, both from ONE forward of the model's LRP view:
Original ISNet explains every logit, Selective ISNet one class-selective quantity of the least
likely class, Stochastic ISNet one random logit, Dual ISNet all logits at once by two rules; any of
them can be supervised deeply.

Source: Bassi et al. 2024, Nature Communications 15:291 (Original); Bassi et al. 2024, IEEE Access
12:155151 (Selective, LRP-Flex).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.losses import HeatmapLoss, total_relevance
from isnet_jax.lrp import (
    AllLogits,
    Composite,
    EachLogit,
    Maps,
    Selective,
    Stochastic,
    TopProbability,
    relevance,
    taps,
)
from isnet_jax.lrp.composite import (
    gradient_x_input,
    isnet_dual_zplus,
    isnet_epsilon_zb,
    isnet_flex_zb,
)
from isnet_jax.lrp.explain import STRATEGIES, Start
from isnet_jax.lrp.maps import keep_products

Array = jax.Array
Tree = Any


@dataclass(frozen=True)
class ISNet:
    """What is explained, by which rules, and how the maps are penalised.

    Attributes:
        start: explained quantity; see `VARIANTS`.
        composite: LRP rules of the maps.
        loss: heatmap loss.
        weight: P in [0, 1], the heatmap loss' share.
        strategy: "loop" or "vmap" over the maps of Original ISNet.
        also: further (start, composite) pairs whose maps join the loss (Dual ISNet). Each is a
            view of its own: XLA merges its forward with the first one's.
        deep: LRP deep supervision: the loss also on the maps at the model's `supervised` layers.
        deep_decay: ranked pooling decay over the layers; 1 is their mean.
        remat: keep the convolutions' results only and compute what lies between them again in
            the backward pass: less memory, some more time, the same numbers.
    """

    start: Start = field(default_factory=Selective)
    composite: Composite = field(default_factory=isnet_flex_zb)
    loss: HeatmapLoss = field(default_factory=HeatmapLoss)
    weight: float = 0.7
    strategy: str = "loop"
    also: tuple[tuple[Start, Composite], ...] = ()
    deep: bool = False
    deep_decay: float = 1.0
    remat: bool = False

    def __post_init__(self) -> None:
        for start, composite in self.parts:
            if not isinstance(start, Start) or not isinstance(composite, Composite):
                raise TypeError(
                    f"ISNet needs a start (lrp.Selective(), …) and a Composite (lrp.create(…)), "
                    f"got {start!r} and {composite!r}"
                )
        if not 0 <= self.weight <= 1:
            raise ValueError(f"ISNet weight P must lie in [0, 1], got {self.weight}")
        if not 0 <= self.deep_decay <= 1:
            raise ValueError(f"ISNet deep_decay must lie in [0, 1], got {self.deep_decay}")
        check("map strategy", self.strategy, STRATEGIES)

    @property
    def composites(self) -> tuple[Composite, ...]:
        """The composites of all parts: what `programs` needs."""
        return tuple(composite for _, composite in self.parts)

    @property
    def parts(self) -> tuple[tuple[Start, Composite], ...]:
        """All (start, composite) pairs."""
        return ((self.start, self.composite), *self.also)


VARIANTS: dict[str, dict[str, Any]] = {
    "selective": {"start": Selective()},
    "original": {"start": EachLogit()},
    "stochastic": {"start": Stochastic()},
    "dual": {
        "start": AllLogits(),
        "composite": isnet_epsilon_zb(),
        "also": ((AllLogits(), isnet_dual_zplus()),),
    },
    "grad_x_input": {"start": EachLogit(), "composite": gradient_x_input()},
    "softmax_grad_x_input": {"start": TopProbability(), "composite": gradient_x_input()},
}
"""The papers' ISNets: arguments of `ISNet`. Only Dual and the two ablations fix their rules."""


class View(NamedTuple):
    """A composite's view of one model.

    Attributes:
        train: BatchNorm on batch statistics.
        infer: BatchNorm on running averages.
        terminal: `Composite.terminal`.
    """

    train: nnx.GraphDef
    infer: nnx.GraphDef
    terminal: bool


class Programs(NamedTuple):
    """The static halves of one model, all over the same variables.

    Attributes:
        train: plain model, BatchNorm on batch statistics.
        infer: plain model, BatchNorm on running averages.
        views: one `View` a composite.
        supervised: paths of the layers that deep supervision adds.
    """

    train: nnx.GraphDef
    infer: nnx.GraphDef
    views: tuple[View, ...]
    supervised: tuple[str, ...]


def programs(model: nnx.Module, *composites: Composite) -> Programs:
    """The `Programs` of ``model`` (concrete or abstract), which is not changed.

    Raises:
        ValueError: see `Composite.matches`.
    """

    def halves(twin: nnx.Module) -> tuple[nnx.GraphDef, nnx.GraphDef]:
        graphdef, state = nnx.split(twin)
        twin = nnx.merge(graphdef, nnx.to_pure_dict(state))
        found = []
        for switch in (twin.train, twin.eval):
            switch()
            found.append(nnx.split(twin, nnx.Param, ...)[0])
        return found[0], found[1]

    views = tuple(
        View(*halves(composite.view(model)), terminal=composite.terminal(model))
        for composite in composites
    )
    return Programs(*halves(model), views, tuple(getattr(model, "supervised", ())))


def variables(model: nnx.Module) -> tuple[Tree, Tree]:
    """(parameters, everything else) of a model as nested dicts of arrays."""
    _, *states = nnx.split(model, nnx.Param, ...)
    params, rest = map(nnx.to_pure_dict, states)
    return params, rest


def bind(graphdef: nnx.GraphDef, params: Tree, rest: Tree) -> Callable[[Array], tuple[Array, Tree]]:
    """A pure function ``x -> (logits, updated rest)``."""

    def f(x: Array) -> tuple[Array, Tree]:
        model = nnx.merge(graphdef, params, rest)
        logits = model(x)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    return f


def bind_tapped(
    graphdef: nnx.GraphDef, params: Tree, rest: Tree
) -> Callable[[Array, dict[str, Array]], tuple[Array, tuple[Tree, dict[str, Array]]]]:
    """As `bind`, ``(x, zeros) -> (logits, (updated rest, kept))``; see `isnet_jax.lrp.taps`."""

    def f(x: Array, zeros: dict[str, Array]) -> tuple[Array, tuple[Tree, dict[str, Array]]]:
        model = nnx.merge(graphdef, params, rest)
        logits, kept = taps.call(model, x, zeros)
        return logits, (nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param))), kept)

    return f


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy per sample, (b, k) and (b,) int to (b,).

    Labels (b, k) of 0 and 1 are independent findings: the mean binary cross-entropy over them.
    """
    if labels.ndim == logits.ndim:
        return optax.sigmoid_binary_cross_entropy(logits, labels.astype(logits.dtype)).mean(-1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def heatmaps(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    x: Array,
    isnet: ISNet,
    *,
    training: bool,
    rng: Array | None = None,
) -> list[Maps]:
    """The maps of every part of an ISNet, at the input and (deep) at the supervised layers.

    Args:
        graphs: of `programs`.
        params: parameters of the classifier.
        rest: its other variables.
        x: images (b, h, w, c).
        isnet: whose parts' composites the programs were made for.
        training: whether the Stochastic ISNet draws the class.
        rng: its random key.

    Raises:
        ValueError: deep supervision of a model without `supervised` layers, programs of other
            composites, or a Stochastic ISNet in training without a key.
    """
    if len(graphs.views) != len(isnet.parts):
        raise ValueError(
            f"programs were made for {len(graphs.views)} composites, this ISNet has "
            f"{len(isnet.parts)}: use programs(model, *isnet.composites)"
        )
    if training and rng is None and any(isinstance(start, Stochastic) for start, _ in isnet.parts):
        raise ValueError(
            "the Stochastic ISNet draws a class a step: give rng, a fresh key each step"
        )
    hidden = graphs.supervised if isnet.deep else ()
    if isnet.deep and not hidden:
        raise ValueError("LRP deep supervision needs a model with an attribute `supervised`")

    def of_one(start: Start, view: View, params: Tree, rest: Tree, x: Array) -> Maps:
        graphdef = view.train if training else view.infer
        return relevance(
            (bind_tapped if hidden else bind)(graphdef, params, rest),
            x,
            start,
            terminal=view.terminal,
            strategy=isnet.strategy,
            hidden=hidden,
            rng=rng,
        )

    made = []
    for (start, _), view in zip(isnet.parts, graphs.views, strict=True):
        one: Callable[..., Maps] = partial(of_one, start, view)
        if isnet.remat:
            one = jax.checkpoint(one, policy=keep_products)
        made.append(one(params, rest, x))
    return made


def _by_layer(maps: list[Maps]) -> list[Array]:
    """Relevance (b, all parts' maps, *space, c) of the input, then of each hidden layer."""
    layers = [[part.relevance, *part.hidden.values()] for part in maps]
    return [jnp.concatenate(parts, axis=1) for parts in zip(*layers, strict=True)]


def _map_cuts(cuts: Array, layers: int, maps: list[Maps]) -> Array:
    """Cuts (2,), (parts, 2) or (layers, parts, 2) as (layers, maps, 2)."""
    cuts = jnp.broadcast_to(cuts, (layers, len(maps), 2))
    counts = [part.relevance.shape[1] for part in maps]
    return jnp.repeat(cuts, np.asarray(counts), axis=1, total_repeat_length=sum(counts))


def _over_layers(losses: Array, decay: float) -> Array:
    """(layers, b) to (b,) so that the batch mean is the ranked pooling of the layers' means."""
    rank = jnp.argsort(jnp.argsort(-losses.mean(1)))
    weights = jnp.asarray(np.power(float(decay), np.arange(len(losses))), losses.dtype)
    return (weights[rank] / weights.sum()) @ losses


def sample_terms(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    isnet: ISNet | None,
    cuts: Array | tuple[float, float] = (1.0, 25.0),
    *,
    training: bool,
    rng: Array | None = None,
) -> tuple[dict[str, Array], Tree]:
    """Loss terms per sample, each (b,), and the updated rest; pure and twice differentiable.

    Args:
        graphs: `programs` of the model, with the composites of ``isnet.parts``.
        params: parameters.
        rest: BatchNorm statistics.
        batch: "image" (b, h, w, c), "label" (b,) int and, for an ISNet, "mask" (b, h, w, 1).
        isnet: None is the plain classifier, at no extra cost.
        cuts: (C1, C2) of the foreground loss, or one pair a part (parts, 2), or a layer and
            part (layers, parts, 2).
        training: BatchNorm on batch statistics instead of running averages.
        rng: key for the Stochastic ISNet.
    """
    x, labels = batch["image"], batch["label"]
    if isnet is None:
        logits, rest = bind(graphs.train if training else graphs.infer, params, rest)(x)
        loss = cross_entropy(logits, labels)
        return {"loss": loss, "accuracy": correct(logits, labels)}, rest
    maps = heatmaps(graphs, params, rest, x, isnet, training=training, rng=rng)
    layers = _by_layer(maps)
    each = [
        isnet.loss(layer, batch["mask"], (c[:, 0], c[:, 1]))
        for layer, c in zip(layers, _map_cuts(jnp.asarray(cuts), len(layers), maps), strict=True)
    ]
    heatmap, background, foreground = (
        _over_layers(jnp.stack(term), isnet.deep_decay) for term in zip(*each, strict=True)
    )
    classification = cross_entropy(maps[0].logits, labels)
    terms = {
        "loss": (1 - isnet.weight) * classification + isnet.weight * heatmap,
        "accuracy": correct(maps[0].logits, labels),
        "cross_entropy": classification,
        "background": background,
        "foreground": foreground,
    }
    return terms, maps[0].aux


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    isnet: ISNet | None,
    cuts: Array | tuple[float, float] = (1.0, 25.0),
    rng: Array | None = None,
) -> tuple[Array, tuple[dict[str, Array], Tree]]:
    """Training loss of a batch, and (metrics, updated rest): the means of `sample_terms`."""
    terms, rest = sample_terms(graphs, params, rest, batch, isnet, cuts, training=True, rng=rng)
    values = {name: term.mean() for name, term in terms.items()}
    return values["loss"], (values, rest)


def map_totals(graphs: Programs, params: Tree, rest: Tree, x: Array, isnet: ISNet) -> Array:
    """`total_relevance` of a batch, (layers, parts, b): what the automatic cuts are tuned on."""
    maps = heatmaps(graphs, params, rest, x, isnet, training=True)
    rows = [[part.relevance, *part.hidden.values()] for part in maps]
    return jnp.stack([jnp.stack([total_relevance(r) for r in row]) for row in rows], axis=1)


def correct(logits: Array, labels: Array) -> Array:
    """1 where the largest logit (b, k) is the label's (b,), else 0; float32 (b,).

    Of labels (b, k) of 0 and 1 the share that the logits' signs tell right.
    """
    if labels.ndim == logits.ndim:
        return ((logits > 0) == (labels > 0)).astype(jnp.float32).mean(-1)
    return (logits.argmax(-1).astype(labels.dtype) == labels).astype(jnp.float32)
