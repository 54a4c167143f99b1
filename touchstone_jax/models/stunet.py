"""STU-Net: a U-Net of residual blocks that scales in width and depth (Huang et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import SLOPE, Conv, ConvNormAct, InstanceNorm, Triple, triple
from touchstone_jax.layers.resize import nearest
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import UShape, check, per_stage

RATIOS = (1, 2, 4, 8, 16, 16)
"""Widths of the levels as multiples of the first."""


class Block(nnx.Module):
    """conv-norm-act-conv-norm plus the input, then act.

    (b, x, y, z, i) to (b, x / sx, y / sy, z / sz, o).

    Args:
        inputs: channels i.
        outputs: channels o.
        strides: (sx, sy, sz) of the first convolution.
        first: whether the input goes through a convolution of 1, with the strides and no norm.
        how: type, lowering and rngs of `ConvNormAct`.
    """

    def __init__(
        self, inputs: int, outputs: int, strides: Triple, first: bool, how: dict[str, Any]
    ) -> None:
        self.unit = ConvNormAct(inputs, outputs, 3, strides, **how)
        self.conv2, self.norm2 = Conv(outputs, outputs, 3, **how), InstanceNorm(outputs)
        self.conv3 = Conv(inputs, outputs, 1, strides, **how) if first else None

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        made = self.norm2(self.conv2(self.unit(x)))
        shortcut = x if self.conv3 is None else self.conv3(x)
        return jax.nn.leaky_relu(made + shortcut.astype(made.dtype), SLOPE)


class NearestUp(nnx.Module):
    """Every voxel (sx, sy, sz) times, then a convolution of 1.

    (b, x, y, z, i) to (b, x·sx, y·sy, z·sz, o). The convolution comes first here: it sees each
    voxel alone, so the result is the same for an eighth of the work.
    """

    def __init__(self, inputs: int, outputs: int, strides: Triple, how: dict[str, Any]) -> None:
        self.conv, self.strides = Conv(inputs, outputs, 1, **how), strides

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b x_sx y_sy z_sz o"]:
        """See the class."""
        return nearest(self.conv(x), self.strides)


class STUNet(UShape):
    """Levels of residual blocks down and up, enlarged by nearest neighbours.

    Shapes and training mode as of `touchstone_jax.models.ushape.UShape`. Kernels are 3 whatever
    the plan says.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        width: channels of the first level; the others have 2, 4, 8, 16 and 16 times as many.
        depth: residual blocks of each level, the same down and up; one number or one a level.
        widths: channels of each level, instead of ``width``.
        pools: a stride or triple for each level but the first; None for 2s.
        dtype: "float32" or "bfloat16", of convolutions; norms and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "stunet"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("conv_blocks_context.0.0.conv1.weight", 1),
        "num_classes": ("seg_outputs.0.weight", 0),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        width: int = 32,
        depth: int | Sequence[int] = 1,
        widths: Sequence[int] | None = None,
        pools: Sequence[int | Sequence[int]] | None = None,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("stunet", dtype, width=width)
        widths = [width * ratio for ratio in RATIOS] if widths is None else list(widths)
        levels = len(widths)
        if levels < 2 or not all(type(w) is int and w >= 1 for w in widths):
            raise ValueError(f"stunet: widths={widths!r}; expected at least two integers from 1")
        depths = (depth,) * levels if isinstance(depth, int) else depth
        depths = per_stage("stunet", "depth", depths, levels)
        pools = (2,) * (levels - 1) if pools is None else tuple(pools)
        if len(pools) != levels - 1:
            raise ValueError(f"stunet: pools={pools!r}; expected {levels - 1}, one between levels")
        strides = ((1, 1, 1), *(triple(p, "stunet: pools") for p in pools))
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        inputs = (in_channels, *widths[:-1])
        encoder = [
            _level(*level, how) for level in zip(inputs, widths, strides, depths, strict=True)
        ]
        ups, decoder, heads = [], [], []
        for i in reversed(range(levels - 1)):
            ups.append(NearestUp(widths[i + 1], widths[i], strides[i + 1], how))
            decoder.append(_level(2 * widths[i], widths[i], (1, 1, 1), depths[i], how))
            heads.append(Conv(widths[i], num_classes, 1, dtype=jnp.float32, rngs=rngs))
        super().__init__(
            encoder=encoder,
            ups=ups,
            decoder=decoder,
            heads=heads,
            strides=strides,
            remat=remat,
        )

    def torch_name(self, path: str) -> str:
        """Name in STU-Net's state dict of the module at our slash ``path``."""
        return renamed(
            path,
            (
                (r"^encoder/(\d+)/layers/", r"conv_blocks_context/\1/"),
                (r"^decoder/(\d+)/layers/", r"conv_blocks_localization/\1/"),
                ("^ups/", "upsample_layers/"),
                ("^heads/", "seg_outputs/"),
                ("/unit/(conv|norm)", r"/\g<1>1"),
            ),
        )


def _level(
    inputs: int, width: int, strides: Triple, depth: int, how: dict[str, Any]
) -> nnx.Sequential:
    made = [Block(inputs, width, strides, True, how)]
    made += [Block(width, width, (1, 1, 1), False, how) for _ in range(depth - 1)]
    return nnx.Sequential(*made)
