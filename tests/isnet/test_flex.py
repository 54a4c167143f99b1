"""LRP-Flex of functions that were not written for us: values, maps, outer derivatives, reports."""

import re
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from isnet_jax import lrp
from isnet_jax.lrp import EachLogit, Finding, Flexed, Selective, flex, relevance
from isnet_jax.models.simple_cnn import SimpleCNN

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "flex.md"
EPS = 0.1

# Small programs that run a few times: compile fast, not well.
_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def draw(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def maps_of(f, x, start=EachLogit()):  # noqa: B008
    return relevance(lambda x: (f(x), None), x, start, terminal=False)


def names(findings, treated):
    return [f.name for f in findings if f.treated is treated]


# ---------------------------------------------------------------- one network, four frameworks


class LinenCNN(linen.Module):
    norm: bool = False

    @linen.compact
    def __call__(self, x):
        for i, width in enumerate((3, 4)):
            x = linen.Conv(width, (3, 3), use_bias=not self.norm, param_dtype=x.dtype)(x)
            if self.norm:
                x = linen.BatchNorm(use_running_average=True, param_dtype=x.dtype)(x)
            x = linen.relu(x)
            if i == 0:
                x = linen.max_pool(x, (2, 2), (2, 2))
        x = linen.avg_pool(x, (2, 2), (2, 2))
        return linen.Dense(3, param_dtype=x.dtype)(x.reshape(x.shape[0], -1))


class NnxCNN(nnx.Module):
    def __init__(self, rngs):
        conv = partial(nnx.Conv, kernel_size=(3, 3), rngs=rngs, param_dtype=jnp.float64)
        self.first, self.second = conv(2, 3), conv(3, 4)
        self.last = nnx.Linear(16, 3, rngs=rngs, param_dtype=jnp.float64)

    def __call__(self, x):
        x = nnx.max_pool(nnx.relu(self.first(x)), (2, 2), (2, 2))
        x = nnx.avg_pool(nnx.relu(self.second(x)), (2, 2), (2, 2))
        return self.last(x.reshape(x.shape[0], -1))


class EquinoxCNN(eqx.Module):
    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear
    pool: eqx.nn.MaxPool2d
    average: eqx.nn.AvgPool2d
    relu: object  # a leaf that is a function, as Equinox has them

    def __init__(self, key):
        self.first = eqx.nn.Conv2d(2, 3, 3, padding=1, key=key)
        self.second = eqx.nn.Conv2d(3, 4, 3, padding=1, key=key)
        self.last = eqx.nn.Linear(16, 3, key=key)
        self.pool, self.average = eqx.nn.MaxPool2d(2, 2), eqx.nn.AvgPool2d(2, 2)
        self.relu = jax.nn.relu

    def __call__(self, x):
        x = self.pool(self.relu(self.first(x)))
        x = self.average(self.relu(self.second(x)))
        return self.last(jnp.moveaxis(x, 0, -1).ravel())


@pytest.fixture
def weights(x64):
    with jax.numpy_dtype_promotion("standard"):  # Linen's and Equinox's pools need it
        yield [
            {"kernel": draw(1, 3, 3, 2, 3) / 2, "bias": draw(2, 3) / 4},
            {"kernel": draw(3, 3, 3, 3, 4) / 3, "bias": draw(4, 4) / 4},
            {"kernel": draw(5, 16, 3), "bias": draw(6, 3)},
        ]


def linen_of(weights):
    params = dict(zip(("Conv_0", "Conv_1", "Dense_0"), weights, strict=True))
    return LinenCNN().apply, {"params": params}


def nnx_of(weights):
    model = NnxCNN(nnx.Rngs(0))
    for layer, w in zip((model.first, model.second, model.last), weights, strict=True):
        layer.kernel[...], layer.bias[...] = w["kernel"], w["bias"]
    graphdef, state = nnx.split(model)
    return lambda state, x: nnx.merge(graphdef, state)(x), nnx.to_pure_dict(state)


def equinox_of(weights):
    where = lambda m: [v for a in (m.first, m.second, m.last) for v in (a.weight, a.bias)]  # noqa: E731
    new = []
    for w in weights:
        k = w["kernel"]
        conv = k.ndim == 4
        new += [k.transpose(3, 2, 0, 1) if conv else k.T]
        new += [w["bias"][:, None, None] if conv else w["bias"]]
    model = eqx.tree_at(where, EquinoxCNN(jax.random.key(0)), new)
    return lambda model, x: jax.vmap(model)(jnp.moveaxis(x, -1, 1)), model


def module_maps(weights, x, start, norm=None):
    """The module route: `isnet_jax.lrp.layers` under the preset isnet_flex."""
    model = SimpleCNN(
        num_classes=3, in_channels=2, widths=(3, 4), pooled=2, norm=bool(norm), rngs=nnx.Rngs(0)
    )
    for layer, w in zip((*model.blocks, model.classifier), weights, strict=True):
        layer.kernel = nnx.Param(w["kernel"])
        layer.bias = None if norm and layer is not model.classifier else nnx.Param(w["bias"])
    for layer, n in zip(model.blocks, norm or (), strict=bool(norm)):
        layer.norm.scale, layer.norm.bias = nnx.Param(n["scale"]), nnx.Param(n["bias"])
        layer.norm.mean, layer.norm.var = nnx.BatchStat(n["mean"]), nnx.BatchStat(n["var"])
    view = lrp.create("isnet_flex", epsilon=EPS).view(model)
    view.eval()
    return maps_of(view, x, start)


STARTS = (EachLogit(), Selective())  # a map a class, and one of a class against the others

FRAMEWORKS = {"linen": linen_of, "nnx": nnx_of, "equinox": equinox_of}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_unmodified_model_gives_the_maps_of_the_module_route(weights, framework):
    x = draw(7, 2, 8, 8, 2)
    fn, params = FRAMEWORKS[framework](weights)
    flexed = flex(fn, EPS)
    arrays, static = eqx.partition(params, eqx.is_array)
    of_arrays = lambda f: lambda arrays, x: f(eqx.combine(arrays, static), x)  # noqa: E731
    ours = of_arrays(flexed)
    both = _jit(lambda a, x: [maps_of(lambda x: ours(a, x), x, s).relevance for s in STARTS])
    wants = _jit(lambda x: [module_maps(weights, x, s).relevance for s in STARTS])(x)
    for got, want in zip(both(arrays, x), wants, strict=True):
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    assert jnp.array_equal(_jit(ours)(arrays, x), _jit(of_arrays(fn))(arrays, x))
    findings = flexed.findings(params, x)
    assert names(findings, True) == ["relu", "relu"] and names(findings, False) == []


def test_batchnorm_in_inference_is_linear_and_in_training_is_listed(weights):
    x = draw(7, 2, 8, 8, 2)
    norm = [
        {"scale": 1 + draw(10 + n, n) / 4, "bias": draw(20 + n, n) / 4, "mean": draw(30 + n, n) / 4,
         "var": jnp.exp(draw(40 + n, n) / 4)}
        for n in (3, 4)
    ]  # fmt: skip
    convs = [{"kernel": w["kernel"]} for w in weights[:2]]
    layers = dict(zip(("Conv_0", "Conv_1", "Dense_0"), [*convs, weights[2]], strict=True))
    pick = lambda *keys: {f"BatchNorm_{i}": {k: n[k] for k in keys} for i, n in enumerate(norm)}  # noqa: E731
    variables = {"params": layers | pick("scale", "bias"), "batch_stats": pick("mean", "var")}
    flexed = flex(LinenCNN(norm=True).apply, EPS)
    got = _jit(lambda v, x: maps_of(lambda x: flexed(v, x), x).relevance)(variables, x)
    want = _jit(lambda x: module_maps(weights, x, EachLogit(), norm).relevance)(x)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)
    assert names(flexed.findings(variables, x), False) == []

    training = linen.BatchNorm(use_running_average=False, param_dtype=x.dtype)
    start = training.init(jax.random.key(0), x)
    applied = flex(lambda v, x: linen.relu(training.apply(v, x, mutable=["batch_stats"])[0]))
    findings = applied.findings(start, x)
    assert names(findings, True) == ["relu"]
    assert {"rsqrt", "square", "variance >= 0"} <= set(names(findings, False))


