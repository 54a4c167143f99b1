"""Values of the baselines against the original code's, or against slow second writings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import isnet, losses
from isnet_jax.baselines import ag_sononet, gals, group_dro, group_inference, groups, irm, pgi, rrr
from isnet_jax.isnet import programs, variables
from tests.isnet.baseline_cases import cnn, fast_jit, in_float64
from tests.isnet.cases import batch_of, error, load, seq_cnn, to_ours


@pytest.mark.parametrize("method", ["rrr", "gradinput_v1"])
def test_values_and_gradients_of_the_original_code(golden, x64, method):
    case, model = seq_cnn(golden)
    stored = load(golden / "isnet" / "baselines_unit.npz")
    batch = batch_of(case)
    params, rest = variables(model)
    if method == "rrr":
        graphs = programs(model)

        def terms(params):
            loss, (values, _) = rrr.objective(
                graphs, params, rest, batch, rrr.RRR(), training=False
            )
            return loss, [values["cross_entropy"], values["penalty"], loss]

    else:
        variant = isnet.ISNet(**isnet.VARIANTS["grad_x_input"])
        graphs = programs(model, variant.composite)
        heatmap_loss = losses.HeatmapLoss(1, 3, 0.996, 1, "hybrid")

        def terms(params):
            (maps,) = isnet.heatmaps(graphs, params, rest, batch["image"], variant, training=False)
            # The original explains the batch MEAN.
            small = maps.relevance / len(batch["label"])
            heat = heatmap_loss(small, batch["mask"], (1.0, 25.0))[0].mean()
            plain = isnet.cross_entropy(maps.logits, batch["label"]).mean()
            loss = 0.5 * plain + 0.5 * heat
            return loss, [plain, heat, loss]

    (_, values), grads = fast_jit(jax.value_and_grad(terms, has_aux=True))(params)
    np.testing.assert_allclose(values, stored[f"{method}/values"], rtol=1e-9)
    for name, layer in (("0.weight", "conv0"), ("8.weight", "fc")):
        theirs = to_ours(stored[f"{method}/grad/{name}"])
        assert error(grads[layer]["kernel"], theirs) < 1e-8, name


def test_rrr_sums_do_not_depend_on_the_batch(x64):
    model = cnn(1, norm=False)
    graphs, (params, rest) = programs(model), variables(model)
    x = jax.random.normal(jax.random.key(0), (2, 6, 6, 2), jnp.float64)
    batch = {"image": x, "label": jnp.asarray([0, 2]), "mask": jnp.zeros((2, 6, 6, 1))}
    twice = {name: jnp.concatenate([a, a]) for name, a in batch.items()}

    def penalty(batch, reduction):
        method = rrr.RRR(reduction=reduction)
        return rrr.objective(graphs, params, rest, batch, method)[1][0]["penalty"]

    once, again = (
        fast_jit(lambda b: [penalty(b, r) for r in rrr.REDUCTIONS])(b) for b in (batch, twice)
    )
    assert once[0] == pytest.approx(4 * again[0])
    assert once[1] == pytest.approx(again[1])
    full = {**batch, "mask": jnp.ones((2, 6, 6, 1))}
    assert fast_jit(lambda b: penalty(b, "mean"))(full) == 0
    with pytest.raises(ValueError, match="does not fit"):
        penalty({**batch, "mask": jnp.ones((2, 5, 6, 1))}, "mean")


def test_gals_skips_images_without_attention(x64):
    model = cnn(1, norm=False)
    graphs, (params, rest) = programs(model), variables(model)
    x = jax.random.normal(jax.random.key(0), (3, 6, 6, 2), jnp.float64)
    labels = jnp.asarray([0, 2, 1])
    attention = jax.random.uniform(jax.random.key(1), (3, 6, 6, 1), jnp.float64).at[1].set(0)
    batch = {"image": x, "label": labels, "attention": attention}
    run = fast_jit(lambda b: gals.objective(graphs, params, rest, b, gals.GALS())[1][0])
    values = run(batch)

    def loss(x):
        return isnet.cross_entropy(isnet.bind(graphs.infer, params, rest)(x)[0], labels).mean()

    value, slope = fast_jit(jax.value_and_grad(loss))(x)
    outside = np.abs(np.asarray(slope) * (1 - np.asarray(attention)))
    assert values["penalty"] == pytest.approx((outside[0].mean() + outside[2].mean()) / 2)
    assert values["loss"] == pytest.approx(float(value + 1e4 * values["penalty"]))
    none = {**batch, "attention": jnp.zeros_like(attention)}
    assert run(none)["penalty"] == 0


def test_gals_maps_of_prompts(x64):
    maps = np.random.default_rng(0).uniform(0.1, 1, (2, 3, 4, 4))
    maps[0, 1] = 0
    maps[1] = 0
    scaled = [(m - m.min()) / m.max() for m in (maps[0, 0], maps[0, 2])]
    mean = (scaled[0] + scaled[1]) / 2
    ours = gals.attention_of_prompts(jnp.asarray(maps), (4, 4))
    np.testing.assert_allclose(ours[0, ..., 0], (mean - mean.min()) / mean.max(), rtol=1e-12)
    np.testing.assert_array_equal(ours[1], 0)
    assert gals.attention_of_prompts(jnp.asarray(maps), (8, 6)).shape == (2, 8, 6, 1)


# ---------------------------------------------------------------- groups


def drawn(seed=0, n=9, k=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)) * 2, rng.integers(0, k, n), rng.integers(0, 2, n)


def softmax(y):
    e = np.exp(y - y.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_group_means_and_the_balanced_loss(x64):
    values, members = jnp.asarray([1.0, 2.0, 6.0]), jnp.asarray([[1, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(groups.group_means(values, members), [1.5, 0])
    assert groups.balanced(values, jnp.asarray([0, 1, 1])) == (1 + 4) / 2
    assert groups.balanced(values, jnp.asarray([1, 1, 1])) == 3 / 2
    assert [groups.ramped(10.0, e, 5) for e in (0, 1, 4, 5, 9)] == [0, 2, 8, 10, 10]
    assert groups.ramped(10.0, 1, 0) == 10


@pytest.mark.parametrize("dummy", irm.DUMMIES)
def test_irm_penalty_is_the_squared_slope_of_the_dummies(x64, dummy):
    y, t, g = drawn()

    def risk(w, rows):
        return isnet.cross_entropy(jnp.asarray(y[rows]) * w, jnp.asarray(t[rows])).mean()

    expected = []
    for group in (0, 1):
        w = jnp.ones((1, 3)) if dummy == "vector" else jnp.ones((1, 1))
        expected.append(
            float((fast_jit(jax.grad(lambda w, r=g == group: risk(w, r)))(w) ** 2).sum())
        )
    args = (jnp.asarray(a) for a in (y, t, g))
    penalty = fast_jit(lambda y, t, g: irm.penalty(y, t, g, dummy))
    assert penalty(*args) == pytest.approx(np.mean(expected))
    lonely = penalty(jnp.asarray(y), jnp.asarray(t), jnp.zeros(9, int))
    assert np.isfinite(lonely) and lonely > 0


def test_pgi_penalty_class_by_class(x64):
    y, t, g = drawn(3, 12)
    t[:] = np.array([2, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1, 0])
    g[:7] = np.array([1, 0, 1, 0, 0, 1, 1])  # class 2 lacks a majority
    expected, p = 0.0, softmax(y)
    for c in (0, 1):
        p0, p1 = (p[(t == c) & (g == group)].mean(0) for group in (0, 1))
        expected += np.mean(p1 * np.log(p1 / p0))
    args = tuple(jnp.asarray(a) for a in (y, t, g))
    penalty = fast_jit(pgi.penalty)
    assert penalty(*args) == pytest.approx(expected)
    assert penalty(args[0], args[1], jnp.zeros(12, int)) == 0
    sure = jnp.asarray([[1e4, 0.0], [0.0, 1e4]], jnp.float32)  # clipped: large but finite
    far = fast_jit(pgi.penalty)(sure, jnp.asarray([0, 0]), jnp.asarray([0, 1]))
    assert np.isfinite(far) and far > 5


def test_group_dro_raises_the_worse_group(x64):
    method = group_dro.GroupDRO(step=0.5)
    weights, each = jnp.asarray([0.5, 0.5]), jnp.asarray([1.0, 3.0])
    both = jnp.asarray([True, True])
    grown = 0.5 * np.exp(0.5 * np.array([1, 3]) / 4)
    np.testing.assert_allclose(group_dro.raised(weights, each, method, both), grown / grown.sum())
    plain = group_dro.GroupDRO(step=1.0, exponent="plain")
    big = group_dro.raised(weights, 1000 * each, plain, both)
    np.testing.assert_array_equal(big, [0, 1])
    same = group_dro.raised(weights, each * 0, method, both)
    np.testing.assert_array_equal(same, weights)


def test_group_dro_keeps_its_weights_in_rest_and_the_adjustment(x64):
    model = cnn(1, norm=False)
    graphs, (params, rest) = programs(model), variables(model)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, 6, 2)))
    batch = {"image": x, "label": jnp.asarray([0, 2, 1]), "group": jnp.asarray([0, 1, 1])}
    method = group_dro.GroupDRO(adjustment=2.0, group_sizes=(16, 4), step=0.1)
    start = group_dro.with_weights(rest, method)
    loss, (_, updated) = fast_jit(lambda p: group_dro.objective(graphs, p, start, batch, method))(
        params
    )
    logits = fast_jit(lambda x: isnet.bind(graphs.infer, params, rest)(x)[0])(x)
    each = np.asarray(isnet.cross_entropy(logits, batch["label"]))
    levels = np.array([each[0] + 2 / 4, each[1:].mean() + 2 / 2])
    q = 0.5 * np.exp(0.1 * levels / levels.sum())
    q /= q.sum()
    np.testing.assert_allclose(updated["weights"], q, rtol=1e-6)
    assert loss == pytest.approx(q @ levels, rel=1e-6)
    with pytest.raises(ValueError, match="with_weights"):
        group_dro.objective(graphs, params, rest, batch, method)


def planted(n=240, seed=0):
    """Two classes, a colour that agrees with the class in 80 %, a network that sees the colour."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    minority = rng.random(n) < 0.2
    colour = np.where(minority, 1 - labels, labels)
    features = np.eye(2)[colour] * 2 + rng.normal(size=(n, 2)) * 0.1
    return features, np.eye(2)[colour] * 6 - 3, labels, minority


