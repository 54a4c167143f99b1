"""SqueezeNet 1.1 (Iandola et al. 2016) with torchvision's topology: no norms, no dense layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.lrp.layers import AdaptiveAvgPool, Conv, MaxPool, ReLU
from isnet_jax.models.backbone import Backbone
from isnet_jax.models.dropout import Dropout


class CeilMaxPool(MaxPool):
    """3x3 max pool of stride 2 whose last window may hang over the edge (torch's ceil mode)."""

    def __init__(self) -> None:
        super().__init__((3, 3), strides=2)
        # A pixel more on the far side: never a window more where the windows fit already.
        self.padding = ((0, 1), (0, 1))


class Fire(nnx.Module):
    """1x1 squeeze, then 1x1 and 3x3 side by side: (b, h, w, in) to (b, h, w, 8 squeezed)."""

    def __init__(self, in_features: int, squeezed: int, *, rngs: nnx.Rngs) -> None:
        out = 4 * squeezed
        self.squeeze = Conv(in_features, squeezed, (1, 1), rngs=rngs)
        self.squeeze_relu = ReLU()
        self.expand1x1 = Conv(squeezed, out, (1, 1), rngs=rngs)
        self.expand1x1_relu = ReLU()
        self.expand3x3 = Conv(squeezed, out, (3, 3), padding=1, rngs=rngs)
        self.expand3x3_relu = ReLU()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the module to x (b, h, w, in)."""
        x = self.squeeze_relu(self.squeeze(x))
        one = self.expand1x1_relu(self.expand1x1(x))
        three = self.expand3x3_relu(self.expand3x3(x))
        return jnp.concatenate((one, three), axis=-1)


class SqueezeNet(Backbone):
    """SqueezeNet, (b, h, w, in_channels) to logits (b, num_classes); h and w at least 17.

    The logits are averages behind a ReLU, as torchvision's: never negative. Dropout before the
    classifier works as in `isnet_jax.models.vgg.VGG`.

    Supervised: the squeeze ReLU of the last fire module of each stage. Everything that the
    network knows goes through it, and it is one array, while the expanding ReLUs are two.

    Args:
        num_classes: logits.
        stem_width: channels of the stem.
        squeezed: channels of the fire modules' squeeze layers, stage by stage; each stage starts
            with a max pool.
        dropout: rate before the classifier, in training mode.
        in_channels: channels of the image.
        rngs: initialisation, and the seed of dropout.

    Raises:
        ValueError: a dropout outside [0, 1).
    """

    input_layer = "stem"
    input_relu = "relu"
    rectified = r"stages/\d+/\d+/(squeeze|expand\dx\d)|classifier"
    torch_sizes: ClassVar = {
        "num_classes": ("classifier.1.weight", 0),
        "stem_width": ("features.0.weight", 0),
        "in_channels": ("features.0.weight", 1),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        stem_width: int = 64,
        squeezed: Sequence[Sequence[int]] = ((16, 16), (32, 32), (48, 48, 64, 64)),
        dropout: float = 0.5,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        self.stem = Conv(in_channels, stem_width, (3, 3), strides=2, rngs=rngs)
        self.relu = ReLU()
        features, stages = stem_width, []
        for sizes in squeezed:
            fires = []
            for size in sizes:
                fires.append(Fire(features, size, rngs=rngs))
                features = 8 * size
            stages.append(nnx.List(fires))
        self.pools = nnx.List([CeilMaxPool() for _ in stages])
        self.stages = nnx.List(stages)
        self.dropout = Dropout(dropout, rngs=rngs)
        self.classifier = Conv(features, num_classes, (1, 1), rngs=rngs)
        self.classifier_relu = ReLU()
        self.average = AdaptiveAvgPool()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (b, num_classes) of x (b, h, w, in_channels)."""
        x = self.relu(self.stem(x))
        for pool, stage in zip(self.pools, self.stages, strict=True):
            x = pool(x)
            for fire in stage:
                x = fire(x)
        return self.average(self.classifier_relu(self.classifier(self.dropout(x))))

    @property
    def supervised(self) -> tuple[str, ...]:
        """See the class."""
        return tuple(f"stages/{i}/{len(s) - 1}/squeeze_relu" for i, s in enumerate(self.stages))

    def torch_names(self) -> dict[str, str]:
        """See `Backbone`; torchvision counts its layers through."""
        names, index = {"features.0": "stem", "classifier.1": "classifier"}, 2
        for i, stage in enumerate(self.stages):
            index += 1  # the pool
            for j in range(len(stage)):
                for part in ("squeeze", "expand1x1", "expand3x3"):
                    names[f"features.{index}.{part}"] = f"stages/{i}/{j}/{part}"
                index += 1
        return names
