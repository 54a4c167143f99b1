"""The outer derivative of a heatmap is the true one: every rule x layer against differences.

Everything runs in float64. Differences are Richardson-extrapolated (error h^4) with a step so
small that no ReLU, maximum or rank changes side: a crossed kink would show as a large error.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from isnet_jax.isnet import ISNet, bind, cross_entropy, objective, programs
from isnet_jax.losses import HeatmapLoss
from isnet_jax.lrp import (
    INPUT,
    ZB,
    Composite,
    EachLogit,
    Epsilon,
    Pass,
    Rule,
    Selective,
    ZPlus,
    maps,
    relevance,
)
from isnet_jax.lrp.composite import isnet_epsilon_zb, isnet_flex_zb
from isnet_jax.lrp.layers import (
    AdaptiveAvgPool,
    Add,
    AvgPool,
    BatchNorm,
    Conv,
    Dense,
    MaxPool,
    ReLU,
)
from isnet_jax.models.resnet import ResNet
from isnet_jax.models.simple_cnn import SimpleCNN

TOLERANCE = 1e-6

# Each program runs a few dozen times on a few hundred numbers: compile fast, not well.
_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# ---------------------------------------------------------------- tiny networks


class Flatten(nnx.Module):
    """(b, h, w, c) to (b, h w c) through the corner, so that few weights follow."""

    def __init__(self, layer: nnx.Module) -> None:
        self.layer = layer

    def __call__(self, x):
        return self.layer(x[:, :2, :2].reshape(x.shape[0], -1))


class Concat(nnx.Module):
    """Two branches side by side; plain `jnp.concatenate` already is LRP."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.left = Conv(2, 2, (2, 2), rngs=rngs)
        self.right = Conv(2, 3, (2, 2), rngs=rngs)

    def __call__(self, x):
        return jnp.concatenate((self.left(x), self.right(x)), -1)


