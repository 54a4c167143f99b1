"""What an organ's name is to a network: a vector of a text encoder, or what stands in for it.

The published models read vectors of CLIP's ViT-B/32 text tower (Radford et al. 2021), made once of
a sentence about each organ, `Wording`. Whoever has the tower's weights makes a file of them, by
`touchstone_jax.models.clip_text`, that `read_embeddings` reads. By default networks read `DEFAULT`,
the vectors of `stand_in` for the classes of AbdomenAtlas 1.1, whose first nine are those of 1.0.
They tell organs apart, and names with words in common are near each other; they know nothing about
language, so a network that is trained on them is not the published one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from touchstone_jax.legal import unknown

PROMPT = "A computerized tomography of a {}"
"""Of Liu et al. 2023, "CLIP-Driven Universal Model", table 1, V3."""


class Wording(NamedTuple):
    """How a network's names are said to the text tower.

    Attributes:
        prompt: the sentence, with {} for the organ.
        projected: whether vectors are in the space that CLIP shares with pictures, or as the
            tower's last norm makes them.
    """

    prompt: str
    projected: bool


UNIVERSAL = Wording(PROMPT, projected=True)
"""Of Liu et al. 2023."""

DEFAULT = Path(__file__).with_name("organ_embeddings.npz")
"""``names`` (25,) and ``embeddings`` (25, 512) float32."""

WIDTH = 512
"""Of CLIP's vectors, and of `stand_in`'s."""

Source = str | Path | Float[np.ndarray, "n w"] | None


def stand_in(organs: Sequence[str]) -> Float32[np.ndarray, "n 512"]:
    """A vector of length 10 for each organ's prompt; the same on every machine, for ever.

    A random projection of the counts of the prompt's runs of three letters (Johnson and
    Lindenstrauss 1984): run r adds the vector of ±1 that are the bits of SHAKE-256(r).
    """
    made = np.zeros((len(organs), WIDTH))
    for row, organ in zip(made, organs, strict=True):
        text = f" {PROMPT.format(organ.replace('_', ' ')).lower()} "
        for start in range(len(text) - 2):
            run = text[start : start + 3].encode()
            bits = np.unpackbits(np.frombuffer(hashlib.shake_256(run).digest(WIDTH // 8), np.uint8))
            row += 2.0 * bits - 1.0
    length = np.sqrt(np.square(made).sum(-1, keepdims=True))
    return (10 * made / length).astype(np.float32)


def spoken(organ: str) -> str:
    """The name in plain words: "adrenal_gland_left" is "left adrenal gland"."""
    words = organ.replace("_", " ").split()
    if len(words) > 1 and words[-1] in ("left", "right"):
        words = [words[-1], *words[:-1]]
    return " ".join(words)


def read_embeddings(
    source: Source, count: int, organs: Sequence[str] | None = None
) -> Float32[np.ndarray, "count w"]:
    """The vectors of ``count`` organs.

    Args:
        source: an .npy file or an array (count, w), in the order of the labels; an .npz file with
            ``embeddings`` (n, w) and ``names`` (n,), of any order; None for `DEFAULT`.
        count: how many organs there are; the background is none.
        organs: their names, in the order of the labels; None for the file's first ones.

    Raises:
        ValueError: another kind of file, other shapes, values that are not finite, an organ that
            the file has not, a name that it has twice, or fewer names or vectors than organs.
        FileNotFoundError: no such file.
    """
    if organs is not None and len(organs) != count:
        raise ValueError(f"organs={tuple(organs)}: {len(organs)} names for {count} organs")
    told = "embeddings" if isinstance(source, np.ndarray) else f"embeddings={source or DEFAULT}"
    names, vectors = _read(DEFAULT if source is None else source, told)
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating) or not vectors.size:
        raise ValueError(f"{told}: {vectors.dtype} {vectors.shape}; expected floats (organs, w)")
    if not np.isfinite(vectors).all():
        raise ValueError(f"{told}: NaN or infinite values; expected finite vectors")
    if names is None:
        if len(vectors) != count:
            raise ValueError(f"{told}: {len(vectors)} vectors for {count} organs")
        return vectors.astype(np.float32)
    if len(names) != len(vectors) or len(names) < count:
        raise ValueError(
            f"{told}: {len(vectors)} vectors with {len(names)} names for {count} organs"
        )
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{told}: {twice[0]!r} is named twice; expected each name once")
    for organ in organs or ():
        if organ not in names:
            raise unknown(f"organ of {told},", organ, names)
    rows = range(count) if organs is None else [names.index(organ) for organ in organs]
    return vectors[list(rows)].astype(np.float32)


def _read(source: str | Path | np.ndarray, told: str) -> tuple[list[str] | None, np.ndarray]:
    """(names or None, vectors)."""
    if isinstance(source, np.ndarray):
        return None, source
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{told}: no such file")
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"{told}: expected an .npy or .npz file")
    try:
        found = np.load(path, allow_pickle=False)
        if path.suffix == ".npy":
            return None, found
        with found:
            return [str(name) for name in found["names"]], found["embeddings"]
    except KeyError:
        raise ValueError(f"{told}: expected arrays 'names' and 'embeddings'") from None
    except Exception as error:
        raise ValueError(f"{told}: cannot be read: {error}") from error
