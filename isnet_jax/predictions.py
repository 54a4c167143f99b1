"""What a classifier said of a test set, and the scores of it."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num

from isnet_jax import metrics


class Predictions(NamedTuple):
    """Of n images, in the order of the split.

    Attributes:
      logits: (n, k).
      label: (n,) in 0..k-1, or (n, k) of 0 and 1.
      mass: (n,) share of the heatmap in the foreground, in [0, 1]; NaN where there is none.
    """

    logits: Float[np.ndarray, "n k"]
    label: Num[np.ndarray, "..."]
    mass: Float[np.ndarray, " n"]

    @property
    def multi_label(self) -> bool:
        """Whether an image can show several findings."""
        return self.label.ndim == 2

    def confusions(self) -> list[np.ndarray]:
        """Counts, rows truth: one (k, k), or of several findings one (2, 2) each."""
        if self.multi_label:
            said = (self.logits > 0).astype(int)
            return [_counts(t, s, 2) for t, s in zip(self.label.T, said.T, strict=True)]
        return [_counts(self.label, self.logits.argmax(1), self.logits.shape[1])]

    def one_against_rest(self) -> tuple[np.ndarray, np.ndarray]:
        """(truth bool (k, n), scores (k, n)): each class against all others.

        Scores are softmax probabilities, or of several findings the logits.
        """
        if self.multi_label:
            return self.label.T > 0, self.logits.T
        shifted = self.logits - self.logits.max(1, keepdims=True)
        p = np.exp(shifted) / np.exp(shifted).sum(1, keepdims=True)
        return np.arange(p.shape[1])[:, None] == self.label[None], p.T

    def scores(self) -> dict[str, float]:
        """accuracy, macro_f1 and auc (mean one against the rest) in [0, 1], and the mean mass.

        Of several findings accuracy and macro F1 are means over them, F1 being that of the
        finding's presence. NaN where nothing can be told.
        """
        confusions = self.confusions()
        if self.multi_label:
            accuracy = float(np.mean([metrics.accuracy(c) for c in confusions]))
            f1 = float(np.mean([metrics.precision_recall_f1(c)[1, 2] for c in confusions]))
        else:
            accuracy, f1 = metrics.accuracy(confusions[0]), metrics.macro_f1(confusions[0])
        known = np.isfinite(self.mass)
        return {
            "accuracy": accuracy,
            "macro_f1": f1,
            "auc": self.auc(),
            "mass": float(self.mass[known].mean()) if known.any() else math.nan,
        }

    def auc(self) -> float:
        """Mean ROC-AUC of the classes with at least two images of either kind; NaN if none has."""
        truth, scores = self.one_against_rest()
        if not np.isfinite(scores).all():
            return math.nan
        count = truth.sum(1)
        able = (count >= 2) & (truth.shape[1] - count >= 2)
        areas = [metrics.roc_auc(t, s) for t, s in zip(truth[able], scores[able], strict=True)]
        return float(np.mean(areas)) if areas else math.nan


def _counts(truth: np.ndarray, said: np.ndarray, k: int) -> np.ndarray:
    flat = truth.astype(np.int64) * k + said
    return np.bincount(flat, minlength=k * k).reshape(k, k)
