"""Distillation of a frozen teacher into a student: of its explanations, features or outputs.

Explanation distillation trains on ONE loss, the distance between the student's and the teacher's
heatmap of one logit a sample; labels are not used. The student's last linear layer is the
teacher's, frozen (`with_teacher_head`), because relevance says nothing about its bias.

Source: Bassi, Cavalli, Decherchi 2024, arXiv 2407.09788 ("Explanation is All You Need in
Distillation"); Hinton et al. 2015 (output); Zagoruyko & Komodakis 2017 (activation attention);
Selvaraju et al. 2017 (Grad-CAM).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.isnet import Programs, bind, bind_tapped, programs
from isnet_jax.legal import check
from isnet_jax.lrp import Logit, Selective, Stochastic, relevance, taps
from isnet_jax.lrp.composite import gradient_x_input, isnet_flex, rule_layers
from isnet_jax.lrp.layers import Conv, ReLU
from isnet_jax.lrp.rules import Epsilon, magnitude

Array = jax.Array
Tree = Any
Variables = tuple[Tree, Tree]

INPUT_MAPS = ("lrp", "gradient_x_input", "gradient")
LAYER_MAPS = ("grad_cam", "attention", "features")
TARGETS = (*INPUT_MAPS, *LAYER_MAPS, "output")
TEACHER_BN = ("batch", "running")

RECIPES: dict[str, dict[str, float]] = {
    "lrp": {"epochs": 100, "learning_rate": 1e-2, "momentum": 0.99},
    "gradient_x_input": {"epochs": 200, "learning_rate": 1e-3, "momentum": 0.95},
    "gradient": {"epochs": 200, "learning_rate": 1e-3, "momentum": 0.95},
    "features": {"epochs": 100, "learning_rate": 1e-2, "momentum": 0.99},
    "output": {"epochs": 100, "learning_rate": 1e-2, "momentum": 0.99},
}
"""Published SGD settings (Coloured MNIST; batch 128, clip 1, no decay, no schedule)."""


@dataclass(frozen=True)
class Distillation:
    """What of the teacher is distilled, and how the two are compared.

    Attributes:
        target: one of `TARGETS`.
        log10_epsilon: (low, high), LRP's epsilon is 10^U(low, high), one a sample and step, the
            same for teacher and student; without a key 10^((low + high) / 2).
        selective: explain the class-selective quantity (epsilon 0.01) instead of the logit.
        teacher_bn: "batch" runs the teacher on batch statistics in training, as the released code
            does, "running" always on its running averages.
        statistics: "through" lets heatmaps differentiate the batch statistics, as the released
            code does; "detach" holds them constant (proper LRP).
        freeze_head: no gradient reaches the student's output layer; None: all targets but output.
        temperature: of the output distillation, > 0.

    Raises:
        ValueError: a value outside the above.
    """

    target: str = "lrp"
    log10_epsilon: tuple[float, float] = (-2.0, -1.0)
    selective: bool = False
    teacher_bn: str = "batch"
    statistics: str = "through"
    freeze_head: bool | None = None
    temperature: float = 3.0

    def __post_init__(self) -> None:
        check("distillation target", self.target, TARGETS)
        check("teacher_bn", self.teacher_bn, TEACHER_BN)
        check("statistics", self.statistics, ("through", "detach"))
        low, high = self.log10_epsilon
        if not -30 <= low <= high <= 30:
            raise ValueError(
                f"log10_epsilon={self.log10_epsilon}; expected -30 <= low <= high <= 30"
            )
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature}; must be positive and finite")

    @property
    def frozen_head(self) -> bool:
        """Whether the student's output layer gets no gradient."""
        return self.target != "output" if self.freeze_head is None else self.freeze_head


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
                layer.__class__, layer.drawn = _DrawnReLU, _Drawn(epsilon)
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
    return Explained(jax.nn.relu(cam), logits, rest)


# ---------------------------------------------------------------- distances


def _mean_size(values: Array) -> Array:
    return magnitude(values).reshape(len(values), -1).mean(1)


