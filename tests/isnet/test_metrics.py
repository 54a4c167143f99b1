"""Scores against counting by hand, the original's numbers, and edge cases."""

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
    macro_f1,
    precision_recall_f1,
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
