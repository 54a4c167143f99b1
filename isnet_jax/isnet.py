"""ISNet: a classifier whose relevance maps are part of its loss.

``L = (1 - P) cross-entropy + P heatmap loss``, both from ONE forward of the model's LRP view:
Original ISNet explains every logit, Selective ISNet one class-selective quantity of the least
likely class, so its cost does not depend on the number of classes.

Source: Bassi et al. 2024, Nature Communications 15:291 (Original); Bassi et al. 2024, IEEE Access
12:155151 (Selective, LRP-Flex).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.losses import HeatmapLoss, total_relevance
from isnet_jax.lrp import Composite, EachLogit, Selective, relevance
from isnet_jax.lrp.composite import isnet_flex_zb
from isnet_jax.lrp.explain import STRATEGIES, Start

Array = jax.Array
Tree = Any


@dataclass(frozen=True)
class ISNet:
    """What is explained, by which rules, and how the maps are penalised.

    Attributes:
        start: explained quantity; see `variant`.
        composite: LRP rules of the maps.
        loss: heatmap loss.
        weight: P in [0, 1], the heatmap loss' share.
        strategy: "loop" or "vmap" over the maps of Original ISNet.
    """

    start: Start = field(default_factory=Selective)
    composite: Composite = field(default_factory=isnet_flex_zb)
    loss: HeatmapLoss = field(default_factory=HeatmapLoss)
    weight: float = 0.7
    strategy: str = "loop"

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"ISNet weight P must lie in [0, 1], got {self.weight}")
        check("map strategy", self.strategy, STRATEGIES)


VARIANTS: dict[str, Start] = {"selective": Selective(), "original": EachLogit()}


class Programs(NamedTuple):
    """The static halves of one model, all over the same variables.

    Attributes:
        train: plain model, BatchNorm on batch statistics.
        infer: plain model, BatchNorm on running averages.
        train_maps: the composite's view of ``train``.
        infer_maps: the composite's view of ``infer``.
        terminal: `Composite.terminal` of the views.
    """

    train: nnx.GraphDef
    infer: nnx.GraphDef
    train_maps: nnx.GraphDef
    infer_maps: nnx.GraphDef
    terminal: bool


def programs(model: nnx.Module, composite: Composite) -> Programs:
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

    return Programs(
        *halves(model), *halves(composite.view(model)), terminal=composite.terminal(model)
    )


def variables(model: nnx.Module) -> tuple[Tree, Tree]:
    """(parameters, everything else) of a model as nested dicts of arrays."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


def bind(graphdef: nnx.GraphDef, params: Tree, rest: Tree) -> Callable[[Array], tuple[Array, Tree]]:
    """A pure function ``x -> (logits, updated rest)``."""

    def f(x: Array) -> tuple[Array, Tree]:
        model = nnx.merge(graphdef, params, rest)
        logits = model(x)
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    return f


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Cross-entropy per sample, (b, k) and (b,) int to (b,)."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def sample_terms(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    isnet: ISNet | None,
    cuts: Array | tuple[float, float] = (1.0, 25.0),
    *,
    training: bool,
) -> tuple[dict[str, Array], Tree]:
    """Loss terms per sample, each (b,), and the updated rest; pure and twice differentiable.

    Args:
        graphs: `programs` of the model, with ``isnet.composite``.
        params: parameters.
        rest: BatchNorm statistics.
        batch: "image" (b, h, w, c), "label" (b,) int and, for an ISNet, "mask" (b, h, w, 1).
        isnet: None is the plain classifier, at no extra cost.
        cuts: (C1, C2) of the foreground loss.
        training: BatchNorm on batch statistics instead of running averages.
    """
    x, labels = batch["image"], batch["label"]
    if isnet is None:
        logits, rest = bind(graphs.train if training else graphs.infer, params, rest)(x)
        loss = cross_entropy(logits, labels)
        return {"loss": loss, "accuracy": _correct(logits, labels)}, rest
    f = bind(graphs.train_maps if training else graphs.infer_maps, params, rest)
    maps = relevance(f, x, isnet.start, terminal=graphs.terminal, strategy=isnet.strategy)
    classification = cross_entropy(maps.logits, labels)
    heatmap, background, foreground = isnet.loss(maps.relevance, batch["mask"], cuts)
    terms = {
        "loss": (1 - isnet.weight) * classification + isnet.weight * heatmap,
        "accuracy": _correct(maps.logits, labels),
        "cross_entropy": classification,
        "background": background,
        "foreground": foreground,
    }
    return terms, maps.aux


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    isnet: ISNet | None,
    cuts: Array | tuple[float, float] = (1.0, 25.0),
) -> tuple[Array, tuple[dict[str, Array], Tree]]:
    """Training loss of a batch, and (metrics, updated rest): the means of `sample_terms`."""
    terms, rest = sample_terms(graphs, params, rest, batch, isnet, cuts, training=True)
    values = {name: term.mean() for name, term in terms.items()}
    return values["loss"], (values, rest)


def map_totals(graphs: Programs, params: Tree, rest: Tree, x: Array, isnet: ISNet) -> Array:
    """`total_relevance` of a batch, (b,): what the automatic cuts are tuned on."""
    f = bind(graphs.train_maps, params, rest)
    maps = relevance(f, x, isnet.start, terminal=graphs.terminal, strategy=isnet.strategy)
    return total_relevance(maps.relevance)


def _correct(logits: Array, labels: Array) -> Array:
    return (logits.argmax(-1).astype(labels.dtype) == labels).astype(jnp.float32)
