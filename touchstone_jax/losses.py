"""Dice and cross-entropy over labels that may be unknown or not annotated, in all published forms.

nnU-Net adds them for most networks; `LOSSES` has the others. All sums are float32 (float64 for
float64 logits), whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

from touchstone_jax.legal import unknown

IGNORE = 255
"""Label of voxels that count nowhere."""

ACTIVATIONS = ("softmax", "sigmoid")
"""Logits are of classes that exclude each other, or of organs each against its absence."""


class Loss(NamedTuple):
    """How cross-entropy and Dice are made; their weighted sum is what is minimised.

    Attributes:
        activation: of `ACTIVATIONS`, the kind of network. The cross-entropy is that of the softmax,
            or binary.
        form: of `FORMS`, of Dice.
        background: whether the background is one of Dice's classes.
        sigmoids: whether Dice is of sigmoids where the cross-entropy is of the softmax.
        background_weight: of the background's voxels in `cross_entropy`.
        balanced: of `binary_cross_entropy`.
        weight: of both terms.
    """

    activation: str = "softmax"
    form: str = "dice"
    background: bool = False
    sigmoids: bool = False
    background_weight: float = 1.0
    balanced: bool = False
    weight: float = 1.0


LOSSES = {
    "dice_ce": Loss(),
    "dice_bce": Loss("sigmoid"),
    "tversky_ce": Loss(form="tversky", background=True, background_weight=0.5),
    "sigmoid_dice_ce": Loss(form="squared", background=True, sigmoids=True),
    "balanced_dice_bce": Loss("sigmoid", "squared", balanced=True, weight=0.5),
}
"""nnU-Net's, and that of networks with sigmoids; those of MedFormer, of SAM-Adapter and of
UCTransNet as in the authors' code (there of one class; here the mean over the organs)."""


def loss_for(activation: str, name: str | None = None) -> str:
    """Name of the loss of a network: ``name`` if it fits, the first of its kind for None.

    Args:
        activation: of `ACTIVATIONS`.
        name: of `LOSSES`.

    Raises:
        ValueError: a name that is not among those for the activation.
    """
    legal = [known for known, loss in LOSSES.items() if loss.activation == activation]
    if name is None:
        return legal[0]
    if name not in legal:
        raise unknown(f"loss of networks with a {activation}", name, legal)
    return name


def log_probabilities(
    logits: Float[Array, "b x y z k"], annotated: Bool[Array, "b k"] | None = None
) -> Float[Array, "b x y z k"]:
    """Log softmax; the background's holds the probability of all classes nobody annotated.

    Where a case was not searched for an organ, its voxels are labelled background. So that no
    network is taught that, the organ's probability is added to the background's (the marginal loss
    of Shi et al. 2021, Med. Image Anal. 70:101979, equation 4).

    Args:
        logits: any real numbers; class 0 is the background.
        annotated: whether the class was looked for in the sample; None for all. The background's
            entry is not read.
    """
    logs = jax.nn.log_softmax(_exact(logits), axis=-1)
    if annotated is None:
        return logs
    # What goes to the background: itself, and the classes that nobody looked for.
    joins = jnp.logical_not(annotated).at[:, 0].set(True)[:, None, None, None, :]
    merged = jax.nn.logsumexp(logs, -1, where=joins, keepdims=True)
    return jnp.concatenate([merged, logs[..., 1:]], -1)


def cross_entropy(
    logs: Float[Array, "b x y z k"],
    labels: Integer[Array, "b x y z"],
    *,
    background_weight: float = 1.0,
) -> Float[Array, ""]:
    """Weighted mean of -log p(label) over the voxels that are not `IGNORE`; 0 if there is none.

    Args:
        logs: of `log_probabilities`.
        labels: 0..k - 1 or `IGNORE`.
        background_weight: of voxels of the label 0, above 0; all others weigh 1.
    """
    valid = labels != IGNORE
    at = jnp.where(valid, labels, 0).astype(jnp.int32)[..., None]
    weights = jnp.where(labels == 0, background_weight, 1.0).astype(logs.dtype)
    weights = jnp.where(valid, weights, 0)
    picked = jnp.where(valid, jnp.take_along_axis(logs, at, axis=-1)[..., 0], 0)
    return -(weights * picked).sum() / _or_one(weights.sum())