# ---------------------------------------------------------------- the outer derivative


def heat_loss(logits, maps):
    """Something curved in both."""
    own = jax.nn.log_softmax(logits)[:, 1].mean()
    return jnp.log1p(jnp.square(maps).sum((2, 3, 4))).mean() - own


@pytest.mark.parametrize("framework", ["linen", "equinox"])
def test_outer_gradient_is_the_true_one(weights, framework):
    x = draw(7, 2, 8, 8, 2)
    fn, params = FRAMEWORKS[framework](weights)
    arrays, static = eqx.partition(params, eqx.is_array)
    flexed = flex(fn, EPS)

    def logits_and_maps(arrays):
        # The parameters reach the flexed function as argument and the input by closure.
        found = maps_of(lambda x: flexed(eqx.combine(arrays, static), x), x)
        return found.logits, found.relevance

    loss = _jit(lambda arrays: heat_loss(*logits_and_maps(arrays)))
    gradient = _jit(jax.grad(lambda arrays: heat_loss(*logits_and_maps(arrays))))(arrays)
    rng, h = np.random.default_rng(0), 1e-7
    for _ in range(3):
        way = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), arrays)
        at = lambda t, way=way: loss(jax.tree.map(lambda a, d: a + t * d, arrays, way))  # noqa: E731
        coarse, fine = ((at(t) - at(-t)) / (2 * t) for t in (2 * h, h))
        difference = (4 * fine - coarse) / 3
        along = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, way)))
        np.testing.assert_allclose(along, difference, rtol=1e-6)

    plain = _jit(jax.grad(lambda a: heat_loss(fn(eqx.combine(a, static), x), 0 * x[:, None])))
    rated = _jit(jax.grad(lambda a: heat_loss(logits_and_maps(a)[0], 0 * x[:, None])))
    for a, b in zip(*(jax.tree.leaves(f(arrays)) for f in (plain, rated)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-14)


def test_closed_over_parameters_and_relus_of_parameters_keep_their_derivative(x64):
    """A ReLU of a weight alone has no place in the map: not even the outer derivative sees it."""
    x, w = draw(0, 2, 3), draw(1, 3, 4)

    def maps_and_logits(w, epsilon):
        inner = lambda x: jax.nn.relu(x @ jax.nn.relu(w)) @ jnp.maximum(w, 0.0).T  # noqa: E731
        return maps_of(flex(inner, epsilon), x)

    plain = jax.grad(lambda w: maps_and_logits(w, 0.0).logits[0, 0])(w)
    assert jnp.array_equal(jax.grad(lambda w: maps_and_logits(w, EPS).logits[0, 0])(w), plain)
    scalar = lambda w: jnp.square(maps_and_logits(w, EPS).relevance).sum()  # noqa: E731
    way, h = draw(2, 3, 4), 1e-6
    difference = (scalar(w + h * way) - scalar(w - h * way)) / (2 * h)
    np.testing.assert_allclose((jax.grad(scalar)(w) * way).sum(), difference, rtol=1e-7)
    found = flex(lambda w, x: x @ jax.nn.relu(w)).findings(w, x)
    assert names(found, False) == ["relu"]


def test_relevance_is_of_the_argument_one_chooses(x64):
    x, w = draw(0, 2, 3), draw(1, 3, 4)
    flexed = flex(lambda w, x: jax.nn.relu(x @ w), EPS, argnums=0)
    a = jax.nn.relu(x @ w)
    _, pull = jax.vjp(lambda w: flexed(w, x), w)
    np.testing.assert_allclose(pull(jnp.ones_like(a))[0], x.T @ (a / (a + EPS)), rtol=1e-13)
    assert names(flexed.findings(w, x), True) == ["relu"]
    assert "explained: argument 0" in flexed.report(w, x)


# ---------------------------------------------------------------- spellings and control flow

W = np.random.default_rng(9).normal(size=(4, 4))


@jax.custom_vjp
def own_relu(h):
    return jnp.maximum(h, 0)


own_relu.defvjp(lambda h: (own_relu(h), h > 0), lambda on, g: (jnp.where(on, g, 0),))

SPELLINGS = {
    "maximum": lambda h: jnp.maximum(h, 0),
    "zero first": lambda h: jnp.maximum(0.0, h),
    "jax.nn.relu": jax.nn.relu,
    "nnx.relu": nnx.relu,
    "linen.relu": linen.relu,
    "relu6": jax.nn.relu6,
    "min of max": lambda h: jnp.minimum(jnp.maximum(h, 0.0), 6.0),
    "full_like": lambda h: lax.max(h, lax.full_like(h, 0)),
    "zeros": lambda h: lax.max(h, jnp.zeros(h.shape, h.dtype)),
    "numpy zeros": lambda h: lax.max(h, np.zeros(h.shape, h.dtype)),
    "clip": lambda h: jnp.clip(h, 0, 6),
    "clamp": lambda h: lax.clamp(0.0, h, 6.0),
    "where": lambda h: jnp.where(h > 0, h, 0),
    "where not": lambda h: jnp.where(h <= 0, jnp.zeros_like(h), h),
    "where ~": lambda h: jnp.where(~(h < 0), h, 0),
    "zero < h": lambda h: jnp.where(jnp.less(0.0, h), h, 0),
    "mask": lambda h: h * (h > 0).astype(h.dtype),
    "custom_vjp": own_relu,
    "jit": jax.jit(lambda h: jnp.maximum(h, 0)),
    "nested jit": jax.jit(lambda h: jax.jit(lambda h, zero: jnp.maximum(h, zero))(h, 0.0)),
    "remat": jax.checkpoint(lambda h: jnp.maximum(h, 0)),
    "vmap": jax.vmap(jax.nn.relu),
    "switch": lambda h: lax.switch(1, [jnp.tanh, jax.nn.relu], h),
    "cond": lambda h: lax.cond(h.sum() > -1e9, lambda h: jnp.maximum(h, 0), jnp.sin, h),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_treated_once(x64, spelling):
    relu, x = SPELLINGS[spelling], draw(0, 3, 4)
    flexed = flex(lambda x: relu(x @ W) @ W, EPS)
    value, pull = jax.vjp(flexed, x)
    assert jnp.array_equal(value, relu(x @ W) @ W)
    a, ct = jax.nn.relu(x @ W), draw(1, 3, 4)
    np.testing.assert_allclose(pull(ct)[0], (ct @ W.T * (a / (a + EPS))) @ W.T, rtol=1e-12)
    assert len(names(flexed.findings(x), True)) == 1


def by_hand(x, depth):
    """Layers of relu(h @ W) one after the other, with the factor written out."""
    factors = []
    for _ in range(depth):
        x = jax.nn.relu(x @ W)
        factors.append(x / (x + EPS))
    m = jnp.ones_like(x)
    for factor in factors[::-1]:
        m = (m * factor) @ W.T
    return x, m


def scanned(x):
    return lax.scan(lambda h, w: (jax.nn.relu(h @ w), h.sum()), x, jnp.stack([W] * 3))[0]


def looped(x):
    return lax.fori_loop(0, 3, lambda _, h: jnp.maximum(h @ W, 0), x)


def rematted(x):
    layer = jax.checkpoint(lambda h: jax.jit(jax.nn.relu)(h @ W))
    return lax.scan(lambda h, _: (layer(h), None), x, None, length=3)[0]


def carried(x):
    """What reaches the ReLU passes through a carry that starts constant: a fixed point."""
    step = lambda c, w: ((jax.nn.relu(c[1] @ w), c[0]), None)  # noqa: E731
    return lax.scan(step, (jnp.zeros_like(x), x), jnp.stack([W, np.eye(4), W, np.eye(4), W]))[0][0]


@pytest.mark.parametrize("fn", [scanned, looped, rematted])
def test_loops_over_layers(x64, fn):
    x = jnp.abs(draw(0, 3, 4))
    want, multiplier = by_hand(x, 3)
    value, pull = jax.vjp(jax.jit(flex(fn, EPS)), x)
    np.testing.assert_allclose(value, want, rtol=1e-12)
    np.testing.assert_allclose(pull(jnp.ones_like(x))[0], multiplier, rtol=1e-12)
    (found,) = flex(fn).findings(x)
    assert found.treated and "scan" in found.scope


def test_a_carry_that_becomes_dependent_is_found(x64):
    x = jnp.abs(draw(0, 3, 4))
    (found,) = flex(carried).findings(x)
    assert found.treated
    plain = jax.grad(lambda x: carried(x).sum())(x)
    ours = jax.grad(lambda x: flex(carried, EPS)(x).sum())(x)
    assert float(jnp.abs(plain).max()) > 0 and not np.allclose(plain, ours)
    assert jnp.array_equal(jax.grad(lambda x: flex(carried, 0.0)(x).sum())(x), plain)


def test_vmap_and_jit_outside_and_map_strategies(x64):
    x = draw(0, 3, 4)
    flexed = flex(lambda x: jax.nn.relu(x @ W) @ W, EPS)
    with jax.checking_leaks():
        jax.jit(jax.grad(lambda x: flexed(x).sum())).trace(x)
    batched = jax.grad(lambda x: flexed(x).sum())(x)
    single = jax.vmap(jax.grad(lambda row: flexed(row).sum()))(x)
    np.testing.assert_allclose(single, batched, rtol=1e-12)
    run = lambda how: relevance(  # noqa: E731
        lambda x: (flexed(x), None), x, EachLogit(), terminal=False, strategy=how
    )
    np.testing.assert_allclose(run("vmap").relevance, run("loop").relevance, rtol=1e-12)


def test_sharded_outside_gives_the_same_map():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)
    flexed = flex(lambda x: jax.nn.relu(x @ W.astype(np.float32)), EPS)
    grad = jax.jit(jax.grad(lambda x: flexed(x).sum()))
    mesh = jax.make_mesh((len(jax.devices()),), ("data",))
    spec = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    spread = grad(jax.device_put(x, spec))
    assert spread.sharding.is_equivalent_to(spec, 2)
    np.testing.assert_allclose(spread, grad(x), rtol=1e-5, atol=1e-6)


def test_shard_map_outside_works_and_inside_is_listed():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    auto, spec = (jax.sharding.AxisType.Auto,), jax.sharding.PartitionSpec("data")
    mesh = jax.make_mesh((2,), ("data",), axis_types=auto)
    shard = partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec)
    relu = lambda h: jnp.maximum(h, 0)  # noqa: E731
    run = shard(flex(relu, EPS))
    a = relu(x)
    got = jax.jit(jax.grad(lambda x: run(x).sum()))(x)
    np.testing.assert_allclose(got, a / (a + EPS), rtol=1e-6)
    (found,) = flex(shard(relu)).findings(x)
    assert (found.kind, found.name, found.treated) == ("opaque", "shard_map", False)
    assert found.where == "" and "an unknown line" in flex(shard(relu)).report(x)


