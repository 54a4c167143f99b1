"""Scores against counting by hand, the original's numbers, and edge cases."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isnet_jax.metrics import (
    accuracy,
    confusion_matrix,
    delong,
    f1_intervals,
    highest_density,
    macro_f1,
    precision_recall_f1,
    roc_auc,
)


def _count(labels, predictions, k):
    """The same matrix, one example at a time."""
    matrix = [[0] * k for _ in range(k)]
    for truth, predicted in zip(labels, predictions, strict=True):
        matrix[truth][predicted] += 1
    return np.array(matrix)


def test_golden_of_the_original_code(golden: Path) -> None:
    with np.load(golden / "isnet" / "baselines_unit.npz") as arrays:
        logits, labels = arrays["metrics/logits"], arrays["metrics/labels"]
        confusion, performance = arrays["metrics/confusion"], arrays["metrics/performance"]
    ours = confusion_matrix(labels.astype(np.int32), logits.argmax(1).astype(np.int32), 3)
    assert ours.dtype == jnp.int32
    np.testing.assert_array_equal(ours, confusion)
    # The original rounds to three decimals; its last row is the mean over classes.
    np.testing.assert_allclose(precision_recall_f1(ours), performance[:3], atol=5.01e-4)
    assert macro_f1(ours) == pytest.approx(performance[3, 2], abs=5.01e-4)
    assert macro_f1(ours) == macro_f1(ours, absent="ignore")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=8))
def test_scores_from_counting_one_by_one(pairs: list[tuple[int, int]]) -> None:
    # Padded to one length, so that hypothesis doesn't compile a program per example.
    labels, predictions = np.zeros((2, 8), np.int32)
    valid = np.arange(8) < len(pairs)
    labels[valid], predictions[valid] = np.array(pairs, np.int32).T
    labels[~valid] = predictions[~valid] = 77
    matrix = confusion_matrix(labels, predictions, 4, valid)
    np.testing.assert_array_equal(matrix, _count(labels[valid], predictions[valid], 4))
    assert accuracy(matrix) == pytest.approx(np.mean([a == b for a, b in pairs]))
    f1 = []
    for k in range(4):
        tp = sum(a == b == k for a, b in pairs)
        either = sum(a == k for a, _ in pairs) + sum(b == k for _, b in pairs)
        f1.append(2 * tp / either if either else 0.0)
    np.testing.assert_allclose(precision_recall_f1(matrix)[:, 2], f1, atol=2e-6)
    assert macro_f1(matrix) == pytest.approx(np.mean(f1), abs=2e-6)


def test_confusion_under_jit_adds_up_and_skips_what_is_out_of_range() -> None:
    count = jax.jit(confusion_matrix, static_argnums=2)
    labels, predictions = jnp.array([0, 1, 2, 2]), jnp.array([0, 2, 2, 5])
    matrix = count(labels, predictions, 3)
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 1], [0, 0, 1]])
    halves = count(labels[:2], predictions[:2], 3) + count(labels[2:], predictions[2:], 3)
    np.testing.assert_array_equal(halves, matrix)


@pytest.mark.parametrize(
    ("labels", "predictions", "message"),
    [
        ([0, 3], [0, 0], "label 3, expected 0..2"),
        ([0, 1], [0, -1], "prediction -1, expected 0..2"),
        ([0, 1], [0], "expected one .n,. for all"),
        ([[0]], [[0]], "expected one .n,. for all"),
    ],
)
def test_confusion_refuses(labels: list, predictions: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion_matrix(np.array(labels, np.int32), np.array(predictions, np.int32), 3)


def test_one_class() -> None:
    matrix = confusion_matrix(np.zeros(5, np.int32), np.zeros(5, np.int32), 1)
    assert accuracy(matrix) == 1
    assert macro_f1(matrix) == pytest.approx(1, abs=1e-6)


def test_all_wrong() -> None:
    matrix = np.array([[0, 4], [3, 0]])
    assert accuracy(matrix) == 0
    np.testing.assert_array_equal(precision_recall_f1(matrix), np.zeros((2, 3)))
    assert macro_f1(matrix) == 0


def test_nothing_counted() -> None:
    matrix = confusion_matrix(np.zeros(0, np.int32), np.zeros(0, np.int32), 3)
    np.testing.assert_array_equal(matrix, np.zeros((3, 3)))
    assert np.isnan(accuracy(matrix))
    assert macro_f1(matrix) == 0
    assert np.isnan(macro_f1(matrix, absent="ignore"))


def test_policy_for_an_absent_class() -> None:
    matrix = np.diag([5, 5, 0])
    assert macro_f1(matrix) == pytest.approx(2 / 3, abs=1e-6)
    assert macro_f1(matrix, absent="ignore") == pytest.approx(1, abs=1e-6)
    with pytest.raises(ValueError, match="absent='drop'"):
        macro_f1(matrix, absent="drop")
    for score in (accuracy, precision_recall_f1, macro_f1):
        with pytest.raises(ValueError, match=r"shape \(2, 3\), expected \(k, k\)"):
            score(np.ones((2, 3)))


# ---------------------------------------------------------------- intervals of F1


def test_intervals_against_the_beta_posterior() -> None:
    # Two perfectly known columns: with the second row all right, F1 of class 0 is a function of
    # one Beta variable; its moments by quadrature.
    counts = np.array([[30, 10], [0, 10**7]])
    found = f1_intervals(counts, samples=40_000, prior=1.0)
    p = (np.arange(200_000) + 0.5) / 200_000
    density = np.exp(30 * np.log(p) + 10 * np.log(1 - p) - (30 * np.log(0.75) + 10 * np.log(0.25)))
    density /= density.sum()
    f1 = 2 * 40 * p / (40 * p + 1 + 40)  # about one of the 10^7 goes astray: its posterior mean
    mean = (density * f1).sum()
    assert found.mean[0] == pytest.approx(mean, abs=4e-3)
    assert found.deviation[0] == pytest.approx(np.sqrt((density * (f1 - mean) ** 2).sum()), rel=0.1)
    assert found.low[0] < mean < found.high[0]


def test_intervals_shrink_with_the_counts_and_hold_the_plain_scores() -> None:
    small = np.array([[40, 19, 11], [15, 32, 15], [15, 15, 38]])
    few, many = f1_intervals(small), f1_intervals(100 * small)
    plain = precision_recall_f1(small)[:, 2]
    assert ((few.low < plain) & (plain < few.high)).all()
    assert (many.high - many.low < (few.high - few.low) / 7).all()
    np.testing.assert_allclose(many.mean, plain, atol=1e-3)
    assert many.macro[0] == pytest.approx(macro_f1(small), abs=1e-3)
    assert few.macro[2] < few.macro[0] < few.macro[3]
    np.testing.assert_array_equal(few.mean, f1_intervals(small).mean)
    assert f1_intervals(np.array([[5]])).low[0] == pytest.approx(1)  # cannot be missed


def test_highest_density_is_the_shortest_interval() -> None:
    draws = np.random.default_rng(0).exponential(size=(2000, 1))
    low, high = highest_density(draws, 0.9)
    values = np.sort(draws[:, 0])
    shortest = min(values[i + 1799] - values[i] for i in range(201))
    assert high[0] - low[0] == pytest.approx(shortest)
    assert low[0] == values[0] or low[0] < 0.02


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([[1, 2], [0, 0]], {}, "at least one true example"),
        ([[1, -2], [0, 3]], {}, "negative"),
        ([[1, 2]], {}, "expected .k, k."),
        ([[1]], {"samples": 0}, "samples=0"),
        ([[1]], {"mass": 1.0}, "mass=1.0"),
    ],
)
def test_intervals_refuse(counts: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        f1_intervals(np.array(counts), **options)


# ---------------------------------------------------------------- ROC-AUC


def _slow_delong(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Areas and covariance from every pair of a positive and a negative case."""
    wins = np.array(
        [
            [[float(a > b) + 0.5 * float(a == b) for b in s[labels == 0]] for a in s[labels == 1]]
            for s in scores
        ]
    )
    n, m = wins.shape[1:]
    v10, v01 = wins.mean(2), wins.mean(1)
    auc = wins.mean((1, 2))
    s10 = (v10 - auc[:, None]) @ (v10 - auc[:, None]).T / (n - 1)
    s01 = (v01 - auc[:, None]) @ (v01 - auc[:, None]).T / (m - 1)
    return auc, s10 / n + s01 / m


