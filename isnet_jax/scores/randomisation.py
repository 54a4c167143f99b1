"""Whether a map is of the model: its rank correlation with that of randomised parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax.attribution import checked
from isnet_jax.legal import check
from isnet_jax.scores.pixels import NAN, single

Array = jax.Array

RANDOMISERS = ("shuffle", "normal")


def parameter_randomisation(
    explainer: Callable[[Any, Array], Array],
    params: Any,
    x: Array | np.ndarray,
    *,
    rng: Array,
    layers: Sequence[str] | None = None,
    how: str = "shuffle",
    absolute: bool = False,
    constant_map: float = NAN,
) -> Array:
    """Rank correlation of maps before and after randomising parameters: (stages, b); low is good.

    Adebayo et al. 2018. Stage s randomises ``layers[0]`` to ``layers[s]`` together (cascading,
    if they are listed from the top); without ``layers`` there is one stage: all parameters.

    Args:
        explainer: (params, x) to maps (b, ...); it is traced once, so a pure function.
        params: pure nested dict of arrays.
        x: (b, *space, c) float.
        rng: random key.
        layers: slash paths into the dict, top first, each a layer or a group of layers, e.g.
            ("classifier", "blocks/1", "blocks/0").
        how: "shuffle" permutes the entries of every array, "normal" draws normal ones of its mean
            and standard deviation. Arrays of integers stay.
        absolute: rank the absolute values.
        constant_map: value where a map has a single value, so that no rank exists.

    Raises:
        ValueError: bad x, an unknown ``how``, or a layer that is no path of the dict.
    """
    check("randomiser", how, RANDOMISERS)
    x = checked(x)
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)
    paths = ["/".join(str(getattr(key, "key", key)) for key in path) for path, _ in leaves]
    stages = _stages(paths, layers)
    keys = jax.random.split(rng, len(leaves))
    fresh = [_randomised(k, leaf, how) for k, (_, leaf) in zip(keys, leaves, strict=True)]
    before = explainer(params, x)
    size = jnp.abs if absolute else lambda m: m

    def one(stage: Array) -> Array:
        mixed = [
            leaf if first is None else jnp.where(stage >= first, new, leaf)
            for first, new, (_, leaf) in zip(stages, fresh, leaves, strict=True)
        ]
        after = explainer(jax.tree.unflatten(tree, mixed), x)
        return rank_correlation(size(before), size(after), constant_map=constant_map)

    return jax.lax.map(one, jnp.arange(1 if layers is None else len(layers)))


def rank_correlation(
    a: Array | np.ndarray, b: Array | np.ndarray, *, constant_map: float = NAN
) -> Array:
    """Spearman's rank correlation of each pair of maps, ties at their mean rank: (b, ...) to (b,).

    Args:
        a: (b, ...) float.
        b: the same shape.
        constant_map: value where either has a single value, so that no rank exists.

    Raises:
        ValueError: unlike shapes.
    """
    a, b = jnp.asarray(a), jnp.asarray(b)
    if a.shape != b.shape or a.ndim < 2:
        raise ValueError(f"maps {a.shape} and {b.shape}; expected one shape (b, ...)")
    a, b = a.reshape(a.shape[0], -1), b.reshape(b.shape[0], -1)
    ra, rb = jax.vmap(_centred_ranks)(a), jax.vmap(_centred_ranks)(b)
    spread = jnp.sqrt((ra**2).sum(-1) * (rb**2).sum(-1))
    constant = jnp.asarray(constant_map, spread.dtype)
    score = jnp.where(spread > 0, (ra * rb).sum(-1) / spread, constant)
    finite = jnp.isfinite(a).all(-1) & jnp.isfinite(b).all(-1)
    return jnp.where(finite, score, jnp.asarray(jnp.nan, score.dtype))


def _centred_ranks(values: Array) -> Array:
    """Mid-ranks of (n,), centred and scaled into [-1/2, 1/2] so that sums stay small."""
    rising = jnp.sort(values)
    below = jnp.searchsorted(rising, values, side="left")
    upto = jnp.searchsorted(rising, values, side="right")
    ranks = (below + upto - values.size).astype(single(values.dtype))
    return ranks / (2 * values.size)


def _stages(paths: list[str], layers: Sequence[str] | None) -> list[int | None]:
    """The stage from which on each parameter is random; None if never."""
    if layers is None:
        return [0] * len(paths)
    if isinstance(layers, str) or not layers:
        raise ValueError(f"layers={layers!r}; expected a sequence of paths, top first, or None")
    under = lambda path, layer: path == layer or path.startswith(layer + "/")  # noqa: E731
    for layer in layers:
        if not any(under(path, layer) for path in paths):
            raise ValueError(f"no parameter under {layer!r}; there are: {', '.join(paths)}")
    return [next((s for s, ly in enumerate(layers) if under(p, ly)), None) for p in paths]


def _randomised(key: Array, leaf: Array, how: str) -> Array:
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    if how == "shuffle":
        return jax.random.permutation(key, leaf.ravel()).reshape(leaf.shape)
    return leaf.mean() + leaf.std() * jax.random.normal(key, leaf.shape, leaf.dtype)