# ---------------------------------------------------------------- what is left alone


def nothing(x):
    return x @ W


def whiled(x):
    return lax.while_loop(lambda h: h.sum() < 9, lambda h: jnp.maximum(h, 0) + 1, x)


@jax.custom_vjp
def opaque(x):
    return jnp.tanh(x) * jax.nn.relu(x)


opaque.defvjp(lambda x: (opaque(x), x), lambda x, g: (g,))

UNTREATED = {
    "tanh": (jnp.tanh, "tanh"),
    "gelu": (jax.nn.gelu, "tanh"),
    "exact gelu": (partial(jax.nn.gelu, approximate=False), "erf"),
    "silu": (jax.nn.silu, "silu"),
    "sigmoid": (jax.nn.sigmoid, "logistic"),
    "softmax": (jax.nn.softmax, "exp"),
    "softplus": (jax.nn.softplus, "softplus"),
    "leaky_relu": (jax.nn.leaky_relu, "leaky_relu"),
    "leaky by hand": (lambda x: lax.select(x > 0, x, x * 0.1), "select_n"),
    "hard_sigmoid": (jax.nn.hard_sigmoid, "hard_sigmoid"),
    "floor at one": (lambda x: jnp.maximum(x, 1.0), "max"),
    "gate": (lambda x: x * x[:, ::-1], "mul"),
    "while": (whiled, "while"),
    "custom_vjp": (opaque, "opaque"),
    "relu of nothing": (lambda x: x + jax.nn.relu(jnp.asarray(W[:3])), "relu"),
}