def test_group_inference_finds_the_planted_minority(x64):
    features, logits, labels, minority = planted()
    settings = group_inference.GroupInference(widths=(8,), steps=200, learning_rate=2e-2, batch=64)
    found = group_inference.infer_groups(features, logits, labels, settings, jax.random.key(0))
    assert (found == minority).mean() > 0.95
    again = group_inference.infer_groups(features, logits, labels, settings, jax.random.key(0))
    np.testing.assert_array_equal(found, again)


@pytest.mark.parametrize("shape", [(6, 4), (3, 5)])
def test_the_spectral_norm_and_its_slope_are_those_of_a_decomposition(x64, shape):
    kernel = np.random.default_rng(0).normal(size=shape)
    u, sizes, v = np.linalg.svd(kernel)
    run = fast_jit(jax.value_and_grad(group_inference.spectral_norm))
    value, slope = run(jnp.asarray(kernel))
    assert value == pytest.approx(sizes[0], rel=1e-12)
    np.testing.assert_allclose(slope, np.outer(u[:, 0], v[0]), rtol=1e-9, atol=1e-12)
    nothing, slope = run(jnp.zeros(shape))
    assert nothing > 0 and np.isfinite(slope).all()


def test_disagreement_from_its_definition(x64):
    y, t, _ = drawn(5)
    alpha = np.random.default_rng(1).random(9)

    def risk(w, weights):
        each = isnet.cross_entropy(jnp.asarray(y) * w, jnp.asarray(t))
        return (jnp.asarray(weights) * each).mean()

    expected = 0.0
    slope = fast_jit(jax.value_and_grad(risk))
    for weights in (alpha, 1 - alpha):
        value, gradient = slope(jnp.ones((1, 3)), weights)
        expected += value + 10 * (np.asarray(gradient) ** 2).sum()
    ours = fast_jit(group_inference.disagreement)(
        jnp.asarray(alpha), jnp.asarray(y), jnp.asarray(t)
    )
    assert ours == pytest.approx(float(expected) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros(3)}, r"expected \(n, d\)"),
        ({"logits": np.full((3, 2), np.nan)}, "non-finite"),
        ({"labels": np.array([0, 1, 2])}, r"outside 0\.\.1"),
    ],
)
def test_group_inference_refuses(change, message):
    given = {"features": np.zeros((3, 2)), "logits": np.zeros((3, 2)), "labels": np.zeros(3, int)}
    settings = group_inference.GroupInference()
    with pytest.raises(ValueError, match=message):
        group_inference.infer_groups(**(given | change), settings=settings, rng=jax.random.key(0))
    with pytest.raises(ValueError, match="steps"):
        group_inference.GroupInference(steps=0)


