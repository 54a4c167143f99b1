"""Rules of one layer against the original's arrays, a slow derivation, and degenerate inputs.

The golden arrays are NCHW / OIHW; their relevance ``rK`` stands at the layer's output, so the
multiplier that ours consume is ``rK / z``.
"""

from collections.abc import Callable
from functools import partial, reduce
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax.lrp import ZB, Epsilon, Rule, ZPlus, ops
from isnet_jax.lrp.layers import AdaptiveAvgPool, Add, AvgPool, BatchNorm, Conv, Dense, MaxPool
from isnet_jax.lrp.rules import sign

# Each program runs once on a few numbers: compile fast, not well.
_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

CONVS = {
    "conv_k3s1p1": {"padding": 1},
    "conv_k3s2p1_even": {"padding": 1, "strides": 2},
    "conv_k3s2p1_odd": {"padding": 1, "strides": 2},
    "conv_k1s2p0": {"strides": 2},
    "conv_k7s2p3": {"padding": 3, "strides": 2},
    "conv_k3s1p2d2": {"padding": 2, "dilation": 2},
}


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "isnet" / "rules_unit.npz") as file:
        return {key: file[key] for key in file.files}


def _last(a: np.ndarray) -> np.ndarray:
    """(..., c, h, w) to (..., h, w, c)."""
    return np.moveaxis(a, -3, -1)


def _filled(build: Callable[[], nnx.Module], **values: np.ndarray) -> nnx.Module:
    """The layer over exactly these arrays; BatchNorms use running averages."""
    layer = nnx.eval_shape(build)  # abstract: initialisers need not compile
    layer.eval()
    graphdef, state = nnx.split(layer)
    state = nnx.to_pure_dict(state)
    for name, value in values.items():
        *groups, leaf = name.split("__")
        place = reduce(dict.__getitem__, groups, state)
        assert place[leaf].shape == value.shape, name
        place[leaf] = jnp.asarray(value)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    return nnx.merge(graphdef, state)


def _conv_layer(*sizes: object, **config: object) -> Conv:
    return Conv(*sizes, rngs=nnx.Rngs(0), **config)


def _conv(arrays: dict[str, np.ndarray], key: str, **config: object) -> Conv:
    w = arrays[f"{key}/W"]
    build = partial(_conv_layer, w.shape[1], w.shape[0], w.shape[2:], **config)
    return _filled(build, kernel=w.transpose(2, 3, 1, 0), bias=arrays[f"{key}/b"])


def _conv_bn(arrays: dict[str, np.ndarray]) -> Conv:
    w = arrays["convbn/W"]
    build = partial(_conv_layer, 3, 4, (3, 3), strides=2, padding=1, use_bias=True, norm=True)
    norm = {f"norm__{ours}": arrays[f"convbn/{theirs}"] for ours, theirs in _BN.items()}
    return _filled(build, kernel=w.transpose(2, 3, 1, 0), bias=arrays["convbn/b"], **norm)


_BN = {"scale": "gamma", "bias": "beta", "mean": "mean", "var": "var"}


def _dense(w: np.ndarray, b: np.ndarray) -> Dense:
    return _filled(lambda: Dense(*w.T.shape, rngs=nnx.Rngs(0)), kernel=w.T, bias=b)


def _with(layer: nnx.Module, rule: Rule) -> nnx.Module:
    twin = nnx.merge(*nnx.split(layer))
    twin.rule = rule
    return twin


def _maps(layer, rules, *inputs, relevance):
    """Relevance (b, m, *input) at the (first) input under each rule, one program for all rules.

    Where the layer's value is exactly 0 the multiplier is set to 0: what reaches such a unit of
    the pools are zeros only.
    """

    @_jit
    def run(inputs, relevance):
        out = []
        for rule in rules:
            z, pull = jax.vjp(_with(layer, rule), *inputs)
            safe = jnp.where(z == 0, 1, z)
            m = jnp.where((z == 0)[:, None], 0, relevance / safe[:, None])
            found = jax.vmap(pull, 1, 1)(m)
            if not rule.terminal:
                found = [x[:, None] * part for x, part in zip(inputs, found, strict=True)]
            out.append(found if len(inputs) > 1 else found[0])
        return out

    return jax.tree.map(np.asarray, run(inputs, relevance))


