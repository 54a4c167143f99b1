"""Swin UNETR & CLIP: the first Swin UNETR under a CLIP-driven head (Liu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.models.clip_head import CLIP_NAMES, ClipHead, told
from touchstone_jax.models.swin_unetr import STAGES, SwinUNETR
from touchstone_jax.models.text import UNIVERSAL, Source, Wording, read_embeddings
from touchstone_jax.models.unet import renamed

BACKBONE = "backbone."


class SwinUNETRClip(SwinUNETR):
    """`SwinUNETR` of version 1 whose masks are `ClipHead`'s.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, of organs that do not
    exclude each other; the background's are 0. In training (``model.train()``) a tuple of one: the
    original has no deep supervision.

    Args:
        num_classes: organs and the background.
        in_channels: channels of the image.
        width: of `SwinUNETR`.
        depths: of `SwinUNETR`.
        heads: of `SwinUNETR`.
        window: of `SwinUNETR`.
        merging: of `SwinUNETR`; the authors' code has the order "legacy".
        embeddings: vectors of the organs' names, for `touchstone_jax.models.text.read_embeddings`;
            None for its stand-in, with which this is not the published network.
        organs: names, in the order of the labels; None for the first of ``embeddings``.
        groups: of `ClipHead`.
        dtype: "float32" or "bfloat16", of convolutions and attention; norms, softmax and head stay
            float32.
        lowering: of `touchstone_jax.layers.Conv`.
        remat: of `SwinUNETR`.
        rngs: initialisation.
    """

    label = "swin_unetr_clip"
    activation = "sigmoid"
    wording: ClassVar[Wording] = UNIVERSAL
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "in_channels": (f"{BACKBONE}swinViT.patch_embed.proj.weight", 1),
        "width": (f"{BACKBONE}swinViT.patch_embed.proj.weight", 0),
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
        merging: str = "legacy",
        embeddings: Source = None,
        organs: Sequence[str] | None = None,
        groups: Sequence[int] = (16, 16),
        dtype: str = "float32",
        lowering: str = "auto",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        vectors = read_embeddings(embeddings, num_classes - 1, organs)
        swin: dict[str, Any] = {"width": width, "depths": depths, "heads": heads, "window": window}
        how: dict[str, Any] = {"dtype": dtype, "lowering": lowering, "remat": remat, "rngs": rngs}
        super().__init__(
            num_classes=num_classes,
            in_channels=in_channels,
            version=1,
            merging=merging,
            **swin,
            **how,
        )
        self.heads, self.headless = nnx.List(), None
        self.head = ClipHead(width * 2**STAGES, width, vectors, groups=groups, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b x y z i"]
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b x y z k"]]:
        """See the class.

        Raises:
            ValueError: sides that are no multiples of 32, or are all 32.
        """
        deepest, skips = self.down(x)
        logits = self.head(deepest, self.decode(deepest, skips)[-1])
        return logits if self.deterministic else (logits,)

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """num_classes, depths and a place for the embeddings of the Universal Model's weights."""
        swin = {k.removeprefix(BACKBONE): v for k, v in arrays.items() if k.startswith(BACKBONE)}
        found = SwinUNETR.torch_stages(swin)
        return {**told(arrays), **{k: v for k, v in found.items() if k != "version"}}

    def torch_name(self, path: str) -> str:
        """Name in the Universal Model's state dict of the module at our slash ``path``."""
        if path == "head" or path.startswith("head/"):
            return renamed(path, CLIP_NAMES)
        return BACKBONE + super().torch_name(path)
