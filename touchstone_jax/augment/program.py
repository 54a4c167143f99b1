"""Random changes of a patch and its labels on the device: nnU-Net's, in one compiled program.

Every function takes one patch (x, y, z, c) and a key, is pure, keeps shapes static, and is meant
for `jax.vmap` over a batch with a key for each sample. Probabilities, ranges and order are those of
nnU-Net's second version (Isensee et al. 2021; ``nnUNetTrainer.get_training_transforms`` and
batchgeneratorsv2). Departures, on purpose: angles are true in mm for any spacing and patch; what
comes from outside of the patch has the label `touchstone_jax.losses.IGNORE`; labels are taken from
the nearest voxel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key, UInt8

from touchstone_jax.augment.settings import Augmentation
from touchstone_jax.augment.warp import (
    fewer_voxels,
    gaussian_blur,
    rotation,
    sample_linear,
    sample_nearest,
)
from touchstone_jax.losses import IGNORE

Image = Float32[Array, "x y z c"]


def augment_batch(
    key: Key[Array, ""],
    image: Float[Array, "b x y z c"],
    labels: UInt8[Array, "b x y z"],
    settings: Augmentation,
    *,
    patch: Sequence[int],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Float32[Array, "b px py pz c"], UInt8[Array, "b px py pz"]]:
    """`augment` of every sample with a key of its own."""
    keys = jax.random.split(key, image.shape[0])
    one = partial(augment, settings=settings, patch=tuple(patch), spacing_mm=tuple(spacing_mm))
    return jax.vmap(one)(keys, image, labels)


def augment(
    key: Key[Array, ""],
    image: Float[Array, "x y z c"],
    labels: UInt8[Array, "x y z"],
    settings: Augmentation,
    *,
    patch: Sequence[int],
    spacing_mm: Sequence[float] = (1.0, 1.0, 1.0),
) -> tuple[Float32[Array, "px py pz c"], UInt8[Array, "px py pz"]]:
    """A changed patch out of the middle of a block that may be larger, and its labels.

    Args:
        key: decides everything.
        image: normalised intensities; computed in float32.
        labels: any; the same voxels.
        settings: probabilities and ranges.
        patch: voxels (px, py, pz) wanted, at most those of the block. A margin around the patch
            gives rotation something to turn into view.
        spacing_mm: of the block along (x, y, z), in mm.

    Raises:
        ValueError: a patch larger than the block, or labels of another shape.
    """
    larger = any(p > n for p, n in zip(patch, image.shape[:3], strict=True))
    if labels.shape != image.shape[:3] or larger:
        raise ValueError(
            f"patch {tuple(patch)}, image {image.shape[:3]}, labels {labels.shape}: expected a "
            "patch no larger than image and labels, which share a shape"
        )
    uniforms, normal = jax.random.split(key)
    draws = _Draws(uniforms, image.shape[-1])
    image = image.astype(jnp.float32)
    image, labels = _spatial(draws, image, labels, settings, patch, spacing_mm)
    for chance, change in (
        (settings.noise_p, partial(_noise, key=normal)),
        (settings.blur_p, _blur),
        (settings.brightness_p, _brightness),
        (settings.contrast_p, _contrast),
        (settings.low_resolution_p, _low_resolution),
        (settings.gamma_inverted_p, partial(_gamma, inverted=True)),
        (settings.gamma_p, _gamma),
    ):
        if chance:  # else it costs nothing
            image = jnp.where(draws.happens(chance), change(draws, image, settings), image)
    return _mirror(draws, image, labels, settings)


class _Draws:
    """Uniform numbers of one key, handed out in turn: one generator to compile, not thirty."""

    def __init__(self, key: Array, channels: int) -> None:
        self._values = jax.random.uniform(key, (24 + 16 * channels,), jnp.float32)
        self._next, self._channels = 0, (1, 1, 1, channels)

    def uniform(self, bounds: Sequence[float] = (0.0, 1.0), shape: Sequence[int] = ()) -> Array:
        """Numbers in [low, high)."""
        low, high = bounds
        stop = self._next + math.prod(shape)
        values, self._next = self._values[self._next : stop].reshape(shape), stop
        return low + (high - low) * values

    def happens(self, chance: float, shape: Sequence[int] = ()) -> Array:
        """True with a probability."""
        return self.uniform(shape=shape) < chance

    def channels(self, chance: float) -> Array:
        """`happens` for each channel, (1, 1, 1, c)."""
        return self.happens(chance, self._channels)

    def factors(self, bounds: Sequence[float]) -> Array:
        """(1, 1, 1, c): below 1 as often as above, however far the bounds are from it.

        That is nnU-Net's BGContrast.
        """
        low, high = bounds
        if not low < 1 < high:
            return self.uniform(bounds, self._channels)
        smaller = self.channels(0.5)
        return jnp.where(
            smaller, self.uniform((low, 1), self._channels), self.uniform((1, high), self._channels)
        )


# ------------------------------------------------------------------------- where voxels come from


def _spatial(
    draws: _Draws,
    image: Image,
    labels: Array,
    settings: Augmentation,
    patch: Sequence[int],
    spacing_mm: Sequence[float],
) -> tuple[Image, Array]:
    """Rotation and scaling about the middle of the block in one resampling, else the crop."""
    first = [(n - p) // 2 for n, p in zip(labels.shape, patch, strict=True)]
    if settings.rotation_p == 0 and settings.scaling_p == 0:
        middle = tuple(slice(f, f + p) for f, p in zip(first, patch, strict=True))
        return image[middle], labels[middle]
    matrix = _matrix(draws, settings, spacing_mm)
    at = _coordinates(matrix, patch, first)
    return sample_linear(image, at), sample_nearest(labels, at, IGNORE)


def _coordinates(
    matrix: Float[Array, "3 3"], patch: Sequence[int], first: Sequence[int]
) -> Float[Array, "3 px py pz"]:
    """Where in the block each voxel of the patch comes from; without a change, the plain crop.

    Term by term: a matrix product would round on accelerators, and the sum over an axis of a
    product that is broadcast is wrong in XLA of jax 0.10 on CPUs for a batch of one.
    """
    half = [(p - 1) / 2 for p in patch]
    away = [
        (jnp.arange(p, dtype=jnp.float32) - h).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, (p, h) in enumerate(zip(patch, half, strict=True))
    ]
    rows = [
        matrix[i, 0] * away[0] + matrix[i, 1] * away[1] + matrix[i, 2] * away[2] for i in range(3)
    ]
    return jnp.stack([row + (f + h) for row, f, h in zip(rows, first, half, strict=True)])


def _matrix(
    draws: _Draws, settings: Augmentation, spacing_mm: Sequence[float]
) -> Float[Array, "3 3"]:
    """From offsets in the patch to offsets in the block, both in voxels."""
    coarse = settings.coarse_axis
    degrees = jnp.asarray(
        [d if coarse in (None, a) else 0.0 for a, d in enumerate(settings.rotation_degrees)]
    )
    turned = jnp.deg2rad(degrees * draws.uniform((-1.0, 1.0), (3,)))
    angles = jnp.where(draws.happens(settings.rotation_p), turned, 0)
    scaled = draws.uniform(settings.scaling)
    factor = jnp.where(draws.happens(settings.scaling_p), scaled, 1)
    factors = [1.0 if a == coarse else factor for a in range(3)]
    spacing = jnp.asarray(spacing_mm, jnp.float32)
    rotated = rotation(angles) * jnp.stack([jnp.asarray(f, jnp.float32) for f in factors])[None]
    return rotated * (spacing[None] / spacing[:, None])


def _mirror(
    draws: _Draws, image: Image, labels: Array, settings: Augmentation
) -> tuple[Image, Array]:
    for axis in settings.mirror_axes:
        flips = draws.happens(settings.mirror_p)
        image = jnp.where(flips, jnp.flip(image, axis), image)
        labels = jnp.where(flips, jnp.flip(labels, axis), labels)
    return image, labels


# ------------------------------------------------------------------------- what voxels hold


def _noise(draws: _Draws, image: Image, settings: Augmentation, *, key: Array) -> Image:
    return image + draws.uniform(settings.noise_std) * jax.random.normal(key, image.shape)


def _brightness(draws: _Draws, image: Image, settings: Augmentation) -> Image:
    return image * draws.factors(settings.brightness)


def _contrast(draws: _Draws, image: Image, settings: Augmentation) -> Image:
    """Away from the mean or towards it, inside the range that was there."""
    mean = image.mean((0, 1, 2), keepdims=True)
    changed = (image - mean) * draws.factors(settings.contrast) + mean
    low, high = (f((0, 1, 2), keepdims=True) for f in (image.min, image.max))
    return jnp.clip(changed, low, high)


def _gamma(draws: _Draws, image: Image, settings: Augmentation, *, inverted: bool = False) -> Image:
    """Power of gamma on the range of values; each channel keeps its mean and deviation."""
    image = -image if inverted else image
    gamma = draws.factors(settings.gamma)
    space = (0, 1, 2)
    low = image.min(space, keepdims=True)
    width = image.max(space, keepdims=True) - low
    unit = jnp.clip((image - low) / jnp.maximum(width, 1e-7), 0, 1)
    changed = unit**gamma * width + low
    mean, deviation = (f(space, keepdims=True) for f in (changed.mean, changed.std))
    changed = (changed - mean) * (image.std(space, keepdims=True) / jnp.maximum(deviation, 1e-7))
    changed += image.mean(space, keepdims=True)
    return -changed if inverted else changed


def _blur(draws: _Draws, image: Image, settings: Augmentation) -> Image:
    """A Gaussian along each axis, its sigma (voxels) drawn for each channel and axis."""
    sigmas = draws.uniform(settings.blur_sigma, (3, image.shape[-1]))
    blurred = image
    for axis in range(3):
        blurred = gaussian_blur(blurred, axis, sigmas[axis], radius=_radius(settings))
    return jnp.where(draws.channels(settings.channel_p), blurred, image)


def _radius(settings: Augmentation) -> int:
    return max(1, round(3 * settings.blur_sigma[1] + 0.49))


def _low_resolution(draws: _Draws, image: Image, settings: Augmentation) -> Image:
    """As if scanned with fewer voxels, by one factor for all axes but the coarse one."""
    zoom = draws.uniform(settings.low_resolution)
    coarse = image
    for axis in range(3):
        if axis != settings.coarse_axis:
            coarse = fewer_voxels(coarse, axis, zoom)
    return jnp.where(draws.channels(settings.channel_p), coarse, image)
