"""UNesT: attention in blocks, nested, as the encoder of a U-shape (Yu et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import Conv, Triple, UpConv, standardise, triple
from touchstone_jax.layers.attention import LayerNorm, TransformerBlock
from touchstone_jax.layers.windows import PatchConv, unwindows, windows
from touchstone_jax.models.lhunet import PReLU
from touchstone_jax.models.unet import Renaming
from touchstone_jax.models.unetr import Residual, monai_name, monai_way_up
from touchstone_jax.models.ushape import UShape, check, per_stage

LEVELS = 3
TOKEN = 4
"""Voxels along each side of a token of the first level."""
EPSILON = 1e-6


class Pool(nnx.Module):
    """Convolution, layer norm, maxima over 3³ voxels around every other one.

    (b, x, y, z, i) to (b, x / 2, y / 2, z / 2, o); even sides.
    """

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any]) -> None:
        self.conv = Conv(inputs, outputs, 3, **how)
        self.norm = LayerNorm(outputs, EPSILON, rngs=how["rngs"])

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        x = self.norm(self.conv(x))
        sizes, steps = (1, 3, 3, 3, 1), (1, 2, 2, 2, 1)
        pads = [(0, 0), *[(1, 1)] * 3, (0, 0)]
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, sizes, steps, pads)


class NestLevel(nnx.Module):
    """Blocks of voxels, each attending to itself alone (Zhang et al. 2022, "NesT").

    (b, x, y, z, i) to (b, x', y', z', o): halved, if there is a pool, and of one shape only.

    Args:
        inputs: channels i.
        channels: channels o.
        grid: (x', y', z').
        window: voxels of a block, which divide the grid.
        heads: of the attention.
        skips: `TransformerBlock.skip` of each block of the transformer.
        pool: whether `Pool` comes first; else i is o.
        how: type, lowering and rngs of `Conv`.
    """

    def __init__(
        self,
        inputs: int,
        channels: int,
        grid: Triple,
        window: Triple,
        *,
        heads: int,
        skips: Sequence[float] | np.ndarray,
        pool: bool,
        how: dict[str, Any],
    ) -> None:
        rngs, self.window = how["rngs"], window
        self.pool = Pool(inputs, channels, how) if pool else None
        tokens = math.prod(window)
        shape = (1, math.prod(grid) // tokens, tokens, channels)
        self.pos_embed = nnx.Param(0.02 * jax.random.normal(rngs.params(), shape, jnp.float32))
        plain = {"epsilon": EPSILON, "dtype": how["dtype"], "rngs": rngs}
        self.transformer_encoder = nnx.List(
            TransformerBlock(
                channels, heads, 4 * channels, heads_fastest=True, skip=float(skip), **plain
            )
            for skip in skips
        )

    def __call__(
        self, x: Float[Array, "b x y z i"], run: Callable[[nnx.Module, Array], Array]
    ) -> Float[Array, "b a b_ c o"]:
        """See the class; ``run`` calls the pool and the transformer's blocks."""
        x = x if self.pool is None else run(self.pool, x)
        tokens = windows(x, self.window)
        tokens = tokens + self.pos_embed[...].astype(tokens.dtype)
        for block in self.transformer_encoder:
            tokens = run(block, tokens)
        return unwindows(tokens, self.window, x.shape[1:4])


class Bottom(nnx.Module):
    """Convolution of stride 2, PReLU, norm: (b, x, y, z, i) to (b, x / 2, y / 2, z / 2, o)."""

    def __init__(self, inputs: int, outputs: int, how: dict[str, Any]) -> None:
        self.conv, self.prelu = Conv(inputs, outputs, 3, 2, **how), PReLU()

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b a b_ c o"]:
        """See the class."""
        return standardise(self.prelu(self.conv(x)))


class UNesT(UShape):
    """Tokens of 4³ voxels through three levels of attention in blocks of a 64th of the volume.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, for one patch only:
    positions are learned for each token. The three levels have 64, 8 and 1 blocks. In training
    (``model.train()``) a tuple of one: the original has no deep supervision.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        patch: voxels (x, y, z) of the input, multiples of 32 and not all 32.
        width: channels of the finest level; tokens have 4, 8 and 16 times as many.
        depths: blocks of the transformer in each level.
        heads: of the attention of each level.
        skip: share of the samples that the last block of the transformer leaves as they are in
            training; 0 for the first, evenly between.
        dtype: "float32" or "bfloat16", of convolutions and attention; norms, softmax and logits
            stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`; blocks of the transformer as well.
        rngs: initialisation.
    """

    label = "unest"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("encoder1.layer.conv1.conv.weight", 1),
        "num_classes": ("out.conv.conv.weight", 0),
        "width": ("encoder1.layer.conv1.conv.weight", 0),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        patch: int | Sequence[int] = 96,
        width: int = 32,
        depths: Sequence[int] = (2, 2, 8),
        heads: Sequence[int] = (4, 8, 16),
        skip: float = 0.5,
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("unest", dtype, width=width)
        depths = per_stage("unest", "depths", depths, LEVELS)
        heads = per_stage("unest", "heads", heads, LEVELS)
        self.patch = triple(patch, "unest: patch")
        widths = [width * 2**i for i in range(LEVELS + 3)]
        _check(self.patch, widths[2:5], heads, skip)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        plain = {"dtype": how["dtype"], "rngs": rngs}
        thin = {**plain, "bias": False}
        enlarge = UpConv(widths[2], widths[1], 2, **thin), UpConv(widths[1], widths[1], 1, **thin)
        encoder = [
            Residual(in_channels, width, how),
            nnx.Sequential(*enlarge),
            Residual(widths[2], widths[2], how),
            Residual(widths[3], widths[3], how),
            Bottom(widths[4], widths[5], how),
        ]
        way_up = monai_way_up(num_classes, widths, how)
        super().__init__(encoder=encoder, strides=[(32, 32, 32)], remat=remat, **way_up)
        self.embed = PatchConv(in_channels, widths[2], TOKEN, **plain)
        self.levels: nnx.List[NestLevel] = nnx.List()
        self.norm = LayerNorm(widths[4], EPSILON, rngs=rngs)
        skips = np.split(np.linspace(0, skip, sum(depths)), np.cumsum(depths)[:-1])
        for i in range(LEVELS):
            grid = triple([p // (TOKEN * 2**i) for p in self.patch], "unest: grid")
            window = triple([p // TOKEN**2 for p in self.patch], "unest: window")
            self.levels.append(
                NestLevel(
                    widths[max(i, 1) + 1],
                    widths[i + 2],
                    grid,
                    window,
                    heads=heads[i],
                    skips=skips[i],
                    pool=i > 0,
                    how=how,
                )
            )

    def down(self, x: Float[Array, "b x y z i"]) -> tuple[Array, list[Array]]:
        """The deepest level, an x, y and z of 1/32, and the skips, the finest first.

        Raises:
            ValueError: sides other than the patch.
        """
        if x.shape[1:4] != self.patch:
            raise ValueError(f"unest: volume {x.shape[1:4]}; expected the patch {self.patch}")
        states = [self.embed(x)]
        for level in self.levels:
            states.append(level(states[-1], self._run))
        *encoder, bottom = self.encoder
        skips = [self._run(stage, s) for stage, s in zip(encoder, [x, *states], strict=False)]
        return self._run(bottom, self.norm(states[-1])), [*skips, states[-1]]

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Depths of MONAI's state dict."""
        depths = []
        for level in range(LEVELS):
            name = f"nestViT.levels.{level}.transformer_encoder.{{}}.norm1.weight"
            count = 0
            while name.format(count) in arrays:
                count += 1
            depths.append(count)
        return {"depths": tuple(depths)} if all(depths) else {}

    def torch_name(self, path: str) -> str:
        """Name in MONAI's state dict of the module at our slash ``path``."""
        names: list[Renaming] = [
            ("^embed$", "nestViT/patch_embed/proj"),
            ("^norm$", "nestViT/norm"),
            ("^levels/", "nestViT/levels/"),
            (r"/mlp/linear([12])$", r"/mlp/fc\1"),
            (r"^encoder/([023])/", lambda found: f"encoder{int(found[1]) + 1}/layer/"),
            ("^encoder/1/layers/0$", "encoder2/transp_conv_init/conv"),
            ("^encoder/1/layers/1$", "encoder2/blocks/0/conv"),
            ("^encoder/4/conv$", "encoder10/conv"),
            ("^encoder/4/prelu$", "encoder10/adn/A"),
        ]
        return monai_name(path, 5, names)


def _check(patch: Triple, widths: Sequence[int], heads: Sequence[int], skip: float) -> None:
    if any(p % 32 for p in patch) or math.prod(patch) == 32**3:
        raise ValueError(f"unest: patch={patch}; expected multiples of 32, and not all 32")
    for i, (width, count) in enumerate(zip(widths, heads, strict=True)):
        if width % count:
            raise ValueError(f"unest: heads[{i}]={count} does not divide {width} channels")
    if not 0 <= skip < 1:
        raise ValueError(f"unest: skip={skip}; expected a share in [0, 1)")
