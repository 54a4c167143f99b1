"""GALS: the classifier's input gradient is kept inside an attention map given beforehand.

Source: Petryk et al. 2022 ("On Guiding Visual Attention with Language Specification"), the L1
gradient penalty and map preparation of its code. The maps are the caller's: from CLIP, from
another teacher's Grad-CAM, or the mask.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from isnet_jax.baselines.terms import (
    Array,
    Result,
    Tree,
    accuracy,
    classification,
    forward,
    needs,
    not_negative,
)
from isnet_jax.isnet import Programs
from isnet_jax.lrp.rules import magnitude


@dataclass(frozen=True)
class GALS:
    """Settings: the penalty's ``weight`` >= 0."""

    weight: float = 1e4

    def __post_init__(self) -> None:
        not_negative("GALS", weight=self.weight)


def normalised(maps: Array) -> Array:
    """``(a - min a) / max a`` of each map, (..., h, w) >= 0; an all-zero map stays so.

    The maximum is that BEFORE the subtraction, as in the released code.
    """
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    return jnp.where(high > 0, (maps - low) / jnp.where(high > 0, high, 1), 0)


def attention_of_prompts(maps: Array, size: tuple[int, int]) -> Array:
    """One map an image from one a prompt: (b, prompts, h, w) to (b, *size, 1).

    Normalised, averaged over the prompts whose map is not all zero, normalised again, resized
    bilinearly. An image all of whose maps are zero keeps a zero map.
    """
    some = (maps != 0).any((-2, -1))
    count = jnp.maximum(some.sum(1), 1).astype(maps.dtype)
    mean = normalised(maps).sum(1) / count[:, None, None]
    shape = (len(maps), *size)
    return jax.image.resize(normalised(mean), shape, "linear", antialias=False)[..., None]


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: GALS,
    rng: Array | None = None,
    *,
    training: bool = True,
) -> Result:
    """``CE + weight mean |dCE/dx (1 - A)|`` over the images whose attention is not all zero.

    Args:
        graphs: see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: BatchNorm statistics.
        batch: "image", "label" and "attention" (b, h, w, 1), A in [0, 1].
        method: settings.
        rng: not used.
        training: BatchNorm on batch statistics.

    Raises:
        ValueError: no attention, or one that does not fit.
    """
    needs(batch, "GALS", "attention")
    x, attention = batch["image"], batch["attention"].astype(batch["image"].dtype)
    if attention.shape != (*x.shape[:-1], 1):
        raise ValueError(f"attention {attention.shape} does not fit the image {x.shape}")

    def total(x: Array) -> tuple[Array, tuple[Array, Tree]]:
        logits, updated = forward(graphs, params, rest, training=training)(x)
        return classification(logits, batch["label"]), (logits, updated)

    (plain, (logits, rest)), slope = jax.value_and_grad(total, has_aux=True)(x)
    outside = magnitude(slope * (1 - attention)).mean(tuple(range(1, x.ndim)))
    known = (attention != 0).any(tuple(range(1, x.ndim)))
    count = jnp.maximum(known.sum(), 1).astype(x.dtype)
    penalty = jnp.where(known, outside, 0).sum() / count
    loss = plain + method.weight * penalty
    values = {"loss": loss, "cross_entropy": plain, "penalty": penalty}
    return loss, (values | {"accuracy": accuracy(logits, batch["label"])}, rest)
