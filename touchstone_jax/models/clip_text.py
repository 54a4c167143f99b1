"""CLIP's text tower, which makes of an organ's name the vector that networks read.

Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision",
section 2.4. The networks that read such vectors never train it, so it runs once: `name_vectors`
makes the file that `touchstone_jax.models.text.read_embeddings` reads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Float32, Int

from touchstone_jax.layers.attention import LayerNorm, SelfAttention, dense
from touchstone_jax.models.clip_tokens import CLIP_SIZE, Vocabulary, read_vocabulary
from touchstone_jax.models.convert import filled, read_arrays, torch_places
from touchstone_jax.models.create import MODELS
from touchstone_jax.models.sam import Token
from touchstone_jax.models.text import Wording, spoken
from touchstone_jax.models.unet import renamed

HEAD = 64
"""Channels of a head, in towers of all sizes."""


class ClipBlock(nnx.Module):
    """x + attention(norm(x)) to earlier tokens, then x + mlp(norm(x)): (b, t, c) to the same shape.

    Between the linear layers of the MLP is x · sigmoid(1.702 x), a quick form of GELU (Hendrycks
    and Gimpel 2016).

    Args:
        width: c, a multiple of 64.
        hidden: channels inside the MLP.
        rngs: initialisation.
    """

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = LayerNorm(width, rngs=rngs), LayerNorm(width, rngs=rngs)
        self.attn = SelfAttention(width, width // HEAD, rngs=rngs)
        self.lin1, self.lin2 = dense(width, hidden, rngs=rngs), dense(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
        """See the class."""
        earlier = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        x = x + self.attn(self.norm1(x), jnp.where(earlier, jnp.float32(0), jnp.float32(-1e9)))
        made = self.lin1(self.norm2(x))
        return x + self.lin2(made * jax.nn.sigmoid(1.702 * made))


class ClipText(nnx.Module):
    """Numbers of tokens (b, t) to what the network has at the last of each: (b, c).

    The default is that of ViT-B/32: 63,165,952 parameters, and 262,144 of a projection.

    Args:
        vocabulary: tokens.
        context: tokens of a text at most, t.
        width: channels c, a multiple of 64.
        hidden: channels inside the blocks' MLPs.
        layers: blocks.
        projected: channels of the projection to the space that CLIP shares with pictures; 0 for
            none.
        rngs: initialisation.

    Raises:
        ValueError: a width that is no multiple of 64.
    """

    def __init__(
        self,
        *,
        vocabulary: int = CLIP_SIZE,
        context: int = 77,
        width: int = 512,
        hidden: int = 2048,
        layers: int = 12,
        projected: int = 0,
        rngs: nnx.Rngs,
    ) -> None:
        if width % HEAD or not width:
            raise ValueError(f"text tower: width={width}; expected a multiple of {HEAD}")
        self.token_embedding = Token(vocabulary, width, rngs)
        self.positional_embedding = nnx.Param(jnp.zeros((context, width), jnp.float32))
        self.blocks = nnx.List(ClipBlock(width, hidden, rngs) for _ in range(layers))
        self.norm = LayerNorm(width, rngs=rngs)
        start = jnp.zeros((width, projected), jnp.float32)
        self.text_projection = nnx.Param(start) if projected else None

    def __call__(self, tokens: Int[Array, "b t"], last: Int[Array, " b"]) -> Float[Array, "b c"]:
        """See the class; tokens behind ``last`` have no effect."""
        x = self.token_embedding.weight[...][tokens]
        x = x + self.positional_embedding[...][None, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0])

    def project(self, pooled: Float[Array, "b c"]) -> Float[Array, "b p"]:
        """The vectors in the space that CLIP shares with pictures.

        Raises:
            ValueError: a tower without a projection.
        """
        if self.text_projection is None:
            raise ValueError("text tower: no projection; its weights have no 'text_projection'")
        return pooled @ self.text_projection[...]

    def torch_name(self, path: str) -> str:
        """Name of the module at our slash ``path`` in what `_ours` makes of a state dict."""
        return renamed(path, ())


def read_tower(arrays: Mapping[str, np.ndarray]) -> ClipText:
    """The text tower in a state dict, whatever else there is.

    Args:
        arrays: key -> array, in OpenAI's layout (``token_embedding.weight``, ``transformer.
            resblocks.0…``) or transformers' (``text_model.embeddings.token_embedding.weight``, …),
            perhaps behind a prefix, as SegVol has it.

    Raises:
        ValueError: no tower or several, keys that are missing, unexpected or of the wrong shape, or
            NaN or infinity; the message names them.
    """
    arrays = _ours(arrays)
    needed = ("token_embedding.weight", "positional_embedding", "blocks.0.lin1.weight")
    tokens, places, inside = (arrays.get(key, np.zeros(0)) for key in needed)
    if not tokens.ndim == places.ndim == inside.ndim == 2:
        raise ValueError("text tower: no tables of tokens and positions, or no block 0")
    numbers = [int(key.split(".")[1]) for key in arrays if re.match(r"blocks\.\d", key)]
    config = {
        "vocabulary": len(tokens),
        "context": len(places),
        "width": tokens.shape[1],
        "hidden": len(inside),
        "layers": 1 + max(numbers),
        "projected": np.shape(arrays.get("text_projection", np.zeros((0, 0))))[-1],
    }
    model = nnx.eval_shape(lambda: ClipText(**config, rngs=nnx.Rngs(0)))
    return filled("text tower", model, torch_places(model), arrays)


def embed(
    tower: ClipText, vocabulary: Vocabulary, texts: Sequence[str], *, projected: bool
) -> Float32[np.ndarray, "n c"]:
    """A vector for each text.

    Args:
        tower: CLIP's.
        vocabulary: that it was trained with.
        texts: a sentence each.
        projected: whether vectors are in the space that CLIP shares with pictures, or as the last
            norm makes them.

    Raises:
        ValueError: another vocabulary than the tower's, a text longer than its context, or no
            projection; before anything is computed.
    """
    sizes = (tower.token_embedding.weight.shape[0], tower.positional_embedding.shape[0])
    if len(vocabulary) != sizes[0]:
        raise ValueError(f"a vocabulary of {len(vocabulary)} tokens; the weights have {sizes[0]}")
    if projected and tower.text_projection is None:
        raise ValueError("text tower: no projection; its weights have no 'text_projection'")
    rows = [vocabulary.encode(text) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if len(row) > sizes[1]:
            raise ValueError(
                f"{len(row)} tokens of the text {text!r}; expected at most {sizes[1]}, start and "
                "end among them"
            )
    longest = max(map(len, rows), default=2)
    tokens = jnp.asarray([row + [0] * (longest - len(row)) for row in rows], jnp.int32)
    # A text may name the end's token itself: the first one counts, as in transformers.
    last = jnp.asarray([row.index(row[-1]) for row in rows], jnp.int32)
    graphdef, state = nnx.split(tower)

    @jax.jit
    def run(state: Any, tokens: Array, last: Array) -> Array:
        tower = nnx.merge(graphdef, state)
        pooled = tower(tokens, last)
        return tower.project(pooled) if projected else pooled

    # Once is no place to save time: accelerators else multiply with fewer digits.
    with jax.default_matmul_precision("highest"):
        return np.asarray(run(state, tokens.reshape(len(rows), longest), last))


class Names(NamedTuple):
    """What `name_vectors` makes.

    Attributes:
        embeddings: a vector for each name.
        alone: whether the file has no weights but CLIP's, so none of a network that reads vectors.
    """

    embeddings: Float32[np.ndarray, "n c"]
    alone: bool


def name_vectors(
    model: Mapping[str, Any],
    weights: str | Path,
    prefix: str,
    vocabulary: str | Path,
    organs: Sequence[str],
    target: str | Path,
) -> Names:
    """Write the vectors of organs' names in the words that a network was published with.

    Args:
        model: ``name``, a key of `touchstone_jax.models.MODELS`; others are not read.
        weights: .npz or .safetensors file with the text tower of CLIP, or of the network itself.
        prefix: what its keys begin with.
        vocabulary: of `read_vocabulary`.
        organs: names; "kidney_left" is spoken as "left kidney".
        target: .npz file, for `touchstone_jax.models.text.read_embeddings`.

    Raises:
        ValueError: a network that reads no names, no organs, or as `read_tower`, `read_vocabulary`
            and `embed`.
        FileNotFoundError: no such file.
    """
    wording = _wording(model["name"])
    if not organs:
        raise ValueError(f"no names of organs for the network {model['name']!r}")
    arrays = read_arrays(weights, prefix)
    try:
        tower = read_tower(arrays)
    except ValueError as error:
        raise ValueError(f"{weights}: {error}") from None
    words = read_vocabulary(vocabulary, tower.token_embedding.weight.shape[0])
    texts = [wording.prompt.format(spoken(organ)) for organ in organs]
    vectors = embed(tower, words, texts, projected=wording.projected)
    np.savez(target, names=np.asarray(list(organs)), embeddings=vectors)
    own = _keys(arrays)
    alone = all(key in own or re.match(_PICTURES, key) for key in arrays)
    return Names(vectors, alone)


# Of the half of CLIP that looks at pictures, and of both, in either layout.
_PICTURES = (
    r"(visual|vision_model)\.|visual_projection\.|text_projection|logit_(scale|bias)$"
    r"|(input_resolution|context_length|vocab_size)$"
)
_TABLE = "token_embedding.weight"
_OPENAI = (
    (r"^transformer\.resblocks\.", "blocks."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.attn\.in_proj_", ".attn.qkv."),
    (r"\.attn\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.c_fc\.", ".lin1."),
    (r"\.mlp\.c_proj\.", ".lin2."),
    (r"^ln_final\.", "norm."),
)
_TRANSFORMERS = (
    (r"^text_model\.", ""),
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.([qkv])_proj\.", r".attn.\1."),
    (r"\.mlp\.fc([12])\.", r".lin\1."),
    (r"^final_layer_norm\.", "norm."),
)


def _wording(name: str) -> Wording:
    """How a network's names are said.

    Raises:
        ValueError: it reads none.
    """
    readers = {key: made.wording for key, made in MODELS.items() if hasattr(made, "wording")}
    if name not in readers:
        raise ValueError(f"network {name!r} reads no names; those that do: {', '.join(readers)}")
    return readers[name]


def _keys(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Key of the text tower's arrays -> key without the prefix, in their layout.

    Raises:
        ValueError: no tower, or several.
    """
    tables = [key for key in arrays if re.search(rf"(^|\.){re.escape(_TABLE)}$", key)]
    if len(tables) != 1:
        raise ValueError(
            f"{len(tables)} text towers of CLIP, told by a key that ends in {_TABLE!r}; expected 1"
        )
    before = tables[0].removesuffix(_TABLE)
    inside = r"(token_embedding|transformer|ln_final)\.|positional_embedding$|text_projection$"
    if before.endswith("embeddings."):
        inside = r"(text_model\.)?(embeddings|encoder|final_layer_norm)\.|text_projection\.weight$"
        before = before.removesuffix("embeddings.").removesuffix("text_model.")
    known = re.compile(re.escape(before) + f"({inside})")
    return {key: key.removeprefix(before) for key in arrays if known.match(key)}


def _ours(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The text tower's arrays by our names, in the order of torch's axes.

    Raises:
        ValueError: as `_keys`, or parts of an attention's weights that do not stand together.
    """
    keys = _keys(arrays)
    theirs = any(key.endswith(f"embeddings.{_TABLE}") for key in keys.values())
    found = {}
    for key, short in keys.items():
        for pattern, name in _TRANSFORMERS if theirs else _OPENAI:
            short = re.sub(pattern, name, short)
        if not short.endswith("position_ids"):
            found[short] = arrays[key]
    if not theirs:
        return found
    if "text_projection.weight" in found:
        found["text_projection"] = found.pop("text_projection.weight").T
    # Queries, keys and values are three arrays there.
    for key in [key for key in found if ".attn.q." in key]:
        names = [key.replace(".attn.q.", f".attn.{part}.") for part in "qkv"]
        if all(name in found for name in names):
            parts = [found.pop(name) for name in names]
            found[key.replace(".attn.q.", ".attn.qkv.")] = np.concatenate(parts)
    return found