@pytest.mark.parametrize("case", UNTREATED)
def test_untreated_places_are_listed_and_plain(x64, case):
    fn, name = UNTREATED[case]
    x = draw(0, 3, 4)
    flexed = flex(fn, EPS)
    findings = flexed.findings(x)
    told = names(findings, False)
    assert name in told or any(name in t for t in told), told
    assert names(findings, True) == []
    assert flexed.report(x).startswith(f"flex({flexed.__name__}, epsilon=0.1): 0 ReLUs treated")
    assert jnp.array_equal(flexed(x), fn(x))
    if case != "while":
        pull, plain = (jax.vjp(f, x)[1](jnp.ones_like(x))[0] for f in (flexed, fn))
        np.testing.assert_allclose(pull, plain, rtol=1e-13)


def test_no_relu_and_integer_relus(x64):
    x = draw(0, 3, 4)
    assert flex(nothing).findings(x) == ()
    assert flex(nothing).report(x).count("\n") == 0 and "0 ReLUs treated" in flex(nothing).report(x)
    count = flex(lambda n, x: x * jnp.maximum(n, 0).astype(x.dtype)[None])
    n = jnp.arange(-2, 2)
    assert count.findings(n, x) == ()
    assert count.findings(n, jax.ShapeDtypeStruct(x.shape, x.dtype)) == ()
    assert jnp.array_equal(flex(lambda n: jax.nn.relu(n))(n), jnp.maximum(n, 0))


