"""SAM-Adapter: "Segment Anything" for slices, of which little is trained (Gu et al. 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import Triple
from touchstone_jax.layers.attention import LayerNorm
from touchstone_jax.layers.slices import SliceUp
from touchstone_jax.models.sam import (
    SAM_NAMES,
    Hypernetwork,
    Positions,
    Token,
    TwoWay,
    check_decoder,
)
from touchstone_jax.models.sam_vit import PATCH, SAM_VIT_NAMES, SamViT
from touchstone_jax.models.tiny_vit import TINY_VIT_NAMES, TinyViT, gelu
from touchstone_jax.models.unet import renamed
from touchstone_jax.models.ushape import check, per_stage, recomputed

ENCODERS = ("tiny_vit", "vit")


class SliceDecoder(nnx.Module):
    """Tokens (n, h, w, c) of slices to logits (n, 4h, 4w, classes): a mask for each class."""

    def __init__(
        self, width: int, classes: int, heads: int, hidden: int, how: dict[str, Any]
    ) -> None:
        rngs = how["rngs"]
        self.transformer = TwoWay(width, heads, hidden, 2, how, adapted=True)
        self.iou_token, self.mask_tokens = Token(1, width, rngs), Token(classes + 1, width, rngs)
        self.up1, self.up2 = SliceUp(width, width // 4, how), SliceUp(width // 4, width // 8, how)
        self.norm = LayerNorm(width // 4, 1e-6, rngs=rngs)
        self.hypernetworks = nnx.List(Hypernetwork(width, width // 8, how) for _ in range(classes))

    def __call__(
        self, image: Float[Array, "n h w c"], places: Float[Array, "1 t c"]
    ) -> Float[Array, "n a b k"]:
        """See the class; ``places`` are those of the tokens."""
        n, h, w, c = image.shape
        tokens = jnp.concatenate([self.iou_token.weight[...], self.mask_tokens.weight[...]])
        tokens = jnp.broadcast_to(tokens[None], (n, *tokens.shape)).astype(image.dtype)
        flat = image.reshape(n, h * w, c)
        places = jnp.broadcast_to(places, flat.shape).astype(flat.dtype)
        tokens, flat = self.transformer(tokens, flat, places)
        made = self.norm(self.up1(flat.reshape(image.shape)))
        made = gelu(self.up2(gelu(made))).astype(jnp.float32)
        # The first two tokens are of the quality and of a single mask, which is not asked for.
        columns = [net(tokens[:, 2 + i]) for i, net in enumerate(self.hypernetworks)]
        weights = jnp.stack(columns, axis=-1).astype(jnp.float32)
        return jnp.einsum("nhwc,nck->nhwk", made, weights)


class PlaceEncoder(nnx.Module):
    """Where tokens are, and what stands for a prompt where there is none."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.pe_layer, self.no_mask_embed = Positions(2, width, rngs), Token(1, width, rngs)


class SAMAdapter(nnx.Module):
    """Every slice across z by itself, enlarged to a square, without any prompt.

    (b, x, y, z, in_channels) to logits (b, x, y, z, num_classes), float32, of any sides. In
    training (``model.train()``) a tuple of one. Of the image encoder only adapters are trained, and
    of the rest all but positions; its batch norms keep their statistics. Fresh adapters change
    nothing, so it is the weights of an original that make this network worth its while.

    Args:
        num_classes: logits, the background's among them.
        in_channels: channels of the image; one is shown as three alike.
        side: pixels of the square, a multiple of 16.
        encoder: "tiny_vit", of MobileSAM, or "vit", of SAM.
        encoder_config: arguments of `TinyViT` or `SamViT`; the widths, depths and so on.
        width: channels of the decoder.
        heads: of its attention.
        hidden: channels inside its MLPs.
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
    frozen = r"^(image_encoder/(?!.*_Adapter/)|prompt_encoder/)"
    torch_ignored = (
        r"num_batches_tracked$|^image_encoder\.(norm_head|head)\.|\.Depth_Adapter\."
        r"|\.point_embeddings\.|\.not_a_point_embed\.|\.mask_downscaling\."
        r"|\.iou_prediction_head\.|\.output_hypernetworks_mlps\.0\."
    )
    torch_sizes: ClassVar[dict[str, tuple[str, int]]] = {}

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
        dtype: str = "float32",
        remat: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        check("sam_adapter", dtype, side=side, hidden=hidden, heads=heads)
        check_decoder("sam_adapter", width, heads)
        if side % PATCH:
            raise ValueError(f"sam_adapter: side={side}; expected a multiple of {PATCH}")
        how: dict[str, Any] = {"dtype": jnp.dtype(dtype), "rngs": rngs}
        inputs = 3 if in_channels == 1 else in_channels
        self.image_encoder = _encoder(encoder, inputs, side, width, encoder_config, how)
        self.prompt_encoder = PlaceEncoder(width, rngs)
        self.mask_decoder = SliceDecoder(width, num_classes, heads, hidden, how)
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
        keeps = not self.remat or self.deterministic
        run = (lambda module, x: module(x)) if keeps else recomputed
        image = self.image_encoder(slices, run)
        nothing = self.prompt_encoder.no_mask_embed.weight[...].reshape(1, 1, 1, -1)
        places = self.prompt_encoder.pe_layer.grid(image.shape[1:3])
        return self.mask_decoder(image + nothing.astype(image.dtype), places)

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
        names = [
            ("/up1$", "/output_upscaling/0"),
            ("^mask_decoder/norm$", "mask_decoder/output_upscaling/1"),
            ("/up2$", "/output_upscaling/3"),
            *SAM_NAMES,
        ]
        # Theirs has one more, the first, for the single mask.
        for i in reversed(range(len(self.mask_decoder.hypernetworks))):
            names.append((f"/hypernetworks/{i}/", f"/output_hypernetworks_mlps/{i + 1}/"))
        return renamed(path, names)


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
        ValueError: another name, or lists that do not have one number for each stage.
    """
    if name not in ENCODERS:
        raise ValueError(f"sam_adapter: encoder={name!r}; legal: {', '.join(ENCODERS)}")
    config = dict(config)
    if name == "vit":
        return SamViT(inputs, side, outputs=outputs, how=how, **config)
    for key, given in config.items():
        config[key] = per_stage("sam_adapter", f"encoder_config.{key}", given, 4)
    return TinyViT(inputs, outputs=outputs, how=how, **config)
