"""Distances between two surfaces: Hausdorff at a percentile, and average symmetric, in mm.

| convention | surface | percentile | average |
| --- | --- | --- | --- |
| "touchstone", "monai" | voxels with a face outside | linear between voxels | a voxel |
| "deepmind" | marching-cubes elements | first to reach its share of area | by area |

Touchstone publishes no distances; its name stands for its surfaces, those of its NSD.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from touchstone_jax.metrics import arguments
from touchstone_jax.metrics.distance import transform
from touchstone_jax.metrics.edges import compact, voxel_edges
from touchstone_jax.metrics.overlap import CONVENTIONS
from touchstone_jax.metrics.percentile import linear_percentile, smallest
from touchstone_jax.metrics.surfels import border, surfel_areas, surfel_codes

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped

DISTANCE_EMPTY = ("convention", "nan", "zero_or_inf", "diagonal", "nan_without_reference")
"""Policies for distances to or from an empty mask, see `hd95`."""

DIRECTIONS = ("both", "pred_to_ref", "ref_to_pred")
"""Surfaces from which `assd` averages."""


def hd95(
    pred: Shaped[Array | np.ndarray, "*space"],
    ref: Shaped[Array | np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    *,
    num_classes: int | None = None,
    percentile: float = 95.0,
    convention: str = "touchstone",
    empty: str = "convention",
) -> Float[Array, "*classes"]:
    """Hausdorff distance at a percentile, mm: () for boolean masks, (num_classes,) for label maps.

    The larger of the two directed ones (Huttenlocher et al. 1993); 100 gives the maximum.

    Args:
        pred: boolean mask, 2-D or 3-D, or with ``num_classes`` integer labels.
        ref: the same for the reference.
        spacing_mm: mm between voxels along each axis, known before jit.
        num_classes: number of labels, the background 0 included; its value comes first.
        percentile: of the distances, in 0..100.
        convention: "touchstone", "monai" or "deepmind" (see the module).
        empty: value where a mask is empty:
            "convention": both empty NaN ("deepmind": infinity), one empty infinity ("monai": NaN
            below percentile 100, the library interpolates between infinities);
            "nan": NaN in both cases;
            "zero_or_inf": both empty 0, one empty infinity;
            "diagonal": both empty 0, one empty the diagonal of the volume in mm;
            "nan_without_reference": NaN wherever the reference is empty, else the convention's.

    Raises:
        ValueError: unknown option, percentile out of range, unlike shapes, neither 2-D nor 3-D,
            another type of mask, a label out of range (under jit and vmap such voxels belong to
            no class), bad spacing.
    """
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile={percentile}; must lie in 0..100")
    spacing = _check("Hausdorff distance", pred, ref, spacing_mm, convention, empty)
    masks = arguments.pair(pred, ref, num_classes)
    by_area, what = convention == "deepmind", "max" if percentile == 100 else "percentile"
    share = (Fraction(percentile) / 100).limit_denominator(2**14).as_integer_ratio()
    forth, back, sizes = _directed(*masks, *_scales(spacing), share, num_classes, by_area, what)
    value = jnp.maximum(forth, back)
    absent = absent_hd(convention, percentile)
    return _with_policy(
        value, sizes, absent, empty, _diagonal(spacing, np.shape(pred)), num_classes
    )


def assd(
    pred: Shaped[Array | np.ndarray, "*space"],
    ref: Shaped[Array | np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    *,
    num_classes: int | None = None,
    direction: str = "both",
    convention: str = "touchstone",
    empty: str = "convention",
) -> Float[Array, "*classes"]:
    """Average symmetric surface distance, mm: () for masks, (num_classes,) for label maps.

    The mean over all elements of both surfaces together (Heimann et al. 2009, eq. 4), not the
    mean of the two directions' means.

    Args:
        pred: boolean mask, 2-D or 3-D, or with ``num_classes`` integer labels.
        ref: the same for the reference.
        spacing_mm: mm between voxels along each axis, known before jit.
        num_classes: number of labels, the background 0 included; its value comes first.
        direction: "both", or "pred_to_ref" or "ref_to_pred" for the mean over one surface.
        convention: "touchstone", "monai" or "deepmind" (see the module).
        empty: as in `hd95`; of the conventions here: both empty NaN, one empty infinity
            ("deepmind": NaN where it is the surface to average over).

    Raises:
        ValueError: as in `hd95`, and for an unknown direction.
    """
    arguments.known("direction", direction, DIRECTIONS)
    spacing = _check("average surface distance", pred, ref, spacing_mm, convention, empty)
    masks = arguments.pair(pred, ref, num_classes)
    by_area = convention == "deepmind"
    forth, back, sizes = _directed(*masks, *_scales(spacing), (1, 1), num_classes, by_area, "sum")
    total = {"both": forth + back, "pred_to_ref": forth, "ref_to_pred": back}[direction]
    size = {"both": sizes.sum(1), "pred_to_ref": sizes[:, 0], "ref_to_pred": sizes[:, 1]}[direction]
    value = total / jnp.where(size > 0, size, jnp.ones((), size.dtype))
    absent = absent_assd(convention, direction)
    return _with_policy(
        value, sizes, absent, empty, _diagonal(spacing, np.shape(pred)), num_classes
    )


def absent_hd(convention: str, percentile: float) -> tuple[float, float, float]:
    """Hausdorff distance of a convention if both, the prediction, or the reference is empty."""
    inf, nan = float("inf"), float("nan")
    if convention == "deepmind":
        return inf, inf, inf
    if convention == "monai" and percentile < 100:
        return nan, nan, nan
    return nan, inf, inf


def absent_assd(convention: str, direction: str) -> tuple[float, float, float]:
    """The same for the average surface distance."""
    inf, nan = float("inf"), float("nan")
    if convention == "deepmind" and direction != "both":
        return (nan, nan, inf) if direction == "pred_to_ref" else (nan, inf, nan)
    return nan, inf, inf


def _check(
    name: str,
    pred: Array | np.ndarray,
    ref: Array | np.ndarray,
    spacing_mm: Sequence[float],
    convention: str,
    empty: str,
) -> tuple[float, ...]:
    arguments.known("convention", convention, CONVENTIONS)
    arguments.known("policy for empty masks", empty, DISTANCE_EMPTY)
    arguments.volume(name, np.shape(pred))
    return arguments.spacing(spacing_mm, np.shape(pred))


def _scales(spacing: tuple[float, ...]) -> tuple[Array, Array]:
    """Spacing and areas as arrays: one program serves all cases of a shape."""
    dtype = jnp.result_type(float)
    return jnp.asarray(spacing, dtype), jnp.asarray(surfel_areas(spacing), dtype)


def _diagonal(spacing: tuple[float, ...], shape: tuple[int, ...]) -> float:
    return float(np.linalg.norm(np.multiply(spacing, shape)))


def _with_policy(
    value: Array,
    sizes: Array,
    absent: tuple[float, float, float],
    empty: str,
    diagonal: float,
    num_classes: int | None,
) -> Array:
    """``value``, but where both, only the prediction or only the reference is empty."""
    inf, nan = float("inf"), float("nan")
    both, no_pred, no_ref = {
        "nan": (nan, nan, nan),
        "zero_or_inf": (0.0, inf, inf),
        "diagonal": (0.0, diagonal, diagonal),
        "nan_without_reference": (nan, absent[1], nan),
    }.get(empty, absent)
    has_pred, has_ref = sizes[:, 0] > 0, sizes[:, 1] > 0
    for where, told in (
        (~has_pred & ~has_ref, both),
        (~has_pred & has_ref, no_pred),
        (has_pred & ~has_ref, no_ref),
    ):
        value = jnp.where(where, jnp.asarray(told, value.dtype), value)
    return value[0] if num_classes is None else value


@partial(jax.jit, static_argnums=(5, 6, 7))
def _directed(
    pred: Array,
    ref: Array,
    spacing: Array,
    areas: Array,
    share: tuple[Array, Array],
    num_classes: int | None,
    by_area: bool,
    what: str,
) -> tuple[Array, Array, Array]:
    """Measure of the distances from pred to ref, from ref to pred; sizes (classes, 2) of both."""
    pred, none = compact(pred, num_classes)
    ref, _ = compact(ref, num_classes)
    surface = _elements if by_area else _voxels

    def one(label: Array) -> tuple[Array, Array, Array]:
        (p, size_p), (r, size_r) = (surface(x, label, none, areas) for x in (pred, ref))
        # A loop over the two ways, so that the transform is compiled once.
        forth, back = lax.map(
            lambda way: _measure(transform(~way[2], spacing), way[0], way[1], share, by_area, what),
            (jnp.stack([p, r]), jnp.stack([size_p, size_r]), jnp.stack([r, p])),
        )
        return forth, back, jnp.stack([size_p.sum(), size_r.sum()])

    return lax.map(one, jnp.arange(none, dtype=pred.dtype))


def _voxels(labels: Array, label: Array, none: int, areas: Array) -> tuple[Array, Array]:
    """Edge voxels of a class, and 1 for each."""
    edges = voxel_edges(labels, none) == label
    return edges, edges.astype(areas.dtype)


def _elements(labels: Array, label: Array, none: int, areas: Array) -> tuple[Array, Array]:
    """Corners with a surface element of a class, and their areas in mm²."""
    codes = surfel_codes(labels == label)
    return border(codes), areas[codes.astype(jnp.int32)]


def _measure(
    distance: Array,
    surface: Array,
    size: Array,
    share: tuple[Array, Array],
    by_area: bool,
    what: str,
) -> Array:
    """Sum by size, maximum, or percentile, of the distances where there is surface."""
    zero = jnp.zeros((), distance.dtype)
    if what == "sum":
        return jnp.where(surface, distance * size, zero).sum()
    if what == "max":
        return jnp.where(surface, distance, zero).max(initial=0.0)
    if by_area:
        top, bottom = (x.astype(size.dtype) for x in share)
        return smallest(distance, size, size.sum() * (top / bottom))
    return linear_percentile(distance, surface, share)
