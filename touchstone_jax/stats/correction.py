"""Corrections of p-values for many tests at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float


def holm(p: Float[np.ndarray, "*family"]) -> Float[np.ndarray, "*family"]:
    """Holm's step-down p-values of one family of tests, in 0..1 (Holm 1979).

    The i-th smallest of m p-values is multiplied by m - i (i from 0), made no smaller than the one
    before it, and cut at 1.

    Args:
        p: p-values of any shape; NaN is no test: it stays NaN and does not count in m.

    Raises:
        ValueError: a value outside 0..1.
    """
    p = _checked(p)
    flat = p.ravel()
    order = np.argsort(flat, kind="stable")[: int((~np.isnan(flat)).sum())]  # NaN sorts last
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(flat.shape, np.nan)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(flat[order] * factors))
    return adjusted.reshape(p.shape)


def bonferroni(p: Float[np.ndarray, "*family"]) -> Float[np.ndarray, "*family"]:
    """p-values times the number of tests, cut at 1; NaN is no test.

    Raises:
        ValueError: a value outside 0..1.
    """
    p = _checked(p)
    return np.minimum(1.0, p * int((~np.isnan(p)).sum()))


def _checked(p: Float[np.ndarray, "*family"]) -> Float[np.ndarray, "*family"]:
    p = np.asarray(p, np.float64)
    beyond = p[(p < 0) | (p > 1)]
    if beyond.size:
        raise ValueError(f"p-value {beyond[0]}; expected values in 0..1, NaN for no test")
    return p
