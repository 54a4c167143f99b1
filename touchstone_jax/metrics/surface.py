"""Normalised surface distance (NSD): the share of two surfaces that lies within a tolerance.

| convention | surface | share of |
| --- | --- | --- |
| "touchstone", "monai" | voxels with a face to another class or to the border | voxels |
| "deepmind" | marching-cubes elements on the half-voxel grid | area (2-D: length) |

The first is ``monai.metrics.compute_surface_dice(use_subvoxels=False)``, which Touchstone calls
with 1.5 mm for every organ; the second Nikolov et al. (2018, 2021), PyPI's ``surface-distance``.
They differ by 0.01 to 0.15 on organs, by up to 0.5 on thin plates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from touchstone_jax.metrics import arguments
from touchstone_jax.metrics.ball import Ball, ball
from touchstone_jax.metrics.edges import compact, counts, voxel_edges, within
from touchstone_jax.metrics.overlap import check_options
from touchstone_jax.metrics.surfels import border, surfel_areas, surfel_codes

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Shaped


def nsd(
    pred: Shaped[Array | np.ndarray, "*space"],
    ref: Shaped[Array | np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    tolerance_mm: float | Sequence[float],
    *,
    num_classes: int | None = None,
    convention: str = "touchstone",
    empty: str = "convention",
) -> Float[Array, "*classes"]:
    """NSD of two 2-D or 3-D masks, in 0..1: () for boolean masks, (num_classes,) for label maps.

    A surface element counts if the other surface is at most ``tolerance_mm`` away, exactly that
    far included; lengths are compared in float32, so that ties by rounding count (see
    `ball.ball`; PyPI's ``surface-distance`` compares in float64 and drops some of them).
    For a batch, ``jax.vmap`` it. Not differentiable: its gradient is zero. In the first two
    conventions the cost does not depend on the number of classes.

    Args:
        pred: boolean mask, or with ``num_classes`` integer labels in 0..num_classes-1.
        ref: the same for the reference.
        spacing_mm: mm between voxels along each axis, known before jit.
        tolerance_mm: mm, infinity allowed; with ``num_classes`` also one a class.
        num_classes: number of labels, the background 0 included; its value comes first.
        convention: "touchstone", "monai" or "deepmind" (see the module).
        empty: value where both masks are empty: "convention" and "nan", NaN; "zero"; "one";
            "nan_without_reference", NaN wherever the reference is empty. Where only one mask is
            empty the NSD is 0.

    Raises:
        ValueError: unknown option, unlike shapes, neither 2-D nor 3-D, another type of mask, a
            label out of range (under jit and vmap such voxels belong to no class), bad spacing
            or tolerance.
    """
    check_options(convention, empty)
    arguments.volume("NSD", np.shape(pred))
    spacing = arguments.spacing(spacing_mm, np.shape(pred))
    tolerances = arguments.tolerances(tolerance_mm, num_classes)
    pred, ref = arguments.pair(pred, ref, num_classes)
    distinct = sorted(set(tolerances))
    if convention == "deepmind":
        areas = jnp.asarray(surfel_areas(spacing), jnp.result_type(float))
        corners = tuple(n + 1 for n in pred.shape)
        scores = [
            _by_area(pred, ref, areas, ball(t, spacing, corners), num_classes) for t in distinct
        ]
    else:
        scores = [
            _by_voxels(pred, ref, ball(t, spacing, pred.shape), num_classes) for t in distinct
        ]
    table = jnp.stack([_share(part, whole, has, empty) for part, whole, has in scores])
    if num_classes is None:
        return table[0, 0]
    picked = np.array([distinct.index(t) for t in tolerances])
    return table[picked, np.arange(num_classes)]


def _share(part: Array, whole: Array, referred: Array, empty: str) -> Float[Array, " classes"]:
    """Part over whole, and the policy where ``whole`` is 0."""
    dtype = jnp.result_type(float)
    neither = {"zero": 0.0, "one": 1.0}.get(empty, float("nan"))
    one = jnp.ones((), whole.dtype)
    share = part.astype(dtype) / jnp.where(whole > 0, whole, one).astype(dtype)
    share = jnp.where(whole > 0, share, jnp.asarray(neither, dtype))
    if empty == "nan_without_reference":
        return jnp.where(referred > 0, share, jnp.asarray(jnp.nan, dtype))
    return share


@partial(jax.jit, static_argnums=(2, 3))
def _by_voxels(
    pred: Array, ref: Array, near: Ball, num_classes: int | None
) -> tuple[Array, Array, Array]:
    """Edge voxels of each class: hit, of both masks, of the reference; uint32."""
    pred, none = compact(pred, num_classes)
    ref, _ = compact(ref, num_classes)
    p, r = voxel_edges(pred, none), voxel_edges(ref, none)
    told = counts((p, within(p, r, near, none)), (r, within(r, p, near, none)), none)
    hits, whole = told[:, 1].sum(0, dtype=jnp.uint32), told.sum((0, 1), dtype=jnp.uint32)
    return hits, whole, told[1].sum(0, dtype=jnp.uint32)


@partial(jax.jit, static_argnums=(3, 4))
def _by_area(
    pred: Array, ref: Array, areas: Array, near: Ball, num_classes: int | None
) -> tuple[Array, Array, Array]:
    """Surface of each class, mm²: hit, of both masks, of the reference."""
    pred, none = compact(pred, num_classes)
    ref, _ = compact(ref, num_classes)

    def one(label: Array) -> Array:
        codes = [surfel_codes(x == label) for x in (pred, ref)]
        p, r = (jnp.where(border(c), jnp.uint8(0), jnp.uint8(1)) for c in codes)
        hits = within(p, r, near, 1), within(r, p, near, 1)
        # A lookup and a sum, not a histogram of patterns: scatters cost more than all the rest.
        sizes = [areas[c.astype(jnp.int32)] for c in codes]
        zero = jnp.zeros((), areas.dtype)
        hit = sum(jnp.where(h, s, zero).sum() for h, s in zip(hits, sizes, strict=True))
        whole = sizes[0].sum() + sizes[1].sum()
        # Two sums of the same numbers may differ in the last bit.
        return jnp.stack([jnp.minimum(hit, whole), whole, sizes[1].sum()])

    hit, whole, referred = lax.map(one, jnp.arange(none, dtype=pred.dtype)).T
    return hit, whole, referred
