"""Dice and cross-entropy as nnU-Net adds them, over labels that may be unknown or not annotated.

All sums are float32 (float64 for float64 logits), whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Integer

IGNORE = 255
"""Label of voxels that count nowhere."""

ACTIVATIONS = ("softmax", "sigmoid")
"""Logits are of classes that exclude each other, or of organs each against its absence."""


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
    logs: Float[Array, "b x y z k"], labels: Integer[Array, "b x y z"]
) -> Float[Array, ""]:
    """Mean of -log p(label) over the voxels that are not `IGNORE`; 0 if there is none.

    Args:
        logs: of `log_probabilities`.
        labels: 0..k - 1 or `IGNORE`.
    """
    valid = labels != IGNORE
    at = jnp.where(valid, labels, 0).astype(jnp.int32)[..., None]
    picked = jnp.where(valid, jnp.take_along_axis(logs, at, axis=-1)[..., 0], 0)
    return -picked.sum() / jnp.maximum(valid.sum(), 1).astype(logs.dtype)


def binary_cross_entropy(
    logits: Float[Array, "b x y z k"],
    labels: Integer[Array, "b x y z"],
    annotated: Bool[Array, "b k"] | None = None,
) -> Float[Array, ""]:
    """Mean of -log p over organs and voxels, each organ against its absence; 0 if there is none.

    Voxels of `IGNORE` and organs that nobody looked for in a sample are left out. The background's
    logits are not read.

    Args:
        logits: any real numbers.
        labels: 0..k - 1 or `IGNORE`.
        annotated: whether the class was looked for in the sample; None for all.
    """
    logits = _exact(logits)[..., 1:]
    organs = jnp.arange(1, logits.shape[-1] + 1, dtype=labels.dtype).reshape(1, 1, 1, 1, -1)
    entropy = jax.nn.softplus(jnp.where(labels[..., None] == organs, -logits, logits))
    counted = (labels != IGNORE)[..., None]
    if annotated is not None:
        counted = counted & annotated[:, None, None, None, 1:]
    counted = jnp.broadcast_to(counted, entropy.shape)
    number = jnp.maximum(counted.sum(dtype=logits.dtype), 1)
    return jnp.where(counted, entropy, 0).sum() / number


def soft_dice(
    logs: Float[Array, "b x y z k"],
    labels: Integer[Array, "b x y z"],
    annotated: Bool[Array, "b k"] | None = None,
    *,
    batch: bool = False,
    smooth: float = 1e-5,
) -> Float[Array, ""]:
    """Mean soft Dice coefficient of the organs, in [0, 1]; the background is no organ.

    ``(2 Σ p g + smooth) / (Σ p + Σ g + smooth)`` over the voxels that are not `IGNORE`, as in
    nnU-Net (``MemoryEfficientSoftDiceLoss``). An organ that is neither there nor predicted scores
    1. Classes that no sample of a row annotates count nowhere; if none is left, the mean is 1.

    Args:
        logs: of `log_probabilities`.
        labels: 0..k - 1 or `IGNORE`.
        annotated: as for `log_probabilities`.
        batch: sums over the whole batch (nnU-Net's batch dice) instead of sample by sample.
        smooth: see the formula; above 0.
    """
    classes = logs.shape[-1]
    valid = (labels != IGNORE)[..., None]
    voxels = jnp.arange(1, classes, dtype=labels.dtype).reshape(1, 1, 1, 1, -1)
    truth = (labels[..., None] == voxels).astype(logs.dtype)
    probability = jnp.where(valid, jnp.exp(logs[..., 1:]), 0)
    space = (1, 2, 3)
    both = (probability * truth).sum(space)
    either = probability.sum(space) + truth.sum(space)
    counted = jnp.ones(both.shape, bool) if annotated is None else annotated[:, 1:]
    if batch:
        both, either = (jnp.where(counted, s, 0).sum(0) for s in (both, either))
        counted = counted.any(0)
    scores = jnp.where(counted, (2 * both + smooth) / (either + smooth), 1)
    # Classes left out weigh nothing, and a row without any is perfect.
    total = jnp.where(counted, scores, 0).sum()
    number = counted.sum().astype(logs.dtype)
    return jnp.where(number > 0, total / jnp.maximum(number, 1), 1)


def dice_cross_entropy(
    logits: Float[Array, "b x y z k"],
    labels: Integer[Array, "b x y z"],
    annotated: Bool[Array, "b k"] | None = None,
    *,
    batch: bool = False,
    smooth: float = 1e-5,
    activation: str = "softmax",
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(cross-entropy, 1 - soft Dice) of one scale; nnU-Net minimises their sum.

    Arguments as for `log_probabilities` and `soft_dice`. With the activation "sigmoid" the
    cross-entropy is `binary_cross_entropy`, and organs that nobody looked for count nowhere.

    Raises:
        ValueError: shapes that do not fit, or none of `ACTIVATIONS`.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r}; legal: {', '.join(ACTIVATIONS)}")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} do not fit")
    if annotated is not None and annotated.shape != (logits.shape[0], logits.shape[-1]):
        raise ValueError(f"annotated {annotated.shape} does not fit logits {logits.shape}")
    if activation == "sigmoid":
        logs = jax.nn.log_sigmoid(_exact(logits))
        dice = soft_dice(logs, labels, annotated, batch=batch, smooth=smooth)
        return binary_cross_entropy(logits, labels, annotated), 1 - dice
    logs = log_probabilities(logits, annotated)
    dice = soft_dice(logs, labels, annotated, batch=batch, smooth=smooth)
    return cross_entropy(logs, labels), 1 - dice


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
    activation: str = "softmax",
    weights: Sequence[float] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Weighted sums over the scales: "loss", "cross_entropy" and "dice_loss", which make it up.

    Args:
        logits: of every scale, the finest (that of the labels) first.
        labels: 0..k - 1 or `IGNORE`.
        annotated: as for `log_probabilities`.
        batch: of `soft_dice`.
        smooth: of `soft_dice`.
        activation: of `ACTIVATIONS`.
        weights: of the scales; None for `deep_supervision_weights`.

    Raises:
        ValueError: shapes that do not fit, none of `ACTIVATIONS`, not a weight for each scale, or
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
            pair = dice_cross_entropy(
                scale, thin, annotated, batch=batch, smooth=smooth, activation=activation
            )
            terms.append([np.asarray(weight, term.dtype) * term for term in pair])
    entropy, dice = (sum(column[1:], column[0]) for column in zip(*terms, strict=True))
    return {"loss": entropy + dice, "cross_entropy": entropy, "dice_loss": dice}


def _exact(logits: Array) -> Array:
    return logits if logits.dtype == jnp.float64 else logits.astype(jnp.float32)