class Residual(nnx.Module):
    """x plus a convolution of it."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.branch = Conv(2, 2, (3, 3), padding=1, rngs=rngs)
        self.add = Add()

    def __call__(self, x):
        return self.add(self.branch(x), x)


_conv = partial(Conv, 2, 3, (3, 3), padding=1)

# name -> (layer on 2 channels, path of what gets the rule, channels after it)
LAYERS = {
    "conv": (lambda rngs: _conv(rngs=rngs), "", 3),
    "strided_conv": (lambda rngs: _conv(strides=2, rngs=rngs), "", 3),
    "dense": (lambda rngs: Flatten(Dense(8, 4, rngs=rngs)), "/layer", 4),
    "conv_bn": (lambda rngs: _conv(strides=2, norm=True, rngs=rngs), "", 3),
    "bn": (lambda rngs: BatchNorm(2, rngs=rngs), "", 2),
    "relu": (lambda rngs: ReLU(), "", 2),
    "max_pool": (lambda rngs: MaxPool((3, 3), strides=2, padding=1), "", 2),
    "avg_pool": (lambda rngs: AvgPool((2, 2)), "", 2),
    "adaptive_pool": (lambda rngs: AdaptiveAvgPool(4), "", 32),
    "add": (Residual, "/(add|branch)", 2),
    "concat": (Concat, "/(left|right)", 5),
}


class Net(nnx.Module):
    """Convolution, ReLU, layer under test, ReLU, average, classifier; (2, 6, 6, 2) to (2, 3)."""

    def __init__(self, kind: str, *, first: bool) -> None:
        build, path, channels = LAYERS[kind]
        rngs = nnx.Rngs(0)
        self.front = None if first else Conv(2, 2, (3, 3), padding=1, rngs=rngs)
        self.relus = nnx.List([ReLU(), ReLU()])
        self.under_test = build(rngs)
        self.average = AdaptiveAvgPool()
        self.classifier = Dense(channels, 3, rngs=rngs)
        if first:
            self.input_layer = "under_test" + path

    def __call__(self, x):
        if self.front is not None:
            x = self.relus[0](self.front(x))
        x = self.under_test(x)
        if x.ndim == 4:
            return self.classifier(self.average(self.relus[1](x)))
        return self.classifier(self.relus[1](x))


def _variables(model: nnx.Module, seed: int) -> tuple[dict, dict]:
    """(parameters, statistics), random in every array, from an abstract model."""
    rng = np.random.default_rng(seed)
    _, params, rest = nnx.split(model, nnx.Param, ...)

    def draw(path, leaf):
        value = rng.normal(size=leaf.shape) * (1 if leaf.ndim < 2 else leaf.shape[-2] ** -0.5)
        return jnp.asarray(1 + 0.3 * np.abs(value) if path[-1].key in ("var", "scale") else value)

    draws = partial(jax.tree_util.tree_map_with_path, draw)
    return draws(nnx.to_pure_dict(params)), draws(nnx.to_pure_dict(rest))


# ---------------------------------------------------------------- differences


def _check(loss, params, *, seed: int = 0, entries: int = 3, step: float = 2e-5) -> None:
    """Compares jax.grad of ``loss`` with differences: 2 directions, then entries of every array."""
    loss_and_grad = _jit(jax.value_and_grad(loss))  # one program for both sides
    leaves, tree = jax.tree.flatten(params)
    arrays = [np.asarray(leaf) for leaf in leaves]
    grads = [np.asarray(g) for g in jax.tree.leaves(loss_and_grad(params)[1])]
    largest = max(np.abs(g).max() for g in grads)
    assert np.isfinite(largest)
    assert largest > 0

    def value(direction, h):
        moved = [a + h * d for a, d in zip(arrays, direction, strict=True)]
        return float(loss_and_grad(jax.tree.unflatten(tree, moved))[0])

    def difference(direction):
        near, far = (
            (value(direction, h) - value(direction, -h)) / (2 * h) for h in (step, 2 * step)
        )
        return (4 * near - far) / 3

    for direction, name in _directions(arrays, np.random.default_rng(seed), entries):
        ours = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
        reference = difference(direction)
        # An entry that is zero by symmetry has no relative error: compare it with the largest.
        scale = max(abs(reference), 1e-4 * largest)
        assert abs(ours - reference) <= TOLERANCE * scale, (name, ours, reference)


def _directions(arrays, rng, entries):
    for i in range(2):
        direction = [rng.normal(size=a.shape) for a in arrays]
        length = np.sqrt(sum(np.square(d).sum() for d in direction))
        yield [d / length for d in direction], f"direction {i}"
    for i, array in enumerate(arrays):
        for place in rng.permutation(array.size)[:entries]:
            one = [np.zeros_like(a) for a in arrays]
            one[i].flat[place] = 1
            yield one, f"array {i} of shape {array.shape}, entry {place}"


def _smooth(graphs, training: bool, params: dict, rest: dict, x: jax.Array) -> jax.Array:
    """A smooth scalar of the selective map, sensitive to every pixel."""
    f = bind(graphs.views[0].train if training else graphs.views[0].infer, params, rest)
    r = relevance(f, x, Selective(), terminal=graphs.views[0].terminal).relevance
    weights = np.random.default_rng(9).normal(size=r.shape)
    return (weights * r).sum() + jnp.square(r).sum()


def _image(seed: int = 1, side: int = 6, channels: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).uniform(0.1, 1, (2, side, side, channels)))


# ---------------------------------------------------------------- rule x layer


RULES = {"epsilon": Epsilon(0.1), "zplus": ZPlus(0.1), "zb": ZB(-0.1, 1.1, 0.1)}
BOX = ("conv", "strided_conv", "dense", "conv_bn")
GRID = [(kind, "epsilon") for kind in LAYERS]
GRID += [(kind, "zplus") for kind in LAYERS if kind != "relu"]
GRID += [(kind, "zb") for kind in BOX]
TRAINED = [(kind, rule) for kind, rule in GRID if kind in ("conv_bn", "bn")]


def _one_layer(kind: str, rule: Rule, training: bool, statistics: str = "detach"):
    model = nnx.eval_shape(lambda: Net(kind, first=rule.terminal))
    path = INPUT if rule.terminal else "under_test" + LAYERS[kind][1]
    table = ((path, rule), ("relus/.*", Epsilon(0.1)), (".*", Pass()))
    graphs = programs(model, Composite(table, statistics))
    params, rest = _variables(model, seed=0)
    _check(lambda params: _smooth(graphs, training, params, rest, _image()), params)


@pytest.mark.parametrize(("kind", "rule"), GRID)
def test_every_rule_on_every_layer(kind: str, rule: str, x64) -> None:
    _one_layer(kind, RULES[rule], training=False)


@pytest.mark.parametrize("statistics", ["detach", "through"])
@pytest.mark.parametrize(("kind", "rule"), TRAINED)
def test_batch_norm_in_training(kind: str, rule: str, statistics: str, x64) -> None:
    # The map takes the statistics as constants or not; its derivative always sees them.
    _one_layer(kind, RULES[rule], training=True, statistics=statistics)


class Everything(nnx.Module):
    """Every kind of layer in one network, (2, 6, 6, 2) to (2, 3)."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.first = _conv(norm=True, rngs=rngs)
        self.relus = nnx.List([ReLU(), ReLU(), ReLU()])
        self.pool = MaxPool((3, 3), strides=1, padding=1)
        self.strided = Conv(3, 2, (3, 3), padding=1, strides=2, rngs=rngs)
        self.residual = Residual(rngs)
        self.norm = BatchNorm(2, rngs=rngs)
        self.concat = Concat(rngs)
        self.smooth = AvgPool((2, 2), strides=1)
        self.average = AdaptiveAvgPool()
        self.classifier = Dense(5, 3, rngs=rngs)

    def __call__(self, x):
        x = self.strided(self.pool(self.relus[0](self.first(x))))
        x = self.relus[1](self.norm(self.residual(x)))
        x = self.smooth(jnp.pad(self.concat(x), ((0, 0), (0, 1), (0, 1), (0, 0))))
        return self.classifier(self.average(self.relus[2](x)))


