"""NIfTI files in and out, and the rules of axes and affines that all CT code keeps.

1. In memory a volume is *canonical*: a numpy array (x, y, z) whose axes are the stored ones,
   permuted and flipped to come closest to RAS+: x grows to the patient's right, y to the front,
   z to the head. Nothing is interpolated by reading. JAX code sees the same axes (x, y, z). In
   memory x is the fastest axis, as in the file: turning 50 million voxels over takes a second.
2. The affine takes a voxel index to mm in RAS+. The sform is taken where its code is above 0, else
   the qform; a file with neither has no orientation and is refused, for left and right would be a
   guess. Spacing is the length of the affine's columns, never the header's pixdim.
3. Axes at right angles may be oblique to the patient; axes at other angles (gantry tilt) are
   refused, because spacing_mm would then lie.
4. A mask belongs to a CT if flips and permutations bring its voxels within 0.1 mm of the CT's
   (`touchstone_jax.io.grids.same_geometry`); it is reoriented then, and never resampled.
5. What is written goes back to the axes, the affine and the header fields of the source, bit by
   bit.

Every error is a `VolumeError`: one line that begins with the case id.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Shaped, UInt8, UInt16

from touchstone_jax.findings import Finding, refusal
from touchstone_jax.io.geometry import Geometry, canonical
from touchstone_jax.io.grids import same_geometry
from touchstone_jax.io.label_values import integers, label_counts
from touchstone_jax.io.nifti import grid, load
from touchstone_jax.io.nifti_header import orient

SUFFIXES = (".nii.gz", ".nii")
_LONGEST = 2**15 - 1  # voxels along an axis that NIfTI-1 has a number for


@dataclass(frozen=True, eq=False)
class Volume:
    """A CT in memory.

    Attributes:
        array: float32 (x, y, z), canonical axes, in HU.
        geometry: the grid as it was stored; what `write` needs to go back.
        notes: warnings that reading brought up.
    """

    array: Float32[np.ndarray, "x y z"]
    geometry: Geometry
    notes: tuple[Finding, ...] = ()

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Spacing along the canonical axes, in mm."""
        return self.geometry.reoriented(canonical(self.geometry)).spacing_mm


def read_geometry(path: str | Path, *, case: str) -> tuple[Geometry, tuple[Finding, ...]]:
    """The grid of a NIfTI file and the warnings about its header; reads a few hundred bytes.

    Raises:
        VolumeError: no such file, no NIfTI, not 3-D, or a header that gives no usable grid.
    """
    return grid(Path(path), case)


def read_ct(path: str | Path, *, case: str, nonfinite: str = "refuse") -> Volume:
    """A CT in HU and canonical axes; scl_slope and scl_inter are applied.

    Args:
        path: a .nii or .nii.gz file.
        case: id for messages.
        nonfinite: "refuse" NaN and infinite voxels, or "keep" them.

    Raises:
        VolumeError: as `read_geometry`; a truncated file; colour or complex voxels; NaN or
            infinite voxels.
        ValueError: another value of ``nonfinite``.
    """
    if nonfinite not in ("refuse", "keep"):
        raise ValueError(f"nonfinite={nonfinite!r}; legal values: 'refuse', 'keep'")
    path = Path(path)
    image, geometry, notes = load(path, case)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
        array = np.asarray(image.dataobj, np.float32).reshape(geometry.shape)
    if nonfinite == "refuse" and (bad := array.size - int(np.isfinite(array).sum())):
        raise refusal(
            case,
            "nonfinite",
            f"{path.name} has {bad} NaN or infinite of {array.size} voxels",
            "set them to -1024 HU if they are padding, else export the CT again",
        )
    return Volume(np.asfortranarray(canonical(geometry).apply(array)), geometry, notes)


