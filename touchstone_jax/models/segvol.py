"""SegVol: "Segment Anything" for volumes, asked by names, points and boxes (Du et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Integer

from touchstone_jax.layers import Triple, UpConv, triple
from touchstone_jax.layers.attention import dense
from touchstone_jax.models.clip_head import TextEmbedding
from touchstone_jax.models.prompted import Asked, drawn_prompts, names_only
from touchstone_jax.models.sam import (
    SAM_NAMES,
    Hypernetwork,
    Positions,
    Token,
    TwoWay,
    check_decoder,
)
from touchstone_jax.models.text import Source, read_embeddings
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import check, recomputed
from touchstone_jax.models.vit import VIT_NAMES, VIT_UNUSED, ViT

NOT_ASKED = 0.0
"""Logit of organs that a window has no prompt for, the background's: in the mean over windows it
leaves the sign to those that have one, and without any the background, as the first, is taken."""

MASK_TOKENS = 4
"""All are seen by the others; only the first makes a mask."""


class PromptEncoder(nnx.Module):
    """Points, boxes and names of one organ to tokens.

    Args:
        width: channels of a token.
        shape: voxels of the volume in the network's order of axes.
        rngs: initialisation.
    """

    def __init__(self, width: int, shape: Triple, rngs: nnx.Rngs) -> None:
        self.pe_layer = Positions(3, width, rngs)
        # Of negative and positive points, and of a box's two corners.
        self.point_embeddings = nnx.List(Token(1, width, rngs) for _ in range(4))
        self.not_a_point_embed = Token(1, width, rngs)
        self.no_mask_embed = Token(1, width, rngs)
        self.shape = shape

    def __call__(
        self, asked: Asked, text: Float[Array, "b c"]
    ) -> tuple[Float[Array, "b t c"], Bool[Array, "b t"]]:
        """Tokens, and which of them are there."""
        negative, positive, low, high = (t.weight[...] for t in self.point_embeddings)
        sign = asked.signs[..., None]
        points = self._place(asked.points) + jnp.where(sign == 1, positive[None], negative[None])
        corners = self._place(asked.boxes.reshape(-1, 2, 3))
        corners = corners + jnp.concatenate([low, high])[None]
        filler = self.not_a_point_embed.weight[...][None]
        filler = jnp.broadcast_to(filler, (len(text), 1, text.shape[-1]))
        there = asked.signs >= 0
        # The original puts a point that is none behind points without a box.
        alone = there.any(1) & ~asked.boxed
        flags = [there, alone[:, None], *[asked.boxed[:, None]] * 2, asked.named[:, None]]
        tokens = jnp.concatenate([points, filler, corners, text[:, None]], axis=1)
        return tokens, jnp.concatenate(flags, axis=1)

    def _place(self, points: Float[Array, "b n 3"]) -> Float[Array, "b n c"]:
        """Of voxels (x, y, z)."""
        places = points[..., ::-1] + 0.5
        # The original divides the first coordinate by the second side, and the other way round.
        h, w, d = self.shape
        return self.pe_layer(places / jnp.asarray([w, h, d], jnp.float32).reshape(1, 1, 3))


class VolumeNorm(nnx.Module):
    """All voxels and channels of a sample to mean 0 and variance 1, then an affine map of each.

    (b, x, y, z, c) to the same shape and type, for one shape only; statistics in float32.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.scale = nnx.Param(jnp.ones(tuple(shape), jnp.float32))
        self.bias = nnx.Param(jnp.zeros(tuple(shape), jnp.float32))

    def __call__(self, x: Float[Array, "b x y z c"]) -> Float[Array, "b x y z c"]:
        """See the class."""
        exact = x.astype(jnp.float32)
        centred = exact - exact.mean((1, 2, 3, 4), keepdims=True)
        variance = jnp.square(centred).mean((1, 2, 3, 4), keepdims=True)
        made = centred * jax.lax.rsqrt(variance + 1e-5) * self.scale[...][None]
        return (made + self.bias[...][None]).astype(x.dtype)


