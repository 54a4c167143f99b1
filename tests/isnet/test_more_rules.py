"""AlphaBeta, Gamma, Norm, w^2 and flat: reference arrays, scalar loops, differences, errors.

The loops know the layer only as a matrix that is itself filled entry by entry, so that padding,
dilation, groups and the folded norm are derived a second time.
"""

from collections.abc import Callable
from functools import partial, reduce
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import isnet, lrp
from isnet_jax.lrp import (
    INPUT,
    AlphaBeta,
    Composite,
    Epsilon,
    Flat,
    Gamma,
    Norm,
    Pass,
    Rule,
    WSquare,
    ZPlus,
)
from isnet_jax.lrp.layers import Add, AvgPool, BatchNorm, Conv, Dense, MaxPool, ReLU
from tests.isnet.cases import NAMES, STATISTICS, SeqCNN, batch_of, error, last, load, to_ours
from tests.isnet.test_rules import CONVS, _close, _conv, _dense, _jit, _last, _maps, _with
from tests.isnet.test_second_order import (
    Flatten,
    Residual,
    _check,
    _equations,
    _smooth,
    _variables,
)

# ---------------------------------------------------------------- reference arrays


@pytest.fixture
def arrays(golden, x64) -> dict[str, np.ndarray]:
    return load(golden / "isnet" / "rules_unit.npz")


# The original adds its beta, so that its (2, -1) is (2, 1) here.
ORIGINAL = {"AB2m1": AlphaBeta(), "AB1_0": AlphaBeta(1.0, 0.0)}


@pytest.mark.parametrize("key", CONVS)
def test_golden_alpha_beta_of_convolutions(key: str, arrays) -> None:
    layer, relevance = _conv(arrays, key, **CONVS[key]), _last(arrays[f"{key}/rK"])
    x = np.concatenate([_last(arrays[f"{key}/aJ_{sort}"]) for sort in ("pos", "mixed")])
    relevance = np.concatenate((relevance, relevance))
    for name, ours in zip(
        ORIGINAL, _maps(layer, ORIGINAL.values(), x, relevance=relevance), strict=True
    ):
        for sort, found in zip(("pos", "mixed"), np.split(ours, 2), strict=True):
            _close(found, _last(arrays[f"{key}/{name}_{sort}"]))


def test_golden_alpha_beta_of_dense(arrays) -> None:
    layer = _dense(arrays["dense/W"], arrays["dense/b"])
    x = np.concatenate((arrays["dense/aJ_pos"], arrays["dense/aJ_mixed"]))
    relevance = np.concatenate((arrays["dense/rK1"], arrays["dense/rK1"]))
    for name, ours in zip(
        ORIGINAL, _maps(layer, ORIGINAL.values(), x, relevance=relevance), strict=True
    ):
        for sort, found in zip(("pos", "mixed"), np.split(ours, 2), strict=True):
            _close(found, arrays[f"dense/{name}_{sort}"])


def test_golden_w_square(arrays) -> None:
    rules = WSquare(0.01, bias="squared"), WSquare(0.01)
    x, relevance = _last(arrays["w2/aJ"]), _last(arrays["w2/rK"])
    ours, without = _maps(_conv(arrays, "w2", padding=1), rules, x, relevance=relevance)
    _close(ours, _last(arrays["w2/out"]))
    assert error(without, _last(arrays["w2/out"])) > 1e-3


@pytest.mark.parametrize("preset", ["epsilon_plus", "epsilon_gamma_box"])
def test_golden_presets_of_zennit(preset: str, golden, x64) -> None:
    case = load(golden / "isnet" / "case_a_seqcnn.npz")
    model = nnx.eval_shape(SeqCNN)  # initialisers need not compile
    for name, path in (NAMES | STATISTICS).items():
        reduce(getattr, path, model).set_value(jnp.asarray(to_ours(case[f"w/{name}"])))
    graphs = isnet.programs(model, lrp.create(preset))
    params, rest = isnet.variables(model)
    view = graphs.views[0]

    @_jit
    def maps(params, rest, x):
        f = isnet.bind(view.infer, params, rest)
        return lrp.relevance(f, x, lrp.EachLogit(), terminal=view.terminal).relevance

    theirs = last(load(golden / "isnet" / "zennit_a_seqcnn.npz")[f"std/{preset}"])
    assert error(maps(params, rest, batch_of(case)["image"]), theirs) < 1e-9


# ---------------------------------------------------------------- scalar loops


