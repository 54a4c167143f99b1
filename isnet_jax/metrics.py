"""Classification scores: from a confusion matrix, and ROC-AUC; heatmaps' are in `scores`."""

import math
from typing import Literal, NamedTuple

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


def _square(confusion: Int[Array | np.ndarray, "k k"]) -> Float[np.ndarray, "k k"]:
    matrix = np.asarray(confusion, np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"confusion matrix of shape {matrix.shape}, expected (k, k)")
    return matrix


def accuracy(confusion: Int[Array | np.ndarray, "k k"]) -> float:
    """Share of right predictions in [0, 1], from counts (k, k); nan if nothing was counted.

    Raises:
      ValueError: not a square matrix.
    """
    matrix = _square(confusion)
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else float("nan")


def precision_recall_f1(confusion: Int[Array | np.ndarray, "k k"]) -> Float[np.ndarray, "k 3"]:
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


def macro_f1(
    confusion: Int[Array | np.ndarray, "k k"], *, absent: Literal["zero", "ignore"] = "zero"
) -> float:
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


# ---------------------------------------------------------------- intervals of F1


class F1Intervals(NamedTuple):
    """Posterior of the F1 scores, in [0, 1]; see `f1_intervals`.

    Attributes:
      mean: (k,) posterior means.
      deviation: (k,) posterior standard deviations.
      low: (k,) lower ends of the highest density intervals.
      high: (k,) upper ends.
      macro: (4,) the same four numbers of macro F1.
    """

    mean: Float[np.ndarray, " k"]
    deviation: Float[np.ndarray, " k"]
    low: Float[np.ndarray, " k"]
    high: Float[np.ndarray, " k"]
    macro: Float[np.ndarray, " 4"]


def highest_density(
    draws: Float[np.ndarray, "n m"], mass: float = 0.95
) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
    """Shortest interval that holds ``mass`` of the draws of each column: lows and highs, (m,).

    Raises:
      ValueError: no draws, or a mass outside (0, 1).
    """
    draws = np.sort(np.asarray(draws, np.float64), axis=0)
    if not len(draws) or not 0 < mass < 1:
        raise ValueError(
            f"highest_density: {len(draws)} draws, mass {mass}; expected 1+, in (0, 1)"
        )
    inside = math.ceil(mass * len(draws))
    widths = draws[inside - 1 :] - draws[: len(draws) - inside + 1]
    start = widths.argmin(axis=0)[None]
    low = np.take_along_axis(draws, start, axis=0)[0]
    return low, np.take_along_axis(draws, start + inside - 1, axis=0)[0]


def f1_intervals(
    confusion: Int[Array | np.ndarray, "k k"],
    *,
    mass: float = 0.95,
    samples: int = 20_000,
    prior: float = 1.0,
    seed: int = 0,
) -> F1Intervals:
    """Bayesian estimate of the classes' F1 and of macro F1, from counts (k, k), rows truth.

    Each row of the confusion matrix is multinomial with a Dirichlet(prior) prior, independent of
    the others; the classes' shares stay those of the counts. F1 of drawn matrices gives means,
    deviations and highest density intervals. The ISNet papers report posterior means with 95 % HDI
    but publish no code: this is our reading (Bassi & Attux 2021 for the form; Zhang, Wang & Zhao
    2015 for the model).

    Args:
      confusion: counts; every class needs an example.
      mass: of the intervals, in (0, 1).
      samples: Monte-Carlo draws, >= 1.
      prior: of each cell, > 0; 1 is uniform.
      seed: of the draws.

    Raises:
      ValueError: not a square matrix, negative or no counts in a row, or a bad option.
    """
    counts = _square(confusion)
    if samples < 1 or not prior > 0 or not 0 < mass < 1:
        raise ValueError(
            f"f1_intervals: samples={samples}, prior={prior}, mass={mass}; expected samples >= 1, "
            "prior > 0, 0 < mass < 1"
        )
    total = counts.sum(axis=1)
    if not len(counts) or not (counts >= 0).all() or not (total > 0).all():
        raise ValueError(
            "f1_intervals: every class needs at least one true example and no count may be "
            f"negative, got row sums {total.tolist()}"
        )
    rng = np.random.default_rng(seed)
    rows = [rng.dirichlet(row + prior, samples) * n for row, n in zip(counts, total, strict=True)]
    drawn = np.stack(rows, axis=1)  # (samples, truth, prediction)
    hits = np.diagonal(drawn, axis1=1, axis2=2)
    f1 = 2 * hits / (drawn.sum(axis=1) + total)
    every = np.concatenate([f1, f1.mean(axis=1, keepdims=True)], axis=1)
    low, high = highest_density(every, mass)
    table = np.stack([every.mean(axis=0), every.std(axis=0), low, high])
    mean, deviation, low, high = table[:, :-1]
    return F1Intervals(mean, deviation, low, high, macro=table[:, -1])


