"""A small convolutional classifier for images of a few dozen pixels."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax
from flax import nnx

from isnet_jax.lrp.layers import AdaptiveAvgPool, Conv, Dense, MaxPool, ReLU
from isnet_jax.models.backbone import Backbone


class SimpleCNN(Backbone):
    """Blocks of 3x3 convolution (+ BatchNorm) and ReLU with 2x2 max pooling between them.

    (b, h, w, in_channels) to logits (b, num_classes); h and w need at least
    ``2 ** (len(widths) - 1)`` pixels.

    Supervised: every max pool and the last ReLU.

    Args:
        num_classes: logits.
        in_channels: channels of the image.
        widths: channels of the blocks.
        pooled: side of the grid that the last features are averaged to before the classifier.
        norm: BatchNorm after every convolution, else a bias.
        rngs: initialisation.
    """

    input_layer = "blocks/0"
    input_relu = "relus/0"
    rectified = r"blocks/[1-9]\d*|classifier"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = (16, 32, 64),
        pooled: int = 4,
        norm: bool = True,
        rngs: nnx.Rngs,
    ) -> None:
        if not widths or not all(isinstance(w, int) and w >= 1 for w in widths):
            raise ValueError(f"simple_cnn: widths={widths!r}; must be integers >= 1, at least one")
        if pooled < 1:
            raise ValueError(f"simple_cnn: pooled={pooled}; must be at least 1")
        sizes = (in_channels, *widths)
        pairs = list(itertools.pairwise(sizes))
        self.blocks = nnx.List(
            [Conv(a, b, (3, 3), padding=1, norm=norm, rngs=rngs) for a, b in pairs]
        )
        self.relus = nnx.List([ReLU() for _ in widths])
        self.pools = nnx.List([MaxPool((2, 2)) for _ in widths[1:]])
        self.average = AdaptiveAvgPool(pooled)
        self.classifier = Dense(widths[-1] * pooled**2, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (b, num_classes) of x (b, h, w, in_channels)."""
        for i, (block, relu) in enumerate(zip(self.blocks, self.relus, strict=True)):
            x = relu(block(x))
            if i < len(self.pools):
                x = self.pools[i](x)
        return self.classifier(self.average(x))

    @property
    def supervised(self) -> tuple[str, ...]:
        """See the class."""
        return (*(f"pools/{i}" for i in range(len(self.pools))), f"relus/{len(self.relus) - 1}")
