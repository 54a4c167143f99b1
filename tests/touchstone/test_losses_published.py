"""The losses of MedFormer, SAM-Adapter and UCTransNet against loops in float64, and at edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from touchstone_jax import losses
from touchstone_jax.losses import IGNORE

SHAPE, CLASSES, SMOOTH = (2, 2, 3, 2), 4, 1e-5
PARTIAL = np.array([[True, True, False, True], [True, False, True, False]])
ALL = np.ones((2, CLASSES), bool)
PUBLISHED = {"tversky_ce": True, "sigmoid_dice_ce": False, "balanced_dice_bce": False}
"""Losses, and whether the original sums over the whole batch."""


def drawn(annotated=ALL, ignored=0.2, seed=0):
    """Logits and labels; of organs that nobody looked for there are no labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, SHAPE)
    known = np.take_along_axis(annotated, labels.reshape(2, -1), 1).reshape(SHAPE)
    labels = np.where(known, labels, 0)
    labels[rng.random(SHAPE) < ignored] = IGNORE
    return rng.normal(size=(*SHAPE, CLASSES)) * 2, labels.astype(np.uint8)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(logits, known):
    """Of one voxel; the background's holds that of what nobody looked for."""
    made = np.exp(logits) / np.exp(logits).sum()
    made[0] += made[1:][~known[1:]].sum()
    return made


def voxels(logits, labels, samples):
    """(sample, logits, label) of those that count."""
    for at in np.ndindex(labels.shape):
        if at[0] in samples and labels[at] != IGNORE:
            yield at[0], logits[at], int(labels[at])


def tversky_ce(logits, labels, known):
    """Background's cross-entropy at half weight; Dice over the batch, of all classes."""
    lost = weights = 0.0
    hit, surplus, missed = np.zeros((3, CLASSES))
    for b, values, label in voxels(logits, labels, (0, 1)):
        p, weight = softmax(values, known[b]), 0.5 if label == 0 else 1.0
        lost, weights = lost - weight * math.log(p[label]), weights + weight
        for k in range(CLASSES):
            if k == 0 or known[b, k]:
                hit[k] += p[k] * (label == k)
                surplus[k] += p[k] * (label != k)
                missed[k] += (1 - p[k]) * (label == k)
    scores = []
    for k in range(CLASSES):
        if k == 0 or known[:, k].any():
            a = min(max(surplus[k] / (surplus[k] + missed[k] + SMOOTH), 0.2), 0.8)
            scores.append(hit[k] / (hit[k] + a * surplus[k] + (1 - a) * missed[k] + SMOOTH))
    return lost / weights, 1 - np.mean(scores)


def sigmoid_dice_ce(logits, labels, known):
    """Cross-entropy of the softmax; squared Dice of sigmoids, the background's too."""
    lost = [-math.log(softmax(x, known[b])[y]) for b, x, y in voxels(logits, labels, (0, 1))]
    scores = []
    for b in range(2):
        for k in range(CLASSES):
            if known[b, 1:].all() if k == 0 else known[b, k]:
                both = either = 0.0
                for _, values, label in voxels(logits, labels, (b,)):
                    p = sigmoid(values[k])
                    both, either = both + p * (label == k), either + p * p + (label == k)
                scores.append((2 * both + SMOOTH) / (either + SMOOTH))
    return np.mean(lost), 1 - np.mean(scores)


def balanced_dice_bce(logits, labels, known):
    """Halves of both; organs inside and outside at equal weight, squared Dice of samples."""
    entropies, scores = [], []
    for k in range(1, CLASSES):
        sides = {True: [], False: []}
        for b in np.flatnonzero(known[:, k]):
            both = either = 0.0
            for _, values, label in voxels(logits, labels, (b,)):
                p, inside = sigmoid(values[k]), label == k
                sides[inside].append(-math.log(p if inside else 1 - p))
                both, either = both + p * inside, either + p * p + inside
            scores.append((2 * both + SMOOTH) / (either + SMOOTH))
        if any(sides.values()):
            entropies.append(sum(0.5 * np.mean(side) for side in sides.values() if side))
    return 0.5 * np.mean(entropies), 0.5 * (1 - np.mean(scores))