def _slow(rule: Rule, weights, seen, bias, x, relevance) -> np.ndarray:
    """R (j,) from W (k, j), seen (k, j), b (k,), x (j,), R (k,), one contribution at a time."""
    out = np.zeros_like(x)
    for k, (row, b) in enumerate(zip(weights, bias, strict=True)):
        contributions = [float(w * v) for w, v in zip(row, x, strict=True)]
        if isinstance(rule, WSquare):
            shares = seen[k].astype(float) if isinstance(rule, Flat) else row**2
            total = sum(shares) + (b**2 if rule.bias == "squared" else 0) + rule.epsilon
            out += shares / total * relevance[k] if total else 0
            continue
        z = sum(contributions) + b
        up = sum(c for c in [*contributions, b] if c > 0) + rule.epsilon
        down = sum(c for c in [*contributions, b] if c < 0) - rule.epsilon
        for j, c in enumerate(contributions):
            if isinstance(rule, AlphaBeta):
                fraction = rule.alpha * c / up if c > 0 else -rule.beta * c / down
            elif isinstance(rule, Gamma):
                # Whatever pulls in the output's direction counts 1 + gamma times.
                side = 1 if z > 0 else -1
                grown = [v * (1 + rule.gamma * (v * side > 0)) for v in [*contributions, b]]
                fraction = grown[j] / (sum(grown) + side * rule.epsilon)
            else:
                d = sum(contributions) if isinstance(rule, Norm) else z
                fraction = c / (d + (rule.epsilon if d >= 0 else -rule.epsilon))
            out[j] += fraction * relevance[k]
    return out


def _conv_matrix(kernel, shape, strides=1, padding=0, dilation=1, groups=1):
    """(W, seen), each (outputs, inputs), of a convolution of x with ``shape`` (*space, in)."""
    *window, per_group, features = kernel.shape
    *space, channels = shape
    rank = len(space)
    strides, padding, dilation = (
        (v,) * rank if isinstance(v, int) else v for v in (strides, padding, dilation)
    )
    pooled = [
        (space[i] + 2 * padding[i] - dilation[i] * (window[i] - 1) - 1) // strides[i] + 1
        for i in range(rank)
    ]
    weights = np.zeros((*pooled, features, *space, channels))
    seen = np.zeros(weights.shape, bool)
    for place, tap in product(np.ndindex(*pooled), np.ndindex(*window)):
        source = tuple(
            place[i] * strides[i] - padding[i] + tap[i] * dilation[i] for i in range(rank)
        )
        if not all(0 <= source[i] < space[i] for i in range(rank)):
            continue  # padding
        for feature, c in np.ndindex(features, per_group):
            channel = feature // (features // groups) * per_group + c
            index = (*place, feature, *source, channel)
            weights[index] = kernel[(*tap, c, feature)]
            seen[index] = True
    size = int(np.prod(pooled)) * features
    return weights.reshape(size, -1), seen.reshape(size, -1)


# name -> (input (*space, in), out, window, configuration)
UNITS = {
    "dense": ((6,), 5, None, {}),
    "strided": ((4, 5, 2), 3, (3, 2), {"strides": (2, 1), "padding": 1}),
    "conv_bn": ((4, 4, 2), 3, (3, 3), {"strides": 2, "padding": 1, "norm": True, "use_bias": True}),
    "conv_1d": ((7, 2), 3, (3,), {"strides": 2, "padding": 2, "dilation": 2}),
    "conv_3d": ((2, 3, 2, 2), 2, (2, 2, 2), {"strides": (1, 2, 1), "padding": (1, 1, 0)}),
    "dilated": ((4, 5, 2), 2, (2, 2), {"padding": 1, "dilation": (1, 2)}),
    "grouped": ((3, 3, 4), 6, (2, 2), {"groups": 2}),
    "depthwise": ((3, 4, 3), 6, (2, 2), {"groups": 3, "padding": (1, 0)}),
}
GEOMETRY = (Epsilon(0.02), ZPlus(0.02), Gamma(0.4, 0.02))
ALL = (
    *GEOMETRY,
    AlphaBeta(2.0, 1.0, 0.02),
    AlphaBeta(3.5, 2.5, 0.02),
    Gamma(0.0, 0.02),
    Norm(0.02),
    WSquare(),
    WSquare(0.02, "squared"),
    Flat(),
    Flat(0.02),
)


