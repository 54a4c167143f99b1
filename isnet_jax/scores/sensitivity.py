"""Whether a map is robust: its largest change under small noise in the image."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax.attribution import checked
from isnet_jax.scores.pixels import NAN, settle

Array = jax.Array


def max_sensitivity(
    explainer: Callable[[Array], Array],
    x: Array | np.ndarray,
    *,
    rng: Array,
    samples: int = 16,
    radius: float = 0.05,
    zero_map: float = NAN,
) -> Array:
    """Largest relative change of the map under small noise in x: (b,) >= 0; low is good.

    ``max_u ||E(x + u) - E(x)|| / ||E(x)||`` with Frobenius norms over uniform u in
    [-radius, radius] (Yeh et al. 2019).

    Args:
        explainer: E, x to maps (b, ...); it is traced, so a pure function (`lrp.relevance` or an
            attribution; `explain` looks at values and cannot be traced).
        x: (b, *space, c) float.
        rng: random key.
        samples: draws of u, one at a time, >= 1.
        radius: in units of x.
        zero_map: value where E(x) is zero everywhere.

    Raises:
        ValueError: bad x or samples.
    """
    x = checked(x)
    if samples < 1:
        raise ValueError(f"samples={samples}; must be at least 1")
    maps = explainer(x)
    norm = lambda m: jnp.sqrt((m**2).sum(tuple(range(1, m.ndim))))  # noqa: E731
    own = norm(maps)

    def worse(worst: Array, i: Array) -> tuple[Array, None]:
        u = jax.random.uniform(jax.random.fold_in(rng, i), x.shape, x.dtype, -1, 1)
        return jnp.maximum(worst, norm(explainer(x + radius * u) - maps)), None

    worst, _ = jax.lax.scan(worse, jnp.zeros_like(own), jnp.arange(samples))
    score = settle(worst / own, maps, zero_map)
    return jnp.where(jnp.isfinite(worst), score, jnp.asarray(jnp.nan, score.dtype))