def test_epsilon_zero_is_the_gradient(x64):
    x = draw(0, 3, 4)
    fn = lambda x: jax.nn.relu(x @ W) @ W  # noqa: E731
    ours, plain = (jax.grad(lambda x, f=f: jnp.sin(f(x)).sum())(x) for f in (flex(fn, 0), fn))
    assert jnp.array_equal(ours, plain)
    assert names(flex(fn, 0).findings(x), True) == ["relu"]


def test_a_report_says_where(x64):
    def block(x):
        with jax.named_scope("stem"):
            h = jax.nn.relu(x @ W)
        return jnp.tanh(h)

    relu, tanh = flex(block).findings(draw(0, 3, 4))
    assert isinstance(relu, Finding) and relu.kind == "relu" and tanh.kind == "nonlinear"
    assert relu.scope == "stem" and re.fullmatch(r"test_flex\.py:\d+ \(.*block\)", relu.where)
    lines = flex(block, 0.01).report(draw(0, 3, 4)).splitlines()
    assert lines[0].startswith("flex(block, epsilon=0.01): 1 ReLU treated, 1 untreated")
    assert lines[1].split() == ["treated", "relu", "relu", "x1", *lines[1].split()[4:]]
    assert "in stem" in lines[1] and "tanh x1" in lines[2]