def _unit(name: str, seed: int = 5):
    """(layer, x, W, seen, b): every array random, x, bias and gamma of both signs."""
    shape, features, window, config = UNITS[name]
    rng = np.random.default_rng(seed)
    if window is None:
        build = lambda: Dense(*shape, features, rngs=nnx.Rngs(0))  # noqa: E731
    else:
        build = lambda: Conv(shape[-1], features, window, rngs=nnx.Rngs(0), **config)  # noqa: E731
    graphdef, state = nnx.split(nnx.eval_shape(build))
    state = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), nnx.to_pure_dict(state))
    state["bias"] = np.abs(state["bias"]) * np.resize([1, -1], len(state["bias"]))
    if window is None:
        weights, seen = state["kernel"].T, np.ones(state["kernel"].T.shape, bool)
    else:
        geometry = {k: v for k, v in config.items() if k not in ("norm", "use_bias")}
        weights, seen = _conv_matrix(state["kernel"], shape, **geometry)
    bias = np.resize(state["bias"], len(weights))
    if "norm" in state:
        norm = state["norm"]
        norm["var"] = 0.5 + norm["var"] ** 2
        assert norm["scale"].min() < 0 < norm["scale"].max()
        scale = np.resize(norm["scale"] / np.sqrt(norm["var"] + 1e-5), len(weights))
        mean, beta = (np.resize(norm[key], len(weights)) for key in ("mean", "bias"))
        weights, bias = weights * scale[:, None], (bias - mean) * scale + beta
    layer = nnx.merge(graphdef, jax.tree.map(jnp.asarray, state))
    layer.eval()
    x = rng.normal(size=(2, *shape))
    return layer, x, weights, seen, bias


@pytest.mark.parametrize("name", UNITS)
def test_rules_against_scalar_loops(name: str, x64) -> None:
    layer, x, weights, seen, bias = _unit(name)
    rules = ALL if name in ("dense", "strided", "conv_bn") else GEOMETRY
    z = np.asarray(_jit(layer)(x))
    flat_z = x.reshape(2, -1) @ weights.T + bias
    _close(z.reshape(2, -1), flat_z, 1e-13)
    for values in (x, weights, bias, z):
        assert values.min() < 0 < values.max()
    relevance = np.random.default_rng(3).normal(size=(2, 1, *z.shape[1:]))
    found = _maps(layer, rules, x, relevance=relevance)
    for rule, ours in zip(rules, found, strict=True):
        slow = [
            _slow(rule, weights, seen, bias, x[i].ravel(), relevance[i].ravel()) for i in range(2)
        ]
        _close(ours.reshape(2, -1), np.stack(slow), 1e-10)


@pytest.mark.parametrize("name", ["dense", "strided", "conv_bn"])
def test_input_rules_conserve_in_spite_of_padding(name: str, x64) -> None:
    layer, x, _, seen, _ = _unit(name)
    assert seen.any(1).all()
    assert seen.all() == (name == "dense")
    relevance = np.random.default_rng(4).normal(size=(2, 2, *layer(x).shape[1:]))
    sums = relevance.reshape(2, 2, -1).sum(2)
    for ours in _maps(layer, (WSquare(), Flat()), x, relevance=relevance):
        np.testing.assert_allclose(ours.reshape(2, 2, -1).sum(2), sums, rtol=1e-12)


def test_outputs_that_see_only_padding_lose_their_relevance(x64) -> None:
    layer = Conv(2, 3, (1, 1), padding=1, rngs=nnx.Rngs(0), param_dtype=jnp.float64)
    layer.bias.set_value(jnp.array([0.5, -1.0, 2.0]))
    rng = np.random.default_rng(0)
    x, relevance = rng.normal(size=(2, 3, 3, 2)), rng.normal(size=(2, 1, 5, 5, 3))
    inside = relevance[:, :, 1:-1, 1:-1].sum((2, 3, 4))
    for ours in _maps(layer, (WSquare(), Flat()), x, relevance=relevance):
        np.testing.assert_allclose(ours.sum((2, 3, 4)), inside, rtol=1e-12)


def test_norm_conserves_and_epsilon_does_not(x64) -> None:
    layer, x, *_ = _unit("conv_bn")
    relevance = np.random.default_rng(4).normal(size=(2, 1, *layer(x).shape[1:]))
    norm, epsilon = _maps(layer, (Norm(1e-14), Epsilon(1e-14)), x, relevance=relevance)
    sums = relevance.sum((2, 3, 4))
    np.testing.assert_allclose(norm.sum((2, 3, 4)), sums, rtol=1e-9)
    assert np.abs(epsilon.sum((2, 3, 4)) - sums).min() > 1e-2