def _close(ours, theirs, tolerance: float = 1e-9) -> None:
    """Relative to the largest entry of the array."""
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


# ---------------------------------------------------------------- the original's arrays


def test_sign_of_zero_is_positive(arrays, x64) -> None:
    z = jnp.asarray(arrays["stabilizer/in"])
    _close(z + 0.01 * sign(z), arrays["stabilizer/out"], 1e-15)


def test_golden_dense(arrays, x64) -> None:
    layer = _dense(arrays["dense/W"], arrays["dense/b"])
    x = np.concatenate((arrays["dense/aJ_pos"], arrays["dense/aJ_mixed"]))
    relevance = np.concatenate((arrays["dense/rK2"], arrays["dense/rK1"]), 1)
    ours = _maps(layer, (Epsilon(), ZPlus()), x, relevance=np.concatenate((relevance, relevance)))
    for i, sort in enumerate(("pos", "mixed")):
        e, z_plus = (r[3 * i : 3 * i + 3] for r in ours)
        _close(e[:, :2], arrays[f"dense/e_{sort}"])
        _close(z_plus[:, 2:], arrays[f"dense/AB1_0_{sort}"])
        if sort == "pos":
            _close(z_plus[:, :2], arrays["dense/z+_pos"])


def test_golden_zb_of_dense(arrays, x64) -> None:
    layer = _dense(arrays["zbdense/W"], arrays["zbdense/b"])
    (ours,) = _maps(layer, [ZB()], arrays["zbdense/aJ"], relevance=arrays["zbdense/rK"])
    _close(ours, arrays["zbdense/out"])


@pytest.mark.parametrize("key", CONVS)
def test_golden_conv(key: str, arrays, x64) -> None:
    boxes = {"Zb_l0_h1": ZB(), "Zb_l-0.5_h1.5": ZB(-0.5, 1.5)}
    boxes = {name: rule for name, rule in boxes.items() if f"{key}/{name}" in arrays}
    assert boxes or key == "conv_k3s1p2d2"
    layer, relevance = _conv(arrays, key, **CONVS[key]), _last(arrays[f"{key}/rK"])
    rules = (Epsilon(), ZPlus(), *boxes.values())
    x = np.concatenate([_last(arrays[f"{key}/aJ_{sort}"]) for sort in ("pos", "mixed")])
    ours = _maps(layer, rules, x, relevance=np.concatenate((relevance, relevance)))
    for i, sort in enumerate(("pos", "mixed")):
        e, z_plus, *zb = (r[2 * i : 2 * i + 2] for r in ours)
        _close(e, _last(arrays[f"{key}/e_{sort}"]))
        _close(z_plus, _last(arrays[f"{key}/AB1_0_{sort}"]))
        dual = np.stack((z_plus[:, 0], e[:, 1]), 1)
        _close(dual, _last(arrays[f"{key}/z+e_{sort}"]))
        if sort == "pos":
            _close(z_plus, _last(arrays[f"{key}/z+_pos"]))
            for name, found in zip(boxes, zb, strict=True):
                _close(found, _last(arrays[f"{key}/{name}"]))


def test_golden_folded_batch_norm(arrays, x64) -> None:
    assert arrays["convbn/gamma"].min() < 0 < arrays["convbn/gamma"].max()
    rules = {"e": Epsilon(), "z+": ZPlus(), "Zb": ZB()}
    x, relevance = _last(arrays["convbn/aJ"]), _last(arrays["convbn/rK"])
    ours = _maps(_conv_bn(arrays), rules.values(), x, relevance=relevance)
    for name, found in zip(rules, ours, strict=True):
        _close(found, _last(arrays[f"convbn/{name}"]))
    _close(np.stack((ours[1][:, 0], ours[0][:, 1]), 1), _last(arrays["convbn/z+e"]))


