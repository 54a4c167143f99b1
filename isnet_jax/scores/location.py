"""Where a map lies: mass in the mask, relevance rank, pointing game, overlap with the mask."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax.scores.pixels import NAN, inside_of, pixels, settle, single
from touchstone_jax.metrics import dice

Array = jax.Array


@jax.jit
def mass_in_mask(
    relevance: Array | np.ndarray,
    mask: Array | np.ndarray,
    *,
    empty_mask: float = 0.0,
    zero_map: float = NAN,
) -> Array:
    """Share of each map's absolute relevance that lies in its mask: (b,) in [0, 1].

    ``sum(|R| * mask) / sum(|R|)`` over pixels and channels, the quantity that the ISNet's losses
    look at (relevance mass accuracy, Arras et al. 2022, of absolute values).

    Args:
        relevance: (b, *space, c) float.
        mask: (b, *space, 1), 1 inside, any dtype; values between count in part.
        empty_mask: value for a mask without a pixel.
        zero_map: value for a map that is zero everywhere.

    Raises:
        ValueError: shapes that do not fit.
    """
    inside = inside_of(relevance, mask, "mass_in_mask")
    size = jnp.abs(relevance.astype(single(relevance.dtype)))
    axes = tuple(range(1, size.ndim))
    share = (size * jnp.asarray(mask, size.dtype)).sum(axes) / size.sum(axes)
    return settle(share, relevance, zero_map, inside, empty_mask)


@partial(jax.jit, static_argnames="pool")
def relevance_rank(
    relevance: Array | np.ndarray,
    mask: Array | np.ndarray,
    *,
    pool: str = "sum",
    empty_mask: float = NAN,
    zero_map: float = NAN,
) -> Array:
    """Share of the k most relevant pixels that lie in the mask of k pixels: (b,) in [0, 1].

    Relevance rank accuracy (Arras et al. 2022). Pixels tied at rank k count with the share of
    the ties that is inside, so the order of pixels never matters.

    Args:
        relevance: (b, *space, c) float.
        mask: (b, *space, 1), above 0 inside.
        pool: one value of a pixel's channels, see the module.
        empty_mask: value for a mask without a pixel.
        zero_map: value for a map that is zero everywhere.

    Raises:
        ValueError: shapes that do not fit, or an unknown pool.
    """
    inside = inside_of(relevance, mask, "relevance_rank")
    value = pixels(relevance, pool)
    k = inside.sum(-1, keepdims=True)
    least = _kth_largest(value, k)
    above, tied = value > least, value == least
    count = lambda hits: hits.sum(-1).astype(value.dtype)  # noqa: E731
    room = k[:, 0].astype(value.dtype) - count(above)
    hits = count(above & inside) + room * count(tied & inside) / count(tied)
    return settle(hits / k[:, 0].astype(value.dtype), relevance, zero_map, inside, empty_mask)


@partial(jax.jit, static_argnames="pool")
def pointing_game(
    relevance: Array | np.ndarray,
    mask: Array | np.ndarray,
    *,
    tolerance: float = 0.0,
    pool: str = "sum",
    empty_mask: float = NAN,
    zero_map: float = NAN,
) -> Array:
    """1 where the most relevant pixel lies in the mask, else 0: (b,) (Zhang et al. 2018).

    Of several equal maxima the first in row-major order counts.

    Args:
        relevance: (b, *space, c) float.
        mask: (b, *space, 1), above 0 inside.
        tolerance: Euclidean distance in pixels, centre to centre, that still is a hit (15 in the
            paper, for photos).
        pool: one value of a pixel's channels, see the module.
        empty_mask: value for a mask without a pixel.
        zero_map: value for a map that is zero everywhere.

    Raises:
        ValueError: shapes that do not fit, or an unknown pool.
    """
    inside = inside_of(relevance, mask, "pointing_game")
    value = pixels(relevance, pool)
    space = relevance.shape[1:-1]
    places = np.indices(space, np.int32).reshape(len(space), -1)  # (d, n)
    top = jnp.asarray(places)[:, value.argmax(-1)]  # (d, b)
    squared = ((places[:, None] - top[..., None]) ** 2).sum(0).astype(value.dtype)  # (b, n)
    reach = jnp.asarray(tolerance, value.dtype) ** 2
    hit = (inside & (squared <= reach)).any(-1).astype(value.dtype)
    return settle(hit, relevance, zero_map, inside, empty_mask)


@partial(jax.jit, static_argnames=("quantile", "pool", "convention"))
def heatmap_mask_dsc(
    relevance: Array | np.ndarray,
    mask: Array | np.ndarray,
    *,
    quantile: float | None = None,
    pool: str = "positive",
    convention: str = "deepmind",
    empty_mask: float = NAN,
    zero_map: float = 0.0,
) -> Array:
    """DSC of the thresholded map and the mask: (b,) in [0, 1].

    The map's foreground are the pixels above 0 and at or above a threshold: the k-th largest
    value for a mask of k pixels, or a quantile. Ties at the threshold are all foreground.

    Args:
        relevance: (b, *space, c) float.
        mask: (b, *space, 1), above 0 inside.
        quantile: None for the k-th largest value; else of each map's pixels, in [0, 1].
        pool: one value of a pixel's channels, see the module.
        convention: of `touchstone_jax.metrics.dice`; the default is the plain DSC.
        empty_mask: value for a mask without a pixel.
        zero_map: value for a map that is zero everywhere.

    Raises:
        ValueError: shapes that do not fit, another quantile, an unknown pool or convention.
    """
    inside = inside_of(relevance, mask, "heatmap_mask_dsc")
    value = pixels(relevance, pool)
    if quantile is None:
        least = _kth_largest(value, inside.sum(-1, keepdims=True))
    else:
        if not 0 <= quantile <= 1:
            raise ValueError(f"quantile={quantile}; must lie in [0, 1]")
        least = jnp.quantile(value, jnp.asarray(quantile, value.dtype), axis=-1, keepdims=True)
    found = (value > 0) & (value >= least)
    score = jax.vmap(partial(dice, convention=convention))(found, inside).astype(value.dtype)
    return settle(score, relevance, zero_map, inside, empty_mask)


def _kth_largest(value: Array, k: Array) -> Array:
    """(b, 1) of value (b, n) and k (b, 1); the largest for k = 0."""
    falling = jnp.sort(value, axis=-1, descending=True)
    return jnp.take_along_axis(falling, jnp.maximum(k - 1, 0), -1)
