"""Swin UNETR: a Swin transformer as the encoder of a U-shape (Hatamizadeh et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers.windows import PatchConv
from touchstone_jax.models.swin import MERGINGS, swin_stage
from touchstone_jax.models.unetr import Residual, monai_name, monai_way_up
from touchstone_jax.models.ushape import UShape, check, per_stage

STAGES = 4


class SwinUNETR(UShape):
    """Patches of 2³ voxels through four stages of attention in windows, each halving the sides.

    Shapes as of `touchstone_jax.models.ushape.UShape`; sides are multiples of 32, and not all of
    them 32. In training (``model.train()``) a tuple of one: the original has no deep supervision.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image.
        width: channels of the patches and of the finest level; doubled by each stage.
        depths: transformer blocks of each stage.
        heads: of the attention of each stage.
        window: voxels along each side of the attention's windows.
        version: 2 has a residual block before each stage, 1 has none.
        merging: a key of `touchstone_jax.models.swin.MERGINGS`: "legacy" for weights of MONAI up
            to 1.4, Touchstone's among them.
        dtype: "float32" or "bfloat16", of convolutions and attention; norms, softmax and logits
            stay float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `touchstone_jax.models.ushape.UShape`; blocks of the transformer as well.
        rngs: initialisation.
    """

    label = "swin_unetr"
    torch_ignored = r"\.relative_position_index$"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": ("swinViT.patch_embed.proj.weight", 1),
        "num_classes": ("out.conv.conv.weight", 0),
        "width": ("swinViT.patch_embed.proj.weight", 0),
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        width: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        version: int = 2,
        merging: str = "fixed",
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check(self.label, dtype, width=width, window=window)
        depths = per_stage(self.label, "depths", depths, STAGES)
        heads = per_stage(self.label, "heads", heads, STAGES)
        widths = [width * 2**i for i in range(STAGES + 1)]
        self._check(version, merging, widths, heads)
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "lowering": lowering, "rngs": rngs}
        encoder = [Residual(in_channels, width, how)]
        encoder += [Residual(widths[i], widths[i], how) for i in (0, 1, 2, STAGES)]
        way_up = monai_way_up(num_classes, [width, *widths], how)
        super().__init__(encoder=encoder, strides=[(32, 32, 32)], remat=remat, **way_up)
        plain = {"dtype": how["dtype"], "rngs": rngs}
        self.embed = PatchConv(in_channels, width, 2, **plain)
        self.swin: nnx.List[nnx.Module] = nnx.List()
        for i in range(STAGES):
            first = [Residual(widths[i], widths[i], how)] if version == 2 else []
            stage = swin_stage(widths[i], depths[i], heads[i], window, merging, plain)
            self.swin.append(nnx.Sequential(*first, *stage))
        self.version, self.depths = version, depths

    def down(self, x: Float[Array, "b x y z i"]) -> tuple[Array, list[Array]]:
        """The deepest level, an x, y and z of 1/32, and the skips, the finest first.

        Raises:
            ValueError: sides that are no multiples of 32, or are all 32.
        """
        sides = x.shape[1:4]
        if any(n % 32 for n in sides) or math.prod(sides) == 32**3:
            raise ValueError(
                f"{self.label}: volume {sides} must be a multiple of (32, 32, 32) and larger: the "
                "norms of the deepest level need more than one voxel"
            )
        states = [self.embed(x)]
        for stage in self.swin:
            states.append(self._run(stage, states[-1]))
        first, *stages, last = self.encoder
        states = [_normal(state) for state in states]
        skips = [self._run(first, x)]
        skips += [self._run(stage, s) for stage, s in zip(stages, states, strict=False)]
        return self._run(last, states[-1]), [*skips, states[-2]]

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Version and depths of MONAI's state dict."""
        depths = []
        for stage in range(1, STAGES + 1):
            name, count = f"swinViT.layers{stage}.0.blocks.{{}}.norm1.weight", 0
            while name.format(count) in arrays:
                count += 1
            depths.append(count)
        if not all(depths):
            return {}  # which keys are missing is told elsewhere
        version = 2 if "swinViT.layers1c.0.layer.conv1.conv.weight" in arrays else 1
        return {"depths": tuple(depths), "version": version}

    def torch_name(self, path: str) -> str:
        """Name in MONAI's state dict of the module at our slash ``path``."""
        names = [("^embed$", "swinViT/patch_embed/proj"), ("/bias$", "/attn")]
        for i in range(STAGES):
            layers, more = f"^swin/{i}/layers", self.version - 1
            if more:
                names.append((f"{layers}/0/", f"swinViT/layers{i + 1}c/0/layer/"))
            stage = f"swinViT/layers{i + 1}/0"
            names.append((f"{layers}/{self.depths[i] + more}/", f"{stage}/downsample/"))
            for block in range(self.depths[i]):
                names.append((f"{layers}/{block + more}/", f"{stage}/blocks/{block}/"))
        for i, number in enumerate((1, 2, 3, 4, 10)):
            names.append((f"^encoder/{i}/", f"encoder{number}/layer/"))
        return monai_name(path, 5, names)

    def _check(self, version: int, merging: str, widths: list[int], heads: tuple[int, ...]) -> None:
        if version not in (1, 2):
            raise ValueError(f"{self.label}: version={version!r}; legal: 1, 2")
        if merging not in MERGINGS:
            raise ValueError(f"{self.label}: merging={merging!r}; legal: {', '.join(MERGINGS)}")
        for i, (channels, count) in enumerate(zip(widths, heads, strict=False)):
            if channels % count:
                raise ValueError(
                    f"{self.label}: heads[{i}]={count} does not divide {channels} channels"
                )


def _normal(x: Array) -> Array:
    """Each voxel to mean 0 and variance 1 over its channels."""
    exact = x.astype(jnp.float32)
    centred = exact - exact.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-5)).astype(x.dtype)
