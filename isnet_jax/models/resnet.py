"""ResNet (He et al. 2016) with torchvision's topology: the function is torchvision's, bit for bit
the same layers, so its weights load (`isnet_jax.models.from_torch`).
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.lrp.layers import AdaptiveAvgPool, Add, Conv, Dense, MaxPool, ReLU


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut, (b, h, w, in) to (b, h', w', out)."""

    def __init__(self, in_features: int, features: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(
            in_features, features, (3, 3), strides=stride, padding=1, norm=True, rngs=rngs
        )
        self.relu1 = ReLU()
        self.conv2 = Conv(features, features, (3, 3), padding=1, norm=True, rngs=rngs)
        changes = stride != 1 or in_features != features
        self.shortcut = (
            Conv(in_features, features, (1, 1), strides=stride, norm=True, rngs=rngs)
            if changes
            else None
        )
        self.add = Add()
        self.relu2 = ReLU()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to x (b, h, w, in)."""
        branch = self.conv2(self.relu1(self.conv1(x)))
        return self.relu2(self.add(branch, x if self.shortcut is None else self.shortcut(x)))


class ResNet(nnx.Module):
    """Basic-block ResNet, (b, h, w, in_channels) to logits (b, num_classes).

    Args:
        num_classes: logits.
        depths: blocks of the four stages.
        width: channels of the first stage; doubled in each later one.
        in_channels: channels of the image.
        stem: "imagenet" (7x7 stride 2, 3x3 max pool stride 2) or "small" (3x3 stride 1, no pool)
            for images of a few dozen pixels.
        rngs: initialisation.

    Raises:
        ValueError: unknown stem.
    """

    input_layer = "stem"
    input_relu = "relu"

    def __init__(
        self,
        *,
        num_classes: int,
        depths: Sequence[int],
        width: int = 64,
        in_channels: int = 3,
        stem: str = "imagenet",
        rngs: nnx.Rngs,
    ) -> None:
        check("stem", stem, ("imagenet", "small"))
        large = stem == "imagenet"
        kernel, stride = (7, 2) if large else (3, 1)
        self.stem = Conv(
            in_channels,
            width,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            norm=True,
            rngs=rngs,
        )
        self.relu = ReLU()
        self.pool = MaxPool((3, 3), strides=2, padding=1) if large else None
        features, stages = width, []
        for i, depth in enumerate(depths):
            blocks = []
            for j in range(depth):
                out = width * 2**i
                blocks.append(BasicBlock(features, out, 2 if i > 0 and j == 0 else 1, rngs=rngs))
                features = out
            stages.append(nnx.List(blocks))
        self.stages = nnx.List(stages)
        self.average = AdaptiveAvgPool()
        self.classifier = Dense(features, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (b, num_classes) of x (b, h, w, in_channels)."""
        x = self.relu(self.stem(x))
        if self.pool is not None:
            x = self.pool(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.classifier(self.average(x))