def test_golden_batch_norm_alone(arrays, x64) -> None:
    values = {ours: arrays[f"convbn/{theirs}"] for ours, theirs in _BN.items()}
    layer = _filled(lambda: BatchNorm(4, rngs=nnx.Rngs(0)), **values)
    x, relevance = _last(arrays["bn/aJ"]), _last(arrays["bn/rK"])
    e, z_plus = _maps(layer, (Epsilon(), ZPlus()), x, relevance=relevance)
    _close(e, _last(arrays["bn/e"]))
    _close(np.stack((z_plus[:, 0], e[:, 1]), 1), _last(arrays["bn/z+e"]))


def test_golden_max_pool_adds_overlapping_windows(arrays, x64) -> None:
    layers = {
        "maxpool_k2s2": MaxPool((2, 2)),
        "maxpool_k3s2p1": MaxPool((3, 3), strides=2, padding=1),
    }
    for key, layer in layers.items():
        x, relevance = _last(arrays[f"{key}/aJ"]), _last(arrays[f"{key}/rK"])
        e, z_plus = _maps(layer, (Epsilon(), ZPlus()), x, relevance=relevance)
        _close(e, _last(arrays[f"{key}/e"]))
        # Winner-take-all knows no weight signs, and the input is non-negative.
        _close(z_plus, np.asarray(e), 1e-15)
        shipped = _last(arrays[f"{key}/e_asis"])
        if key == "maxpool_k2s2":
            _close(e, shipped)
        else:  # the original's unpooling overwrites instead of adding
            assert np.linalg.norm(e - shipped) > 0.2 * np.linalg.norm(e)


def test_golden_average_pools(arrays, x64) -> None:
    x, relevance = _last(arrays["avgpool2/aJ"]), _last(arrays["avgpool2/rK"])
    e, z_plus = _maps(AvgPool((2, 2)), (Epsilon(), ZPlus()), x, relevance=relevance)
    _close(e, _last(arrays["avgpool2/e"]))
    _close(z_plus, _last(arrays["avgpool2/z+"]))
    for key, size in {"adaptive1_from5": 1, "adaptive3_from6": 3, "adaptive3_from7": 3}.items():
        x, relevance = _last(arrays[f"{key}/aJ"]), _last(arrays[f"{key}/rK"])
        theirs = _last(arrays[f"{key}/e"])
        # The original rounds the numerator's weight 1/n to float32.
        n = {"adaptive1_from5": 25, "adaptive3_from6": 4, "adaptive3_from7": 9}[key]
        _close(_adaptive_by_hand(x, relevance) * n * float(np.float32(1 / n)), theirs)
        (ours,) = _maps(
            AdaptiveAvgPool(size), [Epsilon()], x, relevance=relevance.reshape(2, 2, -1)
        )
        _close(ours, theirs, 1e-9 if n == 4 else 1e-7)


def test_adaptive_pool_is_exact_for_every_size(x64) -> None:
    # 8 to 3: torch's windows are 0-2, 2-5, 5-7; the original takes 0-3, 2-5, 4-7.
    rng = np.random.default_rng(0)
    x, relevance = rng.normal(size=(2, 8, 8, 2)), rng.normal(size=(2, 1, 3, 3, 2))
    (ours,) = _maps(AdaptiveAvgPool(3), [Epsilon()], x, relevance=relevance.reshape(2, 1, -1))
    _close(ours, _adaptive_by_hand(x, relevance), 1e-12)


