"""SAM-Adapter: "Segment Anything" for slices, of which little is trained (Gu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from touchstone_jax.layers import Triple
from touchstone_jax.layers.attention import LayerNorm
from touchstone_jax.layers.slices import SliceUp
from touchstone_jax.legal import options_of, unknown
from touchstone_jax.models.sam import check_decoder, swapped
from touchstone_jax.models.sam_masks import SAM_NAMES, MaskDecoder, PromptEncoder
from touchstone_jax.models.sam_vit import PATCH, SAM_VIT_NAMES, SamViT
from touchstone_jax.models.tiny_vit import TINY_VIT_NAMES, TinyViT
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import check, per_stage, recomputed

ENCODERS: dict[str, type[nnx.Module]] = {"tiny_vit": TinyViT, "vit": SamViT}
GIVEN = ("inputs", "side", "outputs", "how")
"""Arguments of encoders that `SAMAdapter` chooses."""


class SAMAdapter(nnx.Module):
    """Every slice across z by itself, enlarged to a square, without any prompt.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, of any sides. In
    training (``model.train()``) a tuple of one. Of the image encoder only adapters are trained, of
    the mask decoder all that classes' masks are made of; batch norms keep their statistics. What
    only `masks_and_quality` and the encoder's ``classify`` read stays as it is, and is not decayed.
    Fresh adapters change nothing, so it is the weights of an original that make this network worth
    its while.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image; one is shown as three alike.
        side: pixels of the square, a multiple of 16.
        encoder: "tiny_vit", of MobileSAM, or "vit", of SAM.
        encoder_config: arguments of `TinyViT` or `SamViT`; the widths, depths and so on.
        width: channels of the decoder.
        heads: of its attention.
        hidden: channels inside its MLPs.
        quality_hidden: channels inside the network that tells masks' quality.
        dtype: "float32" or "bfloat16", of convolutions and transformers; norms, softmax and masks
            stay float32.
        remat: whether blocks of the encoder are computed again for their gradients.
        rngs: initialisation.

    Raises:
        ValueError: an illegal argument.
    """

    label = "sam_adapter"
    activation = "softmax"
    divisor: ClassVar[Triple] = (1, 1, 1)
    frozen = (
        r"^(image_encoder/(?!.*_Adapter/)|prompt_encoder/"
        r"|mask_decoder/(iou_prediction_head|output_hypernetworks_mlps/0)/)"
    )
    torch_ignored = r"num_batches_tracked$|\.Depth_Adapter\."
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "quality_hidden": ("mask_decoder.iou_prediction_head.layers.0.weight", 0)
    }

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        side: int = 1024,
        encoder: str = "tiny_vit",
        encoder_config: Mapping[str, Any] = {},
        width: int = 256,
        heads: int = 8,
        hidden: int = 2048,
        quality_hidden: int = 256,
        dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = {"hidden": hidden, "quality_hidden": quality_hidden}
        check("sam_adapter", dtype, side=side, heads=heads, **sizes)
        check_decoder("sam_adapter", width, heads)
        if side % PATCH:
            raise ValueError(f"sam_adapter: side={side}; expected a multiple of {PATCH}")
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        inputs = 3 if in_channels == 1 else in_channels
        self.image_encoder = _encoder(encoder, inputs, side, width, encoder_config, how)
        self.prompt_encoder = PromptEncoder(2, width, how)
        grow = (
            SliceUp(width, width // 4, how),
            LayerNorm(width // 4, 1e-6, rngs=rngs),
            SliceUp(width // 4, width // 8, how),
        )
        # One more than there are classes: the first is of a single mask, for which none asks here.
        masks = num_classes + 1
        self.mask_decoder = MaskDecoder(
            width, masks, heads, hidden, quality_hidden, grow, how, adapted=True
        )
        self.side, self.inputs, self.encoder = side, inputs, encoder
        self.remat, self.deterministic = remat, True

    def __call__(
        self, x: Float[Array, "b x y z i"]
    ) -> Float[Array, "b x y z k"] | tuple[Float[Array, "b x y z k"]]:
        """See the class."""
        b, sx, sy, sz, channels = x.shape
        slices = jnp.moveaxis(x, 3, 1).reshape(b * sz, sx, sy, channels)
        slices = jax.image.resize(slices, (b * sz, self.side, self.side, channels), "bilinear")
        masks = self.masks(jnp.broadcast_to(slices, (*slices.shape[:-1], self.inputs)))
        masks = jax.image.resize(masks, (b * sz, sx, sy, masks.shape[-1]), "bilinear")
        logits = jnp.moveaxis(masks.reshape(b, sz, sx, sy, -1), 1, 3)
        return logits if self.deterministic else (logits,)

    def masks(self, slices: Float[Array, "n h w c"]) -> Float[Array, "n a b k"]:
        """Logits at a quarter of the resolution of square slices, (n, side / 4, side / 4, k)."""
        image = self._image(slices)
        tokens, features = self.mask_decoder.look(
            image + self._unmasked(image), self._places(image)
        )
        return _drawn(features, self.mask_decoder.kernels(tokens, 1))

    def masks_and_quality(
        self,
        slices: Float[Array, "n h w c"],
        points: Float[Array, "n p 2"] | None = None,
        signs: Int[Array, "n p"] | None = None,
        boxes: Float[Array, "n 4"] | None = None,
        masks: Float[Array, "n a b"] | None = None,
    ) -> tuple[Float32[Array, "n a b k1"], Float32[Array, "n k1"]]:
        """Logits of the single mask and of each class's, and the quality of each, for prompts.

        What "Segment Anything" can do, though SAM-Adapter asks without prompts and is trained on
        the classes' masks alone: prompts, the single mask and the quality are as good as the
        weights that were read (Kirillov et al. 2023, appendix A). Without prompts the classes'
        masks are those of `masks`.

        Args:
            slices: square ones, (n, side, side, c).
            points: pixels (row, column) of the slices; a pixel's centre is whole.
            signs: of the points: 1 inside of what is looked for, 0 outside, -1 for no point at all.
            boxes: first and last pixels (row, column, row, column).
            masks: logits at a quarter of the resolution, e.g. a mask of an earlier call.

        Returns:
            (n, side / 4, side / 4, num_classes + 1), the single mask first, and (n, num_classes +
            1): what the network takes for each mask's intersection over union with the truth.

        Raises:
            ValueError: points without signs or the other way round, or shapes that do not fit.
        """
        count, side = len(slices), self.side
        _check_prompts(count, side, points=points, signs=signs, boxes=boxes, masks=masks)
        image = self._image(slices)
        prompt, there = None, None
        if points is not None or boxes is not None:
            at = jnp.zeros((count, 0, 2)) if points is None else points
            kinds = jnp.zeros((count, 0), jnp.int32) if signs is None else signs
            ends = jnp.zeros((count, 4)) if boxes is None else boxes
            at, ends = ((swapped(a) + 0.5) / side for a in (at, ends.reshape(count, 2, 2)))
            boxed = jnp.full(count, boxes is not None)
            prompt, there = self.prompt_encoder(at, kinds, ends, boxed)
        dense = self._unmasked(image)
        if masks is not None:
            dense = self.prompt_encoder.mask_downscaling(masks).astype(image.dtype)
        tokens, features = self.mask_decoder.look(image + dense, self._places(image), prompt, there)
        made = _drawn(features, self.mask_decoder.kernels(tokens, 0))
        return made, self.mask_decoder.quality(tokens)

    def _image(self, slices: Float[Array, "n h w c"]) -> Float[Array, "n a b c"]:
        keeps = not self.remat or self.deterministic
        run = (lambda module, x: module(x)) if keeps else recomputed
        return self.image_encoder(slices, run)

    def _places(self, image: Float[Array, "n a b c"]) -> Float[Array, "1 t c"]:
        return self.prompt_encoder.pe_layer.grid(image.shape[1:3])

    def _unmasked(self, image: Float[Array, "n a b c"]) -> Float[Array, "1 1 1 c"]:
        nothing = self.prompt_encoder.no_mask_embed.weight[...]
        return nothing.reshape(1, 1, 1, -1).astype(image.dtype)

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view(model, deterministic=…)`` calls on its copy."""
        if deterministic is not None:
            self.deterministic = deterministic

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The number of classes: there is one mask token more."""
        key = "mask_decoder.mask_tokens.weight"
        return {"num_classes": len(arrays[key]) - 1} if key in arrays else {}

    def torch_name(self, path: str) -> str:
        """Name in the original's state dict of the module at our slash ``path``."""
        if path.startswith("image_encoder/"):
            neck = {"conv1": 0, "norm1": 1, "conv2": 2, "norm2": 3}
            names = [(f"/neck/{ours}$", f"/neck/{theirs}") for ours, theirs in neck.items()]
            more = TINY_VIT_NAMES if self.encoder == "tiny_vit" else SAM_VIT_NAMES
            return renamed(path, (*names, *more))
        return renamed(path, SAM_NAMES)


