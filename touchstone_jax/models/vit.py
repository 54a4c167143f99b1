"""A plain vision transformer over the patches of a volume, as MONAI has it (UNETR, SegVol)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from touchstone_jax.layers import Triple
from touchstone_jax.layers.attention import LayerNorm, TransformerBlock, dense
from touchstone_jax.layers.windows import PatchConv, patches

EMBEDDINGS = ("perceptron", "conv")

VIT_UNUSED = r"\.norm_cross_attn\.|\.cross_attn\."
"""Keys of layers that MONAI makes from 1.4 on and never calls here."""

VIT_NAMES = (
    ("/attn/proj$", "/attn/out_proj"),
    ("/patch_embeddings/perceptron$", "/patch_embeddings/1"),
    ("/patch_embeddings/conv$", "/patch_embeddings"),
)
"""Our paths inside a `ViT` -> MONAI's, with slashes."""


class PatchEmbedding(nnx.Module):
    """Patches through a linear layer, plus a learned position: (b, x, y, z, i) to (b, n, c).

    Tokens are in the order of the grid, x slowest.

    Args:
        shape: voxels (x, y, z) of the input, multiples of the patch.
        patch: voxels (x, y, z) of a token.
        inputs: channels i.
        width: channels c.
        kind: how the original stores the weights: "perceptron" as a matrix, "conv" as a
            convolution's kernel. Both compute the same.
        how: ``dtype`` and ``rngs``.

    Raises:
        ValueError: another kind, or a shape that the patch does not divide.
    """

    def __init__(
        self,
        shape: Triple,
        patch: Triple,
        inputs: int,
        width: int,
        kind: str,
        how: dict[str, Any],
    ) -> None:
        if kind not in EMBEDDINGS:
            raise ValueError(f"embedding={kind!r}; legal: {', '.join(EMBEDDINGS)}")
        if any(n % p for n, p in zip(shape, patch, strict=True)):
            raise ValueError(f"volume {shape} must be a multiple of the token's patch {patch}")
        self.patch, self.kind = patch, kind
        if kind == "perceptron":
            layer: nnx.Module = dense(math.prod(patch) * inputs, width, **how)
        else:
            layer = PatchConv(inputs, width, patch, **how)
        self.patch_embeddings = nnx.Dict({kind: layer})
        tokens = math.prod(n // p for n, p in zip(shape, patch, strict=True))
        start = 0.02 * jax.random.normal(how["rngs"].params(), (1, tokens, width), jnp.float32)
        self.position_embeddings = nnx.Param(start)

    def __call__(self, x: Float[Array, "b x y z i"]) -> Float[Array, "b n c"]:
        """See the class."""
        layer = self.patch_embeddings[self.kind]
        made = layer(patches(x, self.patch)) if self.kind == "perceptron" else layer(x)
        made = made.reshape(len(x), -1, made.shape[-1])
        return made + self.position_embeddings[...].astype(made.dtype)


class ViT(nnx.Module):
    """Patches to tokens and through pre-norm blocks (Dosovitskiy et al. 2021).

    Args:
        shape: voxels (x, y, z) of the input; no other is taken.
        patch: voxels (x, y, z) of a token.
        inputs: channels of the input.
        width: channels of a token.
        hidden: channels inside each block's MLP.
        layers: blocks.
        heads: of each block's attention.
        embedding: of `PatchEmbedding`.
        how: ``dtype`` and ``rngs``; norms and softmax stay float32.

    Raises:
        ValueError: a shape that the patch does not divide, or heads that do not divide the width.
    """

    def __init__(
        self,
        shape: Triple,
        patch: Triple,
        inputs: int,
        *,
        width: int = 768,
        hidden: int = 3072,
        layers: int = 12,
        heads: int = 12,
        embedding: str = "perceptron",
        how: dict[str, Any],
    ) -> None:
        self.shape = shape
        x, y, z = (n // p for n, p in zip(shape, patch, strict=True))
        self.grid = (x, y, z)
        self.patch_embedding = PatchEmbedding(shape, patch, inputs, width, embedding, how)
        self.blocks = nnx.List(
            TransformerBlock(width, heads, hidden, qkv_bias=False, **how) for _ in range(layers)
        )
        self.norm = LayerNorm(width, rngs=how["rngs"])

    def __call__(
        self,
        x: Float[Array, "b x y z i"],
        taps: Sequence[int] = (),
        run: Callable[[nnx.Module, Array], Array] = lambda module, x: module(x),
    ) -> tuple[Float[Array, "b n c"], list[Float[Array, "b n c"]]]:
        """Tokens of the last norm, and what the blocks numbered ``taps`` gave, from 0.

        Args:
            x: the volume.
            taps: rising numbers of blocks.
            run: calls each block, e.g. such that it is computed again for its gradients.

        Raises:
            ValueError: a volume of another shape.
        """
        if x.shape[1:4] != self.shape:
            raise ValueError(f"volume {x.shape[1:4]}; expected {self.shape}")
        tokens, kept = self.patch_embedding(x), []
        for number, block in enumerate(self.blocks):
            tokens = run(block, tokens)
            if number in taps:
                kept.append(tokens)
        return self.norm(tokens), kept

    def volume(self, tokens: Float[Array, "b n c"]) -> Float[Array, "b a b_ c_ c"]:
        """Tokens in their places, one voxel each."""
        return tokens.reshape(len(tokens), *self.grid, tokens.shape[-1])
