"""Layers of every geometry: transposed, resized, grouped, 1-D and 3-D, normalised by sample.

Values against flax's own layers or explicit matrices, rules against those matrices, and the outer
derivative of a map through all of them against differences.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import isnet, lrp
from isnet_jax.lrp import AlphaBeta, Composite, Epsilon, Gamma, Norm, Pass, Rule, ZPlus, maps
from isnet_jax.lrp.layers import Conv, ConvTranspose, Dense, ReLU, Resize
from isnet_jax.lrp.transformer import GroupNorm, InstanceNorm
from tests.isnet.test_more_rules import _slow
from tests.isnet.test_rules import _close, _maps
from tests.isnet.test_second_order import _check, _equations, _smooth, _variables

_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RULES = (Epsilon(0.02), ZPlus(0.02), Gamma(0.4, 0.02), AlphaBeta(2.0, 1.0, 0.02), Norm(0.02))
LAYERS = {
    "transposed": lambda rngs: ConvTranspose(2, 3, (3, 2), strides=(2, 1), padding=1, rngs=rngs),
    "transposed_bn": lambda rngs: ConvTranspose(2, 3, (2, 2), strides=2, norm=True, rngs=rngs),
    "transposed_1d": lambda rngs: ConvTranspose(2, 3, (3,), strides=2, dilation=2, rngs=rngs),
    "linear": lambda rngs: Resize(1.5),
    "nearest": lambda rngs: Resize(2, "nearest"),
    "shrunk": lambda rngs: Resize(0.5),
}


def _drawn(build, seed: int = 0) -> nnx.Module:
    model = nnx.eval_shape(build)
    params, rest = _variables(model, seed)
    layer = nnx.merge(nnx.split(model, nnx.Param, ...)[0], params, rest)
    layer.eval()
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_rules_against_the_explicit_matrix(name: str, x64) -> None:
    layer = _drawn(lambda: LAYERS[name](nnx.Rngs(0)))
    shape = (4, 2) if name.endswith("1d") else (4, 4, 2)
    x = np.random.default_rng(1).normal(size=(2, *shape))
    plain = lambda row: layer(row[None])[0].ravel()  # noqa: E731
    bias = np.asarray(plain(jnp.zeros(shape)))
    weights = np.asarray(_jit(jax.jacobian(plain))(jnp.zeros(shape))).reshape(len(bias), -1)
    z = np.asarray(layer(jnp.asarray(x)))
    _close(z.reshape(2, -1), x.reshape(2, -1) @ weights.T + bias, 1e-13)
    relevance = np.random.default_rng(3).normal(size=(2, 1, *z.shape[1:]))
    for rule, ours in zip(RULES, _maps(layer, RULES, x, relevance=relevance), strict=True):
        slow = [
            _slow(rule, weights, None, bias, x[i].ravel(), relevance[i].ravel()) for i in (0, 1)
        ]
        _close(ours.reshape(2, -1), np.stack(slow), 1e-10)


@pytest.mark.parametrize(
    ("strides", "padding", "dilation"), [(2, 0, 1), (2, 1, 1), ((3, 1), (1, 0), 1), (1, 1, 2)]
)
def test_transposed_convolution_is_flaxs(strides, padding, dilation, x64) -> None:
    ours = _drawn(
        lambda: ConvTranspose(
            2, 3, (3, 2), strides=strides, padding=padding, dilation=dilation, rngs=nnx.Rngs(0)
        )
    )
    theirs = nnx.ConvTranspose(
        2,
        3,
        (3, 2),
        strides=ours.strides,
        padding=ours.padding,
        kernel_dilation=ours.kernel_dilation,
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    theirs.kernel.set_value(ours.kernel[...])
    theirs.bias.set_value(ours.bias[...])
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 5, 2)))
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-13)
    gradients = [
        jax.grad(lambda x, f=f: jnp.sin(nnx.merge(*nnx.split(f))(x)).sum())(x)
        for f in (ours, theirs)
    ]
    np.testing.assert_allclose(*gradients, atol=1e-13)
    size = ours(x).shape[1:3]
    pad = np.broadcast_to(padding, 2)
    wanted = [
        (n - 1) * s + d * (k - 1) + 1 - 2 * p
        for n, s, d, k, p in zip(
            (4, 5), ours.strides, ours.kernel_dilation, (3, 2), pad, strict=True
        )
    ]
    assert list(size) == wanted


PADDINGS = [
    ("SAME", 2, (2, 2)),
    ("SAME", (3, 1), (2, 3)),
    ("VALID", 2, (3, 2)),
    (1, 2, (3, 3)),
    ([1, (0, 1)], 1, (2, 2)),
]


@pytest.mark.parametrize(("padding", "strides", "window"), PADDINGS, ids=str)
def test_attached_convolutions_keep_their_function(padding, strides, window, x64) -> None:
    class Decoder(nnx.Module):
        input_layer = "down"

        def __init__(self) -> None:
            settings = {"strides": strides, "padding": padding, "param_dtype": jnp.float64}
            self.down = nnx.Conv(2, 4, window, **settings, rngs=nnx.Rngs(2))
            self.up = nnx.ConvTranspose(4, 3, window, **settings, rngs=nnx.Rngs(0))
            self.classifier = nnx.Linear(3, 2, param_dtype=jnp.float64, rngs=nnx.Rngs(1))

        def __call__(self, x):
            return self.classifier(self.up(self.down(x)).mean((1, 2)))

    model = Decoder()
    x = jnp.asarray(np.random.default_rng(0).random((2, 7, 8, 2)))
    composite = lrp.create("epsilon", epsilon=1e-9)
    twin = lrp.attach(model, composite)
    np.testing.assert_allclose(twin(x), model(x), atol=1e-13)
    found = lrp.explain(twin, x, composite=composite)
    np.testing.assert_allclose(found.conservation_gap, 0, atol=1e-7)  # fresh biases are zero


@pytest.mark.parametrize("scale", [0.5, 1.5, 3])
def test_resize_by_hand(scale: float, x64) -> None:
    x = np.random.default_rng(0).normal(size=(1, 4, 6, 1))
    size = [round(side * scale) for side in (4, 6)]
    places = [
        np.clip((np.arange(n) + 0.5) / scale - 0.5, 0, m - 1)
        for n, m in zip(size, (4, 6), strict=True)
    ]
    linear, nearest = np.zeros(size), np.zeros(size)
    for i, j in np.ndindex(*size):
        r, c = places[0][i], places[1][j]
        r0, c0 = int(min(r, 2)), int(min(c, 4))
        fr, fc = r - r0, c - c0
        block = x[0, r0 : r0 + 2, c0 : c0 + 2, 0]
        linear[i, j] = np.array([1 - fr, fr]) @ block @ np.array([1 - fc, fc])
        nearest[i, j] = x[0, int((i + 0.5) / scale), int((j + 0.5) / scale), 0]
    np.testing.assert_allclose(Resize(scale)(jnp.asarray(x))[0, ..., 0], linear, atol=1e-13)
    found = Resize(scale, "nearest")(jnp.asarray(x))[0, ..., 0]
    np.testing.assert_array_equal(found, nearest)


def test_refused_geometry() -> None:
    with pytest.raises(ValueError, match="unknown resize method 'cubic'"):
        Resize(2, "cubic")
    with pytest.raises(ValueError, match="resize scale=0; must be positive"):
        Resize(0)
    with pytest.raises(ValueError, match=r"sides \(3, 4\) times 0.5 are not whole"):
        Resize(0.5)(jnp.zeros((1, 3, 4, 1)))
    layer = ConvTranspose(2, 3, (2, 2), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expects \(batch, 2 spatial axes, 2 channels\)"):
        layer(jnp.zeros((1, 3, 4, 1)))


def test_instance_norm_by_hand(x64) -> None:
    layer = _drawn(lambda: InstanceNorm(3, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 3))
    mean, var = x.mean((1, 2), keepdims=True), x.var((1, 2), keepdims=True)
    scale, bias = (np.asarray(v[...]) for v in (layer.scale, layer.bias))
    by_hand = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(layer(jnp.asarray(x)), by_hand, atol=1e-13)


# ---------------------------------------------------------------- the outer derivative


class Geometries(nnx.Module):
    """Every geometry in a row, (2, 4, 4, 2) to (2, 3); paths under ``rows`` get the rule."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.rows = nnx.List(
            [
                Conv(2, 4, (2, 2), groups=2, padding=1, rngs=rngs),
                Conv(4, 4, (2, 2), groups=4, dilation=2, rngs=rngs),
                ConvTranspose(4, 2, (2, 2), strides=2, norm=True, rngs=rngs),
                Resize(0.5),
                Conv(2, 3, (3,), strides=2, padding=1, rngs=rngs),
                Conv(3, 2, (1, 2, 1), rngs=rngs),
            ]
        )
        self.relus = nnx.List([ReLU() for _ in self.rows])
        self.norm, self.group = InstanceNorm(2, rngs=rngs), GroupNorm(4, 2, rngs=rngs)
        self.classifier = Dense(2, 3, rngs=rngs)

    def __call__(self, x):
        for i, (row, relu) in enumerate(zip(self.rows, self.relus, strict=True)):
            if i == 4:
                x = self.norm(x).reshape(2, -1, 2)  # one axis
            if i == 5:
                x = x[:, :4].reshape(2, 1, 2, 2, 3)  # three axes
            x = relu(row(x))
            if i == 0:
                x = self.group(x)
        return self.classifier(x.mean((1, 2, 3)))