def test_structures_pass_through_as_they_are(x64):
    def fn(parts, *, double, note):
        h = jax.nn.relu(parts["x"])
        return {"h": 2 * h if double else h, "note": note, "n": parts["n"] + 1, "count": 3}

    x, n = draw(0, 3, 4), jnp.arange(3)
    flexed = flex(fn, EPS)
    out = flexed({"x": x, "n": n}, double=True, note="as it came")
    assert out["note"] == "as it came" and out["count"] == 3 and type(out["count"]) is int
    assert jnp.array_equal(out["h"], 2 * jax.nn.relu(x)) and jnp.array_equal(out["n"], n + 1)
    got = jax.grad(lambda x: flexed({"x": x, "n": n}, double=False, note="")["h"].sum())(x)
    a = jax.nn.relu(x)
    np.testing.assert_allclose(got, a / (a + EPS), rtol=1e-13)
    assert isinstance(flexed, Flexed) and flexed.__name__ == "fn"


def test_complex_numbers_between_real_ones_pass(x64):
    fn = lambda x: jax.nn.relu(jnp.fft.ifft(jnp.fft.fft(x) * 2).real)  # noqa: E731
    x = draw(0, 3, 4)
    a = fn(x)
    got = jax.grad(lambda x: flex(fn, EPS)(x).sum())(x)
    np.testing.assert_allclose(got, 2 * a / (a + EPS), atol=1e-12)


