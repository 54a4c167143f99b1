"""Whether a map is faithful: deletion and insertion of the most relevant pixels."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from isnet_jax.attribution import Function, Target, checked, classes_of, filled, selected
from isnet_jax.scores.pixels import NAN, pixels, settle

Array = jax.Array


class Perturbation(NamedTuple):
    """Result of `deletion_auc` and `insertion_auc`.

    Attributes:
        auc: (b,) area under the curve in [0, 1], by trapezoids.
        curve: (b, steps + 1) softmax probability of the target; first nothing is changed, last
            every pixel.
    """

    auc: Array
    curve: Array


def deletion_auc(
    f: Function,
    x: Array | np.ndarray,
    relevance: Array | np.ndarray,
    target: Target = None,
    *,
    steps: int = 16,
    baseline: float | Array | np.ndarray = 0.0,
    pool: str = "sum",
    zero_map: float = NAN,
) -> Perturbation:
    """Probability of the target while the most relevant pixels are removed first; low is good.

    Deletion of Petsiuk et al. 2018. Pixels go in ``steps`` chunks, equal up to rounding, all
    channels at once; equal values in row-major order. One forward of the whole batch a step.

    Args:
        f: x to logits (b, k).
        x: (b, *space, c) float.
        relevance: (b, *space, any).
        target: None, the class predicted at x; a class; or (b,) classes.
        steps: chunks, 1 to the number of pixels.
        baseline: what replaces a pixel; a number or an array that broadcasts to x.
        pool: one value of a pixel's channels, see the module.
        zero_map: ``auc`` for a map that is zero everywhere: it ranks nothing.

    Raises:
        ValueError: bad x, f, target, relevance, steps, baseline or pool.
    """
    x = checked(x)
    return _perturb(f, x, x, filled(baseline, x), relevance, target, steps, pool, zero_map)


def insertion_auc(
    f: Function,
    x: Array | np.ndarray,
    relevance: Array | np.ndarray,
    target: Target = None,
    *,
    steps: int = 16,
    baseline: float | Array | np.ndarray = 0.0,
    pool: str = "sum",
    zero_map: float = NAN,
) -> Perturbation:
    """Probability of the target while the most relevant pixels enter the baseline; high is good.

    Insertion of Petsiuk et al. 2018, who start at a blurred x. Else as `deletion_auc`.
    """
    x = checked(x)
    return _perturb(f, x, filled(baseline, x), x, relevance, target, steps, pool, zero_map)


def _perturb(
    f: Function,
    x: Array,
    first: Array,
    last: Array,
    relevance: Array | np.ndarray,
    target: Target,
    steps: int,
    pool: str,
    zero_map: float,
) -> Perturbation:
    relevance = jnp.asarray(relevance)
    if relevance.ndim < 3 or relevance.shape[:-1] != x.shape[:-1]:
        raise ValueError(f"relevance {relevance.shape} and x {x.shape} differ before the channels")
    value = pixels(relevance, pool)
    count = value.shape[1]
    if not 1 <= steps <= count:
        raise ValueError(f"steps={steps}; must lie in 1..{count}, the number of pixels")
    classes = classes_of(f, x, target)
    order = jnp.argsort(value, axis=-1, descending=True, stable=True)
    rank = jnp.argsort(order, axis=-1).reshape(*x.shape[:-1], 1)

    def probability(changed: Array) -> Array:
        logits = f(jnp.where(rank < changed, last, first))
        return selected(jax.nn.softmax(logits, -1), classes)

    changed = np.round(np.linspace(0, count, steps + 1)).astype(np.int32)
    curve = jax.lax.map(probability, jnp.asarray(changed, rank.dtype)).T
    widths = jnp.asarray(np.diff(changed) / count, curve.dtype)
    auc = ((curve[:, 1:] + curve[:, :-1]) / 2) @ widths
    return Perturbation(settle(auc, relevance, zero_map), curve)
