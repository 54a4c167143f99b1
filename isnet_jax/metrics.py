"""Classification scores from a confusion matrix; those of heatmaps are in `isnet_jax.scores`."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

# The denominators of the original code: 0/0 becomes 0, everything else moves by 1e-6 at most.
_TINY = 1e-6


def confusion_matrix(
    labels: Int[Array, " n"],
    predictions: Int[Array, " n"],
    num_classes: int,
    valid: Bool[Array, " n"] | None = None,
) -> Int[Array, "k k"]:
    """Counts int32 (num_classes, num_classes); rows are the truth, columns the predictions.

    Runs under jit (with `num_classes` static), so that a sharded evaluation can add up counts
    where the data are: the matrix of a union is the sum of the matrices.

    Args:
      labels: (n,) true classes.
      predictions: (n,) predicted classes.
      num_classes: number of classes.
      valid: (n,) False where the row only pads the last batch; None: all count. Padded rows may
        hold any class.

    Raises:
      ValueError: shapes differ, or a counted class lies outside 0..num_classes-1. Under jit
        values cannot be looked at: such rows are then left out, and the sum of the matrix tells.
    """
    given = (labels, predictions) if valid is None else (labels, predictions, valid)
    shapes = [jnp.shape(array) for array in given]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"confusion_matrix: shapes {shapes}, expected one (n,) for all")
    if not any(isinstance(array, jax.core.Tracer) for array in given):
        counted = np.ones(shapes[0], bool) if valid is None else np.asarray(valid, bool)
        for what, classes in (("label", labels), ("prediction", predictions)):
            classes = np.asarray(classes)[counted]
            bad = classes[(classes < 0) | (classes >= num_classes)]
            if bad.size:
                raise ValueError(
                    f"confusion_matrix: {what} {bad[0]}, expected 0..{num_classes - 1}"
                )
    # one_hot of a class out of range is all zeros: it counts nowhere.
    truth = jax.nn.one_hot(labels, num_classes, dtype=jnp.int32)
    if valid is not None:
        truth = truth * jnp.asarray(valid, jnp.int32)[:, None]
    return truth.T @ jax.nn.one_hot(predictions, num_classes, dtype=jnp.int32)


def _square(confusion: Int[Array, "k k"]) -> Float[np.ndarray, "k k"]:
    matrix = np.asarray(confusion, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"confusion matrix of shape {matrix.shape}, expected (k, k)")
    return matrix


def accuracy(confusion: Int[Array, "k k"]) -> float:
    """Share of right predictions in [0, 1], from counts (k, k); nan if nothing was counted.

    Raises:
      ValueError: not a square matrix.
    """
    matrix = _square(confusion)
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else float("nan")


def precision_recall_f1(confusion: Int[Array, "k k"]) -> Float[np.ndarray, "k 3"]:
    """Precision, recall and F1 of each class: float64 (k, 3) from counts (k, k), rows truth.

    As in the original ISNet code, with 1e-6 added to each denominator, without its rounding to
    three decimals: a class never predicted has precision 0, one absent from the truth recall 0,
    and F1 is 0 in both cases.

    Raises:
      ValueError: not a square matrix.
    """
    matrix = _square(confusion)
    hits = np.diagonal(matrix)
    precision = hits / (matrix.sum(axis=0) + _TINY)
    recall = hits / (matrix.sum(axis=1) + _TINY)
    f1 = 2 * precision * recall / (precision + recall + _TINY)
    return np.stack([precision, recall, f1], axis=1)


def macro_f1(confusion: Int[Array, "k k"], *, absent: Literal["zero", "ignore"] = "zero") -> float:
    """Unweighted mean of the classes' F1 (the papers' maF1), in [0, 1], from counts (k, k).

    Args:
      confusion: counts, rows truth.
      absent: what a class without a single true example does to the mean: "zero" counts its F1
        as 0 (the original code), "ignore" leaves it out; nan if that leaves no class.

    Raises:
      ValueError: not a square matrix, or an unknown policy.
    """
    if absent not in ("zero", "ignore"):
        raise ValueError(f"macro_f1: absent={absent!r}; legal: 'zero', 'ignore'")
    f1 = precision_recall_f1(confusion)[:, 2]
    if absent == "ignore":
        f1 = f1[_square(confusion).sum(axis=1) > 0]
    return float(f1.mean()) if f1.size else float("nan")
