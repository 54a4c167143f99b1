"""Heatmaps for people: starts, targets, transforms, conservation, and what is refused."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import explain
from isnet_jax.isnet import VARIANTS, ISNet, bind, heatmaps, programs, variables
from isnet_jax.lrp import (
    AllLogits,
    Composite,
    EachLogit,
    Epsilon,
    Logit,
    Selective,
    create,
    relevance,
)
from isnet_jax.models.simple_cnn import SimpleCNN


def _random(model: nnx.Module, dtype: type = np.float32, bias: float = 1.0) -> nnx.Module:
    """A model over random arrays; biases, norm offsets and means scaled by ``bias``."""
    rng = np.random.default_rng(0)
    graphdef, state = nnx.split(model)

    def draw(path, leaf):
        value = rng.normal(size=leaf.shape)
        if path[-1].key in ("var", "scale"):
            value = 1 + 0.3 * np.abs(value)
        elif leaf.ndim == 1:
            value = bias * value
        return jnp.asarray(value, dtype)

    state = jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state))
    return nnx.merge(graphdef, state)


def _abstract(**config: object) -> nnx.Module:
    build = partial(SimpleCNN, num_classes=3, in_channels=2, widths=(3, 4), pooled=2, **config)
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def cnn() -> SimpleCNN:
    return _random(_abstract())


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(1).random((3, 6, 6, 2)).astype(np.float32)


def _close(ours, theirs, tolerance: float = 2e-6) -> None:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


# ---------------------------------------------------------------- targets


def test_targets_pick_the_maps(cnn, x) -> None:
    each = explain(cnn, x, target="each", composite="isnet_flex_zb")
    assert each.relevance.shape == (3, 3, 6, 6, 2)
    assert each.logits.shape == each.conservation_gap.shape == (3, 3)
    logits, rows = np.asarray(each.logits), np.arange(3)
    chosen = {
        "top": (None, logits.argmax(1)),
        "one": (2, np.array([2, 2, 2])),
        "numpy": (np.int64(1), np.array([1, 1, 1])),
        "array": (np.array([2, 0, 1]), np.array([2, 0, 1])),
    }
    for target, classes in chosen.values():
        found = explain(cnn, x, target=target, composite="isnet_flex_zb")
        _close(found.relevance, np.asarray(each.relevance)[rows, classes])
        _close(found.logits, logits)
        _close(found.conservation_gap, np.asarray(each.conservation_gap)[rows, classes], 1e-5)


def test_all_and_selective_targets(cnn, x) -> None:
    # Where no rule depends on the start, maps add up like their quantities.
    each = explain(cnn, x, target="each", composite="isnet_flex")
    maps, logits = np.asarray(each.relevance), np.asarray(each.logits)
    every = explain(cnn, x, target="all", composite="isnet_flex")
    _close(every.relevance, maps.sum(1), 1e-5)
    selective = explain(cnn, x, target="selective", composite="isnet_flex")
    lowest = logits.argmin(1)
    others = np.where(np.eye(3, dtype=bool)[lowest], -np.inf, logits)
    share = np.exp(others - others.max(1, keepdims=True))
    share = -share / share.sum(1, keepdims=True)
    share[np.arange(3), lowest] = 1
    _close(selective.relevance, np.einsum("bk,bkhwc->bhwc", share, maps).astype(np.float32), 1e-5)


# ---------------------------------------------------------------- conservation


def test_relevance_is_conserved_without_bias_and_stabiliser(x64) -> None:
    model = _random(_abstract(norm=False), np.float64, bias=0.0)
    x = np.random.default_rng(2).normal(size=(2, 6, 6, 2))
    for composite, target in (
        (create("epsilon", epsilon=1e-12), "each"),
        (create("isnet_flex", epsilon=1e-12), "all"),
        (create("gradient_x_input"), "each"),
    ):
        found = explain(model, x, target=target, composite=composite)
        assert np.abs(found.conservation_gap).max() < 1e-9 * np.abs(found.logits).max()


@pytest.mark.parametrize("composite", ["epsilon", "isnet_epsilon_zb", "zplus"])
def test_gap_is_what_did_not_arrive(composite: str, cnn, x) -> None:
    each = explain(cnn, x, target="each", composite=composite)
    arrived = np.asarray(each.relevance).sum((2, 3, 4))
    scale = np.abs(each.relevance).sum()
    assert np.abs(each.conservation_gap - (each.logits - arrived)).max() < 1e-6 * scale
    assert np.abs(each.conservation_gap).max() > 1e-3  # biases and stabilisers absorb


def test_gradient_x_input_is_that(cnn, x) -> None:
    twin = nnx.merge(*nnx.split(cnn))
    twin.eval()
    classes = np.array([2, 0, 1])
    grad = jax.jit(jax.grad(lambda x: twin(x)[np.arange(3), classes].sum()))(x)
    found = explain(cnn, x, target=classes, composite="gradient_x_input")
    _close(found.relevance, x * grad)


# ---------------------------------------------------------------- batches and transforms


@pytest.mark.parametrize("composite", ["isnet_epsilon_zb"])
def test_a_batch_is_its_samples_one_by_one(composite: str, cnn, x) -> None:
    cnn.train()  # explain uses running averages whatever the model's mode
    together = explain(cnn, x, target="each", composite=composite)
    for i in range(len(x)):
        alone = explain(cnn, x[i : i + 1], target="each", composite=composite)
        _close(alone.relevance[0], together.relevance[i], 1e-5)
    batched = explain(cnn, x, target="each", composite=composite, strategy="vmap")
    for a, b in zip(batched[:3], together[:3], strict=True):
        _close(a, b, 1e-5)
    assert not cnn.blocks[0].norm.use_running_average


def test_core_under_jit_and_vmap(cnn, x) -> None:
    composite = create("isnet_flex_zb")
    graphs = programs(cnn, composite)
    f = bind(graphs.views[0].infer, *variables(cnn))

    def maps(x):
        return relevance(f, x, EachLogit(), terminal=graphs.views[0].terminal)[:3]

    expected = jax.jit(maps)(x)
    reference = explain(cnn, x, target="each", composite=composite)
    _close(expected[1], reference.relevance, 1e-5)
    mapped = jax.jit(jax.vmap(lambda row: maps(row[None])))(x)
    for ours, slow in zip(mapped, expected, strict=True):
        _close(np.asarray(ours)[:, 0], slow, 1e-5)


def test_training_mode_detaches_the_statistics(cnn, x) -> None:
    """With statistics detached a pixel explains its own sample only, and the map is the map of the
    affine layer that the batch statistics make."""
    params, rest = variables(cnn)
    found = {}
    for mode in ("detach", "through"):
        graphs = programs(cnn, Composite(((".*", Epsilon()),), mode))
        f = bind(graphs.views[0].train, params, rest)
        maps = partial(relevance, f, start=Logit(), terminal=False)
        found[mode] = jax.jit(lambda x, maps=maps: maps(x, classes=jnp.arange(3)).relevance)(x)
    frozen = nnx.merge(*nnx.split(cnn))
    frozen.train()
    for block in frozen.blocks:
        block.norm.momentum = 0.0  # the running averages become the batch's
    frozen(x)
    slow = explain(frozen, x, target=np.array([0, 1, 2]), composite=Composite(((".*", Epsilon()),)))
    _close(found["detach"][:, 0], slow.relevance, 1e-4)
    difference = np.asarray(found["through"]) - np.asarray(found["detach"])
    assert np.linalg.norm(difference) > 0.1 * np.linalg.norm(slow.relevance)


# ---------------------------------------------------------------- mistakes


def test_bad_inputs_are_named(cnn, x) -> None:
    with pytest.raises(ValueError, match="x must be floating point, got uint8"):
        explain(cnn, np.ones((1, 6, 6, 2), np.uint8))
    for value in (np.nan, np.inf):
        bad = x.copy()
        bad[1, 2, 3, 0] = value
        with pytest.raises(ValueError, match="non-finite"):
            explain(cnn, bad)
    with pytest.raises(ValueError, match=r"2 channels\), got shape \(3, 6, 6, 1\)"):
        explain(cnn, x[..., :1])
    with pytest.raises(ValueError, match="expects .batch, 2 spatial axes"):
        explain(cnn, x[0])
    for target in ("top", "Each", ""):
        with pytest.raises(ValueError, match=f"unknown target '{target}'; legal values: None, a"):
            explain(cnn, x, target=target)
    for target in (1.0, np.array([0, 1]), np.array([[0, 1, 2]]), True):
        with pytest.raises(ValueError, match=r"target must be one int or \(3,\) ints, got"):
            explain(cnn, x, target=target)
    for target in (3, -1, np.array([0, 1, 3])):
        with pytest.raises(ValueError, match=r"class outside 0\.\.2"):
            explain(cnn, x, target=target)
    with pytest.raises(ValueError, match="unknown composite 'epsilom'; did you mean 'epsilon'"):
        explain(cnn, x, composite="epsilom")
    with pytest.raises(ValueError, match="unknown map strategy 'scan'; legal values: .*loop.*vmap"):
        explain(cnn, x, strategy="scan")


# ---------------------------------------------------------------- the starts


@pytest.fixture(scope="module")
def arrays(golden: Path) -> dict[str, np.ndarray]:
    with np.load(golden / "isnet" / "rules_unit.npz") as file:
        return {key: file[key] for key in file.files if key.startswith("eta/")}


def _eta(start: Selective, logits: jax.Array) -> jax.Array:
    """(b, k) logits to (b, k) quantities of every class."""
    chosen = [np.full(logits.shape[0], k) for k in range(logits.shape[1])]
    return jnp.stack([start.quantities(logits, jnp.asarray(c))[0] for c in chosen], 1)


def test_golden_eta(arrays, x64) -> None:
    logits = jnp.asarray(arrays["eta/logits"])
    for epsilon, key in ((0.01, "0.01"), (1e-7, "1e-07")):
        eta = jax.jit(partial(_eta, Selective(epsilon)))
        _close(eta(logits), arrays[f"eta/value_eps{key}"], 1e-9)
        full = np.asarray(jax.jit(jax.jacobian(eta))(logits))
        rows = np.arange(len(logits))
        _close(full[rows, :, rows], arrays[f"eta/grad_eps{key}"], 1e-9)


def test_exact_eta_is_the_log_odds(x64) -> None:
    logits = np.random.default_rng(0).normal(0, 2, (5, 4))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    odds = np.log(p / (1 - p))
    _close(_eta(Selective(), jnp.asarray(logits)), odds, 1e-13)
    lowest = Selective().quantities(jnp.asarray(logits), None)[0]
    _close(lowest, odds[np.arange(5), logits.argmin(1)], 1e-13)


@pytest.mark.parametrize("gap", [30.0, 100.0, 1000.0])
def test_exact_eta_survives_confidence(gap: float) -> None:
    logits = np.array([[gap, 0.0, 1.0]], np.float32)

    def eta(start, y):
        return start.quantities(y, None).sum()

    value, grad = jax.value_and_grad(partial(eta, Selective()))(logits)
    assert value.dtype == grad.dtype == jnp.float32
    assert float(value) == -gap
    # The lowest logit against the highest: the whole map survives.
    np.testing.assert_allclose(grad, [[1, -1, 0]] if gap < 0 else [[-1, 1, 0]], atol=1e-6)
    # The original's two forms. Flex: log(P + e) - log(1 - P + e), whose gradient dies.
    for epsilon in (0.01, 1e-7):
        assert np.abs(jax.grad(partial(eta, Selective(epsilon)))(logits)).max() < 1e-5
    # Block: -log sum exp(-(y_c - y_k)), which overflows in float32.
    with np.errstate(over="ignore"):
        block = -np.log(np.exp(-(logits[0, 1] - logits[0, [0, 2]])).sum())
    assert np.isinf(block) == (gap > 88)


def test_shapes_of_the_starts() -> None:
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)
    for start, count in ((Logit(), 1), (EachLogit(), 3), (AllLogits(), 1), (Selective(), 1)):
        assert start.quantities(logits, None).shape == (count, 4)
    with pytest.raises(ValueError, match="at least 2 logits"):
        Selective().quantities(logits[:, :1], None)


def test_refused_shapes_and_tracers(cnn, x) -> None:
    with pytest.raises(ValueError, match=r"x has shape \(0, 6, 6, 2\)"):
        explain(cnn, x[:0])
    with pytest.raises(ValueError, match="no function for jit: use `relevance`"):
        jax.jit(lambda x: explain(cnn, x).relevance)(x)


def test_a_method_says_what_it_lacks(cnn, x) -> None:
    method = ISNet(**VARIANTS["dual"])
    model = _abstract()
    params, rest = variables(cnn)
    with pytest.raises(ValueError, match=r"programs were made for 1 composites.*has 2"):
        heatmaps(programs(model, method.composite), params, rest, x, method, training=False)
    method = ISNet(**VARIANTS["stochastic"], composite=create("isnet_flex"))
    with pytest.raises(ValueError, match="Stochastic ISNet draws a class a step: give rng"):
        heatmaps(programs(model, *method.composites), params, rest, x, method, training=True)
    with pytest.raises(TypeError, match=r"got Selective\(epsilon=0.0\) and 'epsilon'"):
        ISNet(composite="epsilon")
    with pytest.raises(TypeError, match=r"composite pattern 3 must be a string or a layer class"):
        Composite(((3, Epsilon()),))
