"""NexToU: a U-Net with graphs in its deeper levels (Shi et al. 2023), as of the first nnU-Net."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import ConvNormAct, Triple, triple
from touchstone_jax.models.graph import GROUPS, FeedForward, PoolGrapher, SwinGrapher
from touchstone_jax.models.unet import renamed, units
from touchstone_jax.models.uniseg import way_up_of
from touchstone_jax.models.ushape import UShape, check, per_stage

PLAIN = 2
"""Levels of two convolutions, above those with graphs."""
NEIGHBOURS = (4, 8, 16, 32)
RATIOS = (4, 2, 1, 1)


class Position(nnx.Module):
    """Adds a learned number to each voxel and channel: (b, x, y, z, c) of one shape only."""

    def __init__(self, shape: Triple, channels: int) -> None:
        self.pos_embed = nnx.Param(jnp.zeros((1, channels, *shape)))

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        return x + jnp.moveaxis(self.pos_embed[...], 1, -1).astype(x.dtype)


class NexToU(UShape):
    """Two plain levels, then levels of a convolution, a graph over the map and one in windows.

    Shapes and training mode as of `touchstone_jax.models.ushape.UShape`, for one patch only:
    positions are learned for each voxel.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        patch: voxels (x, y, z) of the input.
        widths: channels of the levels, the finest first; those from the third on multiples of 6.
        pools: a stride or triple for each level but the first.
        neighbours: keys that each voxel looks at, for each level from the third on.
        ratios: sides of the cubes whose means are keys, for each level from the third on.
        dtype: "float32" or "bfloat16", of convolutions; norms, distances and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "nextou"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("conv_blocks_context.0.blocks.0.conv.weight", 1),
        "num_classes": ("seg_outputs.0.weight", 0),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        patch: int | Sequence[int] = (96, 160, 160),
        widths: Sequence[int] = (24, 48, 96, 192, 312, 312),
        pools: Sequence[int | Sequence[int]] = ((1, 2, 2), 2, 2, 2, 2),
        neighbours: Sequence[int] = NEIGHBOURS,
        ratios: Sequence[int] = RATIOS,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("nextou", dtype)
        levels = len(widths)
        if levels <= PLAIN:
            raise ValueError(f"nextou: widths={widths!r}; expected more than {PLAIN}")
        widths = per_stage("nextou", "widths", widths, levels)
        if len(pools) != levels - 1:
            raise ValueError(f"nextou: pools={pools!r}; expected {levels - 1}, one between levels")
        strides = ((1, 1, 1), *(triple(p, "nextou: pools") for p in pools))
        self.patch = triple(patch, "nextou: patch")
        shapes = _shapes(self.patch, strides)
        counts = per_stage("nextou", "neighbours", neighbours, levels - PLAIN)
        ratios = per_stage("nextou", "ratios", ratios, levels - PLAIN)
        _check_widths(widths)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}

        def graphs(level: int) -> list[nnx.Module]:
            count, ratio = counts[level - PLAIN], ratios[level - PLAIN]
            width, shape = widths[level], shapes[level]
            return [
                PoolGrapher(shape, width, count, ratio, shapes[-1], how),
                FeedForward(width, how),
                SwinGrapher(shapes[-1], width, count, how),
                FeedForward(width, how),
            ]

        encoder = []
        for i, (a, b) in enumerate(zip((in_channels, *widths), widths, strict=False)):
            if i < PLAIN:
                encoder.append(units(a, b, (3, 3, 3), strides[i], 2, how))
                continue
            place = [Position(shapes[i - 1], a)] if i == PLAIN else []
            encoder.append(
                nnx.Sequential(*place, ConvNormAct(a, b, 3, strides[i], **how), *graphs(i))
            )
        way_up = way_up_of(num_classes, widths, [(3, 3, 3)] * levels, strides, 0, how)
        for i, level in enumerate(reversed(range(PLAIN, levels - 1))):
            width = widths[level]
            way_up["decoder"][i] = nnx.Sequential(
                ConvNormAct(2 * width, width, 3, **how), *graphs(level)
            )
        super().__init__(encoder=encoder, strides=strides, remat=remat, **way_up)

    def down(self, x: Float[Array, "b x y z i"]) -> tuple[Array, list[Array]]:
        """See `UShape.down`.

        Raises:
            ValueError: sides other than the patch.
        """
        if x.shape[1:4] != self.patch:
            raise ValueError(f"nextou: volume {x.shape[1:4]}; expected the patch {self.patch}")
        return super().down(x)

    def torch_name(self, path: str) -> str:
        """Name in NexToU's state dict of the module at our slash ``path``."""
        deepest = len(self.encoder) - 1
        kind, number, *parts = path.split("/")
        level = int(number)
        if kind in ("ups", "heads"):
            return f"{'tu' if kind == 'ups' else 'seg_outputs'}.{level}"
        block, rest = int(parts[1]), "/".join(parts[2:])
        depth = level if kind == "encoder" else deepest - 1 - level
        name = "conv_blocks_context" if kind == "encoder" else "conv_blocks_localization"
        if kind == "encoder" and depth == PLAIN:
            if block == 0:
                return ""
            block -= 1
        if depth < PLAIN:
            where = f"blocks/{block}" if kind == "encoder" else f"{block}/blocks/0"
            return renamed(f"{name}/{level}/{where}/{rest}", [("/norm$", "/instnorm")])
        if block == 0:
            return renamed(f"{name}/{level}/0/blocks/0/{rest}", [("/norm$", "/instnorm")])
        names = [("/conv$", "/0"), ("/norm$", "/1"), ("/graph/", "/graph_conv/gconv/nn/")]
        return renamed(f"{name}/{level}/1/blocks/0/{block - 1}/{rest}".rstrip("/"), names)


def _shapes(patch: Triple, strides: Sequence[Triple]) -> list[Triple]:
    shapes, shape = [], patch
    for stride in strides:
        if any(n % s for n, s in zip(shape, stride, strict=True)):
            raise ValueError(f"nextou: patch={patch} cannot be divided by the pools at {shape}")
        x, y, z = (n // s for n, s in zip(shape, stride, strict=True))
        shape = (x, y, z)
        shapes.append(shape)
    return shapes


def _check_widths(widths: Sequence[int]) -> None:
    for width in widths[PLAIN:]:
        if width % GROUPS:
            raise ValueError(
                f"nextou: widths={tuple(widths)}; {width} is no multiple of {GROUPS} groups"
            )
