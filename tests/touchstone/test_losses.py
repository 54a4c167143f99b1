"""Dice and cross-entropy against loops over voxels in float64, and at their edges."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from touchstone_jax import losses
from touchstone_jax.losses import IGNORE

SHAPE, CLASSES = (2, 3, 2, 4), 4


def drawn(seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(*SHAPE, CLASSES)) * scale
    return logits, rng.integers(0, CLASSES, SHAPE).astype(np.uint8)


def slow(logits, labels, annotated=None, batch=False, smooth=1e-5):
    """(cross-entropy, 1 - Dice), voxel by voxel with math.exp."""
    if annotated is None:
        annotated = np.ones((len(labels), logits.shape[-1]), bool)
    entropies, samples = [], []
    for b in range(len(labels)):
        sums = np.zeros((logits.shape[-1], 2))
        for at in np.ndindex(labels.shape[1:]):
            label = int(labels[(b, *at)])
            if label == IGNORE:
                continue
            p = [math.exp(v) for v in logits[(b, *at)]]
            p = [v / sum(p) for v in p]
            p[0] = p[0] + sum(
                v for v, known in zip(p[1:], annotated[b, 1:], strict=True) if not known
            )
            entropies.append(-math.log(p[label]))
            for k in range(1, len(p)):
                sums[k] += (p[k] * (label == k), p[k] + (label == k))
        samples.append(sums)
    rows = [(s, annotated[i]) for i, s in enumerate(samples)]
    if batch:
        known = [s * a[:, None] for s, a in rows]
        rows = [(sum(known), annotated.any(0))]
    scores = [
        (2 * s[k, 0] + smooth) / (s[k, 1] + smooth)
        for s, a in rows
        for k in range(1, len(s))
        if a[k]
    ]
    entropy = sum(entropies) / len(entropies) if entropies else 0.0
    return entropy, 1 - (sum(scores) / len(scores) if scores else 1.0)


PARTIAL = np.array([[True, True, False, True], [False, False, True, False]])


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("annotated", [None, PARTIAL, np.zeros((2, 4), bool)])
@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
def test_both_terms_are_the_slow_ones(batch, annotated, ignored, x64):
    logits, labels = drawn()
    if annotated is not None:
        allowed = np.take_along_axis(annotated, labels.reshape(2, -1).astype(int), 1)
        labels = np.where(allowed.reshape(SHAPE), labels, 0).astype(np.uint8)
    labels[np.random.default_rng(1).random(SHAPE) < ignored] = IGNORE
    got = losses.dice_cross_entropy(
        jnp.asarray(logits), jnp.asarray(labels), annotated, batch=batch, smooth=1e-5
    )
    np.testing.assert_allclose(got, slow(logits, labels, annotated, batch), rtol=1e-9, atol=1e-9)


def slow_sigmoid(logits, labels, annotated):
    """(binary cross-entropy, 1 - Dice), voxel by voxel with math.exp."""
    entropies, scores = [], []
    for b in range(len(labels)):
        for k in range(1, logits.shape[-1]):
            both = either = 0.0
            for at in np.ndindex(labels.shape[1:]):
                if not annotated[b, k] or labels[(b, *at)] == IGNORE:
                    continue
                p, truth = 1 / (1 + math.exp(-logits[(b, *at, k)])), labels[(b, *at)] == k
                entropies.append(-math.log(p if truth else 1 - p))
                both, either = both + p * truth, either + p + truth
            if annotated[b, k]:
                scores.append((2 * both + 1e-5) / (either + 1e-5))
    return np.mean(entropies), 1 - np.mean(scores)


@pytest.mark.parametrize("annotated", [np.ones((2, 4), bool), PARTIAL])
def test_organs_each_against_their_absence(annotated, x64):
    logits, labels = drawn(7)
    labels[0, 1] = IGNORE
    how = {"loss": "dice_bce"}
    got = losses.dice_cross_entropy(*map(jnp.asarray, (logits, labels, annotated)), **how)
    np.testing.assert_allclose(got, slow_sigmoid(logits, labels, annotated), rtol=1e-9)
    if annotated.all():
        assert losses.dice_cross_entropy(jnp.asarray(logits), jnp.asarray(labels), **how) == got
    none = losses.dice_cross_entropy(
        jnp.asarray(logits), jnp.full(SHAPE, IGNORE, jnp.uint8), every(False), **how
    )
    assert none[0] == 0 and none[1] == 0


def test_what_no_organ_has_to_do_with_moves_no_sigmoid():
    """The background's logits, voxels to ignore, organs not looked for; extremes stay finite."""
    logits, labels = drawn(5, scale=1e4)
    labels[:, 0] = IGNORE

    def loss(logits):
        how = {"loss": "dice_bce"}
        return losses.segmentation_loss([logits], jnp.asarray(labels), PARTIAL, **how)["loss"]

    value, grad = jax.jit(jax.value_and_grad(loss))(jnp.asarray(logits, jnp.float32))
    assert np.isfinite(value) and np.isfinite(grad).all()
    grad = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(logits / 1e4, jnp.float32)))
    assert not grad[..., 0].any() and not grad[:, 0].any()
    for sample, known in zip(grad[:, 1:], PARTIAL, strict=True):
        assert (sample[..., 1:][..., known[1:]] != 0).all()
        assert not sample[..., 1:][..., ~known[1:]].any()


@pytest.fixture(scope="module")
def gradient():
    def loss(logits, labels, annotated):
        return losses.segmentation_loss([logits], labels, annotated)["loss"]

    return jax.jit(jax.value_and_grad(loss))