class MaskDecoder(nnx.Module):
    """The image's tokens and those of a prompt to a mask at a quarter of the tokens' patch."""

    def __init__(
        self, width: int, heads: int, hidden: int, grid: Triple, how: dict[str, Any]
    ) -> None:
        rngs = how["rngs"]
        self.transformer = TwoWay(width, heads, hidden, 2, how)
        self.iou_token = Token(1, width, rngs)
        self.mask_tokens = Token(MASK_TOKENS, width, rngs)
        self.up1 = UpConv(width, width // 4, **how)
        self.norm = VolumeNorm((*(2 * n for n in grid), width // 4))
        self.up2 = UpConv(width // 4, width // 8, **how)
        self.hypernetwork = Hypernetwork(width, width // 8, how)
        self.txt_align_upscaled_embedding = dense(width, width // 8, rngs=rngs)
        self.grid = grid

    def __call__(
        self,
        image: Float[Array, "b s c"],
        places: Float[Array, "1 s c"],
        prompt: Float[Array, "b t c"],
        there: Bool[Array, "b t"],
        text: Float[Array, "b c"],
        named: Bool[Array, " b"],
    ) -> Float[Array, "b x y z"]:
        """Logits; ``text`` counts where ``named``."""
        b, own = len(image), 1 + MASK_TOKENS
        tokens = jnp.concatenate([self.iou_token.weight[...], self.mask_tokens.weight[...]])
        tokens = jnp.concatenate([jnp.broadcast_to(tokens[None], (b, *tokens.shape)), prompt], 1)
        there = jnp.concatenate([jnp.ones((b, own), bool), there], axis=1)
        places = jnp.broadcast_to(places, image.shape).astype(image.dtype)
        tokens, image = self.transformer(tokens.astype(image.dtype), image, places, there)
        made = self.norm(self.up1(image.reshape(b, *self.grid, -1)))
        made = jax.nn.gelu(self.up2(jax.nn.gelu(made, approximate=False)), approximate=False)
        weights = self.hypernetwork(tokens[:, 1]).astype(jnp.float32)
        said = self.txt_align_upscaled_embedding(text)
        weights = weights + jnp.where(named[:, None], said, 0)
        return jnp.einsum("bxyzc,bc->bxyz", made.astype(jnp.float32), weights)


class SegVol(nnx.Module):
    """A mask for each organ that is asked for; the image is looked at once for all of them.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, for one patch only; 0
    for the background. Organs do not exclude each other. What is asked for is a second argument, a
    dict of `touchstone_jax.models.prompted.Asked`'s arrays; by default all organs by their names.

    Args:
        num_classes: organs and the background.
        in_channels: channels of the image.
        patch: voxels (x, y, z) of the input. The original sees them as (z, y, x).
        token: voxels (x, y, z) of a token; x, y and z of the patch are multiples.
        width: channels of a token.
        layers: blocks of the image's transformer.
        heads: of its attention.
        hidden: channels inside its MLPs.
        decoder_heads: of the prompt's attention.
        decoder_hidden: channels inside its MLPs.
        embeddings: vectors of the organs' names, for `touchstone_jax.models.text.read_embeddings`;
            None for its stand-in, with which this is not the published network.
        organs: names, in the order of the labels; None for the first of ``embeddings``.
        aligned: whether vectors go through a linear layer; else they must be of the width.
        dtype: "float32" or "bfloat16", of transformers and up-sampling; norms, softmax and masks
            stay float32.
        remat: whether blocks and masks are computed again for their gradients.
        rngs: initialisation.

    Raises:
        ValueError: an illegal argument.
    """

    label = "segvol"
    activation = "sigmoid"
    prompts: ClassVar[dict[str, int | None]] = dict.fromkeys(("organs", "points", "boxes"))
    divisor: ClassVar[Triple] = (1, 1, 1)
    torch_ignored = (
        rf"{VIT_UNUSED}|\.mask_downscaling\.|\.iou_prediction_head\."
        r"|\.output_hypernetworks_mlps\.[1-3]\.|^text_encoder\.clip_text_model\."
    )
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {}
    torch_absent: ClassVar[tuple[type, ...]] = (TextEmbedding,)

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        patch: int | Sequence[int] = (256, 256, 32),
        token: int | Sequence[int] = (16, 16, 4),
        width: int = 768,
        layers: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        decoder_heads: int = 8,
        decoder_hidden: int = 2048,
        embeddings: Source = None,
        organs: Sequence[str] | None = None,
        aligned: bool = True,
        dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("segvol", dtype, layers=layers, hidden=hidden, decoder_hidden=decoder_hidden)
        check_decoder("segvol", width, decoder_heads)
        self.patch = triple(patch, "segvol: patch")
        turned, token = self.patch[::-1], triple(token, "segvol: token")[::-1]
        vectors = read_embeddings(embeddings, num_classes - 1, organs)
        if not aligned and vectors.shape[1] != width:
            raise ValueError(f"segvol: embeddings {vectors.shape}; expected width={width} of each")
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        vit: dict[str, Any] = {"width": width, "hidden": hidden, "layers": layers, "heads": heads}
        self.image_encoder = ViT(turned, token, in_channels, **vit, how=how)
        self.prompt_encoder = PromptEncoder(width, turned, rngs)
        grid = self.image_encoder.grid
        self.mask_decoder = MaskDecoder(width, decoder_heads, decoder_hidden, grid, how)
        self.dim_align = dense(vectors.shape[1], width, rngs=rngs) if aligned else None
        self.text = TextEmbedding(jnp.asarray(vectors))
        self.remat, self.deterministic = remat, True

    def __call__(
        self, x: Float[Array, "b x y z i"], prompts: Mapping[str, Array] | None = None
    ) -> Float[Array, "b x y z k"]:
        """See the class.

        Raises:
            ValueError: sides other than the patch.
        """
        if x.shape[1:4] != self.patch:
            raise ValueError(f"segvol: volume {x.shape[1:4]}; expected the patch {self.patch}")
        organs = self.text.shape[0]
        asked = names_only(len(x), organs) if prompts is None else Asked(**prompts)
        run = recomputed if self.remat and not self.deterministic else lambda m, x: m(x)
        image, _ = self.image_encoder(jnp.swapaxes(x, 1, 3), run=run)
        image = image + self.prompt_encoder.no_mask_embed.weight[...][None].astype(image.dtype)
        places = self.prompt_encoder.pe_layer.grid(self.image_encoder.grid)

        def mask(one: tuple[Asked, Array]) -> Array:
            asked, text = one
            text = text[None] if self.dim_align is None else self.dim_align(text[None])
            text = jnp.broadcast_to(text, (len(x), text.shape[1]))
            tokens, there = self.prompt_encoder(asked, text)
            low = self.mask_decoder(image, places, tokens, there, text, asked.named)
            return jnp.where(there.any(1)[:, None, None, None], low, NOT_ASKED)

        if self.remat and not self.deterministic:
            mask = jax.checkpoint(mask)
        by_organ = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), asked)
        low = jnp.moveaxis(jax.lax.map(mask, (by_organ, self.text[...])), 0, -1)
        shape = (len(x), *self.patch[::-1], organs)
        logits = jax.image.resize(low, shape, "trilinear")
        return jnp.pad(jnp.swapaxes(logits, 1, 3), [(0, 0)] * 4 + [(1, 0)])

    def training_loss(
        self,
        x: Float[Array, "b x y z i"],
        labels: Integer[Array, "b x y z"],
        annotated: Bool[Array, "b k"],
        rng: Array,
        loss: Callable[[tuple[Float[Array, "b x y z k"]]], dict[str, Array]],
    ) -> dict[str, Float[Array, ""]]:
        """``loss`` of the masks for prompts that `drawn_prompts` takes from the labels.

        Args:
            x: image.
            labels: 0..k - 1 or `touchstone_jax.losses.IGNORE`.
            annotated: organs that were looked for.
            rng: of the prompts.
            loss: Dice and binary cross-entropy of logits.
        """
        del annotated  # `loss` knows
        asked = drawn_prompts(rng, labels, self.text.shape[0])
        return loss((self(x, asked._asdict()),))

    def set_view(self, deterministic: bool | None = None) -> None:
        """What ``nnx.view(model, deterministic=…)`` calls on its copy."""
        if deterministic is not None:
            self.deterministic = deterministic

    @staticmethod
    def torch_stages(arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing: one mask decoder serves any number of organs."""
        del arrays
        return {}

    @staticmethod
    def told_by_state(state: Mapping[str, Any]) -> dict[str, Any]:
        """The number of classes, from a training's state."""
        return {"num_classes": state["rest"]["text"].shape[0] + 1}

    def torch_name(self, path: str) -> str:
        """Name in SegVol's state dict of the module at our slash ``path``."""
        names = (
            ("^dim_align$", "text_encoder/dim_align"),
            ("/up1$", "/output_upscaling/0"),
            ("^mask_decoder/norm$", "mask_decoder/output_upscaling/1"),
            ("/up2$", "/output_upscaling/3"),
            ("/hypernetwork/", "/output_hypernetworks_mlps/0/"),
        )
        vit = VIT_NAMES if path.startswith("image_encoder/") else SAM_NAMES
        return renamed(path, (*names, *vit))
