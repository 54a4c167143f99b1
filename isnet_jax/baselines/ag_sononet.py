"""AG-Sononet: a VGG-like classifier that reads its features through attention gates.

Trained by plain cross-entropy, `isnet_jax.baselines.erm.objective`.

Source: Schlemper et al. 2019 (arXiv 1808.08114), section 3.1 and figure 4; sizes and the
concatenated head of the ISNet authors' code.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.baselines.erm import ERM, objective
from isnet_jax.baselines.terms import Array
from isnet_jax.legal import check
from isnet_jax.lrp.layers import Conv, Dense, MaxPool, ReLU

__all__ = ["ERM", "AGSononet", "Gate", "attention_weights", "objective"]

NORMALISATIONS = ("mean_flow", "softmax", "sigmoid", "range")
HEADS = ("concat", "mean")


def attention_weights(scores: Array, normalisation: str = "mean_flow") -> Array:
    """Weights (b, h, w, 1) >= 0 of raw scores (b, h, w, 1).

    "mean_flow" ``(s - min) / sum(s - min)``, "range" ``(s - min) / (max - min)`` (both even for
    even scores), "softmax" over the pixels, or "sigmoid".
    """
    check("attention normalisation", normalisation, NORMALISATIONS)
    axes = (1, 2)
    if normalisation == "softmax":
        return jax.nn.softmax(scores, axes)
    if normalisation == "sigmoid":
        return jax.nn.sigmoid(scores)
    risen = scores - scores.min(axes, keepdims=True)
    peak = risen.max(axes, keepdims=True)
    level = risen.sum(axes, keepdims=True) if normalisation == "mean_flow" else peak
    even = 1.0 if normalisation == "range" else 1 / (scores.shape[1] * scores.shape[2])
    return jnp.where(peak > 0, risen / jnp.where(peak > 0, level, 1), even)


class Gate(nnx.Module):
    """Grid attention: features (b, h, w, c) and a coarser signal to pooled (b, c) and weights.

    Args:
        features: channels gated.
        signal: channels of the gating signal.
        inner: channels of the joint space.
        normalisation: of `attention_weights`.
        rngs: initialisation.
    """

    def __init__(
        self, features: int, signal: int, inner: int, normalisation: str, *, rngs: nnx.Rngs
    ) -> None:
        self.theta = Conv(features, inner, (1, 1), use_bias=False, rngs=rngs)
        self.phi = Conv(signal, inner, (1, 1), use_bias=False, rngs=rngs)
        self.relu = ReLU()
        self.psi = Conv(inner, 1, (1, 1), rngs=rngs)
        self.normalisation = normalisation

    def __call__(self, x: Array, g: Array) -> tuple[Array, Array]:
        """Weighted sum of x over space, and the weights (b, h, w, 1)."""
        inner = self.theta(x)
        above = jax.image.resize(self.phi(g), inner.shape, "linear", antialias=False)
        weights = attention_weights(self.psi(self.relu(inner + above)), self.normalisation)
        return (x * jnp.broadcast_to(weights, x.shape)).sum((1, 2)), weights


class AGSononet(nnx.Module):
    """Five blocks of convolutions, the third and fourth gated by the fifth.

    (b, h, w, in_channels) to logits (b, num_classes); h and w need at least 16 pixels.

    Args:
        num_classes: logits.
        in_channels: channels of the image.
        widths: channels of the blocks, before ``feature_scale`` divides them.
        feature_scale: the ISNet authors' class default 4; the original configuration uses 8.
        convs: convolutions of the blocks.
        normalisation: of `attention_weights`.
        head: "concat", one linear layer on all three pooled vectors (ISNet's, which LRP can
            cross), or "mean", the mean of one linear layer each.
        rngs: initialisation.

    Raises:
        ValueError: unknown normalisation or head, other than five blocks, or a width below 1.
    """

    input_layer = "blocks/0/0"
    input_relu = "relus/0/0"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        feature_scale: int = 4,
        convs: Sequence[int] = (3, 3, 3, 2, 2),
        normalisation: str = "mean_flow",
        head: str = "concat",
        rngs: nnx.Rngs,
    ) -> None:
        check("attention normalisation", normalisation, NORMALISATIONS)
        check("AG-Sononet head", head, HEADS)
        sizes = [width // feature_scale for width in widths]
        if len(sizes) != 5 or len(convs) != 5 or min(sizes) < 1 or min(convs) < 1:
            raise ValueError(
                f"AG-Sononet: widths {tuple(widths)} / {feature_scale} and convs {tuple(convs)}; "
                "expected five of each, all >= 1"
            )
        blocks, relus = [], []
        for (a, b), count in zip(itertools.pairwise((in_channels, *sizes)), convs, strict=True):
            inputs = (a, *(b,) * (count - 1))
            make = [Conv(i, b, (3, 3), padding=1, norm=True, rngs=rngs) for i in inputs]
            blocks.append(nnx.List(make))
            relus.append(nnx.List([ReLU() for _ in inputs]))
        self.blocks, self.relus = nnx.List(blocks), nnx.List(relus)
        self.pools = nnx.List([MaxPool((2, 2)) for _ in range(4)])
        signal = sizes[4]
        self.gates = nnx.List(
            [Gate(sizes[i], signal, signal, normalisation, rngs=rngs) for i in (2, 3)]
        )
        pooled = (sizes[2], sizes[3], signal)
        heads = [sum(pooled)] if head == "concat" else pooled
        self.classifiers = nnx.List([Dense(size, num_classes, rngs=rngs) for size in heads])

    def __call__(self, x: Array) -> Array:
        """Logits of x (b, h, w, in_channels)."""
        return self.with_attention(x)[0]

    def with_attention(self, x: Array) -> tuple[Array, tuple[Array, Array]]:
        """Logits (b, num_classes), and the gates' weights (b, h/4, w/4, 1), (b, h/8, w/8, 1)."""
        if min(x.shape[1:3]) < 16:
            raise ValueError(f"AG-Sononet: image {x.shape[1:3]}; needs at least 16 pixels a side")
        found = []
        for i, (block, relus) in enumerate(zip(self.blocks, self.relus, strict=True)):
            for conv, relu in zip(block, relus, strict=True):
                x = relu(conv(x))
            found.append(x)
            if i < 4:
                x = self.pools[i](x)
        gated = [gate(found[i], found[4]) for gate, i in zip(self.gates, (2, 3), strict=True)]
        pooled = [*(sums for sums, _ in gated), found[4].mean((1, 2))]
        if len(self.classifiers) == 1:
            logits = self.classifiers[0](jnp.concatenate(pooled, -1))
        else:
            each = [head(p) for head, p in zip(self.classifiers, pooled, strict=True)]
            logits = jnp.stack(each).mean(0)
        return logits, (gated[0][1], gated[1][1])
