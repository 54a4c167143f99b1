"""Distillation against slow references, finite differences and its own edge cases."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import distill
from isnet_jax.isnet import variables
from isnet_jax.models.resnet import ResNet
from tests.isnet.baseline_cases import cnn, directional, fast_jit, in_float64, inner, random_like

B, SIDE, K = 3, 5, 3


@pytest.fixture
def images(x64):
    return jax.random.normal(jax.random.key(5), (B, SIDE, SIDE, 2), jnp.float64)


def sides_of(student, teacher, method):
    return distill.side(student, method), (distill.side(teacher, method), variables(teacher))


# ---------------------------------------------------------------- the maps


def _matrix(function, shape):
    """The linear part of an affine function of one image, dense: (outputs, inputs)."""
    size = int(np.prod(shape))
    rows = np.concatenate([np.eye(size), np.zeros((1, size))]).reshape(size + 1, *shape)
    out = np.asarray(function(jnp.asarray(rows))).reshape(size + 1, -1)
    return (out[:-1] - out[-1]).T


def relevance_by_messages(model, x, k, epsilon):
    """LRP-epsilon of one image by messages ``x_j w_kj R_k / (a_k + epsilon)`` between layers."""
    model.eval()
    first, second = model.blocks
    a1 = np.asarray(model.relus[0](first(x)))
    pooled = np.asarray(model.pools[0](jnp.asarray(a1)))
    a2 = np.asarray(model.relus[1](second(jnp.asarray(pooled))))
    w1, w2 = _matrix(first, x.shape[1:]), _matrix(second, pooled.shape[1:])
    head = _matrix(lambda v: model.classifier(model.average(v)), a2.shape[1:])
    r2 = a2.ravel() * head[k]  # LRP-0
    r_pooled = pooled.ravel() * (w2.T @ (r2 / (a2.ravel() + epsilon)))
    r1 = np.zeros_like(a1)
    for index, value in zip(np.ndindex(pooled.shape), r_pooled, strict=True):
        _, i, j, c = index
        window = a1[0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        di, dj = np.unravel_index(window.argmax(), window.shape)
        r1[0, 2 * i + di, 2 * j + dj, c] += value
    return np.asarray(x).ravel() * (w1.T @ (r1.ravel() / (a1.ravel() + epsilon)))


@pytest.mark.parametrize("norm", [False, True])
def test_lrp_with_an_epsilon_a_sample_equals_messages_between_layers(images, norm):
    model, method = cnn(1, norm=norm), distill.Distillation()
    epsilon, classes = jnp.asarray([0.01, 0.05, 0.3]), jnp.asarray([2, 0, 1])
    ours = distill.side(model, method)
    seen = fast_jit(
        lambda variables, x: distill.explained(
            ours, variables, x, method, training=False, classes=classes, epsilon=epsilon
        )
    )(variables(model), images)
    for i in range(B):
        slow = relevance_by_messages(model, images[i : i + 1], int(classes[i]), float(epsilon[i]))
        np.testing.assert_allclose(np.ravel(seen.value[i]), slow, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(seen.logits, model(images), rtol=1e-12)


def test_other_maps_from_their_definitions(images):
    model = cnn(2, norm=False)
    model.eval()
    classes = jnp.asarray([1, 1, 0])

    def seen(target, **options):
        method = distill.Distillation(target, **options)
        ours = distill.side(model, method)
        return fast_jit(
            lambda variables, x: (
                distill.explained(ours, variables, x, method, training=False, classes=classes).value
            )
        )(variables(model), images)

    h = 1e-6
    slope = np.zeros(images.shape)
    for index in np.ndindex(images.shape[1:]):
        step = jnp.zeros(images.shape).at[(slice(None), *index)].set(h)
        change = (model(images + step) - model(images - step)) / (2 * h)
        slope[(slice(None), *index)] = np.asarray(change)[np.arange(B), np.asarray(classes)]
    np.testing.assert_allclose(seen("gradient"), slope, atol=1e-8)
    np.testing.assert_allclose(seen("gradient_x_input"), slope * np.asarray(images), atol=1e-8)

    features = model.pools[0](model.relus[0](model.blocks[0](images)))
    features = np.asarray(model.relus[1](model.blocks[1](features)))
    np.testing.assert_allclose(seen("features"), features, rtol=1e-12)
    np.testing.assert_allclose(
        seen("attention")[..., 0], np.einsum("bhwc,bhwc->bhw", features, features), rtol=1e-12
    )
    # Behind the global average the slope of logit k in a cell of channel c is w_ck / cells.
    w = np.asarray(model.classifier.kernel[...])[:, np.asarray(classes)]  # (c, b)
    cells = features.shape[1] * features.shape[2]
    cam = np.einsum("bhwc,cb->bhw", features, w / cells)
    assert cam.min() < 0 < cam.max()
    rectified = np.maximum(cam, 0)
    np.testing.assert_allclose(seen("grad_cam")[..., 0], rectified, rtol=1e-12, atol=1e-15)
    raw = seen("grad_cam", rectified=False)[..., 0]
    np.testing.assert_allclose(raw, cam, rtol=1e-12, atol=1e-15)


# ---------------------------------------------------------------- the distances


def slow_distance(s, t, scales):
    total = []
    for k in scales:
        rows = []
        for a, b in zip(s, t, strict=True):
            h, w = a.shape[0] // k, a.shape[1] // k
            a, b = (
                np.array(
                    [
                        [m[i * k : i * k + k, j * k : j * k + k].mean((0, 1)) for j in range(w)]
                        for i in range(h)
                    ]
                )
                for m in (a, b)
            )
            rows.append(
                np.abs(a - b).mean() / (np.sqrt(np.abs(a).mean() * np.abs(b).mean()) + 1e-10)
            )
        total.append(rows)
    return np.mean(total, 0)


@pytest.mark.parametrize(
    ("shape", "scales"), [((28, 28), (1, 2)), ((7, 7), (1,)), ((17, 33), (1, 2))]
)
def test_pyramid_distance(x64, shape, scales):
    assert distill.pyramid_scales(shape) == scales
    s, t = np.random.default_rng(0).normal(size=(2, 2, *shape, 3))
    distance = fast_jit(distill.pyramid_distance)
    ours = distance(jnp.asarray(s), jnp.asarray(t))
    np.testing.assert_allclose(ours, slow_distance(s, t, scales), rtol=1e-12)
    scaled = distance(jnp.asarray(7 * s), jnp.asarray(7 * t))
    np.testing.assert_allclose(scaled, ours, rtol=1e-8)
    swapped = distance(jnp.asarray(t), jnp.asarray(s))
    np.testing.assert_allclose(swapped, ours, rtol=1e-12)


def test_scales_of_the_paper():
    assert distill.pyramid_scales((224, 224)) == (1, 2, 4, 8, 16)


def test_distance_of_zero_maps_is_finite_with_its_gradient(x64):
    zero, some = jnp.zeros((1, 8, 8, 1)), jnp.ones((1, 8, 8, 1))
    both = fast_jit(jax.value_and_grad(lambda s, t: distill.geometric_l1(s, t).sum()))
    for s, t, expected in ((zero, zero, 0), (some, some, 0), (zero, some, 1e10)):
        value, slope = both(s, t)
        np.testing.assert_allclose(value, expected)
        assert np.isfinite(slope).all()
    assert np.isnan(both(some * jnp.nan, some)[0])  # a NaN is not hidden


def test_output_distance(x64):
    s, t = np.random.default_rng(1).normal(size=(2, 4, 3)) * 5
    p = np.exp(t / 3) / np.exp(t / 3).sum(1, keepdims=True)
    q = np.exp(s / 3) / np.exp(s / 3).sum(1, keepdims=True)
    expected = 9 * (p * np.log(p / q)).sum(1)
    ours = distill.output_distance(jnp.asarray(s), jnp.asarray(t), 3.0)
    np.testing.assert_allclose(ours, expected, rtol=1e-12)
    huge = distill.output_distance(jnp.asarray([[1e4, 0.0]]), jnp.asarray([[0.0, 1e4]]), 3.0)
    np.testing.assert_allclose(huge, 9 * 1e4 / 3)


# ---------------------------------------------------------------- the objective


@pytest.mark.parametrize("target", distill.TARGETS)
def test_gradient_against_differences(images, target):
    student, teacher = cnn(3), cnn(4)
    method = distill.Distillation(target, freeze_head=False)
    ours, other = sides_of(student, teacher, method)
    params, rest = variables(student)

    @fast_jit
    def both(params, rest, x, teacher_variables, rng):
        def loss(p):
            return distill.objective(
                ours, p, rest, {"image": x}, method, (other[0], teacher_variables), rng
            )

        return jax.value_and_grad(loss, has_aux=True)(params)

    def value(p):
        return float(both(p, rest, images, other[1], jax.random.key(1))[0][0])

    (loss, (_, updated)), grads = both(params, rest, images, other[1], jax.random.key(1))
    way = random_like(params)
    assert loss > 0
    told = directional(value, params, way)
    assert inner(grads, way) == pytest.approx(told, rel=1e-6, abs=1e-9)
    # Batch statistics were used: the averages moved.
    assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (rest, updated)), strict=True))


def terms_of(
    student, teacher, method, batch, rng=None, training=False, cached=False, compiled=fast_jit
):
    ours, other = sides_of(student, teacher, method)

    @compiled
    def run(params, rest, batch, teacher_variables, rng):
        online = (other[0], teacher_variables)
        if cached:
            made = distill.teacher_targets(*online, batch, method, training=training, rng=rng)
            batch, online = {**batch, **made}, None
        return distill.sample_terms(
            ours, params, rest, batch, method, online, training=training, rng=rng
        )

    return run(*variables(student), batch, other[1], rng)


def test_a_copy_of_the_teacher_is_at_distance_zero(images):
    model = cnn(6)
    batch = {"image": images, "label": jnp.asarray([0, 1, 2])}
    for target in ("lrp", "output"):
        terms, _ = terms_of(model, model, distill.Distillation(target), batch, jax.random.key(0))
        np.testing.assert_allclose(terms["loss"], 0, atol=1e-12)
    model.eval()
    right = np.asarray(model(images).argmax(-1)) == np.arange(3)
    np.testing.assert_array_equal(terms["accuracy"], right)


def test_cached_targets_equal_the_online_teacher(images):
    student, teacher = cnn(3), cnn(4)
    method, rng = distill.Distillation(), jax.random.key(2)
    batch = {"image": images}
    online, _ = terms_of(student, teacher, method, batch, rng, True)
    offline, _ = terms_of(student, teacher, method, batch, rng, True, cached=True)
    np.testing.assert_array_equal(online["loss"], offline["loss"])
    other, _ = terms_of(student, teacher, method, batch, jax.random.key(3), True)
    assert (other["loss"] != online["loss"]).any()


def test_teacher_image_and_teacher_bn_and_statistics_are_honoured(images):
    student, teacher = cnn(3), cnn(4)
    make, losses = distill.Distillation, []
    seen = {"image": images, "teacher_image": images.at[..., 1].set(0)}
    for batch, method in (
        ({"image": images}, make()),
        (seen, make()),
        ({"image": images}, make(teacher_bn="running")),
        ({"image": images}, make(statistics="detach")),
        ({"image": images}, make(selective=True)),
    ):
        terms, _ = terms_of(student, teacher, method, batch, jax.random.key(2), True)
        losses.append(tuple(np.asarray(terms["loss"]).round(12)))
    assert len(set(losses)) == 5


def test_draws(x64):
    method = distill.Distillation()
    drawn = np.log10(distill.draw_epsilon(method, 4000, jax.random.key(0), jnp.float64))
    assert -2 <= drawn.min() < -1.99 and -1.01 < drawn.max() <= -1
    assert drawn.mean() == pytest.approx(-1.5, abs=0.02)
    middle = distill.draw_epsilon(method, 2, None, jnp.float32)
    np.testing.assert_allclose(middle, 10**-1.5, rtol=1e-6)
    logits = jnp.tile(jnp.asarray([0.0, 3.0, 1.0]), (4000, 1))
    share = np.bincount(distill.explained_classes(logits, jax.random.key(0)), minlength=3) / 4000
    np.testing.assert_allclose(share, [0.25, 0.5, 0.25], atol=0.03)
    np.testing.assert_array_equal(distill.explained_classes(logits[:2], None), [1, 1])


def test_vmap_over_images_equals_the_batch(images):
    student, teacher, method = cnn(3), cnn(4), distill.Distillation()
    whole, _ = terms_of(student, teacher, method, {"image": images})
    one = partial(terms_of, student, teacher, method, compiled=lambda f: f)
    each = fast_jit(jax.vmap(lambda x: one({"image": x})[0]["loss"]))(images[:, None])
    np.testing.assert_allclose(each[:, 0], whole["loss"], rtol=1e-10)


# ---------------------------------------------------------------- the head


def test_teacher_head_is_copied_frozen_and_adapted(images):
    narrow, teacher = cnn(3, widths=(2, 2)), cnn(4, widths=(2, 3))
    student = in_float64(lambda: distill.with_teacher_head(narrow, teacher, rngs=nnx.Rngs(0)))
    given = distill.with_teacher_head(narrow, teacher, rngs=nnx.Rngs(0))
    nnx.update(student.classifier, nnx.state(given.classifier))
    assert narrow.classifier.in_features == 2  # untouched
    np.testing.assert_array_equal(student.classifier.kernel[...], teacher.classifier.kernel[...])
    assert student.average.adapter.kernel[...].shape == (1, 1, 2, 3)
    assert student(images).shape == (B, K)
    method = distill.Distillation("features")
    ours, other = sides_of(student, teacher, method)
    assert ours.layer == "average/adapter"
    params, rest = variables(student)
    grads = fast_jit(
        jax.grad(lambda p: distill.objective(ours, p, rest, {"image": images}, method, other)[0])
    )(params)
    assert all((g == 0).all() for g in jax.tree.leaves(grads["classifier"]))
    assert any((g != 0).any() for g in jax.tree.leaves(grads["average"]))


def test_same_width_needs_no_adapter_and_a_resnet_fits(x64):
    make = partial(ResNet, num_classes=2, width=2, in_channels=1, stem="small")
    student = make(depths=(1,), rngs=nnx.Rngs(0))
    teacher = make(depths=(2,), rngs=nnx.Rngs(1))
    copied = distill.with_teacher_head(student, teacher)
    assert type(copied.average) is type(student.average)
    np.testing.assert_array_equal(copied.classifier.kernel[...], teacher.classifier.kernel[...])
    assert (copied.classifier.kernel[...] != student.classifier.kernel[...]).any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distill.Distillation("lpr"), "did you mean 'lrp'"),
        (lambda: distill.Distillation(teacher_bn="eval"), "teacher_bn"),
        (lambda: distill.Distillation(log10_epsilon=(-1, -2)), "low <= high"),
        (lambda: distill.Distillation(log10_epsilon=-1), "log10_epsilon=-1"),
        (lambda: distill.Distillation(log10_epsilon=("a", "b")), "low <= high"),
        (lambda: distill.Distillation(freeze_head="no"), "freeze_head='no'"),
        (lambda: distill.Distillation(temperature=0), "temperature=0"),
        (lambda: distill.Distillation(temperature="hot"), "temperature='hot'"),
        (lambda: distill.geometric_l1(jnp.ones((1, 2)), jnp.ones((1, 3))), "one shape"),
        (lambda: distill.freeze({"a": {}}, "b"), "no parameters at 'b'"),
        (
            lambda: distill.with_teacher_head(cnn(0, widths=(2, 2)), cnn(0)),
            "the adapter needs rngs",
        ),
        (lambda: distill.with_teacher_head(cnn(0, pooled=2), cnn(0)), "different grids"),
        (lambda: distill.with_teacher_head(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), cnn(0)), "Linear"),
        (
            lambda: distill.sample_terms(
                None, {}, {}, {"image": 0}, distill.Distillation(), training=True
            ),
            "teacher_value, teacher_class, teacher_epsilon",
        ),
    ],
)
def test_refusals(x64, call, message):
    with pytest.raises(ValueError, match=message):
        call()
