"""Prompts and masks of "Segment Anything", which SegVol and SAM-Adapter share.

Kirillov et al. 2023, section 3 and appendix A: points, boxes and masks as prompts; several masks,
each with the quality that the network gives it.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from touchstone_jax.layers.attention import LayerNorm, dense, gelu
from touchstone_jax.models.sam import Positions, Token, TwoWay


class Readout(nnx.Module):
    """A token (b, c) to numbers (b, o): three linear layers, ReLU between.

    Args:
        width: c.
        inside: channels between the layers.
        outputs: o.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(self, width: int, inside: int, outputs: int, how: dict[str, Any]) -> None:
        sides = ((width, inside), (inside, inside), (inside, outputs))
        self.layers = nnx.List(dense(i, o, **how) for i, o in sides)

    def __call__(self, x: Float[Array, "b c"]) -> Float[Array, "b o"]:
        """See the class."""
        first, second, third = self.layers
        return third(jax.nn.relu(second(jax.nn.relu(first(x)))))


class MaskDownscaling(nnx.Module):
    """Logits of a mask (n, 4h, 4w) to what is added to the image's tokens (n, h, w, c).

    Two convolutions of side and stride 2, each with a norm over channels and GELU behind, and one
    of side 1.
    """

    def __init__(self, width: int, how: dict[str, Any]) -> None:
        two: dict[str, Any] = {"kernel_size": (2, 2), "strides": 2, "padding": "VALID", **how}
        self.conv1, self.conv2 = nnx.Conv(1, 4, **two), nnx.Conv(4, 16, **two)
        self.conv3 = nnx.Conv(16, width, (1, 1), **how)
        self.norm1 = LayerNorm(4, 1e-6, rngs=how["rngs"])
        self.norm2 = LayerNorm(16, 1e-6, rngs=how["rngs"])

    def __call__(self, masks: Float[Array, "n a b"]) -> Float[Array, "n h w c"]:
        """See the class."""
        x = gelu(self.norm1(self.conv1(masks[..., None])))
        return self.conv3(gelu(self.norm2(self.conv2(x))))


