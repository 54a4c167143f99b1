"""ResNet (He et al. 2016) with torchvision's topology (v1.5: a bottleneck strides in its 3x3).

The function is torchvision's, layer by layer, so its weights load (`isnet_jax.models.from_torch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.lrp.layers import AdaptiveAvgPool, Add, Conv, Dense, MaxPool, ReLU
from isnet_jax.models.backbone import Backbone, unit_names


def _shortcut(in_features: int, out: int, stride: int, rngs: nnx.Rngs) -> Conv | None:
    """The 1x1 unit beside a block that changes the shape; None is the identity."""
    if stride == 1 and in_features == out:
        return None
    return Conv(in_features, out, (1, 1), strides=stride, norm=True, rngs=rngs)


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions and a shortcut, (b, h, w, in) to (b, h', w', features)."""

    expansion = 1
    last_relu = "relu2"

    def __init__(self, in_features: int, features: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = Conv(
            in_features, features, (3, 3), strides=stride, padding=1, norm=True, rngs=rngs
        )
        self.relu1 = ReLU()
        self.conv2 = Conv(features, features, (3, 3), padding=1, norm=True, rngs=rngs)
        self.shortcut = _shortcut(in_features, features, stride, rngs)
        self.add = Add()
        self.relu2 = ReLU()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to x (b, h, w, in)."""
        branch = self.conv2(self.relu1(self.conv1(x)))
        return self.relu2(self.add(branch, x if self.shortcut is None else self.shortcut(x)))


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 and a shortcut, (b, h, w, in) to (b, h', w', 4 features)."""

    expansion = 4
    last_relu = "relu3"

    def __init__(self, in_features: int, features: int, stride: int, *, rngs: nnx.Rngs) -> None:
        out = self.expansion * features
        self.conv1 = Conv(in_features, features, (1, 1), norm=True, rngs=rngs)
        self.relu1 = ReLU()
        self.conv2 = Conv(
            features, features, (3, 3), strides=stride, padding=1, norm=True, rngs=rngs
        )
        self.relu2 = ReLU()
        self.conv3 = Conv(features, out, (1, 1), norm=True, rngs=rngs)
        self.shortcut = _shortcut(in_features, out, stride, rngs)
        self.add = Add()
        self.relu3 = ReLU()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to x (b, h, w, in)."""
        branch = self.relu2(self.conv2(self.relu1(self.conv1(x))))
        branch = self.conv3(branch)
        return self.relu3(self.add(branch, x if self.shortcut is None else self.shortcut(x)))


Block = BasicBlock | Bottleneck
BLOCKS: dict[str, type[Block]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


class ResNet(Backbone):
    """Residual network, (b, h, w, in_channels) to logits (b, num_classes).

    Supervised: the last ReLU of each stage.

    Args:
        num_classes: logits.
        depths: blocks of each stage.
        block: "basic" or "bottleneck".
        width: channels of the first stage's 3x3 convolutions; doubled in each later stage.
        stem_width: channels of the stem; None is ``width``.
        in_channels: channels of the image.
        stem: "imagenet" (7x7 stride 2, 3x3 max pool stride 2) or "small" (3x3 stride 1, no pool)
            for images of a few dozen pixels.
        rngs: initialisation.

    Raises:
        ValueError: unknown stem or block.
    """

    input_layer = "stem"
    input_relu = "relu"
    rectified = r"stages/\d+/\d+/(conv\d|shortcut)|classifier"
    torch_sizes: ClassVar = {
        "num_classes": ("fc.weight", 0),
        "width": ("layer1.0.conv1.weight", 0),
        "stem_width": ("conv1.weight", 0),
        "in_channels": ("conv1.weight", 1),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        depths: Sequence[int],
        block: str = "basic",
        width: int = 64,
        stem_width: int | None = None,
        in_channels: int = 3,
        stem: str = "imagenet",
        rngs: nnx.Rngs,
    ) -> None:
        check("stem", stem, ("imagenet", "small"))
        check("block", block, BLOCKS)
        make, features = BLOCKS[block], stem_width or width
        large = stem == "imagenet"
        kernel, stride = (7, 2) if large else (3, 1)
        self.stem = Conv(
            in_channels,
            features,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            norm=True,
            rngs=rngs,
        )
        self.relu = ReLU()
        self.pool = MaxPool((3, 3), strides=2, padding=1) if large else None
        stages = []
        for i, depth in enumerate(depths):
            blocks: list[Block] = []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(make(features, width * 2**i, stride, rngs=rngs))
                features = make.expansion * width * 2**i
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

    @property
    def supervised(self) -> tuple[str, ...]:
        """See the class."""
        return tuple(
            f"stages/{i}/{len(stage) - 1}/{stage[-1].last_relu}"
            for i, stage in enumerate(self.stages)
        )

    def torch_names(self) -> dict[str, str]:
        """See `Backbone`."""
        names = {**unit_names("conv1", "bn1", "stem"), "fc": "classifier"}
        for i, stage in enumerate(self.stages):
            for j, block in enumerate(stage):
                theirs, ours = f"layer{i + 1}.{j}", f"stages/{i}/{j}"
                for n in range(1, 3 if block.expansion == 1 else 4):
                    names |= unit_names(f"{theirs}.conv{n}", f"{theirs}.bn{n}", f"{ours}/conv{n}")
                if block.shortcut is not None:
                    side = f"{theirs}.downsample"
                    names |= unit_names(f"{side}.0", f"{side}.1", f"{ours}/shortcut")
        return names