def binary_cross_entropy(
    logits: Float[Array, "b x y z k"],
    labels: Integer[Array, "b x y z"],
    annotated: Bool[Array, "b k"] | None = None,
    *,
    balanced: bool = False,
) -> Float[Array, ""]:
    """Mean of -log p over organs and voxels, each organ against its absence; 0 if there is none.

    Voxels of `IGNORE` and organs that nobody looked for in a sample are left out. The background's
    logits are not read.

    Args:
        logits: any real numbers.
        labels: 0..k - 1 or `IGNORE`.
        annotated: whether the class was looked for in the sample; None for all.
        balanced: of each organ half the mean over its own voxels in the batch, and half that over
            the others, of which none is 0 (Wang et al. 2022, the authors' ``WeightedBCE``).
    """
    logits = _exact(logits)[..., 1:]
    organs = jnp.arange(1, logits.shape[-1] + 1, dtype=labels.dtype).reshape(1, 1, 1, 1, -1)
    inside = labels[..., None] == organs
    entropy = jax.nn.softplus(jnp.where(inside, -logits, logits))
    counted = (labels != IGNORE)[..., None]
    if annotated is not None:
        counted = counted & annotated[:, None, None, None, 1:]
    counted = jnp.broadcast_to(counted, entropy.shape)
    if not balanced:
        return jnp.where(counted, entropy, 0).sum() / _or_one(counted.sum(dtype=logits.dtype))
    halves = jnp.zeros(logits.shape[-1:], logits.dtype)
    for side in (counted & inside, counted & ~inside):
        size = side.sum((0, 1, 2, 3), dtype=logits.dtype)
        halves += jnp.where(side, entropy, 0).sum((0, 1, 2, 3)) / _or_one(size) / 2
    # An organ that is counted nowhere adds nothing and is none of those that the mean is of.
    return halves.sum() / _or_one(counted.any((0, 1, 2, 3)).sum(dtype=logits.dtype))


Total = Callable[[Float[Array, "b x y z c"]], Float[Array, "*b c"]]


def _dice(p: Array, truth: Array, total: Total, smooth: float) -> Array:
    return (2 * total(p * truth) + smooth) / (total(p) + total(truth) + smooth)


def _squared(p: Array, truth: Array, total: Total, smooth: float) -> Array:
    return (2 * total(p * truth) + smooth) / (total(p * p) + total(truth) + smooth)


def _tversky(p: Array, truth: Array, total: Total, smooth: float) -> Array:
    """Whichever of too much and too little is more weighs more; that has a gradient, too."""
    hit, surplus, missed = (total(a) for a in (p * truth, p * (1 - truth), (1 - p) * truth))
    share = jnp.clip(surplus / (surplus + missed + smooth), 0.2, 0.8)
    return hit / (hit + share * surplus + (1 - share) * missed + smooth)


FORMS = {"dice": _dice, "squared": _squared, "tversky": _tversky}


def soft_dice(
    logs: Float[Array, "b x y z k"],
    labels: Integer[Array, "b x y z"],
    annotated: Bool[Array, "b k"] | None = None,
    *,
    batch: bool = False,
    smooth: float = 1e-5,
    form: str = "dice",
    background: bool = False,
) -> Float[Array, ""]:
    """Mean soft Dice coefficient of the organs, in [0, 1].

    Sums are over the voxels that are not `IGNORE`; p is a probability, g 0 or 1:

    - "dice": ``(2 Σ p g + smooth) / (Σ p + Σ g + smooth)``, as in nnU-Net
      (``MemoryEfficientSoftDiceLoss``);
    - "squared": ``(2 Σ p g + smooth) / (Σ p² + Σ g + smooth)`` (Milletari et al. 2016, V-Net);
    - "tversky": ``Σ p g / (Σ p g + a f + (1 - a) m + smooth)`` with ``f = Σ p (1 - g)``,
      ``m = Σ (1 - p) g`` (Salehi et al. 2017, equation 4) and ``a = f / (f + m + smooth)``, no
      less than 0.2 and no more than 0.8 (``DiceLoss`` of MedFormer's authors).

    An organ that is neither there nor predicted scores 1, but 0 with "tversky", whose gradient
    there is 0. Classes that no sample of a row annotates count nowhere; if none is left, the mean
    is 1.

    Args:
        logs: logarithms of p: of `log_probabilities`, or of sigmoids.
        labels: 0..k - 1 or `IGNORE`.
        annotated: whether the class was looked for in the sample; None for all.
        batch: sums over the whole batch (nnU-Net's batch dice) instead of sample by sample.
        smooth: see the formulae; above 0.
        form: of `FORMS`.
        background: whether class 0 counts like an organ; else its entries are not read.
    """
    first = 0 if background else 1
    valid = (labels != IGNORE)[..., None]
    voxels = jnp.arange(first, logs.shape[-1], dtype=labels.dtype).reshape(1, 1, 1, 1, -1)
    truth = (labels[..., None] == voxels).astype(logs.dtype)
    probability = jnp.where(valid, jnp.exp(logs[..., first:]), 0)
    rows = (len(logs), logs.shape[-1] - first)
    known = jnp.ones(rows, bool) if annotated is None else annotated[:, first:]

    def total(values: Array) -> Array:
        sums = values.sum((1, 2, 3))
        return jnp.where(known, sums, 0).sum(0) if batch else sums

    counted = known.any(0) if batch else known
    scores = jnp.where(counted, FORMS[form](probability, truth, total, smooth), 1)
    # Classes left out weigh nothing, and a row without any is perfect.
    found = jnp.where(counted, scores, 0).sum()
    number = counted.sum().astype(logs.dtype)
    return jnp.where(number > 0, found / jnp.maximum(number, 1), 1)


