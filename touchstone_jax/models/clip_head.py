"""The CLIP-driven head: each organ's mask by a small network that its name and the image make.

Liu et al. 2023, "CLIP-Driven Universal Model for Organ Segmentation and Tumor Detection", section
3.2; after Tian et al. 2020, "Conditional Convolutions".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32

from touchstone_jax.layers import Conv

WIDTH = 8
"""Channels of the organs' networks."""
TEXT = 256
"""Channels that the name has in the controller, and the image, too."""
CLIP_NAMES = (
    ("^head/norm$", "precls_conv.0"),
    ("^head/features$", "precls_conv.2"),
    ("^head/image_norm$", "GAP.0"),
    ("^head/image$", "GAP.3"),
    ("^head/controller$", "controller"),
    ("^head/text$", "text_to_vision"),
    ("^head$", ""),
)
"""Our paths -> the Universal Model's names, of a network whose `ClipHead` is its ``head``."""


class TextEmbedding(nnx.Variable):
    """Vectors of the organs' names, which are not trained."""


class ClipHead(nnx.Module):
    """Logits of every organ from a backbone's deepest and finest features.

    (b, x', y', z', deep) and (b, x, y, z, fine) to float32 (b, x, y, z, organs + 1). Organs do not
    exclude each other: ``activation`` of a network with this head is "sigmoid", and the first
    channel, the background's, is 0, so that the largest logit is the background's where no organ
    has a probability above a half. The head is not linear in its features, so ``headless`` of the
    network is None.

    Args:
        deep: channels of the deepest features.
        fine: channels of the finest features.
        embeddings: vectors of the organs' names, e.g. `touchstone_jax.models.text.read_embeddings`.
        groups: of the group norms of the deepest and of the finest features.
        rngs: initialisation.

    Raises:
        ValueError: groups that do not divide the channels.
    """

    def __init__(
        self,
        deep: int,
        fine: int,
        embeddings: Float32[np.ndarray, "organs w"],
        *,
        groups: Sequence[int] = (16, 16),
        rngs: nnx.Rngs,
    ) -> None:
        for channels, count in zip((deep, fine), groups, strict=True):
            if channels % count:
                raise ValueError(f"clip head: {count} groups do not divide {channels} channels")
        how: dict[str, Any] = {"epsilon": 1e-5, "use_fast_variance": False, "rngs": rngs}
        self.image_norm = nnx.GroupNorm(deep, groups[0], **how)
        self.norm = nnx.GroupNorm(fine, groups[1], **how)
        self.image = Conv(deep, TEXT, 1, rngs=rngs)
        self.features = Conv(fine, WIDTH, 1, rngs=rngs)
        self.text = nnx.Linear(embeddings.shape[1], TEXT, rngs=rngs)
        self.controller = Conv(2 * TEXT, 2 * WIDTH**2 + WIDTH + 2 * WIDTH + 1, 1, rngs=rngs)
        self.organ_embedding = TextEmbedding(jnp.asarray(embeddings, jnp.float32))

    def __call__(
        self, deepest: Float[Array, "b a b_ c d"], finest: Float[Array, "b x y z f"]
    ) -> Float32[Array, "b x y z k"]:
        """See the class."""
        deepest, finest = deepest.astype(jnp.float32), finest.astype(jnp.float32)
        seen = jax.nn.relu(self.image_norm(deepest)).mean((1, 2, 3), keepdims=True)
        seen = self.image(seen)[:, :, 0, 0]
        said = jax.nn.relu(self.text(self.organ_embedding[...]))[None]
        shape = (len(seen), said.shape[1], TEXT)
        asked = jnp.concatenate([jnp.broadcast_to(part, shape) for part in (seen, said)], -1)
        made = self.controller(asked[:, :, None, None])[:, :, 0, 0]
        features = self.features(jax.nn.relu(self.norm(finest)))
        # Recomputed for its gradient: it is little work, but has 16 channels for each organ.
        logits = jax.checkpoint(_masks)(features, made)
        return jnp.pad(logits, (*[(0, 0)] * 4, (1, 0)))


def told(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """num_classes and a place for the embeddings, from a Universal Model's state dict.

    Raises:
        ValueError: it has no embeddings.
    """
    if "organ_embedding" not in arrays:
        raise ValueError("state dict of a CLIP-driven network: key 'organ_embedding' is missing")
    shape = np.shape(arrays["organ_embedding"])
    return {"num_classes": shape[0] + 1, "embeddings": np.zeros(shape, np.float32)}


def _masks(
    features: Float[Array, "b x y z w"], parameters: Float[Array, "b k p"]
) -> Float[Array, "b x y z k"]:
    """Logits of each organ's three layers; voxels come last, for eight channels fill no lane."""
    b, *sides, w = features.shape
    cut = [w * w, w * w, w, w, w]
    parts = jnp.split(parameters, np.cumsum(cut), axis=-1)
    first, second = (p.reshape(b, -1, w, w) for p in parts[:2])
    last, *biases = (p[..., None] for p in parts[2:])
    x = jnp.einsum("bni,bkoi->bkon", features.reshape(b, -1, w), first)
    x = jax.nn.relu(x + biases[0])
    x = jax.nn.relu(jnp.einsum("bkin,bkoi->bkon", x, second) + biases[1])
    logits = (x * last).sum(2) + biases[2][..., 0]
    return jnp.moveaxis(logits, 1, -1).reshape(b, *sides, -1)