def _drawn(
    features: Float[Array, "n a b c"], kernels: Float[Array, "n c k"]
) -> Float32[Array, "n a b k"]:
    """Logits of masks."""
    return jnp.einsum("nhwc,nck->nhwk", features, kernels)


def _check_prompts(count: int, side: int, **given: Array | None) -> None:
    """Refuse prompts that do not fit ``count`` slices.

    Raises:
        ValueError: see `SAMAdapter.masks_and_quality`.
    """
    if (given["points"] is None) != (given["signs"] is None):
        raise ValueError("sam_adapter: points and signs are given together or not at all")
    points = 0 if given["points"] is None else given["points"].shape[1]
    legal = {
        "points": (count, points, 2),
        "signs": (count, points),
        "boxes": (count, 4),
        "masks": (count, side // 4, side // 4),
    }
    for name, array in given.items():
        if array is not None and array.shape != legal[name]:
            raise ValueError(f"sam_adapter: {name} {array.shape}; expected {legal[name]}")


def _encoder(
    name: str,
    inputs: int,
    side: int,
    outputs: int,
    config: Mapping[str, Any],
    how: dict[str, Any],
) -> nnx.Module:
    """The image encoder.

    Raises:
        ValueError: another name or option, or lists that do not have one number for each stage.
    """
    if name not in ENCODERS:
        raise ValueError(f"sam_adapter: encoder={name!r}; legal: {', '.join(ENCODERS)}")
    config, legal = dict(config), [o for o in options_of(ENCODERS[name]) if o not in GIVEN]
    for key in config:
        if key not in legal:
            raise unknown(f"option of sam_adapter's encoder {name!r}", key, legal)
    if name == "vit":
        return SamViT(inputs, side, outputs=outputs, how=how, **config)
    for key, given in config.items():
        config[key] = per_stage("sam_adapter", f"encoder_config.{key}", given, 4)
    return TinyViT(inputs, outputs=outputs, how=how, **config)
