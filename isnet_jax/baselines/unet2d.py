"""The 2-D U-Net of the multi-task network and of the segment-then-classify pipeline.

Source: Ronneberger et al. 2015 (arXiv 1505.04597), with the ISNet authors' sizes and orders
(Bassi et al. 2024, Nature Communications 15:291).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.lrp.layers import BatchNorm, Conv, ConvTranspose, MaxPool, ReLU

Array = jax.Array

WIDTHS = (64, 128, 256, 512, 1024)
ORDERS = ("norm_relu", "relu_norm", "relu")


class DoubleConv(nnx.Module):
    """Two 3x3 convolutions, each with ReLU and maybe BatchNorm, (b, h, w, in) to (b, h, w, out).

    Args:
        in_features: input channels.
        features: output channels.
        order: what follows a convolution; see `ORDERS`.
        rngs: initialisation.
    """

    def __init__(self, in_features: int, features: int, order: str, *, rngs: nnx.Rngs) -> None:
        folded = order == "norm_relu"
        self.convs = nnx.List(
            [
                Conv(a, features, (3, 3), padding=1, norm=folded, use_bias=True, rngs=rngs)
                for a in (in_features, features)
            ]
        )
        self.relus = nnx.List([ReLU(), ReLU()])
        after = [BatchNorm(features, rngs=rngs) for _ in range(2)] if order == "relu_norm" else []
        self.norms = nnx.List(after)

    def __call__(self, x: Array) -> Array:
        """Applies both to x (b, h, w, in)."""
        for i, (conv, relu) in enumerate(zip(self.convs, self.relus, strict=True)):
            x = relu(conv(x))
            if self.norms:
                x = self.norms[i](x)
        return x


class Encoder(nnx.Module):
    """The way down, (b, h, w, in) to one feature map a level, the finest first.

    Args:
        in_channels: channels of the image.
        widths: channels of the levels.
        order: of `ORDERS`.
        rngs: initialisation.

    Raises:
        ValueError: unknown order, or fewer than two levels.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], order: str, *, rngs: nnx.Rngs
    ) -> None:
        check("U-Net order", order, ORDERS)
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(f"U-Net widths={tuple(widths)}; expected two or more, each >= 1")
        pairs = itertools.pairwise((in_channels, *widths))
        self.levels = nnx.List([DoubleConv(a, b, order, rngs=rngs) for a, b in pairs])
        self.pools = nnx.List([MaxPool((2, 2)) for _ in widths[1:]])

    def __call__(self, x: Array) -> list[Array]:
        """Feature maps of x, whose sides are multiples of 2^(levels - 1)."""
        found = [self.levels[0](x)]
        for level, pool in zip(list(self.levels)[1:], self.pools, strict=True):
            found.append(level(pool(found[-1])))
        return found


class Decoder(nnx.Module):
    """The way up, feature maps of `Encoder` to logits (b, h, w, num_classes).

    Args:
        num_classes: logits a pixel.
        widths: channels of the levels.
        order: of `ORDERS`.
        rngs: initialisation.
    """

    def __init__(
        self, num_classes: int, widths: Sequence[int], order: str, *, rngs: nnx.Rngs
    ) -> None:
        down = list(itertools.pairwise(reversed(widths)))
        self.ups = nnx.List([ConvTranspose(a, b, (2, 2), strides=2, rngs=rngs) for a, b in down])
        self.levels = nnx.List([DoubleConv(2 * b, b, order, rngs=rngs) for _, b in down])
        self.classifier = Conv(widths[0], num_classes, (1, 1), rngs=rngs)

    def __call__(self, found: list[Array]) -> Array:
        """Logits of the feature maps, the finest first."""
        x = found[-1]
        for up, level, skip in zip(self.ups, self.levels, reversed(found[:-1]), strict=True):
            x = level(jnp.concatenate((skip, up(x)), -1))
        return self.classifier(x)


def padded(x: Array, levels: int) -> Array:
    """Images (b, h, w, c) with zeros below and to the right up to multiples of 2^(levels - 1)."""
    step = 2 ** (levels - 1)
    rows, columns = (-side % step for side in x.shape[1:3])
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))


class UNet2D(nnx.Module):
    """U-Net, (b, h, w, in_channels) to logits (b, h, w, num_classes), any h and w.

    Args:
        num_classes: logits a pixel, the background's first.
        in_channels: channels of the image.
        widths: channels of the levels.
        order: "relu_norm" (the pipeline's), "norm_relu" (the multi-task network's) or "relu".
        rngs: initialisation.

    Raises:
        ValueError: see `Encoder`.
    """

    def __init__(
        self,
        *,
        num_classes: int = 2,
        in_channels: int = 3,
        widths: Sequence[int] = WIDTHS,
        order: str = "relu_norm",
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder = Encoder(in_channels, widths, order, rngs=rngs)
        self.decoder = Decoder(num_classes, widths, order, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Logits of x (b, h, w, in_channels)."""
        logits = self.decoder(self.encoder(padded(x, len(self.encoder.levels))))
        return logits[:, : x.shape[1], : x.shape[2]]


def segmentation(mask_logits: Array, mask: Array) -> Array:
    """Mean cross-entropy of logits (b, h, w, k) and masks (b, h, w, 1) of classes 0..k-1.

    Raises:
        ValueError: shapes that do not fit.
    """
    if mask.shape != (*mask_logits.shape[:-1], 1):
        raise ValueError(f"mask {mask.shape} does not fit the logits {mask_logits.shape}")
    count = mask_logits.shape[-1]
    own = jax.nn.one_hot(mask[..., 0].astype(jnp.int32), count, dtype=mask_logits.dtype)
    return -(own * jax.nn.log_softmax(mask_logits, -1)).sum(-1).mean()