def read_labels(
    path: str | Path, *, case: str, like: Geometry
) -> tuple[UInt8[np.ndarray, "x y z"] | UInt16[np.ndarray, "x y z"], tuple[Finding, ...]]:
    """An integer label map on the canonical axes of the CT's grid ``like``, and warnings.

    Values within 0.01 of an integer are rounded (some tools store 0.9999), with a warning.

    Raises:
        VolumeError: as `read_geometry`; a truncated file; another grid than the CT's; a value
            that is no integer in 0..65535.
    """
    path = Path(path)
    image, geometry, notes = load(path, case)
    turn = same_geometry(like, geometry, case=case, names=("CT", path.name))
    if not turn.is_identity():
        told = f"{path.name} is stored in {geometry.orientation}, the CT in {like.orientation}"
        fix = "nothing to do: it is reoriented when read; other tools may compare voxel by voxel"
        notes += (Finding(case, "orientation_differs", "warning", told, fix),)
    values, rounded = integers(image, geometry.shape, path, case)
    dtype = np.uint8 if values.max(initial=0) < 256 else np.uint16
    array = canonical(like).apply(turn.apply(values.astype(dtype, copy=False)))
    return np.asfortranarray(array), (*notes, *rounded)


def read_mask(
    path: str | Path, *, case: str, like: Geometry
) -> tuple[Bool[np.ndarray, "x y z"], tuple[Finding, ...]]:
    """A binary mask on the canonical axes of the CT's grid ``like``, and warnings.

    0 is background. One other value is foreground whatever it is (some tools store 255).

    Raises:
        VolumeError: as `read_labels`, and for a mask with more than two values ("non_binary").
    """
    labels, notes = read_labels(path, case=case, like=like)
    # Nearly every mask is 0 and 1: one comparison tells, where counting takes a second.
    values = np.ones(0, int) if labels.max() <= 1 else np.flatnonzero(label_counts(labels)[1:]) + 1
    if len(values) > 1:
        raise refusal(
            case,
            "non_binary",
            f"{Path(path).name} has the values 0, {', '.join(map(str, values[:8]))}; expected a "
            "mask of 0 and 1",
            "if it is a label map, give it as one; else write 0 and 1",
        )
    if len(values) and values[0] != 1:
        told = f"{Path(path).name} has {values[0]} as its foreground; expected 1"
        fix = "nothing to do: every value but 0 is foreground; other tools may differ"
        notes += (Finding(case, "foreground_value", "warning", told, fix),)
    return labels > 0, notes


def write(path: str | Path, array: Shaped[np.ndarray, "x y z"], geometry: Geometry) -> None:
    """Write an array in canonical axes as NIfTI on the stored grid ``geometry``.

    Args:
        path: ends in .nii or .nii.gz; gzip carries no time stamp, so equal input is equal bytes.
        array: (x, y, z), the canonical shape of ``geometry``; bool is stored as uint8, other types
            as they are.
        geometry: grid of the volume that the array belongs to, as `Volume.geometry`.

    Raises:
        ValueError: another suffix, another shape, or a shape or type that NIfTI-1 lacks.
    """
    import nibabel

    path, turn = Path(path), canonical(geometry)
    expected = tuple(geometry.shape[axis] for axis in turn.axes)
    if array.shape != expected:
        raise ValueError(f"{path}: array has shape {array.shape}; the grid has {expected}")
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path}: expected a name that ends in .nii or .nii.gz")
    if max(expected) > _LONGEST:
        raise ValueError(f"{path}: NIfTI-1 cannot store the shape {expected}")
    array = array.astype(np.uint8) if array.dtype == bool else np.asarray(array)
    header = nibabel.Nifti1Header()
    try:
        header.set_data_dtype(array.dtype)
    except nibabel.spatialimages.HeaderDataError as error:
        raise ValueError(f"{path}: NIfTI cannot store {array.dtype}") from error
    header.set_data_shape(geometry.shape)
    orient(header, geometry)
    stored = turn.inverse().apply(array)
    raw = nibabel.Nifti1Image(stored, header.get_best_affine(), header).to_bytes()
    packed = gzip.compress(raw, 6, mtime=0) if path.name.endswith(".gz") else raw
    path.write_bytes(packed)
