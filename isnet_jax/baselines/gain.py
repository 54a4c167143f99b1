"""GAIN and Extended GAIN: Grad-CAM trained to cover all evidence, and (extended) to fit a mask.

Source: Li et al. 2018 ("Tell Me Where to Look"), equations 1-7; reading and defaults of the ISNet
authors' code (Bassi et al. 2024, Nature Communications 15:291): the map is not normalised.
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
from isnet_jax.isnet import Programs, bind_tapped
from isnet_jax.lrp import taps


@dataclass(frozen=True)
class GAIN:
    """Settings.

    Attributes:
        layer: path of the last feature map; None: the model's last `supervised` layer.
        extended: also fit the map to the mask.
        mining: alpha >= 0 of the attention mining loss.
        supervision: w >= 0 of the mask loss.
        steepness: omega of the soft mask.
        threshold: sigma of the soft mask.
    """

    layer: str | None = None
    extended: bool = True
    mining: float = 1.0
    supervision: float = 10.0
    steepness: float = 10.0
    threshold: float = 0.5

    def __post_init__(self) -> None:
        not_negative(
            "GAIN", mining=self.mining, supervision=self.supervision, steepness=self.steepness
        )


def grad_cam(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    x: Array,
    labels: Array,
    method: GAIN,
    *,
    training: bool,
) -> tuple[Array, Array, Tree]:
    """Grad-CAM (b, h, w, 1) >= 0 of the labels' logits at the image's size, logits, updated rest.

    The channel weights are constants for the loss, as in the original (no double derivative).

    Args:
        graphs: `isnet_jax.isnet.programs` of the model.
        params: parameters.
        rest: BatchNorm statistics.
        x: (b, h, w, c) float.
        labels: (b,) int.
        method: settings.
        training: BatchNorm on batch statistics.

    Raises:
        ValueError: no layer is named, or it is none of the model's.
    """
    layer = method.layer or (graphs.supervised[-1] if graphs.supervised else None)
    if layer is None:
        raise ValueError("GAIN: the model names no `supervised` layer; give GAIN(layer=path)")
    f = bind_tapped(graphs.train if training else graphs.infer, params, rest)
    zeros = taps.zero_outputs(f, x, (layer,))
    logits, pull, (rest, kept) = jax.vjp(lambda zeros: f(x, zeros), zeros, has_aux=True)
    (slope,) = pull(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype))
    weights = jax.lax.stop_gradient(slope[layer].mean((1, 2), keepdims=True))
    features = kept[layer]
    cam = (features * jnp.broadcast_to(weights, features.shape)).sum(-1, keepdims=True)
    shape = (*x.shape[:-1], 1)
    return (
        jax.image.resize(jax.nn.relu(cam), shape, "linear", antialias=False),
        logits,
        rest,
    )


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: GAIN,
    rng: Array | None = None,
    *,
    training: bool = True,
) -> Result:
    """``CE + alpha mean_i p_label(x*_i) + w MSE(C, mask)`` with ``x* = x - x sigmoid(omega (C -
    sigma))``; the last term is the extension.

    Args:
        graphs: see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: BatchNorm statistics; both forwards update them, the masked images' last.
        batch: "image", "label" and, extended, "mask" (b, h, w, 1).
        method: settings.
        rng: not used.
        training: BatchNorm on batch statistics.

    Raises:
        ValueError: see `grad_cam`; no mask where it is needed, or one that does not fit.
    """
    x, labels = batch["image"], batch["label"]
    if method.extended:
        needs(batch, "extended GAIN", "mask")
        if batch["mask"].shape[:-1] != x.shape[:-1]:
            raise ValueError(f"mask {batch['mask'].shape} does not fit the image {x.shape}")
    cam, logits, rest = grad_cam(graphs, params, rest, x, labels, method, training=training)
    seen = jax.nn.sigmoid(method.steepness * (cam - method.threshold))
    left = x - x * jnp.broadcast_to(seen, x.shape)
    remaining, rest = forward(graphs, params, rest, training=training)(left)
    own = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    mining = (jax.nn.softmax(remaining, -1) * own).sum(-1).mean()
    plain = classification(logits, labels)
    loss = plain + method.mining * mining
    values = {"cross_entropy": plain, "mining": mining, "accuracy": accuracy(logits, labels)}
    if method.extended:
        mask = batch["mask"].astype(x.dtype)
        values["supervision"] = jnp.square(jnp.broadcast_to(cam, mask.shape) - mask).mean()
        loss = loss + method.supervision * values["supervision"]
    return loss, ({"loss": loss, **values}, rest)
