"""Volumes on other coordinates, smoothed, or with fewer voxels: JAX, for any device, static shapes.

Voxel coordinates count from the centre of voxel 0. For preparing data there is the exact
`touchstone_jax.prepare.resample`; what is here is meant for random changes while training.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def rotation(angles: Float[Array, "3"]) -> Float[Array, "3 3"]:
    """Rz Ry Rx for the angles (about x, y, z) in radians; turns right-handed."""
    made = jnp.eye(3, dtype=angles.dtype)
    for axis in range(3):
        a, b = ((1, 2), (2, 0), (0, 1))[axis]
        cos, sin = jnp.cos(angles[axis]), jnp.sin(angles[axis])
        one = jnp.eye(3, dtype=angles.dtype)
        one = one.at[a, a].set(cos).at[b, b].set(cos).at[a, b].set(-sin).at[b, a].set(sin)
        made = jnp.matmul(one, made, precision="highest")
    return made


def sample_linear(
    image: Float[Array, "x y z c"], at: Float[Array, "3 a b_ d"]
) -> Float[Array, "a b_ d c"]:
    """Trilinear interpolation at voxel coordinates; what lies outside counts as 0."""
    low = jnp.floor(at)
    part = at - low
    low = low.astype(jnp.int32)
    total = jnp.zeros((*at.shape[1:], image.shape[-1]), image.dtype)
    for corner in range(8):
        bits = [(corner >> axis) & 1 for axis in range(3)]
        index = [low[axis] + bits[axis] for axis in range(3)]
        weight = jnp.ones(at.shape[1:], image.dtype)
        for axis in range(3):
            inside = (index[axis] >= 0) & (index[axis] < image.shape[axis])
            share = part[axis] if bits[axis] else 1 - part[axis]
            weight *= jnp.where(inside, share, 0)
        total += weight[..., None] * image[_clipped(index, image.shape)]
    return total


def sample_nearest(
    labels: Integer[Array, "x y z"], at: Float[Array, "3 a b_ d"], outside: int
) -> Integer[Array, "a b_ d"]:
    """The label of the voxel nearest to each coordinate; ``outside`` beyond the border."""
    index = list(jnp.round(at).astype(jnp.int32))
    inside = jnp.ones(at.shape[1:], bool)
    for axis in range(3):
        inside &= (index[axis] >= 0) & (index[axis] < labels.shape[axis])
    return jnp.where(
        inside, labels[_clipped(index, labels.shape)], jnp.asarray(outside, labels.dtype)
    )


def _clipped(index: Sequence[Array], shape: Sequence[int]) -> tuple[Array, ...]:
    return tuple(jnp.clip(i, 0, n - 1) for i, n in zip(index, shape[:3], strict=True))


def gaussian_blur(
    image: Float[Array, "x y z c"], axis: int, sigma: Float[Array, " c"], *, radius: int
) -> Float[Array, "x y z c"]:
    """Gaussian of sigma voxels (one a channel) along an axis, cut at the radius; edges repeat."""
    taps = jnp.arange(-radius, radius + 1, dtype=image.dtype)
    weights = jnp.exp(-0.5 * jnp.square(taps[:, None] / sigma[None]))
    weights /= weights.sum(0, keepdims=True)
    pads = [(radius, radius) if a == axis else (0, 0) for a in range(4)]
    padded = jnp.pad(image, pads, mode="edge")
    size = image.shape[axis]
    parts = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(2 * radius + 1))
    return sum(w.reshape(1, 1, 1, -1) * part for w, part in zip(weights, parts, strict=True))


def fewer_voxels(
    image: Float[Array, "x y z c"], axis: int, zoom: Float[Array, ""]
) -> Float[Array, "x y z c"]:
    """An axis on round(n · zoom) voxels by the nearest, and back on n by linear interpolation."""
    n = image.shape[axis]
    m = jnp.maximum(jnp.round(n * zoom), 1)
    at = jnp.clip((jnp.arange(n, dtype=jnp.float32) + 0.5) * (m / n) - 0.5, 0, m - 1)
    low = jnp.floor(at)
    # Voxel k of the m is the one of the n that holds its centre.
    sources = [
        jnp.floor((jnp.minimum(k, m - 1) + 0.5) * (n / m)).astype(jnp.int32) for k in (low, low + 1)
    ]
    first, second = (jnp.take(image, jnp.clip(s, 0, n - 1), axis=axis) for s in sources)
    share = (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
    return first * (1 - share) + second * share