SECOND = [(rule, False) for rule in (*RULES, Pass())] + [(rule, True) for rule in RULES[:2]]


@pytest.mark.parametrize(("rule", "training"), SECOND, ids=str)
def test_second_order_through_every_geometry(rule: Rule, training: bool, x64) -> None:
    model = nnx.eval_shape(Geometries)
    table = (("rows/.*", rule), ("norm|group", lrp.AttnLRP()), (".*", Pass()))
    graphs = isnet.programs(model, Composite(table))
    params, rest = _variables(model, seed=9)
    x = jnp.asarray(np.random.default_rng(4).uniform(0.1, 1, (2, 4, 4, 2)))
    _check(lambda params: _smooth(graphs, training, params, rest, x), params, entries=2)


def test_a_transposed_convolution_stays_in_the_closed_set() -> None:
    conv = maps.ConvMap((2, 2), ((0, 0), (0, 0)), (1, 1))
    up = maps.TransposedConvMap(conv, (8, 8))
    x, w = jnp.ones((1, 4, 4, 2)), jnp.ones((2, 2, 2, 3))

    def third(x, w):
        first = lambda x, w: jnp.sin(up(x, w)).sum()  # noqa: E731
        second = lambda x, w: sum(jnp.sin(g).sum() for g in jax.grad(first, (0, 1))(x, w))  # noqa: E731
        return jax.grad(second, (0, 1))(x, w)

    found = {
        tuple(str(e.params[key]) for key in ("window_strides", "lhs_dilation", "rhs_dilation"))
        for e in _equations(jax.make_jaxpr(third)(x, w).jaxpr)
        if e.primitive is jax.lax.conv_general_dilated_p
    }
    assert len(found) == 3  # forward, input-transpose, kernel-transpose
