"""MedFormer: attention to semantic maps of 4³ codes, linear in the voxels (Gao et al. 2022).

arXiv 2203.00131, "A Data-scalable Transformer for Medical Image Segmentation". A transformer fuses
the maps of three scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import Conv, triple
from touchstone_jax.layers.resize import trilinear
from touchstone_jax.models.semantic_map import (
    AttentionBlock,
    Fusion,
    MapOf,
    Merging,
    Residual,
    Stem,
)
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import UShape, check, per_stage

WIDTHS = (32, 64, 128, 256, 320)
ATTENDING = (2, 3, 4)
"""Levels that have a semantic map."""


class Level(nnx.Module):
    """What a level is made of; `MedFormer` says in which order.

    Attributes:
        merging: from the level above; None on the way up.
        convs: residual blocks.
        codes: makes the map: of the features, or on the way up of two maps; None without attention.
        attentions: `AttentionBlock` in a row.
    """

    def __init__(self, merging: Merging | None = None) -> None:
        self.merging = merging
        self.codes: nnx.Module | None = nnx.data(None)
        self.convs: nnx.List[nnx.Module] = nnx.List([])
        self.attentions: nnx.List[nnx.Module] = nnx.List([])


class MedFormer(UShape):
    """Residual blocks on the fine levels, attention to semantic maps on the coarse ones.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32; sides are multiples of
    16. In training (``model.train()``) a pair: those logits, and an auxiliary head's of a quarter
    of the sides, enlarged.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        widths: channels of the five levels, the finest first.
        convs: residual blocks of levels 1 to 4 down and 3 to 0 up.
        attentions: attention blocks of levels 2, 3 and 4 down and 3 and 2 up.
        heads: of these; they divide the levels' widths.
        codes: sides (x, y, z) of the semantic maps.
        fusion: channels, heads and layers of the transformer that fuses the maps.
        expansion: channels inside the feed-forward blocks, as a multiple.
        dtype: "float32" or "bfloat16", of convolutions and attention; norms' statistics, softmax
            and logits stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`.
        rngs: initialisation.
    """

    label = "medformer"
    scale_weights = (0.5, 0.5)
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("inc.conv1.weight", 1),
        "num_classes": ("outc.weight", 0),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = WIDTHS,
        convs: Sequence[int] = (2, 0, 0, 0, 0, 0, 2, 2),
        attentions: Sequence[int] = (2, 4, 6, 4, 2),
        heads: Sequence[int] = (4, 8, 10, 8, 4),
        codes: int | Sequence[int] = 4,
        fusion: Sequence[int] = (320, 10, 2),
        expansion: int = 4,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("medformer", dtype, expansion=expansion)
        widths = per_stage("medformer", "widths", widths, len(WIDTHS))
        attentions = per_stage("medformer", "attentions", attentions, 5)
        heads = per_stage("medformer", "heads", heads, 5)
        fusion = per_stage("medformer", "fusion", fusion, 3)
        _check(widths, convs, heads, fusion)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        codes = triple(codes, "medformer: codes")
        most = [(*pair, expansion, how) for pair in zip(attentions, heads, strict=True)]
        down, up = dict(zip(ATTENDING, most[:3], strict=True)), {3: most[3], 2: most[4]}
        encoder: list[nnx.Module] = [Stem(in_channels, widths[0], how)]
        for level, width in enumerate(widths[1:], start=1):
            made = Level(Merging(widths[level - 1], width, how))
            made.convs.extend(_residuals(width, width, convs[level - 1], how))
            if level in down:
                made.codes = MapOf(width, codes, how)
                made.attentions.extend(_attentions(width, width, *down[level]))
            encoder.append(made)
        decoder: list[nnx.Module] = []
        for level in reversed(range(len(widths) - 1)):
            made, width, both = Level(), widths[level], widths[level] + widths[level + 1]
            if level in up:
                made.codes = Conv(both, width, 1, bias=False, **how)
                made.attentions.extend(_attentions(both, width, *up[level], last=level == min(up)))
            inputs = width if level in up else both
            made.convs.extend(_residuals(inputs, width, convs[-1 - level], how))
            decoder.append(made)
        head: dict[str, Any] = {"dtype": jnp.float32, "rngs": rngs}
        heads_ = [Conv(widths[0], num_classes, 1, **head)]
        strides = [(1, 1, 1), *[(2, 2, 2)] * (len(widths) - 1)]
        super().__init__(
            encoder=encoder,
            ups=[],
            decoder=decoder,
            heads=heads_,
            strides=strides,
            remat=remat,
        )
        inside, fused_heads, layers = fusion
        attending = [widths[level] for level in ATTENDING]
        self.fusion = Fusion(attending, inside, fused_heads, layers, how)
        self.aux = Conv(widths[ATTENDING[0]], num_classes, 1, **head)

    def __call__(
        self, x: Float[Array, "b x y z i"]
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b x y z k"], ...]:
        """See the class.

        Raises:
            ValueError: a side that is no multiple of 16.
        """
        self.refuse_sides(x)
        shape, skips, maps = x.shape[1:4], [], []
        stem, *levels = cast(Sequence[Any], self.encoder)
        x = self._run(stem, x)
        for level in levels:
            skips.append(x)
            x = self._run(level.merging, x)
            for block in level.convs:
                x = self._run(block, x)
            if level.codes is not None:
                code = self._run(level.codes, x)
                for block in level.attentions:
                    x, code = self._run(block, x, code)
                maps.append(code)
        maps = self._run(self.fusion, maps)
        code = maps.pop()
        aux: Any = None  # from the map above the deepest, in training
        for level in cast(Sequence[Level], self.decoder):
            skip = skips.pop()
            x = jnp.concatenate([trilinear(x, skip.shape[1:4]), skip], axis=-1)
            if level.codes is not None:
                code = level.codes(jnp.concatenate([code, maps.pop()], axis=-1))
            for block in level.attentions:
                x, code = self._run(block, x, code)
            for block in level.convs:
                x = self._run(block, x)
            if not (maps or self.deterministic or aux is not None):
                aux = trilinear(self.aux(x), shape)
        if self.deterministic:
            return x if self.headless else self.score(x)
        return self.score(x), aux

    def torch_name(self, path: str) -> str:
        """Name in MedFormer's state dict of the module at our slash ``path``."""
        names = [("^encoder/0/", "inc/"), ("^heads/0$", "outc"), ("^aux$", "aux_out")]
        names += [(r"^encoder/(\d)/", r"down\1/")]
        names += [(f"^decoder/{i}/", f"up{i + 1}/") for i in range(len(self.decoder))]
        names += [
            (r"^(up\d)/codes$", r"\1/map_reduction"),
            (r"^(down\d)/codes/", r"\1/map_gen/"),
            ("/merging/", "/patch_merging/"),
            ("/convs/", "/conv_blocks/"),
            ("/attentions/", "/trans_blocks/blocks/"),
            ("/squeeze$", "/se/excitation/0"),
            ("/excite$", "/se/excitation/2"),
            ("^fusion/", "map_fusion/"),
            (r"/layers/(\d)/norm1$", r"/fusion/layers/\1/0/norm"),
            (r"/layers/(\d)/norm2$", r"/fusion/layers/\1/1/norm"),
            (r"/layers/(\d)/attn/qkv$", r"/fusion/layers/\1/0/fn/to_qkv"),
            (r"/layers/(\d)/attn/proj$", r"/fusion/layers/\1/0/fn/to_out"),
            (r"/layers/(\d)/mlp/linear(\d)$", r"/fusion/layers/\1/1/fn/fc\2"),
        ]
        return renamed(path, names)


def _residuals(inputs: int, width: int, count: int, how: dict[str, Any]) -> list[nnx.Module]:
    return [Residual(width if i else inputs, width, how) for i in range(count)]


def _attentions(
    inputs: int,
    width: int,
    count: int,
    heads: int,
    expansion: int,
    how: dict[str, Any],
    *,
    last: bool = False,
) -> list[nnx.Module]:
    """So many blocks; nobody reads the map of the ``last`` of all."""
    read = [not last or i < count - 1 for i in range(count)]
    sizes = [(width if i else inputs, width) for i in range(count)]
    return [
        AttentionBlock(*pair, heads, out, expansion, how)
        for pair, out in zip(sizes, read, strict=True)
    ]


def _check(
    widths: Sequence[int], convs: Sequence[int], heads: Sequence[int], fusion: Sequence[int]
) -> None:
    found = tuple(convs)
    if len(found) != 8 or not all(type(n) is int and n >= 0 for n in found) or not all(found[-2:]):
        raise ValueError(
            f"medformer: convs={found!r}; expected 8 integers from 0, the last two from 1"
        )
    for count, level in zip(heads, (*ATTENDING, *ATTENDING[-2::-1]), strict=True):
        if widths[level] % count:
            raise ValueError(f"medformer: heads={count} does not divide {widths[level]} channels")
    if fusion[0] % fusion[1]:
        raise ValueError(f"medformer: fusion={tuple(fusion)}; heads do not divide the channels")
