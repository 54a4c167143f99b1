"""Made-up CTs with known labels: ellipsoid organs in a body of fat and muscle, plus noise.

The nine organs of AbdomenAtlas 1.0 stand about where they stand in a supine patient, with HU as in
the portal venous phase; position, size and HU vary from phantom to phantom. They are for tests and
for trying a set-up, not for clinical conclusions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int16, UInt8

from touchstone_jax.io.geometry import Geometry
from touchstone_jax.labels.schemes import SCHEMES
from touchstone_jax.layouts.abdomenatlas import write_case

_SCHEME = SCHEMES["abdomenatlas_1.0"]
_AIR, _FAT, _MUSCLE, _BONE = -1000, -100, 50, 400

# Centre and semi-axes in units of the body's semi-axes, canonical axes (x to the right, y to the
# front, z to the head), and HU. An infinite semi-axis makes a vessel that runs through the volume.
_ORGANS: dict[str, tuple[tuple[float, ...], tuple[float, ...], float]] = {
    "liver": ((0.42, 0.12, 0.45), (0.38, 0.48, 0.40), 110),
    "stomach": ((-0.38, 0.38, 0.45), (0.24, 0.24, 0.28), 15),
    "spleen": ((-0.62, -0.22, 0.50), (0.17, 0.28, 0.26), 125),
    "pancreas": ((-0.08, 0.12, -0.05), (0.30, 0.10, 0.10), 90),
    "gall_bladder": ((0.35, 0.46, -0.02), (0.10, 0.12, 0.14), 5),
    "kidney_right": ((0.46, -0.40, -0.32), (0.16, 0.18, 0.28), 175),
    "kidney_left": ((-0.46, -0.40, -0.24), (0.16, 0.18, 0.28), 175),
    "aorta": ((-0.09, -0.24, 0.0), (0.08, 0.08, np.inf), 210),
    "postcava": ((0.12, -0.18, 0.0), (0.09, 0.09, np.inf), 150),
}


@dataclass(frozen=True, eq=False)
class Phantom:
    """A made-up CT.

    Attributes:
        ct: int16 (x, y, z), canonical axes, in HU.
        labels: uint8 (x, y, z), AbdomenAtlas 1.0.
        geometry: the grid that it is stored on, in the orientation asked for.
    """

    ct: Int16[np.ndarray, "x y z"]
    labels: UInt8[np.ndarray, "x y z"]
    geometry: Geometry


def phantom(
    seed: int,
    *,
    shape: Sequence[int] = (64, 56, 48),
    spacing_mm: Sequence[float] = (4.0, 4.0, 5.0),
    orientation: str = "RAS",
    noise_hu: float = 15.0,
) -> Phantom:
    """A phantom that depends on nothing but the arguments.

    Args:
        seed: not negative.
        shape: voxels along the canonical axes (x, y, z), at least 16 each.
        spacing_mm: along the canonical axes, in mm.
        orientation: of the stored axes: three letters, one of R/L, A/P and S/I each, in any order.
        noise_hu: standard deviation of the noise in HU.

    Raises:
        ValueError: an illegal argument; the message names it.
    """
    _check(seed, shape, spacing_mm, orientation, noise_hu)
    rng = np.random.default_rng(seed)
    at = np.meshgrid(*((2 * np.arange(n) + 1 - n) / n / 0.92 for n in shape), indexing="ij")
    hu = np.full(tuple(shape), float(_AIR))
    radius = np.sqrt(at[0] ** 2 + at[1] ** 2)
    hu[radius <= 1] = _FAT + rng.uniform(-10, 10)
    hu[radius <= 0.9] = _MUSCLE + rng.uniform(-10, 10)
    hu[at[0] ** 2 / 0.018 + (at[1] + 0.62) ** 2 / 0.022 <= 1] = _BONE + rng.uniform(-50, 50)
    labels = np.zeros(tuple(shape), np.uint8)
    # A radius below this, in voxels, may fall between the voxel centres.
    smallest = np.sqrt(3) / 2 + 0.05
    for name, (middle, radii, value) in _ORGANS.items():
        centre = np.asarray(middle) + rng.uniform(-0.03, 0.03, 3)
        semi = np.asarray(radii) * rng.uniform(0.9, 1.1, 3)
        semi = np.maximum(semi, smallest * 2 / np.asarray(shape) / 0.92)
        inside = sum(((x - c) / s) ** 2 for x, c, s in zip(at, centre, semi, strict=True)) <= 1
        # Whole organs in their order: what stands already is not overwritten.
        inside &= labels == 0
        labels[inside] = _SCHEME.indices[name]
        hu[inside] = value + rng.uniform(-10, 10)
    hu += rng.normal(0, noise_hu, hu.shape)
    geometry = _grid(shape, spacing_mm, orientation)
    return Phantom(np.clip(np.rint(hu), -1024, 3071).astype(np.int16), labels, geometry)


def write_dataset(
    folder: str | Path,
    n: int,
    seed: int = 0,
    *,
    shape: Sequence[int] = (64, 56, 48),
    spacing_mm: Sequence[float] = (4.0, 4.0, 5.0),
    orientations: Sequence[str] = ("RAS", "LPS", "ASR"),
    noise_hu: float = 15.0,
) -> list[str]:
    """Write ``n`` phantoms in the AbdomenAtlas layout; their ids.

    Case i has the seed ``seed + i``, an orientation in turn, and a spacing up to 15 % off
    ``spacing_mm`` on each axis. Files are the same bytes on every run.

    Raises:
        ValueError: an illegal argument of `phantom`, or n below 1.
        OSError: the folder cannot be written.
    """
    if n < 1:
        raise ValueError(f"n={n}; expected at least one phantom")
    names = []
    for i, orientation in zip(range(n), itertools.cycle(orientations), strict=False):
        wobble = np.random.default_rng((seed + i, 1)).uniform(0.85, 1.15, 3)
        spacing = [round(float(s * w), 3) for s, w in zip(spacing_mm, wobble, strict=True)]
        made = phantom(
            seed + i, shape=shape, spacing_mm=spacing, orientation=orientation, noise_hu=noise_hu
        )
        names.append(f"phantom_{seed + i:05d}")
        write_case(Path(folder) / names[-1], made.ct, made.labels, made.geometry)
    return names


def _axis_names(orientation: str) -> list[str]:
    return [pair for letter in orientation for pair in ("RL", "AP", "SI") if letter in pair]


def _grid(shape: Sequence[int], spacing_mm: Sequence[float], orientation: str) -> Geometry:
    """The stored grid whose canonical form has this shape and spacing, its centre at 0 mm."""
    axes = [("RL", "AP", "SI").index(pair) for pair in _axis_names(orientation)]
    affine: Float64[np.ndarray, "4 4"] = np.diag([0.0, 0.0, 0.0, 1.0])
    for k, (axis, letter) in enumerate(zip(axes, orientation, strict=True)):
        step = spacing_mm[axis] * (-1 if letter in "LPI" else 1)
        affine[axis, k] = step
        affine[axis, 3] = -step * (shape[axis] - 1) / 2
    x, y, z = (int(shape[axis]) for axis in axes)
    return Geometry((x, y, z), affine)


def _check(seed, shape, spacing_mm, orientation: str, noise_hu: float) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r}; expected an integer from 0")
    if len(shape) != 3 or min(shape) < 16:
        raise ValueError(f"shape={tuple(shape)}; expected three sizes of at least 16 voxels")
    if len(spacing_mm) != 3 or not all(0 < s < 100 for s in spacing_mm):
        raise ValueError(f"spacing_mm={tuple(spacing_mm)}; expected three numbers in (0, 100)")
    # Which world axis each letter names; a word of other letters cannot sort to the three.
    named = sorted(("RL", "AP", "SI").index(p) for p in _axis_names(orientation))
    if len(orientation) != 3 or named != [0, 1, 2]:
        raise ValueError(
            f"orientation={orientation!r}; expected one letter each of RL, AP and SI, such as 'LPS'"
        )
    if not 0 <= noise_hu <= 500:
        raise ValueError(f"noise_hu={noise_hu}; expected 0..500")