def test_delong_against_all_pairs() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 40)
    scores = np.stack([rng.normal(size=40) + labels, rng.integers(0, 4, 40) + labels, labels])
    auc, covariance = _slow_delong(labels, scores)
    ours = delong(labels, scores)
    np.testing.assert_allclose(ours.auc, auc, rtol=1e-12)
    np.testing.assert_allclose(ours.covariance, covariance, rtol=1e-9, atol=1e-15)
    assert roc_auc(labels, scores[0]) == pytest.approx(auc[0], rel=1e-12)
    assert roc_auc(labels, -scores[0]) == pytest.approx(1 - auc[0], rel=1e-12)
    np.testing.assert_array_equal(ours.interval()[2], [1, 1])
    half = 1.959963984540054 * np.sqrt(covariance[0, 0])
    assert ours.interval()[0, 0] == pytest.approx(auc[0] - half)
    z, log10p = ours.compare(0, 1)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert z == pytest.approx((auc[0] - auc[1]) / np.sqrt(variance))
    assert 10**log10p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)))
    assert delong(labels, scores[[0, 0]]).compare(0, 1) == (0, 0)
    assert delong(labels, np.stack([labels, 1 - labels])).compare(0, 1) == (math.inf, -math.inf)


def test_delong_of_the_original_code(golden: Path) -> None:
    with np.load(golden / "isnet" / "baselines_unit.npz") as arrays:
        logits, labels = arrays["metrics/logits"], arrays["metrics/labels"] == 1
        tied = arrays["metrics/delong_scores"]
        expected, log10p = arrays["metrics/delong_auc_var"], arrays["metrics/delong_log10p"]
    alone = delong(labels, tied)
    np.testing.assert_allclose([alone.auc[0], alone.covariance[0, 0]], expected, rtol=1e-9)
    both = delong(labels, np.stack([logits[:, 1], tied]))
    assert both.compare(0, 1)[1] == pytest.approx(log10p[0], rel=1e-9)


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1, 1], [1.0, 2.0], "expected .n,., .m, n."),
        ([0, 1, 2], [1.0, 2.0, 3.0], "expected 0 and 1"),
        ([0, 0, 1, 1], [1.0, 2.0, np.nan, 1.0], "non-finite"),
        ([1, 1, 1], [1.0, 2.0, 3.0], "3 positive and 0 negative"),
    ],
)
def test_delong_refuses(labels: list, scores: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delong(np.array(labels), np.array(scores))
    with pytest.raises(ValueError, match="delong takes several"):
        roc_auc(np.array([0, 1]), np.zeros((2, 2)))
