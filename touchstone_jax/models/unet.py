"""nnU-Net's plain 3-D U-Net (Isensee et al. 2021; ``PlainConvUNet`` of its second version)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from touchstone_jax.layers import Conv, ConvNormAct, Triple, UpConv
from touchstone_jax.models.ushape import UShape, check, stages

WIDTHS = (32, 64, 128, 256, 320, 320)

NNUNET_NAMES = (
    (r"^decoder/(\d+)/layers/(\d+)", r"decoder.stages.\1.convs.\2"),
    (r"^ups/(\d+)", r"decoder.transpconvs.\1"),
    (r"^heads/(\d+)", r"decoder.seg_layers.\1"),
)
"""Our paths -> the second nnU-Net's names, of the way up."""

NNUNET_COPIES = r"^decoder\.encoder\.|\.all_modules\."
"""Keys under which the second nnU-Net stores the same arrays again."""


class UNet(UShape):
    """Stages of two convolutions with instance norm and leaky ReLU, transposed convolutions up.

    Shapes and training mode as of `touchstone_jax.models.ushape.UShape`.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        widths: channels of the stages, the finest first; at least two.
        kernels: one size, or a size or triple a stage.
        strides: a stride or triple a stage, by which it first shrinks; None for 1, 2, 2, …
        convs: convolutions of each encoder stage.
        decoder_convs: convolutions of each decoder stage.
        dtype: "float32" or "bfloat16", of convolutions; norms and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "unet"
    torch_ignored = NNUNET_COPIES
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("encoder.stages.0.0.convs.0.conv.weight", 1),
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
        convs: int = 2,
        decoder_convs: int = 2,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        kernels, strides = stages("unet", widths, kernels, strides)
        check("unet", dtype, convs=convs, decoder_convs=decoder_convs)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        inputs = (in_channels, *widths[:-1])
        encoder = [
            units(a, b, kernel, stride, convs, how)
            for a, b, kernel, stride in zip(inputs, widths, kernels, strides, strict=True)
        ]
        way_up = way_up_of(num_classes, widths, kernels, strides, decoder_convs, how)
        super().__init__(encoder=encoder, strides=strides, remat=remat, **way_up)

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Widths, kernels and strides of nnU-Net's state dict."""
        return stages_of(arrays, "encoder.stages.{}.0.convs.0.conv.weight")

    def torch_name(self, path: str) -> str:
        """Name in nnU-Net's state dict of the module at our slash ``path``."""
        names = ((r"^encoder/(\d+)/layers/(\d+)", r"encoder.stages.\1.0.convs.\2"), *NNUNET_NAMES)
        return renamed(path, names)


def stages_of(arrays: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Widths, kernels and strides of a state dict of the second nnU-Net.

    Args:
        arrays: key -> anything with a shape.
        key: of the first convolution of an encoder stage, {} for the number of the stage.
    """
    count = 0
    while key.format(count) in arrays:
        count += 1
    shapes = [np.shape(arrays[key.format(i)]) for i in range(count)]
    ups = [f"decoder.transpconvs.{count - 1 - i}.weight" for i in range(1, count)]
    if not all(up in arrays for up in ups):
        return {}  # which keys are missing is told elsewhere
    strides = [np.shape(arrays[up])[2:] for up in ups]
    return {
        "widths": tuple(shape[0] for shape in shapes),
        "kernels": tuple(shape[2:] for shape in shapes),
        "strides": ((1, 1, 1), *strides),
    }


def units(
    inputs: int,
    width: int,
    kernel: Triple,
    stride: int | Triple,
    convs: int,
    how: dict[str, Any],
) -> nnx.Sequential:
    """So many `ConvNormAct` in a row, of which the first changes width and resolution."""
    made = [ConvNormAct(inputs, width, kernel, stride, **how)]
    made += [ConvNormAct(width, width, kernel, **how) for _ in range(convs - 1)]
    return nnx.Sequential(*made)


def way_up_of(
    num_classes: int,
    widths: Sequence[int],
    kernels: Sequence[Triple],
    strides: Sequence[Triple],
    convs: int,
    how: dict[str, Any],
) -> dict[str, list[nnx.Module]]:
    """nnU-Net's transposed convolutions, decoder stages and heads: arguments of `UShape`."""
    made: dict[str, list[nnx.Module]] = {"ups": [], "decoder": [], "heads": []}
    for level in reversed(range(len(widths) - 1)):
        width, below = widths[level], widths[level + 1]
        plain = {"rngs": how["rngs"]}
        made["ups"].append(UpConv(below, width, strides[level + 1], dtype=how["dtype"], **plain))
        made["decoder"].append(units(2 * width, width, kernels[level], 1, convs, how))
        made["heads"].append(Conv(width, num_classes, 1, dtype=jnp.float32, **plain))
    return made


Renaming = tuple[str, str | Callable[[re.Match[str]], str]]
"""A pattern and what takes its place, as `re.sub` takes them."""


def renamed(path: str, names: Sequence[Renaming]) -> str:
    """``path`` after all the replacements, with dots for slashes."""
    for pattern, name in names:
        path = re.sub(pattern, name, path)
    return path.replace("/", ".")
