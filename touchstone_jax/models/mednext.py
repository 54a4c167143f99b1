"""MedNeXt: a U-Net of ConvNeXt blocks (Roy et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import Conv, InstanceNorm, UpConv
from touchstone_jax.layers.depthwise import DepthwiseConv, DepthwiseUp
from touchstone_jax.models.ushape import UShape, check, per_stage

SIZE_L = (3, 4, 8, 8, 8, 8, 8, 4, 3)
"""Blocks of the nine levels of MedNeXt-L, down and up again, and their expansions."""


class Block(nnx.Module):
    """Depthwise convolution, norm, expansion to r·i channels, GELU, compression to o, residual.

    (b, x, y, z, i) to (b, x', y', z', o): x' = x for mode "same", ceil(x / 2) for "down", 2x for
    "up", whose first plane along each axis is zero (the original pads it there).

    Args:
        inputs: channels i.
        outputs: channels o.
        expansion: r.
        kernel: of the depthwise convolution.
        mode: "same" (i = o), "down" or "up".
        dtype: of the convolutions.
        lowering: of `touchstone_jax.layers.depthwise.depthwise`.
        rngs: initialisation.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        kernel: int,
        mode: str,
        *,
        dtype: Any,
        lowering: str,
        rngs: nnx.Rngs,
    ) -> None:
        how = {"dtype": dtype, "rngs": rngs}
        if mode == "up":
            self.conv1: DepthwiseUp | DepthwiseConv = DepthwiseUp(inputs, kernel, **how)
            self.res_conv: UpConv | Conv | None = UpConv(inputs, outputs, 1, **how)
        else:
            stride = 2 if mode == "down" else 1
            self.conv1 = DepthwiseConv(inputs, kernel, stride, lowering=lowering, **how)
            self.res_conv = Conv(inputs, outputs, 1, 2, **how) if mode == "down" else None
        # A GroupNorm with a channel a group.
        self.norm = InstanceNorm(inputs)
        self.conv2 = Conv(inputs, expansion * inputs, 1, **how)
        self.conv3 = Conv(expansion * inputs, outputs, 1, **how)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        made = self.conv2(self.norm(self.conv1(x)))
        made = self.conv3(jax.nn.gelu(made, approximate=False))
        if isinstance(self.res_conv, UpConv):
            front = ((0, 0), *[(1, 0)] * 3, (0, 0))
            return jnp.pad(made + _spread(self.res_conv, x), front)
        return made + (x if self.res_conv is None else self.res_conv(x)).astype(made.dtype)


def _spread(conv: UpConv, x: Array) -> Array:
    """A transposed convolution of kernel 1 and stride 2: values at even places, bias elsewhere."""
    between = [(0, 0, 0), *[(0, 0, 1)] * 3, (0, 0, 0)]
    made = conv(x)
    # What `pad` puts between is one number for all channels: so the bias goes in afterwards.
    assert conv.bias is not None  # a block's convolutions have one
    bias = conv.bias[...].astype(made.dtype).reshape(1, 1, 1, 1, -1)
    return jax.lax.pad(made - bias, jnp.zeros((), made.dtype), between) + bias


class MedNeXt(UShape):
    """Five levels of ConvNeXt blocks down, four up, skips added, a head on every level.

    Shapes and training mode as of `touchstone_jax.models.ushape.UShape`: in training five logits,
    those of the last encoder level among them.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        channels: of the first level; each level down has twice as many.
        blocks: of each level, down and up again: an odd number of integers.
        expansions: of each level.
        kernel: of the depthwise convolutions, odd.
        dtype: "float32" or "bfloat16", of convolutions; norms and logits stay float32.
        lowering: of `touchstone_jax.layers.depthwise.depthwise`.
        remat: of `touchstone_jax.models.ushape.UShape`; the original does so.
        rngs: initialisation.
    """

    label = "mednext_l"
    adds = True
    torch_ignored = r"^dummy_tensor$"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("stem.weight", 1),
        "num_classes": ("out_0.conv_out.weight", 1),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        channels: int = 32,
        blocks: Sequence[int] = SIZE_L,
        expansions: Sequence[int] = SIZE_L,
        kernel: int = 3,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("mednext_l", dtype, channels=channels)
        if kernel % 2 == 0:
            raise ValueError(f"mednext_l: kernel={kernel}; expected an odd size")
        count = len(blocks)
        if count < 3 or count % 2 == 0:
            raise ValueError(f"mednext_l: blocks={blocks!r}; expected an odd number from 3")
        blocks = per_stage("mednext_l", "blocks", blocks, count)
        expansions = per_stage("mednext_l", "expansions", expansions, count)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        levels = count // 2 + 1
        widths = [channels * 2**level for level in range(levels)]
        encoder = []
        for i, width in enumerate(widths):
            first: nnx.Module = Conv(in_channels, width, 1, dtype=how["dtype"], rngs=rngs)
            if i:
                first = Block(width // 2, width, expansions[i], kernel, "down", **how)
            encoder.append(_level(first, width, blocks[i], expansions[i], kernel, how))
        ups, decoder = [], []
        for i in reversed(range(levels - 1)):
            r = expansions[count - 1 - i]
            ups.append(Block(widths[i + 1], widths[i], r, kernel, "up", **how))
            decoder.append(_level(None, widths[i], blocks[count - 1 - i], r, kernel, how))
        heads = [
            UpConv(width, num_classes, 1, rngs=rngs) for width in (*widths[-2::-1], widths[-1])
        ]
        strides = [(1, 1, 1), *[(2, 2, 2)] * (levels - 1)]
        super().__init__(
            encoder=encoder,
            ups=ups,
            decoder=decoder,
            heads=heads,
            strides=strides,
            remat=remat,
        )

    def torch_name(self, path: str) -> str:
        """Name in MedNeXt's state dict of the module at our slash ``path``."""
        kind, level, *rest = path.split("/")
        deepest = len(self.encoder) - 1
        if kind == "ups":
            return ".".join([f"up_{deepest - 1 - int(level)}", *rest])
        if kind == "heads":
            at = deepest if int(level) == deepest else deepest - 1 - int(level)
            return f"out_{at}.conv_out"
        _, block, *rest = rest
        if kind == "decoder":
            return ".".join([f"dec_block_{deepest - 1 - int(level)}", block, *rest])
        if block == "0":
            return ".".join([f"down_{int(level) - 1}" if int(level) else "stem", *rest])
        where = "bottleneck" if int(level) == deepest else f"enc_block_{level}"
        return ".".join([where, str(int(block) - 1), *rest])


def _level(
    first: nnx.Module | None,
    width: int,
    blocks: int,
    expansion: int,
    kernel: int,
    how: dict[str, Any],
) -> nnx.Sequential:
    made = [Block(width, width, expansion, kernel, "same", **how) for _ in range(blocks)]
    return nnx.Sequential(*([first] if first is not None else []), *made)