# ---------------------------------------------------------------- ROC-AUC


class DeLong(NamedTuple):
    """AUCs of scores on the same cases.

    Attributes:
      auc: (m,) areas in [0, 1].
      covariance: (m, m) of the areas.
    """

    auc: Float[np.ndarray, " m"]
    covariance: Float[np.ndarray, "m m"]

    def interval(self, mass: float = 0.95) -> Float[np.ndarray, "m 2"]:
        """Normal confidence intervals, cut to [0, 1]; (m, 2)."""
        from scipy.stats import norm

        half = norm.ppf((1 + mass) / 2) * np.sqrt(np.diagonal(self.covariance))
        return np.clip(np.stack([self.auc - half, self.auc + half], axis=1), 0, 1)

    def compare(self, first: int, second: int) -> tuple[float, float]:
        """The z value and log10 of the two-sided p-value of equal areas of two of the scores.

        Equal areas without any variance between them give (0, 0), unequal ones (inf, -inf).
        """
        from scipy.stats import norm

        gap = float(self.auc[first] - self.auc[second])
        c = self.covariance
        variance = float(c[first, first] + c[second, second] - 2 * c[first, second])
        if variance <= 1e-20:  # rounding of identical scores
            return (0.0, 0.0) if abs(gap) < 1e-12 else (math.copysign(math.inf, gap), -math.inf)
        z = gap / math.sqrt(variance)
        return z, float((math.log(2) + norm.logsf(abs(z))) / math.log(10))


def delong(labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, "m n"]) -> DeLong:
    """ROC-AUC of m scores on the same n cases, with the covariance of DeLong et al. 1988.

    By midranks (Sun & Xu 2014), O(m n log n); ties count half.

    Args:
      labels: (n,) True for positive cases, at least two of each kind.
      scores: (m, n) or (n,) finite; larger means positive.

    Raises:
      ValueError: shapes differ, labels other than two kinds, a non-finite score, or too few cases.
    """
    from scipy.stats import rankdata

    given, scores = np.asarray(labels), np.atleast_2d(np.asarray(scores, np.float64))
    if given.ndim != 1 or scores.ndim != 2 or scores.shape[1] != len(given):
        raise ValueError(
            f"delong: labels {given.shape}, scores {scores.shape}; expected (n,), (m, n)"
        )
    if not np.isin(given, (0, 1)).all():
        raise ValueError(f"delong: labels {np.unique(given)[:5].tolist()}…, expected 0 and 1 only")
    if not np.isfinite(scores).all():
        raise ValueError("delong: scores have non-finite values (NaN or infinity)")
    positive = given.astype(bool)
    count, others = int(positive.sum()), int((~positive).sum())
    if min(count, others) < 2:
        raise ValueError(
            f"delong: {count} positive and {others} negative cases, expected 2 of each"
        )
    ranks = rankdata(scores, axis=1)
    among = rankdata(scores[:, positive], axis=1), rankdata(scores[:, ~positive], axis=1)
    # Share of the other kind that each case beats: "structural components".
    beats = (ranks[:, positive] - among[0]) / others
    beaten = 1 - (ranks[:, ~positive] - among[1]) / count
    covariance = np.cov(beats) / count + np.cov(beaten) / others
    return DeLong(beats.mean(axis=1), np.reshape(covariance, (len(scores), len(scores))))


def roc_auc(labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, " n"]) -> float:
    """Area under the ROC curve in [0, 1] of one score (n,); see `delong`.

    Raises:
      ValueError: as `delong`.
    """
    if np.ndim(scores) != 1:
        raise ValueError(f"roc_auc: scores {np.shape(scores)}, expected (n,); delong takes several")
    return float(delong(labels, scores).auc[0])