# ---------------------------------------------------------------- AG-Sononet


@pytest.mark.parametrize("kind", ag_sononet.NORMALISATIONS)
def test_attention_weights(x64, kind):
    scores = np.random.default_rng(0).normal(size=(1, 3, 4, 1))
    s = scores[0, ..., 0]
    expected = {
        "mean_flow": (s - s.min()) / (s - s.min()).sum(),
        "softmax": np.exp(s) / np.exp(s).sum(),
        "sigmoid": 1 / (1 + np.exp(-s)),
        "range": (s - s.min()) / (s.max() - s.min()),
    }[kind]
    weigh = fast_jit(lambda v: ag_sononet.attention_weights(v, kind))
    ours = weigh(jnp.asarray(scores))
    np.testing.assert_allclose(ours[0, ..., 0], expected, rtol=1e-12, atol=1e-15)
    even = weigh(jnp.zeros((1, 3, 4, 1)))
    assert np.isfinite(even).all() and (even == even[0, 0, 0, 0]).all()
    slope = fast_jit(jax.grad(lambda v: ag_sononet.attention_weights(v, kind)[0, 0].sum()))
    assert np.isfinite(slope(jnp.zeros((1, 3, 4, 1)))).all()


def test_a_gate_from_einsums(x64):
    gate = in_float64(lambda: ag_sononet.Gate(2, 3, 4, "softmax", rngs=nnx.Rngs(0)))
    gate.psi.bias = None  # softmax does not see it
    rng = np.random.default_rng(0)
    x, g = (jnp.asarray(rng.normal(size=s)) for s in ((2, 4, 4, 2), (2, 1, 1, 3)))
    pooled, weights = fast_jit(lambda x, g: gate(x, g))(x, g)
    theta, phi, psi = (np.asarray(m.kernel[...][0, 0]) for m in (gate.theta, gate.phi, gate.psi))
    joint = np.maximum(np.asarray(x) @ theta + np.asarray(g) @ phi, 0) @ psi
    expected = np.exp(joint) / np.exp(joint).sum((1, 2), keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-10)
    np.testing.assert_allclose(pooled, (np.asarray(x) * expected).sum((1, 2)), rtol=1e-10)


def test_sononet_sizes_and_refusals():
    def make(**more):
        return nnx.eval_shape(lambda: ag_sononet.AGSononet(num_classes=3, rngs=nnx.Rngs(0), **more))

    assert [c.kernel.shape for c in make().classifiers] == [(64 + 128 + 128, 3)]
    assert [c.kernel.shape[0] for c in make(head="mean", feature_scale=8).classifiers] == [
        32,
        64,
        64,
    ]
    assert sum(len(block) for block in make().blocks) == 13
    with pytest.raises(ValueError, match="five of each"):
        make(convs=(1, 1))
    with pytest.raises(ValueError, match="at least 16"):
        make()(jnp.zeros((1, 8, 8, 3)))
