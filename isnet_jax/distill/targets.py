"""What is compared of one network: a heatmap, a feature map or its logits.

Source: arXiv 2407.09788; Zagoruyko & Komodakis 2017 (activation attention); Selvaraju et al. 2017
(Grad-CAM).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.distill.heads import AdaptedPool
from isnet_jax.distill.settings import INPUT_MAPS, LAYER_MAPS, Distillation
from isnet_jax.isnet import Programs, bind, bind_tapped, programs
from isnet_jax.lrp import Logit, Selective, Stochastic, relevance, taps
from isnet_jax.lrp.composite import gradient_x_input, isnet_flex, rule_layers
from isnet_jax.lrp.layers import ReLU
from isnet_jax.lrp.rules import Epsilon

Array = jax.Array
Tree = Any
Variables = tuple[Tree, Tree]


class Side(NamedTuple):
    """One network's static half.

    Attributes:
        graphs: its `isnet_jax.isnet.Programs` with one view.
        layer: path of the layer whose output is the last feature map.
        head: path of the layer that makes the logits.
    """

    graphs: Programs
    layer: str
    head: str


def side(model: nnx.Module, method: Distillation) -> Side:
    """The static half of a student or teacher (concrete or abstract), which is not changed.

    Raises:
        ValueError: no ReLU to carry LRP's epsilon, or (layer targets) no `supervised` layers.
    """
    if method.target == "lrp":
        rules = isnet_flex(1.0, statistics=method.statistics)  # each call puts its own epsilon
        if not any(layer.kind == "relu" for _, layer in rule_layers(model)):
            raise ValueError(f"{type(model).__name__} has no ReLU layer: LRP needs one")
    else:
        rules = replace(gradient_x_input(), statistics=method.statistics)
    adapted = isinstance(getattr(model, "average", None), AdaptedPool)
    known = ("average/adapter",) if adapted else tuple(getattr(model, "supervised", ()))
    if method.target in LAYER_MAPS and not known:
        raise ValueError(f"{type(model).__name__} names no `supervised` layers: no feature map")
    head = getattr(model, "output_layer", "classifier")
    return Side(programs(model, rules), known[-1] if known else "", head)


# ---------------------------------------------------------------- maps


class _DrawnReLU(ReLU):
    """A ReLU whose LRP factor takes one epsilon a sample."""

    drawn: _Drawn

    def __call__(self, x: Array) -> Array:
        """Rectifies x (b, ...)."""
        epsilon = self.drawn.values.reshape(-1, *(1,) * (x.ndim - 1))
        return _stabilize(jax.nn.relu(x), epsilon)


class _Drawn:
    """Holds an array where the module tree must not see one."""

    def __init__(self, values: Array) -> None:
        self.values = values


@jax.custom_vjp
def _stabilize(a: Array, epsilon: Array) -> Array:
    """Identity whose inner derivative is ``m a / (a + epsilon)``, a >= 0; see `lrp.ops`."""
    return a


_stabilize.defvjp(
    lambda a, epsilon: (a, (a, epsilon)),
    lambda kept, m: (m * (kept[0] / (kept[0] + kept[1])), None),
)


@dataclass(frozen=True)
class _Explained:
    """A start that explains given classes, or draws them."""

    selective: bool

    def quantities(
        self, logits: Array, classes: Array | None = None, rng: Array | None = None
    ) -> Array:
        chosen = explained_classes(logits, rng) if classes is None else classes
        start = Selective(epsilon=0.01) if self.selective else Logit()
        return start.quantities(logits, chosen)


def explained_classes(logits: Array, rng: Array | None) -> Array:
    """Explained classes (b,) int32 of the teacher's logits (b, k).

    The arg-max with probability 1/2, else one of the others drawn evenly; the arg-max without a
    key.
    """
    if rng is None:
        return logits.argmax(-1).astype(jnp.int32)
    return Stochastic().draw(logits, rng)


def draw_epsilon(method: Distillation, count: int, rng: Array | None, dtype: Any) -> Array:
    """LRP's epsilons (count,) > 0 of ``dtype``; see `Distillation.log10_epsilon`."""
    low, high = method.log10_epsilon
    if rng is None:
        return jnp.full((count,), 10 ** ((low + high) / 2), dtype)
    return 10 ** jax.random.uniform(rng, (count,), dtype, low, high)


