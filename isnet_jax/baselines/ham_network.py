"""HAM's network: a dilated ResNet with foveal attention, pooled to classes and an anomaly.

Source: Ouyang et al. 2021 ("Learning hierarchical attention for weakly-supervised chest X-ray
abnormality localization and diagnosis", IEEE TMI 40:2698) and its code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from isnet_jax.baselines.terms import Array
from isnet_jax.lrp.layers import Conv, Dense, ReLU
from isnet_jax.models.dropout import Dropout
from isnet_jax.models.resnet import ResNet


class Outputs(NamedTuple):
    """What the network returns.

    Attributes:
        logits: (b, k) of the classes, without the normal one.
        anomaly: (b,) logit of any of them.
        class_cams: (b, h, w, k) >= 0, raw.
        anomaly_cam: (b, h, w) >= 0, raw.
    """

    logits: Array
    anomaly: Array
    class_cams: Array
    anomaly_cam: Array


class FovealAttention(nnx.Module):
    """Channel and position gates on a quarter of the channels, (b, h, w, c) to (b, h, w, c/4).

    Args:
        features: channels c >= 4.
        reduction: of the channel gate's hidden layer.
        rngs: initialisation.

    Raises:
        ValueError: fewer than 4 channels.
    """

    def __init__(self, features: int, reduction: int = 8, *, rngs: nnx.Rngs) -> None:
        if features < 4:
            raise ValueError(f"HAM attention: features={features}; needs at least 4 to quarter")
        inner = features // 4
        hidden = max(inner // reduction, 1)
        self.enter = Conv(features, inner, (3, 3), padding=1, norm=True, rngs=rngs)
        self.enter_relu = ReLU()
        self.where = Conv(inner, 1, (1, 1), rngs=rngs)
        self.squeeze = Dense(inner, hidden, rngs=rngs)
        self.squeeze_relu = ReLU()
        self.expand = Dense(hidden, inner, rngs=rngs)
        self.position = Conv(inner, 1, (1, 1), rngs=rngs)
        self.gamma = nnx.Param(jnp.zeros((1, 1, 1, 1)))
        self.leave = Conv(inner, inner, (3, 3), padding=1, norm=True, rngs=rngs)
        self.leave_relu = ReLU()

    def __call__(self, x: Array) -> Array:
        """Attended features of x (b, h, w, c)."""
        y = self.enter_relu(self.enter(x))
        where = jax.nn.softmax(self.where(y), (1, 2))
        described = (y * jnp.broadcast_to(where, y.shape)).sum((1, 2))
        channel = jax.nn.sigmoid(self.expand(self.squeeze_relu(self.squeeze(described))))
        gated = y * jnp.broadcast_to(channel[:, None, None], y.shape)
        gated = gated * jnp.broadcast_to(jax.nn.sigmoid(self.position(y)), y.shape)
        y = y + jnp.broadcast_to(self.gamma[...], y.shape) * gated
        return self.leave_relu(self.leave(y))


def log_sum_exp_pool(features: Array, sharpness: float = 6.0) -> Array:
    """``log(mean exp(r f)) / r`` over space, (b, h, w, c) to (b, c), between mean and maximum."""
    count = features.shape[1] * features.shape[2]
    total = jax.nn.logsumexp(sharpness * features, (1, 2))
    return (total - jnp.log(jnp.asarray(count, features.dtype))) / sharpness


def dilate(resnet: ResNet) -> None:
    """Makes the third and fourth stage keep the second one's size, dilated by 2 and by 4.

    In place; no parameter changes, so pretrained weights fit before or after.
    """
    for stage, rate in zip(list(resnet.stages)[2:], (2, 4), strict=False):
        for block in stage:
            units = [getattr(block, f"conv{n}", None) for n in (1, 2, 3)]
            for unit in filter(None, [*units, block.shortcut]):
                unit.strides = (1, 1)
                if unit.kernel_size == (3, 3):
                    unit.kernel_dilation, unit.padding = (rate, rate), ((rate, rate),) * 2


class HAMNet(nnx.Module):
    """Dilated ResNet, foveal attention, LSE pooling and two bias-free heads; see `Outputs`.

    Args:
        num_classes: classes without the normal one.
        depths: blocks of the ResNet's stages.
        block: "basic" or "bottleneck".
        width: channels of its first stage.
        in_channels: channels of the image.
        stem: of `isnet_jax.models.resnet.ResNet`.
        head: channels of the map that is pooled.
        sharpness: r of the pooling.
        dropout: rate at which channels of that map are dropped.
        rngs: initialisation and dropout.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        depths: Sequence[int] = (3, 4, 6, 3),
        block: str = "bottleneck",
        width: int = 64,
        in_channels: int = 3,
        stem: str = "imagenet",
        head: int = 512,
        sharpness: float = 6.0,
        dropout: float = 0.1,
        rngs: nnx.Rngs,
    ) -> None:
        resnet = ResNet(
            num_classes=1,
            depths=depths,
            block=block,
            width=width,
            in_channels=in_channels,
            stem=stem,
            rngs=rngs,
        )
        dilate(resnet)
        features = resnet.classifier.in_features
        self.stem, self.relu, self.pool = resnet.stem, resnet.relu, resnet.pool
        self.stages = resnet.stages
        self.attention = FovealAttention(features, rngs=rngs)
        joined = features + features // 4
        self.head = Conv(joined, head, (3, 3), padding=1, norm=True, rngs=rngs)
        self.head_relu = ReLU()
        self.dropout = Dropout(dropout, rngs=rngs)
        self.sharpness = sharpness
        self.anomaly = Dense(head, 1, use_bias=False, rngs=rngs)
        self.classifier = Dense(head, num_classes, use_bias=False, rngs=rngs)

    def __call__(self, x: Array) -> Outputs:
        """All outputs of x (b, h, w, in_channels)."""
        x = self.relu(self.stem(x))
        if self.pool is not None:
            x = self.pool(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        x = self.head_relu(self.head(jnp.concatenate((x, self.attention(x)), -1)))
        # Whole channels are dropped: one draw for all pixels.
        kept = self.dropout(jnp.ones((x.shape[0], 1, 1, x.shape[-1]), x.dtype))
        x = x * jnp.broadcast_to(kept, x.shape)
        pooled = log_sum_exp_pool(x, self.sharpness)
        weights = [jax.lax.stop_gradient(m.kernel[...]) for m in (self.classifier, self.anomaly)]
        classes, anomaly = (jax.nn.relu(x @ w) for w in weights)
        return Outputs(
            self.classifier(pooled), self.anomaly(pooled)[:, 0], classes, anomaly[..., 0]
        )
