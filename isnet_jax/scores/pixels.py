"""What the scores share: a value a pixel, the mask, and the policies where a score is undefined."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax.legal import check

Array = jax.Array
NAN = float("nan")

POOLS = ("sum", "abs", "positive")


def pixels(relevance: Array | np.ndarray, pool: str) -> Array:
    """One value a pixel: (b, n) of relevance (b, *space, c)."""
    check("pool", pool, POOLS)
    relevance = jnp.asarray(relevance, single(relevance.dtype))
    value = (jnp.abs(relevance) if pool == "abs" else relevance).sum(-1)
    value = jax.nn.relu(value) if pool == "positive" else value
    return value.reshape(value.shape[0], -1)


def single(dtype: np.dtype) -> np.dtype:
    """A map's type, float32 at least: counts of pixels do not fit half precision.

    Raises:
        ValueError: not floating point.
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"a map must be floating point, got {dtype}")
    return dtype if jnp.finfo(dtype).bits >= 32 else np.dtype(np.float32)


def inside_of(relevance: Array | np.ndarray, mask: Array | np.ndarray, what: str) -> Array:
    """The mask as booleans (b, n): any value above 0 is inside."""
    if relevance.ndim < 3 or mask.shape != (*relevance.shape[:-1], 1):
        raise ValueError(
            f"{what}: relevance {relevance.shape} and mask {mask.shape}, "
            "expected (b, *space, c) and (b, *space, 1)"
        )
    return jnp.reshape(mask > jnp.zeros((), mask.dtype), (mask.shape[0], -1))


def settle(
    score: Array,
    relevance: Array | np.ndarray,
    zero_map: float | Array,
    inside: Array | None = None,
    empty_mask: float | Array = NAN,
) -> Array:
    """The score (b,), or the policy's value where it is undefined."""
    axes = tuple(range(1, relevance.ndim))
    if inside is not None:
        score = jnp.where(inside.any(-1), score, jnp.asarray(empty_mask, score.dtype))
    score = jnp.where((relevance != 0).any(axes), score, jnp.asarray(zero_map, score.dtype))
    return jnp.where(jnp.isfinite(relevance).all(axes), score, jnp.asarray(jnp.nan, score.dtype))