def test_norm_needs_a_stabiliser() -> None:
    with pytest.raises(ValueError, match="Norm.epsilon=0; its denominator has no bias"):
        Norm(0.0)


def test_alpha_beta_and_gamma_conserve_without_bias(x64) -> None:
    _, x, weights, *_ = _unit("dense", seed=7)
    layer = _dense(weights, np.zeros(len(weights)))
    relevance = np.random.default_rng(4).normal(size=(2, 1, len(weights)))
    # The positive and the negative side must both exist for alpha - beta = 1 to conserve.
    parts = x[:, None] * weights
    assert ((parts > 0).any(2) & (parts < 0).any(2)).all()
    rules = AlphaBeta(2.0, 1.0, 0.0), AlphaBeta(1.0, 0.0, 0.0), Gamma(0.3, 0.0)
    for ours in _maps(layer, rules, x, relevance=relevance):
        np.testing.assert_allclose(ours.sum(2), relevance.sum(2), rtol=1e-12)


def test_limits_of_gamma(x64) -> None:
    layer, x, *_ = _unit("conv_bn")
    z = np.asarray(layer(x))
    relevance = np.abs(np.random.default_rng(4).normal(size=(2, 1, *z.shape[1:])))
    only_up = relevance * (z > 0)[:, None]
    none, epsilon = _maps(layer, (Gamma(0.0), Epsilon(1e-6)), x, relevance=relevance)
    _close(none, epsilon, 1e-12)
    large, z_plus = _maps(layer, (Gamma(1e12, 0.0), ZPlus(0.0)), x, relevance=only_up)
    _close(large, z_plus, 1e-9)


@pytest.mark.parametrize("rule", [AlphaBeta, ZPlus, Gamma, Norm])
def test_detached_bias_keeps_the_map_and_leaves_its_derivative(rule: type[Rule], x64) -> None:
    layer, x, weights, _, _ = _unit("dense")
    graphdef, state = nnx.split(layer)
    state = nnx.to_pure_dict(state)
    relevance = jnp.asarray(np.random.default_rng(4).normal(size=(2, len(weights))))

    def total(state, detach):
        twin = _with(nnx.merge(graphdef, state), rule(epsilon=0.1, detach_bias=detach))
        z, pull = jax.vjp(twin, x)
        (m,) = pull(relevance / z)
        return jnp.square(x * m).sum()

    both = [_jit(jax.value_and_grad(partial(total, detach=detach)))(state) for detach in (0, 1)]
    (plain, plain_grads), (detached, detached_grads) = both
    np.testing.assert_allclose(detached, plain, rtol=1e-13)
    largest = np.abs(plain_grads["kernel"]).max()
    assert np.abs(detached_grads["bias"]).max() < 1e-12 * largest
    assert np.abs(detached_grads["kernel"]).max() > 1e-3 * largest
    # Norm never sees the bias; its R / z times z cancels.
    seen = np.abs(plain_grads["bias"]).max() > 1e-3 * largest
    assert seen == (rule is not Norm)


# ---------------------------------------------------------------- non-negative inputs

PROMISED = [
    AlphaBeta(2.0, 1.0, 0.02),
    AlphaBeta(1.0, 0.0, 0.02),
    ZPlus(0.02),
    Gamma(0.4, 0.02),
]


def _promise(rule: Rule) -> Rule:
    kind = type(rule)
    if kind is AlphaBeta:
        return AlphaBeta(rule.alpha, rule.beta, rule.epsilon, nonnegative=True)
    if kind is Gamma:
        return Gamma(rule.gamma, rule.epsilon, nonnegative=True)
    return kind(rule.epsilon, nonnegative=True)


@pytest.mark.parametrize("name", ["dense", "strided", "conv_bn", "avg_pool", "add"])
def test_nonnegative_equals_the_general_form(name: str, x64) -> None:
    rng = np.random.default_rng(8)
    if name in UNITS:
        layer, *inputs = _unit(name)[:2]
    else:
        layer = AvgPool((2, 2), strides=1, padding=1) if name == "avg_pool" else Add()
        inputs = [rng.normal(size=(2, 3, 3, 2)) for _ in range(1 if name == "avg_pool" else 2)]
    inputs = [np.maximum(x, 0) for x in inputs]
    assert all((x == 0).any() and (x > 0).any() for x in inputs)
    relevance = rng.normal(size=(2, 2, *layer(*inputs).shape[1:]))
    rules = [*PROMISED, *map(_promise, PROMISED)]
    found = _maps(layer, rules, *inputs, relevance=relevance)
    for general, short in zip(found[: len(PROMISED)], found[len(PROMISED) :], strict=True):
        for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(general), strict=True):
            assert np.abs(b).max() > 0
            _close(a, b, 1e-13)