@pytest.mark.parametrize("annotated", [ALL, PARTIAL])
@pytest.mark.parametrize("loss", PUBLISHED)
def test_published_losses_are_the_formulae(loss, annotated, x64):
    logits, labels = drawn(annotated)
    given = [jnp.asarray(a) for a in (logits, labels, annotated)]
    got = losses.dice_cross_entropy(*given, batch=PUBLISHED[loss], loss=loss)
    np.testing.assert_allclose(got, globals()[loss](logits, labels, annotated), rtol=1e-9)
    if annotated is ALL:
        plain = losses.dice_cross_entropy(*given[:2], batch=PUBLISHED[loss], loss=loss)
        np.testing.assert_allclose(plain, got, rtol=1e-12)


@pytest.mark.parametrize("annotated", [ALL, PARTIAL])
@pytest.mark.parametrize("loss", PUBLISHED)
def test_gradients_are_the_differences(loss, annotated, x64):
    logits, labels = map(jnp.asarray, drawn(annotated, seed=3))

    def value(logits):
        how = {"batch": PUBLISHED[loss], "loss": loss}
        return losses.segmentation_loss([logits], labels, jnp.asarray(annotated), **how)["loss"]

    value = jax.jit(value)
    grad, rng, step = jax.grad(value)(logits), np.random.default_rng(1), 1e-6
    for _ in range(3):
        way = jnp.asarray(rng.normal(size=logits.shape))
        numeric = (value(logits + step * way) - value(logits - step * way)) / (2 * step)
        np.testing.assert_allclose(jnp.vdot(grad, way), numeric, rtol=1e-5, atol=1e-8)
    ignored = np.asarray(labels) == IGNORE
    assert ignored.any() and not np.asarray(grad)[ignored].any()


@pytest.fixture(scope="module")
def gradient():
    def loss(logits, labels, annotated, name):
        return losses.segmentation_loss([logits], labels, annotated, loss=name)["loss"]

    return jax.jit(jax.value_and_grad(loss), static_argnums=3)


@pytest.mark.parametrize("loss", PUBLISHED)
def test_edges_are_finite(loss, gradient):
    """Logits of 0 and of 10,000; no organ, one everywhere, nothing to count, nobody looked."""
    for scale in (0.0, 1e4):
        logits = jnp.asarray(drawn()[0] * scale, jnp.float32)
        for label, known in ((0, True), (2, True), (IGNORE, True), (0, False), (IGNORE, False)):
            labels = jnp.full(SHAPE, label, jnp.uint8)
            value, grad = gradient(logits, labels, jnp.full((2, CLASSES), known), loss)
            assert np.isfinite(value) and np.isfinite(grad).all() and value >= 0
            if label == IGNORE:
                assert not np.asarray(grad).any()


def test_an_absent_class_is_no_gradient_to_the_tversky_form():
    """As published: it costs 1 whatever is predicted; cross-entropy alone takes it back."""
    labels = jnp.asarray(np.where(drawn()[1] == 3, 0, drawn()[1]))

    def dice(logits):
        logs = losses.log_probabilities(logits)[..., 3:]
        rest = jnp.zeros((*SHAPE, 3), logs.dtype)
        only = jnp.asarray([[False] * 3 + [True]] * 2)
        logs = jnp.concatenate([rest, logs], -1)
        return losses.soft_dice(logs, labels, only, form="tversky", background=True)

    value, grad = jax.value_and_grad(dice)(jnp.asarray(drawn()[0], jnp.float32))
    assert value == 0 and not np.asarray(grad).any()


def test_what_is_more_weighs_more_in_the_tversky_form():
    """Three times too much costs more than the plain Dice, as far as 0.8 to 0.2."""
    labels = jnp.asarray(np.arange(24).reshape(1, 2, 3, 4) < 4, jnp.uint8)
    ones = jnp.zeros((1, 2, 3, 4, 2), jnp.float32)  # p = 1
    score = losses.soft_dice(ones, labels, form="tversky", smooth=1e-5)
    assert float(score) == pytest.approx(4 / (4 + 0.8 * 20), rel=1e-5)


def test_a_perfect_prediction_costs_nothing():
    labels = jnp.asarray(drawn(ignored=0)[1])
    sure = 100 * jax.nn.one_hot(labels, CLASSES) - 50
    for loss, batch in PUBLISHED.items():
        pair = losses.dice_cross_entropy(sure, labels, loss=loss, batch=batch)
        assert max(map(float, pair)) < 1e-5


def test_a_network_has_a_loss_of_its_kind():
    assert losses.loss_for("softmax") == "dice_ce" and losses.loss_for("sigmoid") == "dice_bce"
    for name, loss in losses.LOSSES.items():
        assert losses.loss_for(loss.activation, name) == name
        assert loss.form in losses.FORMS and loss.activation in losses.ACTIVATIONS