@pytest.mark.parametrize("mode", ["eval", "detach", "through"])
def test_pass_on_every_layer(mode: str, x64) -> None:
    model = nnx.eval_shape(Everything)
    composite = Composite(((".*", Pass()),), "detach" if mode == "eval" else mode)
    graphs = programs(model, composite)
    params, rest = _variables(model, seed=2)
    _check(lambda params: _smooth(graphs, mode != "eval", params, rest, _image()), params)


# ---------------------------------------------------------------- whole networks, the real loss

NETWORKS = {
    "original": (
        lambda: SimpleCNN(num_classes=3, widths=(2, 3), pooled=2, rngs=nnx.Rngs(0)),
        ISNet(EachLogit(), isnet_epsilon_zb(0.05), HeatmapLoss(foreground=3.0, decay=0.7)),
    ),
    "selective": (
        lambda: ResNet(num_classes=3, depths=(1, 1), width=2, in_channels=1, rngs=nnx.Rngs(0)),
        ISNet(Selective(), isnet_flex_zb(0.05), HeatmapLoss(scale=2.0, right="l2")),
    ),
}


def _batch(side: int) -> dict[str, jax.Array]:
    mask = np.zeros((2, side, side, 1))
    mask[0, 1:4, 2:5] = mask[1, 3:, :4] = 1
    image = _image(side=side, channels=1)
    return {"image": image, "label": jnp.array([2, 0]), "mask": jnp.asarray(mask)}


