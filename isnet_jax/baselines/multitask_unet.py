"""Multi-task U-Net: one encoder segments the foreground and classifies the image.

Source: the ISNet authors' comparison network (Bassi et al. 2024, Nature Communications 15:291);
its task weights are not published.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flax import nnx

from isnet_jax.baselines.terms import (
    Array,
    Result,
    Tree,
    accuracy,
    classification,
    forward,
    needs,
)
from isnet_jax.baselines.unet2d import WIDTHS, Decoder, Encoder, padded, segmentation
from isnet_jax.isnet import Programs
from isnet_jax.legal import number
from isnet_jax.lrp.layers import AdaptiveAvgPool, Dense, ReLU
from isnet_jax.models.dropout import Dropout


class Outputs(NamedTuple):
    """What the network returns: ``logits`` (b, k) and ``mask_logits`` (b, h, w, 2)."""

    logits: Array
    mask_logits: Array


class MultiTaskUNet(nnx.Module):
    """U-Net with a VGG-like classification head on its bottleneck; see `Outputs`.

    Args:
        num_classes: logits of the image.
        in_channels: channels of the image.
        mask_classes: logits a pixel, the background's first.
        widths: channels of the levels.
        pooled: side of the grid that the bottleneck is averaged to.
        hidden: width of the two hidden layers.
        dropout: rate behind each of them.
        rngs: initialisation and dropout.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 3,
        mask_classes: int = 2,
        widths: Sequence[int] = WIDTHS,
        pooled: int = 7,
        hidden: int = 4096,
        dropout: float = 0.5,
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder = Encoder(in_channels, widths, "norm_relu", rngs=rngs)
        self.decoder = Decoder(mask_classes, widths, "norm_relu", rngs=rngs)
        self.average = AdaptiveAvgPool(pooled)
        sizes = (widths[-1] * pooled**2, hidden)
        self.hidden = nnx.List([Dense(size, hidden, rngs=rngs) for size in sizes])
        self.relus = nnx.List([ReLU(), ReLU()])
        self.dropouts = nnx.List([Dropout(dropout, rngs=rngs) for _ in sizes])
        self.classifier = Dense(hidden, num_classes, rngs=rngs)

    def __call__(self, x: Array) -> Outputs:
        """Both outputs of x (b, h, w, in_channels)."""
        found = self.encoder(padded(x, len(self.encoder.levels)))
        masks = self.decoder(found)[:, : x.shape[1], : x.shape[2]]
        h = self.average(found[-1])
        for dense, relu, dropout in zip(self.hidden, self.relus, self.dropouts, strict=True):
            h = dropout(relu(dense(h)))
        return Outputs(self.classifier(h), masks)


@dataclass(frozen=True)
class MultiTask:
    """Settings: the segmentation's share ``weight`` of the loss, in [0, 1]."""

    weight: float = 0.5

    def __post_init__(self) -> None:
        if not number(self.weight) or not 0 <= self.weight <= 1:
            raise ValueError(f"multi-task weight={self.weight!r}; must lie in [0, 1]")


def objective(
    graphs: Programs,
    params: Tree,
    rest: Tree,
    batch: dict[str, Array],
    method: MultiTask,
    rng: Array | None = None,
    *,
    training: bool = True,
) -> Result:
    """``P segmentation + (1 - P) classification`` of a model with `Outputs`.

    Args:
        graphs: see `isnet_jax.baselines`, as the others.
        params: parameters.
        rest: BatchNorm statistics and dropout streams.
        batch: "image", "label" and "mask" (b, h, w, 1) of 0 and 1.
        method: settings.
        rng: not used: dropout's streams are in ``rest``.
        training: BatchNorm on batch statistics, dropout on.

    Raises:
        ValueError: no mask, or one that does not fit.
    """
    needs(batch, "the multi-task U-Net", "mask")
    out, rest = forward(graphs, params, rest, training=training)(batch["image"])
    plain = classification(out.logits, batch["label"])
    pixels = segmentation(out.mask_logits, batch["mask"])
    loss = method.weight * pixels + (1 - method.weight) * plain
    values = {"loss": loss, "cross_entropy": plain, "segmentation": pixels}
    return loss, (values | {"accuracy": accuracy(out.logits, batch["label"])}, rest)
