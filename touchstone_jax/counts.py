"""Voxels of each class that prediction and reference share, summed over patches; Dice from them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int, Integer

from touchstone_jax.losses import IGNORE


def counts(
    predicted: Integer[Array, "b x y z"],
    labels: Integer[Array, "b x y z"],
    case: Integer[Array, " b"],
    cases: int,
    classes: int,
) -> Int[Array, "cases k 3"]:
    """Voxels of a batch by case and class: of both, of the prediction, of the labels.

    Args:
        predicted: 0..classes - 1.
        labels: 0..classes - 1, or `IGNORE` where nothing counts.
        case: number of each sample's case, 0..cases - 1.
        cases: how many there are.
        classes: k.

    It is one sum over the batch, so that devices that share a batch add up.
    """
    valid = labels != IGNORE
    found = []
    for number in range(classes):
        ours, theirs = (predicted == number) & valid, labels == number
        found.append([m.sum((1, 2, 3), dtype=jnp.int32) for m in (ours & theirs, ours, theirs)])
    each = jnp.stack([jnp.stack(row, -1) for row in found], 1)
    own = jax.nn.one_hot(case, cases, dtype=jnp.int32)
    return (own[:, :, None, None] * each[:, None]).sum(0)


def dice_by_organ(found: Int[np.ndarray, "k 3"]) -> Float64[np.ndarray, " k"]:
    """2 · both / (prediction + labels) of each class, in [0, 1]; NaN without labelled voxels."""
    both, ours, theirs = np.moveaxis(np.asarray(found, np.float64), -1, 0)
    return np.where(theirs > 0, 2 * both / np.maximum(ours + theirs, 1), np.nan)


def mean_dice_by_organ(found: Int[np.ndarray, "cases k 3"]) -> Float64[np.ndarray, " k"]:
    """Mean over the cases that have labelled voxels of the class; NaN if none has."""
    each = np.stack([dice_by_organ(case) for case in found])
    number = (~np.isnan(each)).sum(0)
    return np.where(number > 0, np.nansum(each, 0) / np.maximum(number, 1), np.nan)