def _adaptive_by_hand(x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """(b, h, w, c) and (b, m, n, n, c) to (b, m, h, w, c), one window at a time."""
    out = np.zeros((*relevance.shape[:2], *x.shape[1:]))
    n, side = relevance.shape[2], x.shape[1]
    spans = [slice(int(np.floor(i * side / n)), int(np.ceil((i + 1) * side / n))) for i in range(n)]
    for i, rows in enumerate(spans):
        for j, columns in enumerate(spans):
            part = x[:, rows, columns]
            z = part.mean((1, 2), keepdims=True)[:, None]
            s = relevance[:, :, i : i + 1, j : j + 1] / (z + 0.01 * np.where(z >= 0, 1, -1))
            out[:, :, rows, columns] += part[:, None] / part[0, ..., 0].size * s
    return out


def test_golden_sums(arrays, x64) -> None:
    a, b, relevance = (_last(arrays[f"ressum/{key}"]) for key in ("a", "b", "rK"))
    e, z_plus = _maps(Add(), (Epsilon(), ZPlus()), a, b, relevance=relevance)
    for summand, ours_e, ours_z in zip("ab", e, z_plus, strict=True):
        _close(ours_e, _last(arrays[f"ressum/e_{summand}"]))
        _close(ours_z, _last(arrays[f"ressum/z+_{summand}"]))
        dual = np.stack((ours_z[:, 0], ours_e[:, 1]), 1)
        _close(dual, _last(arrays[f"ressum/z+e_{summand}"]))

    class SpatialSum(nnx.Module):
        rule = None

        def __call__(self, x):
            return ops.apply_output_rule(self.rule, x.sum((1, 2)))

    x = _last(arrays["spatialsum/aJ"])
    (ours,) = _maps(SpatialSum(), [Epsilon()], x, relevance=arrays["spatialsum/rK"])
    _close(ours, _last(arrays["spatialsum/e"]))


# ---------------------------------------------------------------- the textbook, unit by unit


def _textbook(rule, matrix, bias, x, z, relevance):
    """R (j,) from W (k, j), b (k,), x (j,), R (k,): contributions of one output at a time."""
    out = np.zeros_like(x)
    for k, row in enumerate(matrix):
        parts, b = x * row, bias[k]
        if isinstance(rule, ZPlus):
            parts = np.where(parts > 0, parts, 0)
            total = sum(parts) + max(b, 0) + rule.epsilon
        else:
            total = sum(parts) + b
            if isinstance(rule, ZB):
                low, high = (np.resize(v, len(x)) for v in (rule.low, rule.high))
                parts = parts - np.where(row > 0, low, high) * row
                kept = (
                    b - rule.low * max(b, 0) - rule.high * min(b, 0) if rule.bias != "cancel" else 0
                )
                total = sum(parts) + kept
            else:
                assert abs(total - z[k]) < 1e-12
            total += rule.epsilon if total >= 0 else -rule.epsilon
        out += parts / total * relevance[k]
    return out


UNITS = {
    "dense": lambda: Dense(6, 5, rngs=nnx.Rngs(0)),
    "conv": partial(_conv_layer, 2, 3, (3, 3), strides=2, padding=1),
    "conv_bn": partial(_conv_layer, 2, 3, (3, 3), strides=(2, 1), padding=1, norm=True),
    "grouped": partial(_conv_layer, 2, 4, (2, 2), groups=2),
}


def _rules(channels: int) -> tuple[Rule, ...]:
    low = tuple(-1.0 - 0.5 * i for i in range(channels))
    return (Epsilon(0.02), ZPlus(0.02), ZB(-0.3, 1.2, 0.02), ZB(low, 2.5, 0.02, "cancel"))


def _unit(name: str, dtype: type) -> tuple[nnx.Module, jax.Array]:
    """A unit with every array random (BatchNorm included) and an input of both signs."""
    rng = np.random.default_rng(7)
    graphdef, state = nnx.split(nnx.eval_shape(UNITS[name]))
    state = nnx.to_pure_dict(state)
    state = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), dtype), state)
    if "norm" in state:
        state["norm"]["var"] = jnp.square(state["norm"]["var"]) + 0.5
    unit = nnx.merge(graphdef, state)
    unit.eval()
    x = rng.normal(size=(2, 6) if name == "dense" else (2, 4, 5, 2))
    return unit, jnp.asarray(x, dtype)


