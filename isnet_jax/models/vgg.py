"""VGG (Simonyan & Zisserman 2015), with or without BatchNorm, torchvision's topology and head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
from flax import nnx

from isnet_jax.lrp.layers import AdaptiveAvgPool, Conv, Dense, MaxPool, ReLU
from isnet_jax.models.backbone import Backbone, unit_names
from isnet_jax.models.dropout import Dropout


class Stage(nnx.Module):
    """``depth`` 3x3 convolutions with ReLUs, then a 2x2 max pool: (b, h, w, in) to (…, out)."""

    def __init__(
        self, in_features: int, features: int, depth: int, norm: bool, *, rngs: nnx.Rngs
    ) -> None:
        sizes = (in_features, *(features,) * (depth - 1))
        self.convs = nnx.List(
            [
                Conv(size, features, (3, 3), padding=1, norm=norm, use_bias=True, rngs=rngs)
                for size in sizes
            ]
        )
        self.relus = nnx.List([ReLU() for _ in sizes])
        self.pool = MaxPool((2, 2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the stage to x (b, h, w, in)."""
        for conv, relu in zip(self.convs, self.relus, strict=True):
            x = relu(conv(x))
        return self.pool(x)


class VGG(Backbone):
    """VGG, (b, h, w, in_channels) to logits (b, num_classes).

    In training mode dropout draws from a random stream that is part of the model's state beside
    the parameters, as BatchNorm's averages are: `isnet_jax.isnet.bind` returns it advanced, and a
    checkpoint holds it.

    Supervised: every max pool.

    Args:
        num_classes: logits.
        depths: convolutions of each stage.
        widths: channels of each stage.
        norm: BatchNorm after every convolution.
        hidden: units of the two hidden layers of the head.
        pooled: side of the grid that the last features are averaged to before the head.
        dropout: rate in the head, in training mode.
        in_channels: channels of the image.
        rngs: initialisation, and the seed of dropout.

    Raises:
        ValueError: depths and widths of unequal length, or a dropout outside [0, 1).
    """

    input_layer = "stages/0/convs/0"
    input_relu = "stages/0/relus/0"
    rectified = r"(?!stages/0/convs/0$)stages/\d+/convs/\d+|hidden/\d+|classifier"
    torch_sizes: ClassVar = {
        "num_classes": ("classifier.6.weight", 0),
        "hidden": ("classifier.0.weight", 0),
        "in_channels": ("features.0.weight", 1),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        depths: Sequence[int],
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        norm: bool = False,
        hidden: int = 4096,
        pooled: int = 7,
        dropout: float = 0.5,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        if len(depths) != len(widths):
            raise ValueError(f"VGG has {len(depths)} depths and {len(widths)} widths")
        features, stages = in_channels, []
        for depth, width in zip(depths, widths, strict=True):
            stages.append(Stage(features, width, depth, norm, rngs=rngs))
            features = width
        self.stages = nnx.List(stages)
        self.average = AdaptiveAvgPool(pooled)
        sizes = (features * pooled**2, hidden)
        self.hidden = nnx.List([Dense(size, hidden, rngs=rngs) for size in sizes])
        self.hidden_relus = nnx.List([ReLU() for _ in sizes])
        self.dropouts = nnx.List([Dropout(dropout, rngs=rngs) for _ in sizes])
        self.classifier = Dense(hidden, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (b, num_classes) of x (b, h, w, in_channels)."""
        for stage in self.stages:
            x = stage(x)
        x = self.average(x)
        for dense, relu, dropout in zip(self.hidden, self.hidden_relus, self.dropouts, strict=True):
            x = dropout(relu(dense(x)))
        return self.classifier(x)

    @property
    def supervised(self) -> tuple[str, ...]:
        """See the class."""
        return tuple(f"stages/{i}/pool" for i in range(len(self.stages)))

    @property
    def torch_flattened(self) -> dict[str, tuple[int, ...]]:
        """See `Backbone`."""
        return {"hidden/0": (self.average.size,) * 2}

    def torch_names(self) -> dict[str, str]:
        """See `Backbone`; torchvision counts its layers through."""
        names, index = {}, 0
        for i, stage in enumerate(self.stages):
            for j, conv in enumerate(stage.convs):
                path = f"stages/{i}/convs/{j}"
                names[f"features.{index}"] = path
                if conv.norm is not None:
                    names |= unit_names(f"features.{index}", f"features.{index + 1}", path)
                index += 2 if conv.norm is None else 3
            index += 1
        return names | {
            "classifier.0": "hidden/0",
            "classifier.3": "hidden/1",
            "classifier.6": "classifier",
        }