@pytest.mark.parametrize("name", ["dense", "strided", "grouped"])
def test_nonnegative_needs_half_the_products(name: str, x64) -> None:
    layer, x, *_ = _unit(name)
    z = layer(x)

    def products(rule):
        pull = lambda x: jax.vjp(_with(layer, rule), x)[1](z)  # noqa: E731
        names = [e.primitive.name for e in _equations(jax.make_jaxpr(pull)(x).jaxpr)]
        return names.count("dot_general" if name == "dense" else "conv_general_dilated")

    general = [products(rule) for rule in PROMISED]
    short = [products(_promise(rule)) for rule in PROMISED]
    # Strided convolutions also write down two transposes of zeros, which XLA drops.
    zeros = 2 if name == "strided" else 0
    # One for the output; two sums and two transposes for either sign of the contributions.
    assert [n - zeros for n in general] == [9, 5, 5, 9]
    assert [n - zeros for n in short] == [5, 3, 3, 5]


# ---------------------------------------------------------------- second order

LAYERS: dict[str, tuple[Callable[[nnx.Rngs], nnx.Module], str, int]] = {
    "dense": (lambda rngs: Flatten(Dense(8, 4, rngs=rngs)), "/layer", 4),
    "conv": (lambda rngs: Conv(2, 3, (2, 2), strides=2, padding=1, rngs=rngs), "", 3),
    "conv_bn": (lambda rngs: Conv(2, 3, (2, 2), use_bias=True, norm=True, rngs=rngs), "", 3),
    "avg_pool": (lambda rngs: AvgPool((2, 2), strides=1), "", 2),
    "add": (Residual, "/add", 2),
}


class Tiny(nnx.Module):
    """Convolution, (ReLU,) layer under test, ReLU, mean, classifier; (2, 4, 4, 2) to (2, 3).

    Without the first ReLU the layer under test reads numbers of both signs.
    """

    def __init__(self, kind: str, *, first: bool, rectified: bool) -> None:
        build, path, channels = LAYERS[kind]
        rngs = nnx.Rngs(0)
        self.front = None if first else Conv(2, 2, (1, 1), rngs=rngs)
        self.rectify = ReLU() if rectified else None
        self.under_test = build(rngs)
        self.relu = ReLU()
        self.classifier = Dense(channels, 3, rngs=rngs)
        if first:
            self.input_layer = "under_test" + path

    def __call__(self, x):
        if self.front is not None:
            x = self.front(x)
        if self.rectify is not None:
            x = self.rectify(x)
        x = self.relu(self.under_test(x))
        return self.classifier(x.mean((1, 2)) if x.ndim == 4 else x)


def _second_order(kind: str, rule: Rule, *, training: bool = False, rectified: bool = False):
    model = nnx.eval_shape(lambda: Tiny(kind, first=rule.terminal, rectified=rectified))
    path = INPUT if rule.terminal else "under_test" + LAYERS[kind][1]
    graphs = isnet.programs(model, Composite(((path, rule), (".*", Pass()))))
    params, rest = _variables(model, seed=2)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 4, 2)))
    _check(lambda params: _smooth(graphs, training, params, rest, x), params)


HIDDEN = {"alpha_beta": AlphaBeta(2.0, 1.0, 0.1), "gamma": Gamma(0.5, 0.1), "norm": Norm(0.1)}
CASES = [(kind, rule, False) for kind in LAYERS for rule in HIDDEN]
CASES += [("conv_bn", rule, True) for rule in HIDDEN]


@pytest.mark.parametrize(("kind", "rule", "training"), CASES)
def test_second_order_of_hidden_rules(kind: str, rule: str, training: bool, x64) -> None:
    _second_order(kind, HIDDEN[rule], training=training)