class PromptEncoder(nnx.Module):
    """Points and boxes to tokens, masks to what is added to the image's tokens.

    Where there is no mask it is ``no_mask_embed`` that is added.

    Args:
        axes: of the image, n.
        width: channels of a token, c.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(self, axes: int, width: int, how: dict[str, Any]) -> None:
        rngs = how["rngs"]
        self.pe_layer = Positions(axes, width, rngs)
        # Of negative and positive points, and of a box's two corners.
        self.point_embeddings = nnx.List(Token(1, width, rngs) for _ in range(4))
        self.not_a_point_embed = Token(1, width, rngs)
        self.no_mask_embed = Token(1, width, rngs)
        self.mask_downscaling = MaskDownscaling(width, how)

    def __call__(
        self,
        points: Float[Array, "b p n"],
        signs: Int[Array, "b p"],
        corners: Float[Array, "b 2 n"],
        boxed: Bool[Array, " b"],
    ) -> tuple[Float[Array, "b p_3 c"], Bool[Array, "b p_3"]]:
        """Tokens of points, of none and of corners, and which of them are there.

        Args:
            points: places as `Positions` takes them.
            signs: of the points: 1 inside of what is looked for, 0 outside, -1 for no point at all.
            corners: of the boxes, places too.
            boxed: whether the box is given.
        """
        negative, positive, low, high = (t.weight[...] for t in self.point_embeddings)
        seen = self.pe_layer(points)
        seen = seen + jnp.where(signs[..., None] == 1, positive[None], negative[None])
        ends = self.pe_layer(corners) + jnp.concatenate([low, high])[None]
        filler = self.not_a_point_embed.weight[...][None]
        filler = jnp.broadcast_to(filler, (len(seen), 1, seen.shape[-1]))
        there = signs >= 0
        # The original puts a point that is none behind points without a box.
        alone = there.any(1) & ~boxed
        flags = [there, alone[:, None], *[boxed[:, None]] * 2]
        return jnp.concatenate([seen, filler, ends], 1), jnp.concatenate(flags, 1)


class MaskDecoder(nnx.Module):
    """The image's tokens and those of prompts to masks at four times their resolution.

    Args:
        width: channels of a token, c.
        masks: how many there are; each has a token, and a network that reads its mask off it.
        heads: of the attention.
        hidden: channels inside the transformer's MLPs.
        inside: channels inside the network that tells the masks' quality.
        grow: two layers that double the sides, to c / 4 and c / 8 channels, and a norm between.
        how: ``dtype`` and ``rngs``.
        adapted: of `TwoWayBlock`.
    """

    def __init__(
        self,
        width: int,
        masks: int,
        heads: int,
        hidden: int,
        inside: int,
        grow: tuple[nnx.Module, nnx.Module, nnx.Module],
        how: dict[str, Any],
        adapted: bool = False,
    ) -> None:
        rngs = how["rngs"]
        self.transformer = TwoWay(width, heads, hidden, 2, how, adapted)
        self.iou_token, self.mask_tokens = Token(1, width, rngs), Token(masks, width, rngs)
        self.up1, self.norm, self.up2 = grow
        self.output_hypernetworks_mlps = nnx.List(
            Readout(width, width, width // 8, how) for _ in range(masks)
        )
        self.iou_prediction_head = Readout(width, inside, masks, how)

    def look(
        self,
        image: Float[Array, "b *g c"],
        places: Float[Array, "1 s c"],
        prompt: Float[Array, "b t c"] | None = None,
        there: Bool[Array, "b t"] | None = None,
    ) -> tuple[Float[Array, "b m1 c"], Float[Array, "b *g4 c8"]]:
        """The decoder's own tokens, of the quality and of each mask, and the image's features.

        Args:
            image: tokens in their grid.
            places: where they are.
            prompt: tokens that are seen besides; None for none.
            there: which of these are; None for all.
        """
        b, c = len(image), image.shape[-1]
        own = jnp.concatenate([self.iou_token.weight[...], self.mask_tokens.weight[...]])
        tokens = jnp.broadcast_to(own[None], (b, *own.shape))
        if prompt is not None:
            tokens = jnp.concatenate([tokens, prompt], axis=1)
        if there is not None:
            there = jnp.concatenate([jnp.ones((b, len(own)), bool), there], axis=1)
        flat = image.reshape(b, -1, c)
        places = jnp.broadcast_to(places, flat.shape).astype(image.dtype)
        tokens, flat = self.transformer(tokens.astype(image.dtype), flat, places, there)
        made = gelu(self.norm(self.up1(flat.reshape(image.shape))))
        return tokens[:, : len(own)], gelu(self.up2(made)).astype(jnp.float32)

    def kernels(self, tokens: Float[Array, "b m1 c"], first: int) -> Float[Array, "b c8 k"]:
        """Weights of the features in the masks from ``first`` on; `look` has made the tokens."""
        networks = list(enumerate(self.output_hypernetworks_mlps))[first:]
        made = [network(tokens[:, 1 + i]) for i, network in networks]
        return jnp.stack(made, axis=-1).astype(jnp.float32)

    def quality(self, tokens: Float[Array, "b m1 c"]) -> Float[Array, "b m"]:
        """What the network takes for each mask's intersection over union with the truth."""
        return self.iou_prediction_head(tokens[:, 0]).astype(jnp.float32)


SAM_NAMES = (
    ("/mask_downscaling/conv1$", "/mask_downscaling/0"),
    ("/mask_downscaling/norm1$", "/mask_downscaling/1"),
    ("/mask_downscaling/conv2$", "/mask_downscaling/3"),
    ("/mask_downscaling/norm2$", "/mask_downscaling/4"),
    ("/mask_downscaling/conv3$", "/mask_downscaling/6"),
    ("^mask_decoder/up1$", "mask_decoder/output_upscaling/0"),
    ("^mask_decoder/norm$", "mask_decoder/output_upscaling/1"),
    ("^mask_decoder/up2$", "mask_decoder/output_upscaling/3"),
    ("/lin([12])$", r"/mlp/lin\1"),
)
"""Our paths in prompt encoder and mask decoder -> the originals'."""
