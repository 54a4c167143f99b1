"""Vision transformer (Dosovitskiy et al. 2021) with torchvision's topology."""

from __future__ import annotations

import math
from typing import ClassVar

import jax
from flax import nnx

from isnet_jax.lrp.layers import Add, Conv, Dense
from isnet_jax.lrp.transformer import Activation, Attention, Embedding, LayerNorm
from isnet_jax.models.backbone import Backbone


class EncoderBlock(nnx.Module):
    """Pre-norm attention and a two-layer perceptron, each with a residual sum: (b, t, c)."""

    def __init__(self, width: int, heads: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(width, rngs=rngs)
        self.attention = Attention(width, heads, rngs=rngs)
        self.add1 = Add()
        self.norm2 = LayerNorm(width, rngs=rngs)
        self.up = Dense(width, hidden, rngs=rngs)
        self.gelu = Activation("gelu")
        self.down = Dense(hidden, width, rngs=rngs)
        self.add2 = Add()

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the block to x (b, t, c)."""
        x = self.add1(x, self.attention(self.norm1(x)))
        return self.add2(x, self.down(self.gelu(self.up(self.norm2(x)))))


class ViT(Backbone):
    """Vision transformer, (b, h, w, in_channels) to logits (b, num_classes).

    Args:
        num_classes: logits.
        depth: encoder blocks.
        heads: attention heads.
        width: channels of a token.
        hidden: channels inside the perceptrons.
        patch: side of a patch in pixels.
        tokens: 1 class token + the number of patches; h w must be ``patch^2 (tokens - 1)``.
        in_channels: channels of the image.
        rngs: initialisation.

    Raises:
        ValueError: width is no multiple of heads.
    """

    input_layer = "patches"
    torch_sizes: ClassVar = {
        "num_classes": ("heads.head.weight", 0),
        "width": ("conv_proj.weight", 0),
        "in_channels": ("conv_proj.weight", 1),
        "patch": ("conv_proj.weight", 2),
        "hidden": ("encoder.layers.encoder_layer_0.mlp.0.weight", 0),
        "tokens": ("encoder.pos_embedding", 1),
    }
    torch_renamed: ClassVar = (r"in_proj_(weight|bias)$", r"in_proj.\1")

    def __init__(
        self,
        *,
        num_classes: int,
        depth: int,
        heads: int,
        width: int = 768,
        hidden: int = 3072,
        patch: int = 16,
        tokens: int = 197,
        in_channels: int = 3,
        rngs: nnx.Rngs,
    ) -> None:
        self.patches = Conv(in_channels, width, (patch, patch), strides=patch, rngs=rngs)
        self.count, self.side = tokens - 1, patch
        self.embedding = Embedding(tokens, width, rngs=rngs)
        self.blocks = nnx.List(
            [EncoderBlock(width, heads, hidden, rngs=rngs) for _ in range(depth)]
        )
        self.norm = LayerNorm(width, rngs=rngs)
        self.classifier = Dense(width, num_classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits (b, num_classes) of x (b, h, w, in_channels)."""
        patches = self.patches(x)  # (b, rows, columns, width)
        tokens = patches.reshape(len(x), -1, patches.shape[-1])
        if tokens.shape[1] != self.count:
            side = math.isqrt(self.count) * self.side
            raise ValueError(
                f"ViT: images of shape {x.shape[1:3]} give {tokens.shape[1]} patches, expected "
                f"{self.count} (as ({side}, {side}) images do)"
            )
        tokens = self.embedding(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.classifier(self.norm(tokens)[:, 0])

    @property
    def supervised(self) -> tuple[str, ...]:
        """See `Backbone`: the residual stream after every block."""
        return tuple(f"blocks/{i}/add2" for i in range(len(self.blocks)))

    def torch_names(self) -> dict[str, str]:
        """See `Backbone`."""
        names = {"conv_proj": "patches", "encoder.ln": "norm", "heads.head": "classifier"}
        for i in range(len(self.blocks)):
            theirs, ours = f"encoder.layers.encoder_layer_{i}", f"blocks/{i}"
            names |= {
                f"{theirs}.ln_1": f"{ours}/norm1",
                f"{theirs}.self_attention.in_proj": f"{ours}/attention/qkv",
                f"{theirs}.self_attention.out_proj": f"{ours}/attention/out",
                f"{theirs}.ln_2": f"{ours}/norm2",
                f"{theirs}.mlp.0": f"{ours}/up",
                f"{theirs}.mlp.3": f"{ours}/down",
            }
        return names

    def torch_arrays(self) -> dict[str, str]:
        """See `Backbone`."""
        return {
            "class_token": "embedding/class_token",
            "encoder.pos_embedding": "embedding/position",
        }