@pytest.mark.parametrize("name", NETWORKS)
def test_objective_of_isnet(name: str, x64) -> None:
    build, isnet = NETWORKS[name]
    model = nnx.eval_shape(build)
    graphs, batch = programs(model, isnet.composite), _batch(6 if name == "original" else 8)
    params, rest = _variables(model, seed=4)

    def loss(params):
        return objective(graphs, params, rest, batch, isnet)[0]

    _check(loss, params, entries=2, step=1e-5)


def test_view_keeps_the_derivative_of_the_logits(x64) -> None:
    build, isnet = NETWORKS["selective"]
    model = nnx.eval_shape(build)
    graphs, batch = programs(model, isnet.composite), _batch(8)
    params, rest = _variables(model, seed=5)

    def plain(params):
        logits, _ = bind(graphs.train, params, rest)(batch["image"])
        return cross_entropy(logits, batch["label"]).sum()

    def with_maps(params):
        f = bind(graphs.views[0].train, params, rest)
        maps = relevance(f, batch["image"], isnet.start, terminal=graphs.views[0].terminal)
        return cross_entropy(maps.logits, batch["label"]).sum(), maps.relevance

    value, grads = _jit(jax.value_and_grad(plain))(params)
    (ours, maps), ours_grads = _jit(jax.value_and_grad(with_maps, has_aux=True))(params)
    assert float(ours) == float(value)
    assert np.abs(maps).max() > 0
    for a, b in zip(jax.tree.leaves(ours_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-14, atol=1e-15 * np.abs(b).max())


# ---------------------------------------------------------------- what the programs consist of


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def test_plain_model_costs_nothing(x64) -> None:
    model = nnx.eval_shape(NETWORKS["original"][0])
    graphs = programs(model, isnet_epsilon_zb())
    params, rest = _variables(model, seed=0)

    def primitives(graphdef):
        jaxpr = jax.make_jaxpr(lambda x: bind(graphdef, params, rest)(x)[0])(_image(channels=1))
        return [equation.primitive.name for equation in _equations(jaxpr.jaxpr)]

    for graphdef in (graphs.train, graphs.infer):
        names = primitives(graphdef)
        assert names.count("conv_general_dilated") == 2
        assert not any("custom_vjp" in name for name in names)
    # The view has them, so that the line above would notice.
    assert any("custom_vjp" in name for name in primitives(graphs.views[0].infer))


@pytest.mark.parametrize("strides", [(2, 2), (2, 1)])
def test_strided_convolution_at_second_and_third_order(strides: tuple[int, int], x64) -> None:
    conv = maps.ConvMap(strides, ((1, 1), (0, 1)), (1, 2))
    reference = partial(maps._conv_raw, conv)  # one lax.conv_general_dilated, JAX's derivatives
    rng = np.random.default_rng(0)
    x, w = jnp.asarray(rng.normal(size=(2, 6, 7, 2))), jnp.asarray(rng.normal(size=(3, 2, 2, 3)))
    arguments = x, w, jnp.asarray(rng.normal(size=reference(x, w).shape))

    def second(f):
        def first(x, w, s):
            return sum(jnp.sin(g).sum() for g in jax.vjp(f, x, w)[1](s))

        return jax.grad(first, (0, 1, 2))

    def third(f):
        def total(*arguments):
            return sum(jnp.square(g).sum() for g in second(f)(*arguments))

        return jax.grad(total, (0, 1, 2))

    def kinds(program):
        keys = ("window_strides", "lhs_dilation", "rhs_dilation", "dimension_numbers")
        return {
            tuple(str(equation.params[key]) for key in keys)
            for equation in _equations(jax.make_jaxpr(program)(*arguments).jaxpr)
            if equation.primitive is lax.conv_general_dilated_p
        }

    ours, theirs = _jit(third(conv))(*arguments), _jit(third(reference))(*arguments)
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.abs(b).max())
    # At any order the convolution, its input-transpose and its kernel-transpose only; JAX's own
    # derivatives add a dilated one.
    assert len(kinds(second(conv))) == len(kinds(third(conv))) == 3
    assert len(kinds(second(reference))) > 3