def dice_cross_entropy(
    logits: Float[Array, "b x y z k"],
    labels: Integer[Array, "b x y z"],
    annotated: Bool[Array, "b k"] | None = None,
    *,
    batch: bool = False,
    smooth: float = 1e-5,
    loss: str = "dice_ce",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(cross-entropy, 1 - soft Dice) of one scale, weighted; their sum is minimised.

    Arguments as for `log_probabilities` and `soft_dice`. With sigmoids organs that nobody looked
    for count nowhere, nor does the background of a sample in which there is such an organ.

    Raises:
        ValueError: shapes that do not fit, or none of `LOSSES`.
    """
    if loss not in LOSSES:
        raise unknown("loss", loss, LOSSES)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} do not fit")
    if annotated is not None and annotated.shape != (logits.shape[0], logits.shape[-1]):
        raise ValueError(f"annotated {annotated.shape} does not fit logits {logits.shape}")
    how, known = LOSSES[loss], annotated
    if how.activation == "sigmoid":
        entropy = binary_cross_entropy(logits, labels, annotated, balanced=how.balanced)
        logs = jax.nn.log_sigmoid(_exact(logits))
    else:
        logs = log_probabilities(logits, annotated)
        entropy = cross_entropy(logs, labels, background_weight=how.background_weight)
    if annotated is not None:
        sure = annotated[:, 1:].all(1) if how.sigmoids else True
        known = jnp.asarray(annotated).at[:, 0].set(sure)
    if how.sigmoids:
        logs = jax.nn.log_sigmoid(_exact(logits))
    sums: dict[str, Any] = {"batch": batch, "smooth": smooth}
    dice = soft_dice(logs, labels, known, form=how.form, background=how.background, **sums)
    return how.weight * entropy, how.weight * (1 - dice)


def deep_supervision_weights(scales: int) -> tuple[float, ...]:
    """1, 1/2, 1/4, … over the scales, the coarsest 0 (of two or more), normalised to the sum 1."""
    if scales < 1:
        raise ValueError(f"scales={scales}; expected at least 1")
    weights = [0.5**i for i in range(scales)]
    if scales > 1:
        weights[-1] = 0.0
    return tuple(w / sum(weights) for w in weights)


def coarser_labels(
    labels: Integer[Array, "b x y z"], shape: Sequence[int]
) -> Integer[Array, "b a b_ c"]:
    """Labels on a coarser grid of the same extent: the voxel nearest to each one's centre.

    Args:
        labels: any labels.
        shape: (a, b, c); each divides the side of labels.

    Raises:
        ValueError: it does not.
    """
    sides = labels.shape[1:]
    if any(n % m for n, m in zip(sides, shape, strict=True)):
        raise ValueError(f"labels {sides} cannot be thinned to {tuple(shape)}")
    steps = [n // m for n, m in zip(sides, shape, strict=True)]
    return labels[(slice(None), *(slice(s // 2, None, s) for s in steps))]


def segmentation_loss(
    logits: Sequence[Float[Array, "b a b_ c k"]],
    labels: Integer[Array, "b x y z"],
    annotated: Bool[Array, "b k"] | None = None,
    *,
    batch: bool = False,
    smooth: float = 1e-5,
    loss: str = "dice_ce",
    weights: Sequence[float] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Weighted sums over the scales: "loss", "cross_entropy" and "dice_loss", which make it up.

    Args:
        logits: of every scale, the finest (that of the labels) first.
        labels: 0..k - 1 or `IGNORE`.
        annotated: as for `log_probabilities`.
        batch: of `soft_dice`.
        smooth: of `soft_dice`.
        loss: of `LOSSES`.
        weights: of the scales; None for `deep_supervision_weights`.

    Raises:
        ValueError: shapes that do not fit, none of `LOSSES`, not a weight for each scale, or
            one array instead of scales.
    """
    if not isinstance(logits, list | tuple):
        raise ValueError(
            "logits are one array; expected those of every scale, as a network gives them in "
            "training (model.train())"
        )
    terms = []
    weights = deep_supervision_weights(len(logits)) if weights is None else tuple(weights)
    if len(weights) != len(logits):
        raise ValueError(f"weights={weights}; expected one for each of {len(logits)} scales")
    for weight, scale in zip(weights, logits, strict=True):
        if weight:  # what weighs nothing is not computed
            thin = coarser_labels(labels, scale.shape[1:4])
            pair = dice_cross_entropy(scale, thin, annotated, batch=batch, smooth=smooth, loss=loss)
            terms.append([np.asarray(weight, term.dtype) * term for term in pair])
    entropy, dice = (sum(column[1:], column[0]) for column in zip(*terms, strict=True))
    return {"loss": entropy + dice, "cross_entropy": entropy, "dice_loss": dice}


def _or_one(count: Array) -> Array:
    """A count to divide by; where there is nothing, what it divides is 0."""
    return jnp.where(count > 0, count, 1)


def _exact(logits: Array) -> Array:
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)