def _root(value: Array) -> Array:
    """Square root with derivative 0 at 0, where the true one is infinite."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1)), 0)


def geometric_l1(student: Array, teacher: Array) -> Array:
    """``<|s - t|> / (sqrt(<|s|> <|t|>) + 1e-10)`` per sample, (b, ...) twice to (b,) >= 0.

    Unchanged by a common factor; the normaliser is part of the derivative (arXiv 2407.09788).

    Raises:
        ValueError: shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"distillation compares arrays of one shape, got student {student.shape} and "
            f"teacher {teacher.shape}"
        )
    level = _root(_mean_size(student)) * _root(_mean_size(teacher)) + 1e-10
    return _mean_size(student - teacher) / level


def pyramid_scales(sides: tuple[int, ...]) -> tuple[int, ...]:
    """Pooling factors 1, 2, 4, … that leave 8 or more of the shortest side; always 1."""
    scales = [1]
    while min(sides) // (2 * scales[-1]) >= 8:
        scales.append(2 * scales[-1])
    return tuple(scales)


def pyramid_distance(student: Array, teacher: Array) -> Array:
    """Mean of `geometric_l1` over average-pooled maps (b, h, w, c); (b,) >= 0.

    Windows have side and stride of `pyramid_scales`; what does not fill a window is left out.

    Raises:
        ValueError: shapes differ.
    """
    each = [
        geometric_l1(_pooled(student, s), _pooled(teacher, s))
        for s in pyramid_scales(student.shape[1:3])
    ]
    return jnp.stack(each).mean(0)


def _pooled(maps: Array, scale: int) -> Array:
    b, h, w, c = maps.shape
    h, w = h // scale, w // scale
    cut = maps[:, : h * scale, : w * scale]
    return cut.reshape(b, h, scale, w, scale, c).mean((2, 4))