@pytest.mark.parametrize(
    ("kind", "rule", "training"),
    [
        ("dense", WSquare(), False),
        ("conv", WSquare(0.1, "squared"), False),
        ("conv_bn", WSquare(0.1, "squared"), True),
        ("dense", Flat(), False),
        ("conv_bn", Flat(), False),
    ],
    ids=str,
)
def test_second_order_of_input_rules(kind: str, rule: Rule, training: bool, x64) -> None:
    _second_order(kind, rule, training=training)


@pytest.mark.parametrize(
    ("kind", "rule", "training"),
    [
        ("dense", AlphaBeta(2.0, 1.0, 0.1, nonnegative=True), False),
        ("conv", Gamma(0.5, 0.1, nonnegative=True), False),
        ("conv_bn", AlphaBeta(2.0, 1.0, 0.1, nonnegative=True), True),
        ("conv_bn", ZPlus(0.1, nonnegative=True), False),
    ],
    ids=str,
)
def test_second_order_of_nonnegative_rules(kind: str, rule: Rule, training: bool, x64) -> None:
    _second_order(kind, rule, training=training, rectified=True)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize(("alpha", "beta"), [(2, 2), (0.5, -0.5), (1.0, 1.0), (2.0, -1.0)])
def test_alpha_minus_beta_must_be_one(alpha: float, beta: float) -> None:
    with pytest.raises(ValueError, match=f"alpha={alpha} and beta={beta}"):
        AlphaBeta(alpha, beta)


def test_alpha_and_beta_must_be_finite() -> None:
    for alpha, beta in ((float("nan"), 1.0), (float("inf"), float("inf"))):
        with pytest.raises(ValueError, match="alpha="):
            AlphaBeta(alpha, beta)


def test_bad_options_name_the_value() -> None:
    for gamma in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"Gamma.gamma={gamma}; must be >= 0"):
            Gamma(gamma)
    with pytest.raises(ValueError, match="'x'; legal values: ignore, squared"):
        WSquare(bias="x")
    with pytest.raises(ValueError, match="bias of Flat 'squared'; legal values: ignore"):
        Flat(bias="squared")
    for rule in (AlphaBeta, Gamma, Norm, WSquare, Flat):
        for value in (-1.0, float("nan")):
            with pytest.raises(ValueError, match=f"{rule.__name__}.epsilon={value}; must be >= 0"):
                rule(epsilon=value)


class Kinds(nnx.Module):
    """A layer of every kind that these rules know, and two that some do not."""

    input_layer = "conv"

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = Conv(2, 2, (1, 1), rngs=rngs)
        self.dense = Dense(2, 2, rngs=rngs)
        self.norm = BatchNorm(2, rngs=rngs)
        self.avg_pool = AvgPool((2, 2))
        self.add = Add()
        self.max_pool = MaxPool((2, 2))
        self.relu = ReLU()


# rule -> the kinds it does not exist for
UNDEFINED = {
    AlphaBeta(): {"max_pool", "relu"},
    Gamma(): {"max_pool", "relu"},
    Norm(): {"relu"},
    WSquare(): {"norm", "avg_pool", "add", "max_pool", "relu"},
    Flat(): {"norm", "avg_pool", "add", "max_pool", "relu"},
}


@pytest.mark.parametrize("rule", UNDEFINED, ids=str)
def test_rules_exist_for_their_kinds_only(rule: Rule) -> None:
    model = nnx.eval_shape(Kinds)
    for path, layer in lrp.rule_layers(model):
        composite = Composite(((path, rule), (".*", Pass())))
        if path in UNDEFINED[rule]:
            message = f"rule {type(rule).__name__} is not defined .* kind '{layer.kind}'"
            with pytest.raises(ValueError, match=message):
                composite.matches(model)
        elif not rule.terminal or path == model.input_layer:
            assert rule in [match.rule for match in composite.matches(model)]


def test_input_rules_stand_at_the_input_only() -> None:
    model = nnx.eval_shape(Kinds)
    for rule in (WSquare(), Flat()):
        name = type(rule).__name__
        assert Composite(((INPUT, rule), (".*", Pass()))).terminal(model)
        with pytest.raises(ValueError, match=f"{name} ends .* 'conv', not at 'dense'"):
            Composite((("dense", rule), (".*", Pass()))).matches(model)
        nameless = nnx.eval_shape(lambda: nnx.Sequential(Dense(2, 2, rngs=nnx.Rngs(0))))
        with pytest.raises(ValueError, match=f"{name} at 'layers/0' ends the propagation"):
            Composite(((".*", rule),)).matches(nameless)
