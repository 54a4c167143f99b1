"""Overlap of two segmentations: Dice similarity coefficient (DSC) and intersection over union.

With P and G the voxels of prediction and reference in a class and I their intersection:

| convention | DSC | both empty | one empty |
| --- | --- | --- | --- |
| "touchstone" | 2 I / (P + G + 1) | 0 | 0 |
| "monai" | 2 I / (P + G) | 1 | 0 |
| "deepmind" | 2 I / (P + G) | NaN | 0 |

Touchstone's 1 stands in the denominator only, so its DSC never reaches 1: invisible for organs,
2/3 for two equal masks of one voxel. It belongs to the DSC; the IoU is I / (P + G - I) in every
convention, which then decides the value of two empty masks alone.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from touchstone_jax.metrics.arguments import known, pair

Array = jax.Array

CONVENTIONS = {"touchstone": 0.0, "monai": 1.0, "deepmind": float("nan")}
"""Convention to its value where prediction and reference are both empty."""

EMPTY = ("convention", "zero", "one", "nan", "nan_without_reference")
"""Policies for empty masks, see `dice`."""


def dice(
    pred: Array | np.ndarray,
    ref: Array | np.ndarray,
    *,
    num_classes: int | None = None,
    convention: str = "touchstone",
    empty: str = "convention",
) -> Array:
    """DSC of two masks of one shape, any rank: () for boolean masks, (num_classes,) for label maps.

    For a batch, ``jax.vmap`` it. Values have JAX's default float type; counts are exact up to
    2^31 voxels.

    Args:
        pred: boolean mask, or with ``num_classes`` integer labels in 0..num_classes-1.
        ref: the same for the reference.
        num_classes: number of labels, the background 0 included; its value comes first.
        convention: "touchstone", "monai" or "deepmind" (see the module).
        empty: value where both masks are empty: "convention", the convention's own; "zero",
            "one", "nan"; "nan_without_reference", NaN wherever the reference is empty, whatever
            was predicted (MONAI's ``ignore_empty=True``), else the convention's own.

    Raises:
        ValueError: unknown option, unlike shapes, another type of mask, or a label out of range.
            Under jit and vmap labels cannot be looked at: such voxels then count nowhere.
    """
    check_options(convention, empty)
    both, predicted, referred = _counts(pred, ref, num_classes)
    quirk = jnp.uint32(convention == "touchstone")
    return _ratio(2 * both, predicted + referred, quirk, referred, convention, empty)


def iou(
    pred: Array | np.ndarray,
    ref: Array | np.ndarray,
    *,
    num_classes: int | None = None,
    convention: str = "touchstone",
    empty: str = "convention",
) -> Array:
    """Intersection over union: () for boolean masks, (num_classes,) for label maps.

    Arguments, empty masks and errors as in `dice`; the convention only decides the value of two
    empty masks.
    """
    check_options(convention, empty)
    both, predicted, referred = _counts(pred, ref, num_classes)
    union = predicted + referred - both
    return _ratio(both, union, jnp.uint32(0), referred, convention, empty)


def joint_histogram(pred: Array | np.ndarray, ref: Array | np.ndarray, num_classes: int) -> Array:
    """Voxels with predicted label i and reference label j: uint32 (num_classes, num_classes).

    Every overlap score of every class follows from it, so the volume is read once.

    Raises:
        ValueError: as in `dice`.
    """
    return _histogram(*pair(pred, ref, num_classes), num_classes)


def check_options(convention: str, empty: str) -> None:
    """Refuses unknown conventions and policies.

    Raises:
        ValueError: naming the option and the legal values.
    """
    known("convention", convention, CONVENTIONS)
    known("policy for empty masks", empty, EMPTY)


@partial(jax.jit, static_argnums=2)
def _histogram(pred: Array, ref: Array, num_classes: int) -> Array:
    # Before any comparison: 300 is no uint8.
    pred, ref = pred.astype(jnp.int32), ref.astype(jnp.int32)
    legal = (pred >= 0) & (pred < num_classes) & (ref >= 0) & (ref < num_classes)
    # Voxels with an illegal label go to one bin more, which is dropped.
    both = jnp.where(legal, pred * num_classes + ref, num_classes**2).ravel()
    counts = jnp.bincount(both, length=num_classes**2 + 1)[:-1]
    return counts.astype(jnp.uint32).reshape(num_classes, num_classes)


def _counts(pred, ref, num_classes: int | None) -> tuple[Array, Array, Array]:
    """Voxels in both, in the prediction, in the reference; uint32, () or (num_classes,)."""
    if num_classes is None:
        pred, ref = pair(pred, ref, None)
        both, ours, theirs = (jnp.sum(m, dtype=jnp.uint32) for m in (pred & ref, pred, ref))
        return both, ours, theirs
    joint = joint_histogram(pred, ref, num_classes)
    return (
        jnp.diagonal(joint),
        joint.sum(1, dtype=jnp.uint32),
        joint.sum(0, dtype=jnp.uint32),
    )


def _ratio(
    part: Array, whole: Array, quirk: Array, referred: Array, convention: str, empty: str
) -> Array:
    """Part over (whole + quirk), and the policy where ``whole`` is 0."""
    neither = {"zero": 0.0, "one": 1.0, "nan": float("nan")}.get(empty, CONVENTIONS[convention])
    dtype = jnp.result_type(float)
    below = jnp.where(whole > 0, whole + quirk, jnp.uint32(1)).astype(dtype)
    score = jnp.where(whole > 0, part.astype(dtype) / below, jnp.asarray(neither, dtype))
    if empty == "nan_without_reference":
        return jnp.where(referred > 0, score, jnp.asarray(jnp.nan, dtype))
    return score