def output_distance(student: Array, teacher: Array, temperature: float) -> Array:
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` of logits (b, k), (b,) >= 0 (Hinton 2015)."""
    log_t = jax.nn.log_softmax(teacher / temperature, -1)
    log_s = jax.nn.log_softmax(student / temperature, -1)
    return temperature**2 * (jnp.exp(log_t) * (log_t - log_s)).sum(-1)


# ---------------------------------------------------------------- the objective


def teacher_targets(
    teacher: Side,
    variables: Variables,
    batch: dict[str, Array],
    method: Distillation,
    *,
    training: bool,
    rng: Array | None = None,
) -> dict[str, Array]:
    """The teacher's share of a batch: compute it in the step, or once and keep it beside the data.

    Args:
        teacher: see `side`.
        variables: the teacher's.
        batch: "image" (b, h, w, c), or "teacher_image" where the teacher sees another one (the
            masked image, say).
        method: settings.
        training: together with ``teacher_bn="batch"`` batch statistics. A cache made with them
            depends on which samples shared a batch.
        rng: key for classes and epsilons; None: arg-max and the middle epsilon.

    Returns:
        "teacher_value" (map, features or logits), "teacher_class" (b,) int32 and
        "teacher_epsilon" (b,), free of derivatives.
    """
    x = batch.get("teacher_image", batch["image"])
    of_class, of_epsilon = (None, None) if rng is None else jax.random.split(rng)
    epsilon = draw_epsilon(method, x.shape[0], of_epsilon, x.dtype)
    seen = explained(
        teacher,
        variables,
        x,
        method,
        training=training and method.teacher_bn == "batch",
        epsilon=epsilon,
        rng=of_class,
    )
    made = {
        "teacher_value": seen.value,
        "teacher_class": explained_classes(seen.logits, of_class),
        "teacher_epsilon": epsilon,
    }
    return jax.tree.map(jax.lax.stop_gradient, made)


def sample_terms(
    student: Side,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: Distillation,
    teacher: tuple[Side, Variables] | None = None,
    *,
    training: bool,
    rng: Array | None = None,
) -> tuple[dict[str, Array], Tree]:
    """Loss per sample (b,), with accuracy where labels are known, and the student's updated rest.

    Args:
        student: see `side`.
        params: the student's parameters.
        rest: the student's BatchNorm statistics.
        batch: "image"; optionally "label" (b,) int; for a cached teacher `teacher_targets` too.
        method: settings.
        teacher: (side, variables) of an online teacher; None: its targets are in the batch.
        training: BatchNorm on batch statistics.
        rng: key for classes and epsilons of an online teacher.

    Raises:
        ValueError: neither teacher nor targets, or shapes that differ.
    """
    if teacher is not None:
        targets = teacher_targets(*teacher, batch, method, training=training, rng=rng)
    else:
        names = ("teacher_value", "teacher_class", "teacher_epsilon")
        missing = [name for name in names if name not in batch]
        if missing:
            raise ValueError(f"no teacher given and the batch lacks {', '.join(missing)}")
        targets = {name: jax.lax.stop_gradient(batch[name]) for name in names}
    if method.frozen_head:
        params = freeze(params, student.head)
    seen = explained(
        student,
        (params, rest),
        batch["image"],
        method,
        training=training,
        classes=targets["teacher_class"],
        epsilon=targets["teacher_epsilon"],
    )
    other = targets["teacher_value"]
    if method.target == "output":
        loss = output_distance(seen.value, other, method.temperature)
    elif method.target in INPUT_MAPS:
        loss = pyramid_distance(seen.value, other)
    else:
        loss = geometric_l1(seen.value, other)
    terms = {"loss": loss}
    if "label" in batch:
        right = seen.logits.argmax(-1).astype(batch["label"].dtype) == batch["label"]
        terms["accuracy"] = right.astype(jnp.float32)
    return terms, seen.rest


def objective(
    student: Side,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: Distillation,
    teacher: tuple[Side, Variables] | None = None,
    rng: Array | None = None,
) -> tuple[Array, tuple[dict[str, Array], Tree]]:
    """Training loss of a batch, and (metrics, updated rest): the means of `sample_terms`."""
    terms, rest = sample_terms(
        student, params, rest, batch, method, teacher, training=True, rng=rng
    )
    values = {name: term.mean() for name, term in terms.items()}
    return values["loss"], (values, rest)


# ---------------------------------------------------------------- the head


def freeze(params: Tree, path: str) -> Tree:
    """Nested parameters whose entries under the slash ``path`` get no gradient.

    Raises:
        ValueError: nothing lies at ``path``.
    """
    name, _, below = path.partition("/")
    # Lists of layers are dicts with integer keys.
    key = int(name) if name.isdigit() and int(name) in params else name
    if key not in params:
        raise ValueError(f"no parameters at {name!r}; there are {sorted(map(str, params))}")
    inner = params[key]
    return {**params, key: freeze(inner, below) if below else jax.lax.stop_gradient(inner)}


class AdaptedPool(nnx.Module):
    """A 1x1 convolution to the teacher's width before a pool, (b, h, w, c) to (b, features)."""

    def __init__(self, adapter: Conv, pool: nnx.Module) -> None:
        self.adapter = adapter
        self.pool = pool

    def __call__(self, x: Array) -> Array:
        """Adapts and pools x (b, h, w, c)."""
        return self.pool(self.adapter(x))


def with_teacher_head(
    student: nnx.Module, teacher: nnx.Module, *, rngs: nnx.Rngs | None = None
) -> nnx.Module:
    """A student with a copy of the teacher's output layer; neither given model is changed.

    Where the widths differ, a 1x1 convolution with bias before the student's average pool makes
    the student's last features as wide as the teacher's (arXiv 2407.09788, released code).

    Args:
        student: a model whose logits are ``classifier(average(features))``: SimpleCNN, ResNet,
            DenseNet.
        teacher: likewise.
        rngs: initialises the convolution; only needed where the widths differ.

    Raises:
        ValueError: a model of another form, pools of different grids, or rngs missing.
    """
    for what, model in (("student", student), ("teacher", teacher)):
        if not hasattr(model, "average") or not hasattr(model, "classifier"):
            raise ValueError(f"{what} {type(model).__name__} has no `average` and `classifier`")
    student, head = nnx.clone(student), nnx.clone(teacher.classifier)
    have, want = student.classifier.in_features, head.in_features
    cells = student.average.size**2
    if student.average.size != teacher.average.size:
        raise ValueError(
            f"student pools to {student.average.size}, teacher to {teacher.average.size} cells "
            "a side: their heads read different grids"
        )
    student.classifier = head
    if have != want:
        if rngs is None:
            raise ValueError(f"student features {have}, teacher's {want}: the adapter needs rngs")
        adapter = Conv(have // cells, want // cells, (1, 1), rngs=rngs)
        student.average = AdaptedPool(adapter, student.average)
        # The classifier now reads what the adapter makes, of either sign.
        student.rectified = None
    return student
