"""Probabilities and ranges of random changes; the defaults are nnU-Net's for 3-D."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from touchstone_jax.legal import unknown

Range = tuple[float, float]


@dataclass(frozen=True)
class Augmentation:
    """How often and how much `touchstone_jax.augment.program` changes a patch.

    Attributes:
        rotation_p: probability of a rotation ...
        rotation_degrees: ... by at most these angles about (x, y, z).
        scaling_p: probability of a change of size ...
        scaling: ... range of the factor by which what is seen grows (above 1: smaller organs).
        noise_p: Gaussian noise ...
        noise_std: ... range of its standard deviation, in units of the normalised image.
        blur_p: Gaussian blur ...
        blur_sigma: ... range of its sigma, in voxels.
        brightness_p: product with a factor ...
        brightness: ... its range.
        contrast_p: distance from the mean times a factor ...
        contrast: ... its range.
        low_resolution_p: fewer voxels ...
        low_resolution: ... range of the share of voxels kept along an axis.
        gamma_p: power of the intensities ...
        gamma_inverted_p: ... and of the inverted ones ...
        gamma: ... range of the exponent.
        mirror_axes: axes (of 0, 1, 2) to mirror along. Mirrored along x, left and right kidney
            look alike: leave 0 out where sides matter more than variety.
        mirror_p: probability for each of them.
        channel_p: share of channels that blur and low resolution reach.
        coarse_axis: axis with much larger spacing, if any: rotation stays in the other two's
            plane, scaling and low resolution leave it alone.
    """

    rotation_p: float = 0.2
    rotation_degrees: tuple[float, float, float] = (180.0, 180.0, 180.0)
    scaling_p: float = 0.2
    scaling: Range = (0.7, 1.4)
    noise_p: float = 0.1
    noise_std: Range = (0.0, 0.1)
    blur_p: float = 0.2
    blur_sigma: Range = (0.5, 1.0)
    brightness_p: float = 0.15
    brightness: Range = (0.75, 1.25)
    contrast_p: float = 0.15
    contrast: Range = (0.75, 1.25)
    low_resolution_p: float = 0.25
    low_resolution: Range = (0.5, 1.0)
    gamma_p: float = 0.3
    gamma_inverted_p: float = 0.1
    gamma: Range = (0.7, 1.5)
    mirror_axes: tuple[int, ...] = (0, 1, 2)
    mirror_p: float = 0.5
    channel_p: float = 0.5
    coarse_axis: int | None = None

    def __post_init__(self) -> None:
        """Raises ValueError on what cannot be."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):  # as cards hold them
                object.__setattr__(self, field.name, tuple(value))
                value = tuple(value)
            told = _complaint(field.name, value)
            if told:
                raise ValueError(f"augmentation: {field.name}={value!r}; expected {told}")


def _complaint(name: str, value: Any) -> str | None:
    """What was expected of a field, if that is not what it is."""
    if name.endswith("_p"):
        return None if _numbers((value,)) and 0 <= value <= 1 else "a probability in [0, 1]"
    if name == "mirror_axes":
        legal = isinstance(value, tuple) and set(value) <= {0, 1, 2} and len({*value}) == len(value)
        return None if legal else "different axes of 0, 1, 2"
    if name == "coarse_axis":
        return None if value in (None, 0, 1, 2) else "None or an axis of 0, 1, 2"
    if name == "rotation_degrees":
        legal = _numbers(value, 3) and all(0 <= v <= 180 for v in value)
        return None if legal else "three angles in [0, 180]"
    # A factor, exponent or sigma of 0 would leave nothing of the image, or divide by it.
    least = 0.0 if name == "noise_std" else 1e-3
    most = 1.0 if name == "low_resolution" else math.inf
    legal = _numbers(value, 2) and least <= value[0] <= value[1] <= most
    return None if legal else f"(low, high) with {least:g} <= low <= high <= {most:g}"


def _numbers(value: object, count: int = 1) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == count
        and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        and all(math.isfinite(v) for v in value)
    )


NONE = Augmentation(
    rotation_p=0.0,
    scaling_p=0.0,
    noise_p=0.0,
    blur_p=0.0,
    brightness_p=0.0,
    contrast_p=0.0,
    low_resolution_p=0.0,
    gamma_p=0.0,
    gamma_inverted_p=0.0,
    mirror_axes=(),
)
"""Nothing is changed."""

PRESETS = {"nnunet": Augmentation(), "none": NONE}
"""What `create` starts from."""


def create(preset: str = "nnunet", **changes: Any) -> Augmentation:
    """A preset with some of its fields changed.

    Raises:
        ValueError: an unknown preset or field, or an illegal value.
    """
    if preset not in PRESETS:
        raise unknown("augmentation preset", preset, PRESETS)
    legal = [field.name for field in dataclasses.fields(Augmentation)]
    for name in changes:
        if name not in legal:
            raise unknown("option of augmentation", name, legal)
    return dataclasses.replace(PRESETS[preset], **changes)
