"""HAM: hierarchical attention mining, whose class activation maps are trained beside the logits.

Source: Ouyang et al. 2021 (IEEE TMI 40:2698), section III; threshold and test rule of the ISNet
authors' port (Bassi et al. 2024, Nature Communications 15:291).
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax

from isnet_jax.baselines.ham_network import Outputs
from isnet_jax.baselines.terms import (
    Array,
    Result,
    Tree,
    accuracy,
    forward,
    needs,
    not_negative,
)
from isnet_jax.isnet import Programs
from isnet_jax.losses import resize_mask

FLOOR = 1e-5
STEEPNESS = 100.0


@dataclass(frozen=True)
class HAM:
    """Settings.

    Attributes:
        normal: the label without any finding, which gets no class logit; None: there is none.
        anomaly: weight >= 0 of the anomaly's cross-entropy.
        bound: of the class maps' stay inside the anomaly's.
        union: of the anomaly map's cover by the classes'.
        supervision: of the maps' fit to the masks.
        threshold: tau of bound and union (0.4 in the port, 0.75 in HAM).
        refine: threshold of the refined maps.
    """

    normal: int | None = 0
    anomaly: float = 0.01
    bound: float = 0.001
    union: float = 0.001
    supervision: float = 0.5
    threshold: float = 0.4
    refine: float = 0.4

    def __post_init__(self) -> None:
        normal = self.normal
        if normal is not None and (type(normal) is not int or normal < 0):
            raise ValueError(f"HAM normal={normal!r}; expected a label >= 0, or None")
        weights = ("anomaly", "bound", "union", "supervision")
        not_negative("HAM", **{name: getattr(self, name) for name in weights})


def findings(labels: Array, classes: int, method: HAM, dtype: jnp.dtype) -> Array:
    """Targets (b, classes) of 0 and 1: from (b,) int labels, or (b, classes) ones as they are."""
    if labels.ndim == 2:
        return labels.astype(dtype)
    if method.normal is None:
        return jax.nn.one_hot(labels, classes, dtype=dtype)
    every = jax.nn.one_hot(labels, classes + 1, dtype=dtype)
    return jnp.delete(every, method.normal, axis=1)


def all_logits(out: Outputs, method: HAM) -> Array:
    """Logits (b, k) of all labels: the normal one's is minus the anomaly's."""
    if method.normal is None:
        return out.logits
    at, normal = method.normal, -out.anomaly[:, None]
    return jnp.concatenate((out.logits[:, :at], normal, out.logits[:, at:]), axis=1)


def refined(cams: Array, threshold: float = 0.4) -> Array:
    """``sigmoid(100 (c - threshold))`` of maps (b, h, w, k) scaled to [0, 1] each."""
    low, high = cams.min((1, 2), keepdims=True), cams.max((1, 2), keepdims=True)
    span = high - low
    scaled = jnp.where(span > 0, (cams - low) / jnp.where(span > 0, span, 1), 0)
    return jax.nn.sigmoid(STEEPNESS * (scaled - threshold))


def _uncovered(cams: Array, other: Array, threshold: float) -> Array:
    """Share of each map (b, h, w, …) that is weak or higher than ``other``; (b, …) in [0, 1]."""
    sure = jax.nn.sigmoid(STEEPNESS * (cams - threshold))
    total = cams.sum((1, 2))
    return (total - (jnp.minimum(cams, other) * sure).sum((1, 2))) / jnp.maximum(total, FLOOR)


def _over_present(values: Array, present: Array) -> Array:
    """Mean of values (b, k) over the samples with the class, then over the classes seen."""
    count = present.sum(0)
    each = (values * present).sum(0) / jnp.maximum(count, FLOOR)
    seen = (count > 0).astype(values.dtype)
    return (each * seen).sum() / jnp.maximum(seen.sum(), 1)


def map_losses(out: Outputs, targets: Array, threshold: float) -> tuple[Array, Array]:
    """Bound and union loss, scalars in [0, 1].

    Args:
        out: of the network.
        targets: (b, k) of 0 and 1.
        threshold: tau.
    """
    any_finding = targets.max(1, keepdims=True)
    classes = out.class_cams * targets[:, None, None]
    anomaly = out.anomaly_cam[..., None] * any_finding[:, None, None]
    bound = _over_present(
        _uncovered(classes, jnp.broadcast_to(anomaly, classes.shape), threshold), targets
    )
    largest = classes.max(-1, keepdims=True)
    union = _over_present(_uncovered(anomaly, largest, threshold), any_finding)
    return bound, union


def mask_loss(maps: Array, masks: Array, present: Array) -> Array:
    """``sum (maps - masks)^2 / (sum maps + sum masks)`` a class, mean over those present.

    Args:
        maps: (b, h, w, k) in [0, 1].
        masks: (b, h, w, 1), 1 = foreground.
        present: (b, k), 1 where the sample has the class and a mask.
    """
    masks = jnp.broadcast_to(masks, maps.shape)
    gap = (jnp.square(maps - masks).sum((1, 2)) * present).sum(0)
    size = ((maps.sum((1, 2)) + masks.sum((1, 2))) * present).sum(0)
    seen = (present.sum(0) > 0).astype(maps.dtype)
    return (gap / jnp.maximum(size, FLOOR) * seen).sum() / jnp.maximum(seen.sum(), 1)


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: HAM,
    rng: Array | None = None,
    *,
    training: bool = True,
) -> Result:
    """Class and anomaly cross-entropies with the map losses, of a model with `Outputs`.

    Args:
        graphs: see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: BatchNorm statistics and dropout streams.
        batch: "image", "label" (b,) int or (b, k) of findings, "mask" (b, h, w, 1), read at the
            maps' size, and, where not all images have a mask, "has_mask" (b,) bool.
        method: settings.
        rng: not used: dropout's stream is in ``rest``.
        training: BatchNorm on batch statistics, dropout on.

    Raises:
        ValueError: no mask.
    """
    needs(batch, "HAM", "mask")
    out, rest = forward(graphs, params, rest, training=training)(batch["image"])
    dtype = out.logits.dtype
    targets = findings(batch["label"], out.logits.shape[-1], method, dtype)
    plain = optax.sigmoid_binary_cross_entropy(out.logits, targets).mean()
    anomaly = optax.sigmoid_binary_cross_entropy(out.anomaly, targets.max(1)).mean()
    bound, union = map_losses(out, targets, method.threshold)
    masks = resize_mask(batch["mask"].astype(dtype), out.class_cams.shape[1:3])
    known = targets
    if "has_mask" in batch:
        known = targets * batch["has_mask"].astype(dtype)[:, None]
    fit = mask_loss(refined(out.class_cams, method.refine), masks, known)
    loss = plain + method.anomaly * anomaly + method.bound * bound
    loss = loss + method.union * union + method.supervision * fit
    values = {
        "loss": loss,
        "cross_entropy": plain,
        "anomaly": anomaly,
        "bound": bound,
        "union": union,
        "supervision": fit,
    }
    if batch["label"].ndim == 1:
        values["accuracy"] = accuracy(all_logits(out, method), batch["label"])
    return loss, (values, rest)
