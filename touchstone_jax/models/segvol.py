"""SegVol: "Segment Anything" for volumes, asked by names, points and boxes (Du et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Integer

from touchstone_jax.layers import Triple, UpConv, triple
from touchstone_jax.layers.attention import dense
from touchstone_jax.models.clip_head import TextEmbedding
from touchstone_jax.models.prompted import Asked, drawn_prompts, names_only
from touchstone_jax.models.sam import check_decoder
from touchstone_jax.models.sam_masks import SAM_NAMES, MaskDecoder, PromptEncoder
from touchstone_jax.models.text import Source, Wording, read_embeddings
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import check, recomputed
from touchstone_jax.models.vit import VIT_NAMES, VIT_UNUSED, ViT

NOT_ASKED = 0.0
"""Logit of organs that a window has no prompt for, the background's: in the mean over windows it
leaves the sign to those that have one, and without any the background, as the first, is taken."""

MASKS = 4
"""That the decoder can make for a prompt: the first is SegVol's answer, the others are SAM's three
for prompts that may mean several things."""


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


class NamedMaskDecoder(MaskDecoder):
    """A mask decoder to whose masks the organ's name is added.

    Args:
        width: channels of a token.
        heads: of the attention.
        hidden: channels inside the transformer's MLPs.
        inside: channels inside the network that tells the masks' quality.
        grid: of the image's tokens.
        how: ``dtype`` and ``rngs``.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, inside: int, grid: Triple, how: dict[str, Any]
    ) -> None:
        grow = (
            UpConv(width, width // 4, **how),
            VolumeNorm((*(2 * n for n in grid), width // 4)),
            UpConv(width // 4, width // 8, **how),
        )
        super().__init__(width, MASKS, heads, hidden, inside, grow, how)
        self.txt_align_upscaled_embedding = dense(width, width // 8, rngs=how["rngs"])

    def said(self, text: Float[Array, "b c"], named: Bool[Array, " b"]) -> Float[Array, "b c8"]:
        """What is added to the weights of each mask: of the name, 0 where it is not given."""
        return jnp.where(named[:, None], self.txt_align_upscaled_embedding(text), 0)


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
        quality_hidden: channels inside the network that tells masks' quality.
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
    wording: ClassVar[Wording] = Wording("A computerized tomography of a {}.", projected=False)
    prompts: ClassVar[dict[str, int | None]] = dict.fromkeys(("organs", "points", "boxes"))
    divisor: ClassVar[Triple] = (1, 1, 1)
    # What the loss does not read, and only `masks_and_quality` does.
    frozen = (
        r"^(prompt_encoder/mask_downscaling/"
        r"|mask_decoder/(iou_prediction_head|output_hypernetworks_mlps/[1-3])/)"
    )
    torch_tower = r"^text_encoder\.clip_text_model\."
    torch_ignored = rf"{VIT_UNUSED}|{torch_tower}"
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {
        "quality_hidden": ("mask_decoder.iou_prediction_head.layers.0.weight", 0)
    }
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
        quality_hidden: int = 256,
        embeddings: Source = None,
        organs: Sequence[str] | None = None,
        aligned: bool = True,
        dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        sizes = {"decoder_hidden": decoder_hidden, "quality_hidden": quality_hidden}
        sizes |= {"width": width, "heads": heads, "decoder_heads": decoder_heads}
        check("segvol", dtype, layers=layers, hidden=hidden, **sizes)
        check_decoder("segvol", width, decoder_heads)
        if width % heads:
            raise ValueError(f"segvol: heads={heads} does not divide width={width}")
        self.patch, token = triple(patch, "segvol: patch"), triple(token, "segvol: token")
        if any(n % t for n, t in zip(self.patch, token, strict=True)):
            raise ValueError(f"segvol: patch={self.patch}; expected multiples of token={token}")
        turned, token = self.patch[::-1], token[::-1]
        vectors = read_embeddings(embeddings, num_classes - 1, organs)
        if not aligned and vectors.shape[1] != width:
            raise ValueError(f"segvol: embeddings {vectors.shape}; expected width={width} of each")
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        vit: dict[str, Any] = {"width": width, "hidden": hidden, "layers": layers, "heads": heads}
        self.image_encoder = ViT(turned, token, in_channels, **vit, how=how)
        self.prompt_encoder = PromptEncoder(3, width, how)
        grid = self.image_encoder.grid
        self.mask_decoder = NamedMaskDecoder(
            width, decoder_heads, decoder_hidden, quality_hidden, grid, how
        )
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
        low = self._each(x, prompts, None, self._answer)
        shape = (len(x), *self.patch[::-1], self.text.shape[0])
        logits = jax.image.resize(jnp.moveaxis(low, 0, -1), shape, "trilinear")
        return jnp.pad(jnp.swapaxes(logits, 1, 3), [(0, 0)] * 4 + [(1, 0)])

    def masks_and_quality(
        self,
        x: Float[Array, "b x y z i"],
        prompts: Mapping[str, Array] | None = None,
        masks: Float[Array, "b u v w o"] | None = None,
    ) -> tuple[Float32[Array, "b u v w o 4"], Float32[Array, "b o 4"]]:
        """All four masks of each organ at a quarter of the tokens' patch, and their quality.

        What "Segment Anything" can do beside SegVol's own answer (Kirillov et al. 2023, section 3
        and appendix A): the first mask, enlarged, is that of the call; the others are for prompts
        that may mean several things; masks may be prompts. SegVol's loss reads none of these three,
        so they are as good as the weights that were read: in the published ones they were never
        trained. A mask passes through two-dimensional layers, which is what the original stores,
        slice by slice across z; the mean over a token's slices is its own.

        Args:
            x: image.
            prompts: as of the call.
            masks: logits (b, x / tx * 4, y / ty * 4, z / tz * 4, organs) for tokens of (tx, ty, tz)
                voxels, e.g. the first masks of an earlier call. They refine what the prompts ask
                for, and ask for nothing themselves. None for no masks.

        Returns:
            Logits (b, x / tx * 4, y / ty * 4, z / tz * 4, organs, 4), 0 where nothing is asked for,
            and (b, organs, 4): what the network takes for each mask's intersection over union with
            the truth.

        Raises:
            ValueError: sides other than the patch, or masks of another shape.
        """
        sides = tuple(4 * n for n in self.image_encoder.grid[::-1])
        legal = (len(x), *sides, self.text.shape[0])
        if masks is not None and masks.shape != legal:
            raise ValueError(f"segvol: masks {masks.shape}; expected {legal}")
        low, quality = self._each(x, prompts, masks, self._answers)
        return jnp.moveaxis(jnp.swapaxes(low, 2, 4), 0, -2), jnp.moveaxis(quality, 0, 1)

    def _answer(self, tokens: Array, features: Array, said: Array) -> Float[Array, "b z y x"]:
        """Logits of SegVol's mask."""
        network = self.mask_decoder.output_hypernetworks_mlps[0]
        weights = network(tokens[:, 1]).astype(jnp.float32) + said
        return jnp.einsum("bxyzc,bc->bxyz", features, weights)

    def _answers(self, tokens: Array, features: Array, said: Array) -> tuple[Array, Array]:
        """Logits (b, z, y, x, 4) of all masks, and their quality (b, 4)."""
        weights = self.mask_decoder.kernels(tokens, 0) + said[..., None]
        made = jnp.einsum("bxyzc,bck->bxyzk", features, weights)
        return made, self.mask_decoder.quality(tokens)

    def _each(
        self,
        x: Float[Array, "b x y z i"],
        prompts: Mapping[str, Array] | None,
        masks: Float[Array, "b u v w o"] | None,
        read: Callable[[Array, Array, Array], Any],
    ) -> Any:
        """What ``read`` makes of each organ's tokens, features and name; organs come first."""
        if x.shape[1:4] != self.patch:
            raise ValueError(f"segvol: volume {x.shape[1:4]}; expected the patch {self.patch}")
        asked = names_only(len(x), self.text.shape[0]) if prompts is None else Asked(**prompts)
        recompute = self.remat and not self.deterministic
        run = recomputed if recompute else lambda m, x: m(x)
        image, _ = self.image_encoder(jnp.swapaxes(x, 1, 3), run=run)
        unmasked = image + self.prompt_encoder.no_mask_embed.weight[...][None].astype(image.dtype)
        places = self.prompt_encoder.pe_layer.grid(self.image_encoder.grid)
        grid = (len(x), *self.image_encoder.grid, image.shape[-1])

        def one(organ: tuple[Asked, Array, Array | None]) -> Any:
            asked, text, mask = organ
            text = text[None] if self.dim_align is None else self.dim_align(text[None])
            text = jnp.broadcast_to(text, (len(x), text.shape[1]))
            tokens, there = self._prompt(asked, text)
            known = there.any(1)

            def look() -> Any:
                seen = unmasked if mask is None else image + self._mask_tokens(mask, image.dtype)
                made = self.mask_decoder.look(seen.reshape(grid), places, tokens, there)
                found = read(*made, self.mask_decoder.said(text, asked.named))
                return jax.tree.map(
                    lambda a: jnp.where(known.reshape(-1, *[1] * (a.ndim - 1)), a, NOT_ASKED), found
                )

            if prompts is None or not self.deterministic:
                return look()
            # Windows mostly ask for few organs; the others cost nothing.
            none = jax.tree.map(
                lambda a: jnp.full(a.shape, NOT_ASKED, a.dtype), jax.eval_shape(look)
            )
            return jax.lax.cond(known.any(), look, lambda: none)

        by_organ = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), asked)
        by_mask = None if masks is None else jnp.moveaxis(masks, -1, 0)
        mapped = jax.checkpoint(one) if recompute else one
        return jax.lax.map(mapped, (by_organ, self.text[...], by_mask))

    def _prompt(
        self, asked: Asked, text: Float[Array, "b c"]
    ) -> tuple[Float[Array, "b t c"], Bool[Array, "b t"]]:
        """Tokens of one organ's points, box and name, and which of them are there."""
        h, w, d = self.patch[::-1]

        def placed(points: Float[Array, "b n 3"]) -> Float[Array, "b n 3"]:
            # The original divides the first coordinate by the second side, and the other way round.
            sides = jnp.asarray([w, h, d], jnp.float32).reshape(1, 1, 3)
            return (points[..., ::-1] + 0.5) / sides

        corners = placed(asked.boxes.reshape(-1, 2, 3))
        tokens, there = self.prompt_encoder(placed(asked.points), asked.signs, corners, asked.boxed)
        tokens = jnp.concatenate([tokens, text[:, None]], axis=1)
        return tokens, jnp.concatenate([there, asked.named[:, None]], axis=1)

    def _mask_tokens(self, mask: Float[Array, "b u v w"], dtype: Any) -> Float[Array, "b t c"]:
        """What a mask adds to the image's tokens."""
        b, slices = len(mask), jnp.moveaxis(mask, 3, 1)
        slices = jnp.swapaxes(slices, 2, 3).reshape(-1, *mask.shape[2:0:-1])
        made = self.prompt_encoder.mask_downscaling(slices)
        made = made.reshape(b, -1, 4, *made.shape[1:]).mean(2)
        return made.reshape(b, -1, made.shape[-1]).astype(dtype)

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
        vit = VIT_NAMES if path.startswith("image_encoder/") else SAM_NAMES
        return renamed(path, (("^dim_align$", "text_encoder/dim_align"), *vit))