def every(value=True):
    return jnp.full((2, CLASSES), value)


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("label", [0, 2, IGNORE])
@pytest.mark.parametrize("annotated", [True, False])
def test_gradients_are_finite_at_the_edges(scale, label, annotated, gradient):
    logits = jnp.asarray(drawn(scale=scale)[0], jnp.float32)
    labels = jnp.full(SHAPE, label if annotated or label == IGNORE else 0, jnp.uint8)
    value, grad = gradient(logits, labels, every(annotated))
    assert np.isfinite(value) and np.isfinite(grad).all() and value >= 0


def test_ignored_voxels_move_nothing(gradient):
    logits, labels = drawn(3)
    labels[:, 0] = IGNORE
    value, grad = gradient(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), every())
    assert not np.asarray(grad)[:, 0].any() and np.asarray(grad)[:, 1:].all()
    changed = logits.copy()
    changed[:, 0] = 100 * drawn(4)[0][:, 0]
    assert gradient(jnp.asarray(changed, jnp.float32), jnp.asarray(labels), every())[0] == value


def test_an_organ_nobody_looked_for_is_not_unlearnt(gradient):
    labels = jnp.zeros(SHAPE, jnp.uint8)
    logits = jnp.zeros((*SHAPE, CLASSES)).at[..., 2].set(3.0)  # predicts organ 2 everywhere
    _, searched = gradient(logits, labels, every())
    _, unsearched = gradient(logits, labels, every().at[:, 2].set(False))
    assert (searched[..., 2] > 0).all()  # pushed down: it was looked for and is not there
    # What it shares with the background only falls to the organs that were looked for.
    assert (unsearched[..., 2] < 0).all() and (unsearched[..., 1] > 0).all()


def test_perfect_and_worst_predictions():
    labels = jnp.asarray(drawn()[1])
    sure = 50.0 * jax.nn.one_hot(labels, CLASSES)
    entropy, dice = losses.dice_cross_entropy(sure, labels)
    assert float(entropy) < 1e-6 and float(dice) < 1e-6
    entropy, dice = losses.dice_cross_entropy(-sure, labels)
    assert float(entropy) > 10 and float(dice) > 0.9
    nothing = jnp.zeros(SHAPE, jnp.uint8)
    background = 50.0 * jax.nn.one_hot(nothing, CLASSES)
    # Absent and not predicted: 1 up to float32's smallest probabilities.
    assert float(losses.dice_cross_entropy(background, nothing)[1]) < 1e-6


def test_bfloat16_logits_are_summed_in_float32(gradient):
    logits = jnp.asarray(drawn()[0], jnp.bfloat16)
    labels = jnp.asarray(drawn()[1])
    half = losses.segmentation_loss([logits], labels)["loss"]
    assert half.dtype == jnp.float32
    expected = sum(slow(np.asarray(logits, np.float64), np.asarray(labels)))
    assert float(half) == pytest.approx(expected, rel=1e-5)


def test_scales_are_weighted_as_nnunets(x64):
    assert losses.deep_supervision_weights(1) == (1.0,)
    assert losses.deep_supervision_weights(2) == (1.0, 0.0)
    np.testing.assert_allclose(losses.deep_supervision_weights(4), np.array([4, 2, 1, 0]) / 7)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (1, 8, 4, 8)).astype(np.uint8)
    shapes = [(8, 4, 8), (4, 4, 4), (2, 2, 2)]
    logits = [rng.normal(size=(1, *shape, 3)) for shape in shapes]
    thin = labels[:, 1::2, :, 1::2]
    np.testing.assert_array_equal(losses.coarser_labels(labels, shapes[1]), thin)
    got = losses.segmentation_loss([jnp.asarray(a) for a in logits], jnp.asarray(labels))
    fine, middle = slow(logits[0], labels), slow(logits[1], thin)
    expected = [2 / 3 * a + 1 / 3 * b for a, b in zip(fine, middle, strict=True)]
    assert float(got["cross_entropy"]) == pytest.approx(expected[0], rel=1e-9)
    assert float(got["dice_loss"]) == pytest.approx(expected[1], rel=1e-9)
    assert float(got["loss"]) == pytest.approx(sum(expected), rel=1e-9)
    own = losses.segmentation_loss(
        [jnp.asarray(a) for a in logits], jnp.asarray(labels), weights=(0.0, 1.0, 0.0)
    )
    assert float(own["loss"]) == pytest.approx(sum(middle), rel=1e-9)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x, y: losses.dice_cross_entropy(x, y[:, :2]), "do not fit"),
        (lambda x, y: losses.dice_cross_entropy(x, y, every()[:, :3]), r"annotated \(2, 3\)"),
        (lambda x, y: losses.coarser_labels(y, (2, 2, 4)), r"\(3, 2, 4\) cannot be thinned"),
        (lambda x, y: losses.deep_supervision_weights(0), "scales=0; expected at least 1"),
        (
            lambda x, y: losses.dice_cross_entropy(x, y, loss="dice"),
            "unknown loss 'dice'; did you mean 'dice_ce'. legal: dice_ce, dice_bce, tversky_ce",
        ),
        (
            lambda x, y: losses.loss_for("sigmoid", "tversky_ce"),
            "loss of networks with a sigmoid 'tversky_ce'; .*legal: dice_bce, balanced_dice_bce",
        ),
        (lambda x, y: losses.segmentation_loss(x, y), "logits are one array; expected those of"),
        (
            lambda x, y: losses.segmentation_loss([x], y, weights=(0.5, 0.5)),
            r"weights=\(0.5, 0.5\); expected one for each of 1 scales",
        ),
    ],
)
def test_misfits_are_told(call, said):
    logits, labels = drawn()
    with pytest.raises(ValueError, match=said):
        call(jnp.asarray(logits, jnp.float32), jnp.asarray(labels))
