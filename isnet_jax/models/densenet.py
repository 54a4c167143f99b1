"""DenseNet (Huang et al. 2017) with torchvision's topology.

Most of its BatchNorms stand *before* a ReLU and read a concatenation, so they are layers of their
own; `DenseNet.before_norm` names the layers that feed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.legal import check
from isnet_jax.lrp.layers import AdaptiveAvgPool, AvgPool, BatchNorm, Conv, Dense, MaxPool, ReLU
from isnet_jax.models.backbone import Backbone, unit_names


class DenseLayer(nnx.Module):
    """norm-relu-1x1-norm-relu-3x3, (b, h, w, in) to the new features (b, h, w, growth)."""

    def __init__(self, features: int, growth: int, bottleneck: int, *, rngs: nnx.Rngs) -> None:
        inner = bottleneck * growth
        self.norm1 = BatchNorm(features, rngs=rngs)
        self.relu1 = ReLU()
        self.conv1 = Conv(features, inner, (1, 1), norm=True, rngs=rngs)
        self.relu2 = ReLU()
        self.conv2 = Conv(inner, growth, (3, 3), padding=1, use_bias=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """New features of x (b, h, w, in)."""
        x = self.conv1(self.relu1(self.norm1(x)))
        return self.conv2(self.relu2(x))


class Transition(nnx.Module):
    """norm-relu-1x1(-relu)-average pool, (b, h, w, in) to (b, h / 2, w / 2, in / 2)."""

    def __init__(self, features: int, relu: bool, *, rngs: nnx.Rngs) -> None:
        self.norm = BatchNorm(features, rngs=rngs)
        self.relu = ReLU()
        self.conv = Conv(features, features // 2, (1, 1), use_bias=False, rngs=rngs)
        self.relu2 = ReLU() if relu else None
        self.pool = AvgPool((2, 2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the transition to x (b, h, w, in)."""
        x = self.conv(self.relu(self.norm(x)))
        return self.pool(x if self.relu2 is None else self.relu2(x))


class DenseNet(Backbone):
    """Densely connected network, (b, h, w, in_channels) to logits (b, num_classes).

    Supervised: the first ReLU of each transition and the last ReLU before the global pool.

    Args:
        num_classes: logits.
        depths: layers of each dense block.
        growth: features that each dense layer adds.
        stem_width: channels of the stem.
        bottleneck: channels of the 1x1 convolutions over ``growth``.
        transition_relu: a ReLU between the transitions' convolution and pool, as in the ISNet
            authors' code. The same weights then mean another function than torchvision's.
        in_channels: channels of the image.
        stem: "imagenet" (7x7 stride 2, 3x3 max pool stride 2) or "small" (3x3 stride 1, no pool)
            for images of a few dozen pixels.
        rngs: initialisation.

    Raises:
        ValueError: unknown stem.
    """

    input_layer = "stem"
    input_relu = "relu0"
    rectified = r"blocks/\d+/\d+/conv\d|transitions/\d+/conv|classifier"
    torch_sizes: ClassVar = {
        "num_classes": ("classifier.weight", 0),
        "growth": ("features.denseblock1.denselayer1.conv2.weight", 0),
        "stem_width": ("features.conv0.weight", 0),
        "in_channels": ("features.conv0.weight", 1),
    }
    # The published files were written before torchvision's modules got today's names.
    torch_renamed: ClassVar = (r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2")

    def __init__(
        self,
        *,
        num_classes: int,
        depths: Sequence[int],
        growth: int = 32,
        stem_width: int = 64,
        bottleneck: int = 4,
        transition_relu: bool = False,
        in_channels: int = 3,
        stem: str = "imagenet",
        rngs: nnx.Rngs,
    ) -> None:
        check("stem", stem, ("imagenet", "small"))
        large = stem == "imagenet"
        kernel, stride = (7, 2) if large else (3, 1)
        self.stem = Conv(
            in_channels,
            stem_width,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            norm=True,
            rngs=rngs,
        )
        self.relu0 = ReLU()
        self.pool0 = MaxPool((3, 3), strides=2, padding=1) if large else None
        features, blocks, transitions = stem_width, [], []
        for i, depth in enumerate(depths):
            if i > 0:
                transitions.append(Transition(features, transition_relu, rngs=rngs))
                features //= 2
            layers = []
            for _ in range(depth):
                layers.append(DenseLayer(features, growth, bottleneck, rngs=rngs))
                features += growth
            blocks.append(nnx.List(layers))
        self.blocks = nnx.List(blocks)
        self.transitions = nnx.List(transitions)
        self.norm5 = BatchNorm(features, rngs=rngs)
        self.relu5 = ReLU()
        self.average = AdaptiveAvgPool()
        self.classifier = Dense(features, num_classes, rngs=rngs)
        inside = "pool" if transition_relu else "(conv|pool)"
        self.before_norm = rf"pool0|blocks/\d+/\d+/conv2|transitions/\d+/{inside}"

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (b, num_classes) of x (b, h, w, in_channels)."""
        x = self.relu0(self.stem(x))
        if self.pool0 is not None:
            x = self.pool0(x)
        for i, block in enumerate(self.blocks):
            if i > 0:
                x = self.transitions[i - 1](x)
            for layer in block:
                x = jnp.concatenate((x, layer(x)), axis=-1)
        return self.classifier(self.average(self.relu5(self.norm5(x))))

    @property
    def supervised(self) -> tuple[str, ...]:
        """See the class."""
        return (*(f"transitions/{i}/relu" for i in range(len(self.transitions))), "relu5")

    def torch_names(self) -> dict[str, str]:
        """See `Backbone`."""
        names = unit_names("features.conv0", "features.norm0", "stem")
        names |= {"features.norm5": "norm5", "classifier": "classifier"}
        for i, block in enumerate(self.blocks):
            for j in range(len(block)):
                theirs, ours = f"features.denseblock{i + 1}.denselayer{j + 1}", f"blocks/{i}/{j}"
                names |= {f"{theirs}.norm1": f"{ours}/norm1", f"{theirs}.conv2": f"{ours}/conv2"}
                names |= unit_names(f"{theirs}.conv1", f"{theirs}.norm2", f"{ours}/conv1")
        for i in range(len(self.transitions)):
            theirs, ours = f"features.transition{i + 1}", f"transitions/{i}"
            names |= {f"{theirs}.norm": f"{ours}/norm", f"{theirs}.conv": f"{ours}/conv"}
        return names
