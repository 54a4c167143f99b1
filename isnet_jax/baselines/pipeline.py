"""Segmentation, then classification: a frozen U-Net removes the background before the classifier.

It also makes the images of a distillation's unbiased teacher (`isnet_jax.distill`).

Source: Bassi et al. 2024, Nature Communications 15:291 (U-Net, then DenseNet-121); background
fills of the explanation distillation's code (arXiv 2407.09788).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
)
from isnet_jax.baselines.unet2d import segmentation
from isnet_jax.isnet import Programs
from isnet_jax.legal import check, number

FILLS = ("zero", "white", "grey_noise", "colour_noise")


@dataclass(frozen=True)
class Pipeline:
    """Settings.

    Attributes:
        threshold: of the foreground's probability, in (0, 1).
        fill: what the background becomes: 0, 1, or uniform noise in [0, 1) a pixel ("grey", the
            same in all channels, or "colour").
    """

    threshold: float = 0.5
    fill: str = "zero"

    def __post_init__(self) -> None:
        check("pipeline fill", self.fill, FILLS)
        if not number(self.threshold) or not 0 < self.threshold < 1:
            raise ValueError(f"pipeline threshold={self.threshold!r}; must lie in (0, 1)")


def predicted_mask(
    graphs: Programs, params: Tree, rest: Tree, x: Array, threshold: float = 0.5
) -> Array:
    """Foreground (b, h, w, 1), 0 or 1 in x's dtype: where softmax's channel 1 > ``threshold``.

    The segmenter runs on its running averages and gets no gradient.
    """
    logits, _ = forward(graphs, params, rest, training=False)(x)
    found = jax.nn.softmax(logits, -1)[..., 1:2] > threshold
    return jax.lax.stop_gradient(found.astype(x.dtype))


def masked(x: Array, mask: Array, fill: str = "zero", rng: Array | None = None) -> Array:
    """Images (b, h, w, c) with another background; mask (b, h, w, 1), 1 = foreground.

    Args:
        x: images.
        mask: foreground.
        fill: of `FILLS`.
        rng: key of the noise.

    Raises:
        ValueError: unknown fill, noise without a key, or a mask that does not fit.
    """
    check("pipeline fill", fill, FILLS)
    if mask.shape != (*x.shape[:-1], 1):
        raise ValueError(f"mask {mask.shape} does not fit the image {x.shape}")
    keep = jnp.broadcast_to(mask.astype(x.dtype), x.shape)
    if fill == "zero":
        return x * keep
    if fill == "white":
        return x * keep + (1 - keep)
    if rng is None:
        raise ValueError(f"pipeline fill {fill!r} draws noise: give rng, a fresh key each step")
    shape = x.shape if fill == "colour_noise" else mask.shape
    noise = jnp.broadcast_to(jax.random.uniform(rng, shape, x.dtype), x.shape)
    return x * keep + noise * (1 - keep)


def segmentation_objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: Pipeline,
    rng: Array | None = None,
    *,
    training: bool = True,
) -> Result:
    """First stage: cross-entropy a pixel of "image" and "mask" (b, h, w, 1) for a `UNet2D`.

    Raises:
        ValueError: no mask, or one that does not fit.
    """
    needs(batch, "the pipeline's segmenter", "mask")
    logits, rest = forward(graphs, params, rest, training=training)(batch["image"])
    loss = segmentation(logits, batch["mask"])
    right = logits.argmax(-1).astype(jnp.int32) == batch["mask"][..., 0].astype(jnp.int32)
    return loss, ({"loss": loss, "pixel_accuracy": right.astype(jnp.float32).mean()}, rest)


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: Pipeline,
    rng: Array | None = None,
    *,
    training: bool = True,
    segmenter: tuple[Programs, tuple[Any, Any]] | None = None,
) -> Result:
    """Second stage: the classifier's cross-entropy on images without background.

    Args:
        graphs: the classifier's; see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: BatchNorm statistics.
        batch: "image", "label" and, without a segmenter, "mask" (b, h, w, 1).
        method: settings.
        rng: key of the noise, if the fill draws any.
        training: BatchNorm of the classifier on batch statistics.
        segmenter: (programs, (parameters, rest)) of the trained segmenter; None: the true masks.

    Raises:
        ValueError: see `masked`; neither segmenter nor mask.
    """
    x = batch["image"]
    if segmenter is None:
        needs(batch, "the pipeline without a segmenter", "mask")
        mask = batch["mask"]
    else:
        mask = predicted_mask(segmenter[0], *segmenter[1], x, method.threshold)
    seen = masked(x, mask, method.fill, rng)
    logits, rest = forward(graphs, params, rest, training=training)(seen)
    loss = classification(logits, batch["label"])
    return loss, ({"loss": loss, "accuracy": accuracy(logits, batch["label"])}, rest)