def test_mistakes_are_told():
    with pytest.raises(TypeError, match="flex needs a function of arrays, got int: 3"):
        flex(3)
    with pytest.raises(TypeError, match="epsilon must be a number, got str: '0.1'"):
        flex(nothing, "0.1")
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon must be finite and >= 0"):
            flex(nothing, bad)
    with pytest.raises(ValueError, match="argnums .1,.: no floating-point array .* are .0."):
        flex(lambda x, n: x, argnums=1).report(jnp.ones(2), jnp.arange(2))


def test_no_convolution_is_computed_twice():
    """One forward for logits and map, as in the module route: 3L - 1 becomes 6L - 1."""
    keys = jax.random.split(jax.random.key(0), 3)
    kernels = [jax.random.normal(k, (3, 3, 2, 2)) for k in keys]
    x = jax.random.normal(keys[0], (2, 6, 6, 2))

    def fn(kernels, x):
        for k in kernels:
            x = jax.nn.relu(
                lax.conv_general_dilated(
                    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        return x.mean((1, 2))

    def loss(kernels, x):
        found = maps_of(lambda x: flex(fn)(kernels, x), x, Selective())
        return jnp.square(found.relevance).sum() + jnp.square(found.logits).sum()

    text = jax.jit(jax.grad(loss)).lower(kernels, x).compile().as_text()
    assert len(re.findall(r" convolution\(|__onednn\$conv|custom-call.*conv", text)) == 17


# ---------------------------------------------------------------- the guide


def test_the_python_of_the_guide_runs():
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    scope = {}
    with jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(compile(block, "docs/flex.md", "exec"), scope)
    assert scope["maps"].relevance.shape == (2, 3, 8, 8, 1)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(scope["gradient"]))
    report = flex(scope["model"]).report(scope["params"], scope["x"])
    told = re.search(r"```text\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL).group(1)
    cut = lambda text: [" ".join(line.split()[:4]) for line in text.splitlines()]  # noqa: E731
    assert cut(report) == cut(told)


@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("select", lambda v: jnp.select([v > 0], [v], 0.0)),
        ("piecewise", lambda v: jnp.piecewise(v, [v > 0], [lambda t: t, 0.0])),
        ("cond", lambda v: jax.lax.cond(v.sum() > 0, lambda t: 2 * t, lambda t: t, v)),
        ("gate", lambda v: jnp.where(v[..., :1] > 0, v, 0.0)),
    ],
)
def test_choices_that_the_input_steers_are_told(name, fn):
    found = flex(fn).findings(jnp.ones((2, 3)))
    assert found and not any(finding.treated for finding in found)
    assert {finding.kind for finding in found} == {"nonlinear"}


def test_choices_that_the_input_does_not_steer_are_linear():
    keep = jnp.array([True, False, True])
    assert flex(lambda v: jnp.where(keep, v, 0.0)).findings(jnp.ones(3)) == ()
    assert flex(lambda v, k: jnp.where(k > 0, v, 0.0), argnums=0).findings(*2 * [jnp.ones(3)]) == ()


def test_arguments_that_cannot_be_explained():
    with pytest.raises(ValueError, match=r"argnums \(5,\): no floating-point array"):
        flex(lambda a, b: a + b, argnums=5).report(jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="no argument holds a floating-point array"):
        flex(lambda a: a + 1).report(jnp.arange(3))
