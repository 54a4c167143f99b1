"""nnU-Net's residual encoder U-Net (Isensee et al. 2024, "nnU-Net Revisited")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import SLOPE, ConvNormAct, InstanceNorm, Triple
from touchstone_jax.models.unet import (
    NNUNET_COPIES,
    NNUNET_NAMES,
    WIDTHS,
    renamed,
    stages_of,
    way_up_of,
)
from touchstone_jax.models.ushape import UShape, check, per_stage, stages

BLOCKS = (1, 3, 4, 6, 6, 6)
"""Residual blocks of each stage; deeper stages have the last number."""


class ResidualBlock(nnx.Module):
    """conv-norm-act-conv-norm plus the input, then act: ``BasicBlockD`` of nnU-Net.

    (b, x, y, z, i) to (b, x / sx, y / sy, z / sz, o). The input is averaged over the strides and,
    where i is not o, goes through a convolution of 1 and a norm. The last norm starts at zero, so
    that a fresh block is its shortcut.

    Args:
        inputs: channels i.
        outputs: channels o.
        kernel: of both convolutions.
        strides: (sx, sy, sz) of the first.
        how: type, lowering and rngs of `ConvNormAct`.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: Triple, strides: Triple, how: dict[str, Any]
    ) -> None:
        self.conv1 = ConvNormAct(inputs, outputs, kernel, strides, **how)
        self.conv2 = ConvNormAct(outputs, outputs, kernel, act=False, **how)
        norm = cast(InstanceNorm, self.conv2.norm)  # there is no other by default
        norm.scale[...] = jnp.zeros(outputs)
        thin = {**how, "bias": False, "act": False}
        self.skip = None if inputs == outputs else ConvNormAct(inputs, outputs, 1, **thin)
        self.strides = strides

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        made, shortcut = self.conv2(self.conv1(x)), block_means(x, self.strides)
        if self.skip is not None:
            shortcut = self.skip(shortcut)
        return jax.nn.leaky_relu(made + shortcut.astype(made.dtype), SLOPE)


class ResEncUNet(UShape):
    """A stem, stages of residual blocks down, one convolution a stage up.

    Shapes and training mode as of `touchstone_jax.models.ushape.UShape`.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        widths: channels of the stages, the finest first; at least two.
        kernels: one size, or a size or triple a stage.
        strides: a stride or triple a stage, by which it first shrinks; None for 1, 2, 2, …
        blocks: residual blocks of each stage; None for 1, 3, 4, 6, 6, …
        decoder_convs: convolutions of each decoder stage.
        dtype: "float32" or "bfloat16", of convolutions; norms and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "resenc_l"
    torch_ignored = NNUNET_COPIES
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("encoder.stem.convs.0.conv.weight", 1),
        "num_classes": ("decoder.seg_layers.0.weight", 0),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = WIDTHS,
        kernels: int | Sequence[int | Sequence[int]] = 3,
        strides: Sequence[int | Sequence[int]] | None = None,
        blocks: Sequence[int] | None = None,
        decoder_convs: int = 1,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        kernels, strides = stages("resenc_l", widths, kernels, strides)
        check("resenc_l", dtype, decoder_convs=decoder_convs)
        if blocks is None:
            blocks = (*BLOCKS, *[BLOCKS[-1]] * len(widths))[: len(widths)]
        blocks = per_stage("resenc_l", "blocks", blocks, len(widths))
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        stem = ConvNormAct(in_channels, widths[0], kernels[0], **how)
        encoder: list[nnx.Module] = []
        inputs = widths[0]
        for width, kernel, stride, count in zip(widths, kernels, strides, blocks, strict=True):
            made = [ResidualBlock(inputs, width, kernel, stride, how)]
            made += [ResidualBlock(width, width, kernel, (1, 1, 1), how) for _ in range(count - 1)]
            encoder.append(nnx.Sequential(*(made if encoder else [stem, *made])))
            inputs = width
        way_up = way_up_of(num_classes, widths, kernels, strides, decoder_convs, how)
        super().__init__(encoder=encoder, strides=strides, remat=remat, **way_up)

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Widths, kernels, strides and blocks of nnU-Net's state dict."""
        found = stages_of(arrays, "encoder.stages.{}.blocks.0.conv1.conv.weight")
        blocks = []
        for level in range(len(found.get("widths", ()))):
            name, count = f"encoder.stages.{level}.blocks.{{}}.conv1.conv.weight", 0
            while name.format(count) in arrays:
                count += 1
            blocks.append(count)
        return {**found, "blocks": tuple(blocks)} if blocks else {}

    def torch_name(self, path: str) -> str:
        """Name in nnU-Net's state dict of the module at our slash ``path``."""
        head, _, rest = path.partition("/layers/")
        if head.startswith("encoder/"):
            level, (number, _, rest) = int(head.removeprefix("encoder/")), rest.partition("/")
            block = int(number) - (level == 0)
            if block < 0:
                return renamed(f"encoder/stem/convs/0/{rest}", ())
            # The shortcut is a list: a pool, where it shrinks, and the convolution.
            place = int(self.strides[level] != (1, 1, 1))
            path = f"encoder/stages/{level}/blocks/{block}/{rest}"
            return renamed(path, [("/skip/", f"/skip/{place}/")])
        return renamed(path, NNUNET_NAMES)


def block_means(x: Float[Array, "b x y z c"], strides: Triple) -> Float[Array, "b a b_ c_ c"]:
    """Means over blocks (sx, sy, sz) side by side; sides must be multiples of them."""
    if strides == (1, 1, 1):
        return x
    b, *sizes, c = x.shape
    split = [n for size, s in zip(sizes, strides, strict=True) for n in (size // s, s)]
    return x.reshape(b, *split, c).mean((2, 4, 6))