class Explained(NamedTuple):
    """What is compared of one network.

    Attributes:
        value: map (b, h, w, c), feature map, or logits for the output target.
        logits: (b, k).
        rest: updated BatchNorm statistics.
    """

    value: Array
    logits: Array
    rest: Tree


def _with_epsilon(graphdef: nnx.GraphDef, params: Tree, rest: Tree, epsilon: Array):
    """As `isnet_jax.isnet.bind`, every treated ReLU with one epsilon a sample (b,)."""

    def f(x: Array) -> tuple[Array, Tree]:
        model = nnx.merge(graphdef, params, rest)
        for _, layer in rule_layers(model):
            if layer.kind == "relu" and isinstance(layer.rule, Epsilon):
                changed: Any = layer
                changed.__class__, changed.drawn = _DrawnReLU, _Drawn(epsilon)
        return model(x), nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))

    return f


def explained(
    one: Side,
    variables: Variables,
    x: Array,
    method: Distillation,
    *,
    training: bool,
    classes: Array | None = None,
    epsilon: Array | None = None,
    rng: Array | None = None,
) -> Explained:
    """What `Distillation.target` compares, of one network; pure and twice differentiable.

    Args:
        one: see `side`.
        variables: (parameters, BatchNorm statistics).
        x: (b, h, w, c) float.
        method: settings.
        training: BatchNorm on batch statistics.
        classes: (b,) explained classes; None draws them by ``rng`` from the network's logits.
        epsilon: (b,) LRP's epsilons; None is `draw_epsilon` without a key.
        rng: key of `explained_classes`.
    """
    graphs, start = one.graphs, _Explained(method.selective)
    view = graphs.views[0].train if training else graphs.views[0].infer
    if method.target == "output":
        logits, rest = bind(graphs.train if training else graphs.infer, *variables)(x)
        return Explained(logits, logits, rest)
    if method.target in INPUT_MAPS:
        if method.target == "lrp":
            if epsilon is None:
                epsilon = draw_epsilon(method, x.shape[0], None, x.dtype)
            f = _with_epsilon(view, *variables, epsilon)
        else:
            f = bind(view, *variables)
        # "terminal" leaves out the factor x: the bare derivative.
        bare = method.target == "gradient"
        maps = relevance(f, x, start, terminal=bare, classes=classes, rng=rng)
        return Explained(maps.relevance[:, 0], maps.logits, maps.aux)
    f = bind_tapped(view, *variables)
    zeros = taps.zero_outputs(f, x, (one.layer,))
    if method.target != "grad_cam":
        logits, (rest, kept) = f(x, zeros)
        features = kept[one.layer]
        if method.target == "attention":
            features = jnp.square(features).sum(-1, keepdims=True)
        return Explained(features, logits, rest)
    logits, pull, (rest, kept) = jax.vjp(lambda z: f(x, z), zeros, has_aux=True)
    _, pull_quantity = jax.vjp(lambda y: start.quantities(y, classes, rng)[0], logits)
    (slope,) = pull(pull_quantity(jnp.ones(logits.shape[:1], logits.dtype))[0])
    features, slope = kept[one.layer], slope[one.layer]
    weights = slope.mean(tuple(range(1, slope.ndim - 1)), keepdims=True)
    cam = (features * jnp.broadcast_to(weights, features.shape)).sum(-1, keepdims=True)
    return Explained(jax.nn.relu(cam) if method.rectified else cam, logits, rest)
