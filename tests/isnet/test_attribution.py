"""Attributions against closed forms of linear models, slow derivations, and bad inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from isnet_jax import attribution as at
from isnet_jax.models.simple_cnn import SimpleCNN

RNG = np.random.default_rng(0)
W = RNG.normal(size=(4, 5, 2, 3)).astype(np.float32)
X = RNG.normal(size=(3, 4, 5, 2)).astype(np.float32)
TARGET = np.array([2, 0, 1])
W_OF_TARGET = np.moveaxis(W, -1, 0)[TARGET]  # (3, 4, 5, 2)

# Its generator compiles in a fraction of the default's time.
KEY = jax.random.key(0, impl="rbg")

METHODS = {
    "gradient": at.gradient,
    "gradient_x_input": at.gradient_x_input,
    "integrated_gradients": partial(at.integrated_gradients, steps=3),
    "smooth_grad": partial(at.smooth_grad, rng=KEY, samples=2),
    "grad_cam": lambda f, x, target=None: at.grad_cam(lambda x: x, f, x, target),
    "occlusion": partial(at.occlusion, window=2, stride=2),
}
every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def linear(x: jax.Array) -> jax.Array:
    return jnp.einsum("bhwc,hwck->bk", x, jnp.asarray(W, x.dtype)) + 1


def curved(x: jax.Array) -> jax.Array:
    return jnp.tanh(linear(x)) * linear(x)


def _close(ours: jax.Array, theirs: np.ndarray, tolerance: float = 1e-6) -> None:
    assert ours.shape == np.shape(theirs)
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


# ---------------------------------------------------------------- linear models


def test_linear_model_in_closed_form() -> None:

    @jax.jit
    def maps(x: jax.Array) -> list[jax.Array]:
        integrated = at.integrated_gradients(linear, x, TARGET, steps=7)
        return [
            at.gradient(linear, x, TARGET),
            at.smooth_grad(linear, x, TARGET, rng=jax.random.key(1), samples=3),
            at.gradient_x_input(linear, x, TARGET),
            at.integrated_gradients(linear, x, TARGET, steps=1),
            integrated,
            at.integrated_gradients(linear, x, TARGET, baseline=X[0], steps=2),
            at.completeness_gap(linear, x, integrated, TARGET),
        ]

    ours = maps(X)
    for slope in ours[:2]:
        _close(slope, W_OF_TARGET)
    for share in ours[2:5]:
        _close(share, W_OF_TARGET * X)
    _close(ours[5], W_OF_TARGET * (X - X[0]))
    np.testing.assert_allclose(ours[6], 0, atol=2e-5)


def test_occlusion_of_a_linear_model_is_the_sum_over_the_window() -> None:
    share = (W_OF_TARGET * X).sum(-1)  # (3, 4, 5)
    maps = at.occlusion(linear, X, TARGET, window=(2, 5), stride=(2, 5))
    blocks = share.reshape(3, 2, 2, 5).sum((2, 3))
    _close(maps, np.broadcast_to(blocks[:, :, None, None], (3, 2, 2, 5)).reshape(3, 4, 5))
    _close(at.occlusion(linear, X, TARGET, window=1, stride=1), share)
    everything = at.occlusion(linear, X, TARGET, window=(4, 5), stride=1, baseline=0.5)
    whole = (W_OF_TARGET * (X - np.float32(0.5))).sum((1, 2, 3))
    _close(everything, np.broadcast_to(whole[:, None, None], (3, 4, 5)))


def test_overlapping_windows_are_averaged_up_to_the_border() -> None:
    window, stride, cover = 2, 2, np.float32(0.3)
    total, times = np.zeros((3, 4, 5)), np.zeros((4, 5))
    for top in (0, 2):
        for left in (0, 2, 3):  # the last one is added: 4 would leave the image
            covered = X.copy()
            covered[:, top : top + window, left : left + window] = cover
            fall = np.asarray(curved(X) - curved(covered))[np.arange(3), TARGET]
            total[:, top : top + window, left : left + window] += fall[:, None, None]
            times[top : top + window, left : left + window] += 1
    maps = at.occlusion(curved, X, TARGET, window=window, stride=stride, baseline=cover)
    _close(maps, total / times, 1e-5)


# ---------------------------------------------------------------- slow derivations


def test_gradient_against_central_differences(x64: None) -> None:
    x, h = X.astype(np.float64), 1e-5
    slow = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[place] += h
        down[place] -= h
        b = place[0]
        slow[place] = (curved(up)[b, TARGET[b]] - curved(down)[b, TARGET[b]]) / (2 * h)
    _close(at.gradient(curved, x, TARGET), slow, 1e-8)


def test_integrated_gradients_and_smooth_grad_by_loops() -> None:
    start, steps = np.float32(0.2), 4
    slope = jax.jit(lambda x: at.gradient(curved, x, 1))
    path = [slope(start + np.float32((i + 0.5) / steps) * (X - start)) for i in range(steps)]
    maps = at.integrated_gradients(curved, X, 1, baseline=start, steps=steps)
    _close(maps, (X - start) * np.mean(path, 0), 1e-5)

    key, sd = jax.random.key(3), 0.4 * (X.max((1, 2, 3)) - X.min((1, 2, 3)))
    draw = jax.jit(jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), X.shape)))
    noisy = [slope(X + sd[:, None, None, None] * u) for u in np.asarray(draw(jnp.arange(3)))]
    smooth = jax.jit(lambda s: at.smooth_grad(curved, X, 1, rng=key, samples=3, noise=s))
    _close(smooth(0.4), np.mean(noisy, 0), 1e-5)
    _close(smooth(0.0), slope(X))


def test_completeness_on_a_small_network_falls_with_the_steps() -> None:
    model = SimpleCNN(
        num_classes=3, in_channels=2, widths=(3,), pooled=2, norm=False, rngs=nnx.Rngs(0)
    )
    model.eval()
    x, start = RNG.normal(size=(2, 2, 6, 6, 2)).astype(np.float32)
    f = lambda x: model(x)  # noqa: E731
    gaps, memory = {}, {}
    for steps in (2, 512):

        def gap(x: jax.Array, steps: int = steps) -> jax.Array:
            maps = at.integrated_gradients(f, x, 1, baseline=start, steps=steps)
            return jnp.abs(at.completeness_gap(f, x, maps, 1, baseline=start)).max()

        program = jax.jit(gap).lower(x).compile()
        gaps[steps] = float(program(x))
        memory[steps] = program.memory_analysis().temp_size_in_bytes
    assert gaps[512] <= 1e-3 < gaps[2]
    assert memory[512] <= memory[2] + 4096


def test_grad_cam_by_hand() -> None:
    features = lambda x: jnp.tanh(x @ jnp.asarray(W[0, :2, :, :].reshape(2, 6)))  # noqa: E731
    weights = np.random.default_rng(5).normal(size=(4, 5, 6, 3)).astype(np.float32)
    head = lambda a: jnp.einsum("bhwc,hwck->bk", a, weights)  # noqa: E731
    cam = at.grad_cam(features, head, X, TARGET)
    maps, slow = np.asarray(features(X)), np.zeros((3, 4, 5))
    for b in range(3):
        alpha = weights[..., TARGET[b]].mean((0, 1))
        slow[b] = np.maximum((maps[b] * alpha).sum(-1), 0)
    assert (slow > 0).any() and (slow == 0).any()
    _close(cam, slow)


def test_grad_cam_grows_bilinearly_with_half_pixel_centres() -> None:
    halve = lambda x: x.reshape(1, 1, 4, 2, 1).mean(3)  # noqa: E731
    x = np.array([0, 0, 4, 4, 8, 8, 2, 2], np.float32).reshape(1, 1, 8, 1)
    total = lambda a: a.sum((1, 2, 3), keepdims=False)[:, None]  # noqa: E731
    small = at.grad_cam(halve, total, x, 0, resize=False)
    np.testing.assert_allclose(small, [[[0, 4, 8, 2]]])
    centres = (np.arange(8) + 0.5) / 2 - 0.5
    expected = np.interp(centres, np.arange(4), [0, 4, 8, 2])
    np.testing.assert_allclose(at.grad_cam(halve, total, x, 0)[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("residual", [True, False])
def test_attention_rollout_by_loops(residual: bool) -> None:
    logits = np.random.default_rng(2).normal(size=(3, 2, 2, 4, 4))
    attentions = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    flow = at.attention_rollout(attentions, residual=residual)
    for b in range(2):
        slow = np.eye(4)
        for layer in range(3):
            a = attentions[layer, b].mean(0)
            slow = (0.5 * a + 0.5 * np.eye(4) if residual else a) @ slow
        np.testing.assert_allclose(flow[b], slow, rtol=1e-5)
    np.testing.assert_allclose(flow.sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(jax.jit(at.attention_rollout)(attentions).shape, (2, 4, 4))


# ---------------------------------------------------------------- every method


@every_method
def test_targets_are_one_logit_a_sample(method: at.Function) -> None:
    predicted = np.asarray(curved(X).argmax(-1))
    targets = (None, predicted, 1, np.ones(3, int), np.int32(1))
    maps = jax.jit(lambda x: [method(curved, x, t) for t in targets])(X)
    np.testing.assert_allclose(maps[0], maps[1], rtol=1e-6)
    for other in maps[3:]:
        np.testing.assert_allclose(maps[2], other, rtol=1e-6)
    assert not np.allclose(maps[0], maps[2])


@every_method
def test_jit_vmap_and_double_precision(method: at.Function, x64: None) -> None:
    x = jnp.asarray(X[:2], jnp.float64)
    plain = method(curved, x, TARGET[:2])
    assert plain.dtype == jnp.float64 and method(curved, X[:2], 1).dtype == jnp.float32
    traced = jax.jit(lambda x, t: method(curved, x, t))
    np.testing.assert_allclose(traced(x, TARGET[:2]), plain, rtol=1e-9, atol=1e-12)
    if method is not METHODS["smooth_grad"]:  # vmapped, its samples share the noise
        stacked = jax.jit(jax.vmap(traced))(x[:, None], TARGET[:2, None])
        np.testing.assert_allclose(stacked[:, 0], plain, rtol=1e-9, atol=1e-12)


@every_method
@pytest.mark.parametrize(
    ("target", "told"),
    [
        (3, r"outside 0..2: 3"),
        (-1, r"outside 0..2: -1"),
        (np.array([0, 1, 3]), r"outside 0..2: \[0 1 3\]"),
        (np.array([0, 1]), r"target must be None, one int or \(3,\) ints, got int64 \(2,\)"),
        (1.0, "target must be None"),
        (True, "target must be None"),
        ("each", "target must be None"),
    ],
)
def test_bad_targets(method: at.Function, target: object, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        method(linear, X, target)


@every_method
def test_unknown_class_under_jit_and_nan_in_x_give_nan(method: at.Function) -> None:
    dead = lambda x: jax.nn.relu(linear(x) - 1e6)[:, :1]  # noqa: E731
    sick = X.copy()
    sick[1, 0, 0, 0] = np.nan

    @jax.jit
    def four(classes: jax.Array, one: int) -> tuple[jax.Array, ...]:
        unknown, ill = method(curved, X, classes), method(curved, sick, 1)
        return unknown, ill, method(dead, X), method(dead, X, one)

    unknown, ill, asleep, no_class = four(np.array([0, 7, -1]), 1)
    assert np.isfinite(unknown[0]).all() and np.isnan(unknown[1:]).all()
    assert np.isfinite(ill[0]).all() and np.isnan(ill[1]).any()
    np.testing.assert_array_equal(asleep, 0)
    assert np.isnan(no_class).all()


@every_method
def test_bad_images_and_functions(method: at.Function) -> None:
    with pytest.raises(ValueError, match="x must be floating point, got int"):
        method(linear, X.astype(np.int32))
    with pytest.raises(ValueError, match=r"x must be \(b, \*space, c\), got shape \(3,\)"):
        method(linear, X[:, 0, 0, 0])
    with pytest.raises(ValueError, match=r"f must give logits \(b, k\), got"):
        method(lambda x: x.sum((1, 2, 3)), X)


def test_works_in_one_and_three_dimensions() -> None:
    for shape in ((2, 4, 1), (2, 3, 4, 2, 1)):
        x = jnp.ones(shape)
        f = lambda x: x.reshape(2, -1) @ jnp.ones((x[0].size, 2), x.dtype)  # noqa: E731
        assert at.gradient(f, x).shape == shape
        maps = jax.jit(partial(at.occlusion, f, window=2, stride=1))(x)
        assert maps.shape == shape[:-1]
        np.testing.assert_allclose(maps, 2 ** (x.ndim - 2))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (partial(at.integrated_gradients, linear, X, steps=0), "steps=0; must be a number >= 1"),
        (partial(at.integrated_gradients, linear, X, baseline=np.zeros(3)), "does not broadcast"),
        (partial(at.smooth_grad, linear, X, rng=jax.random.key(0), samples=0), "samples=0"),
        (partial(at.smooth_grad, linear, X, rng=jax.random.key(0), noise=-1.0), "noise=-1.0"),
        (partial(at.smooth_grad, linear, X, rng=jax.random.key(0), noise=np.nan), "noise=nan"),
        (partial(at.occlusion, linear, X, window=0, stride=1), "window=0; expected a number"),
        (partial(at.occlusion, linear, X, window=(2, 2, 2), stride=1), r"window=\(2, 2, 2\)"),
        (partial(at.occlusion, linear, X, window=2, stride=3), r"stride \(3, 3\) <= window"),
        (partial(at.occlusion, linear, X, window=5, stride=1), r"<= space \(4, 5\) does not"),
        (partial(at.occlusion, lambda x: x, X[:, 0, 0], window=1, stride=1), "no axis of space"),
        (partial(at.grad_cam, lambda x: x.mean(1), lambda a: a[:, 0], X), "features have shape"),
        (partial(at.attention_rollout, np.zeros((2, 3, 4, 5))), "attentions have shape"),
        (partial(at.attention_rollout, np.zeros((0, 1, 1, 2, 2))), "attentions have shape"),
        (partial(at.attention_rollout, np.zeros((1, 1, 1, 2, 2), int)), "floating point"),
    ],
)
def test_refusals(call: partial, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()