@pytest.mark.parametrize("name", UNITS)
def test_rules_against_the_textbook(name: str, x64) -> None:
    unit, x = _unit(name, np.float64)
    plain = lambda row: unit(row[None])[0].ravel()  # noqa: E731
    bias = np.asarray(plain(jnp.zeros_like(x[0])))
    matrix = np.asarray(_jit(jax.jacobian(plain))(x[0])).reshape(len(bias), -1)
    z = np.asarray(unit(x))
    relevance = np.random.default_rng(3).normal(size=(z.shape[0], 1, *z.shape[1:]))
    rules = _rules(x.shape[-1])
    ours = _maps(unit, rules, x, relevance=relevance)
    for rule, found in zip(rules, ours, strict=True):
        for i in range(len(x)):
            r = relevance[i].ravel()
            slow = _textbook(rule, matrix, bias, np.asarray(x[i]).ravel(), z[i].ravel(), r)
            _close(found[i].ravel(), slow, 1e-12)


# ---------------------------------------------------------------- transforms, precision, zeros


@pytest.mark.parametrize("name", ["dense", "conv_bn"])
def test_rules_under_vmap_and_in_float32(name: str) -> None:
    with jax.enable_x64(True):
        unit, x = _unit(name, np.float64)
        rules = _rules(x.shape[-1])
        exact = _maps(unit, rules, x, relevance=np.ones((2, 1, *unit(x).shape[1:])))
    unit, x = _unit(name, np.float32)

    def maps(x, rule):
        z, pull = jax.vjp(_with(unit, rule), x)
        (m,) = pull(1 / z)
        return m if rule.terminal else x * m

    every = lambda x: [maps(x, rule) for rule in rules]  # noqa: E731
    compiled = _jit(every)(x)
    eager = every(x) if name == "dense" else compiled  # eager convolutions compile for long
    mapped = _jit(jax.vmap(lambda row: [r[0] for r in every(row[None])]))(x)
    for rule, slow, *versions in zip(rules, exact, eager, compiled, mapped, strict=True):
        for ours in map(np.asarray, versions):
            assert ours.dtype == jnp.float32
            assert np.abs(ours - slow[:, 0]).max() <= 1e-5 * np.abs(slow).max(), rule


def _zeros(x: jax.Array, state: dict) -> list[tuple[jax.Array, dict]]:
    """Zero input, zero weights, and zero activations from parts that cancel."""
    empty = jax.tree.map(jnp.zeros_like, state)
    cancelling = {**empty, "kernel": empty["kernel"].at[..., 0, :].set(1).at[..., 1, :].set(-1)}
    return [(0 * x, state), (x, empty), (jnp.ones_like(x), cancelling)]


@pytest.mark.parametrize("name", ["dense", "conv_bn"])
def test_zeros_give_finite_maps_and_derivatives(name: str) -> None:
    unit, x = _unit(name, np.float32)
    graphdef, state = nnx.split(unit)
    rules = (Epsilon(), Epsilon(0.0), ZPlus(), ZPlus(0.0), ZB(), ZB(epsilon=0.0))

    @_jit
    @partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def total(x, state):
        found = []
        for rule in rules:
            z, pull = jax.vjp(_with(nnx.merge(graphdef, state), rule), x)
            (m,) = pull(jnp.ones_like(z))
            found.append(m if rule.terminal else x * m)
        return sum(jnp.square(r).sum() for r in found), found

    for values in _zeros(x, nnx.to_pure_dict(state)):
        for leaf in jax.tree.leaves(total(*values)):
            assert np.isfinite(leaf).all()


def test_bad_rules_name_the_value() -> None:
    for rule in (Epsilon, ZPlus, ZB):
        with pytest.raises(ValueError, match=rf"{rule.__name__}.epsilon=-1.0; must be >= 0"):
            rule(epsilon=-1.0)
        with pytest.raises(ValueError, match="epsilon=nan"):
            rule(epsilon=float("nan"))
    with pytest.raises(ValueError, match="unknown ZB bias 'some'; legal values: scaled, cancel"):
        ZB(bias="some")
    with pytest.raises(ValueError, match="needs bias='cancel'"):
        ZB(low=(0.0, -1.0))
    with pytest.raises(ValueError, match="low < high"):
        ZB((0.0, 1.0), (1.0, 0.5), bias="cancel")
