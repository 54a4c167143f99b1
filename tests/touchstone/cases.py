"""Tiny cases in the AbdomenAtlas layout, and every way to spoil one that a test needs."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np

from touchstone_jax.layouts import Case, discover
from touchstone_jax.phantom import write_dataset

SHAPE = (24, 22, 20)
SPACING_MM = (4.0, 4.5, 6.0)


def dataset(folder: Path, n: int = 1, seed: int = 0, **options) -> list[Case]:
    """Phantoms written to ``folder``, as `discover` finds them."""
    options = {"shape": SHAPE, "spacing_mm": SPACING_MM, **options}
    write_dataset(folder, n, seed, **options)
    return discover(folder)


def rewrite(path: Path, change: Callable[[np.ndarray], np.ndarray], affine=None, **header) -> None:
    """Store ``change(voxels)`` in place of a file, under another affine or other header fields."""
    old = nibabel.load(path)
    voxels = change(np.asanyarray(old.dataobj).copy())
    image = nibabel.Nifti1Image(voxels, old.affine if affine is None else affine)
    for name, value in header.items():
        image.header[name] = value
    path.write_bytes(gzip.compress(image.to_bytes(), 1))


def same(voxels: np.ndarray) -> np.ndarray:
    return voxels


def patch(path: Path, offset: int, form: str, *values: float) -> None:
    """Overwrite bytes of the stored header, behind the back of any library."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into(form, raw, offset, *values)
    path.write_bytes(gzip.compress(bytes(raw), 1))


DIM, PIXDIM, VOX_OFFSET = 40, 76, 108
QFORM_CODE, SFORM_CODE, SROW_X = 252, 254, 280
"""Offsets in a NIfTI-1 header (NIfTI-1 standard, nifti1.h)."""


def stored_as(path: Path, orientation: str) -> None:
    """The same voxels in the patient, stored along other axes (nibabel does the turning)."""
    image = nibabel.load(path)
    turn = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(orientation)
    )
    turned = image.as_reoriented(turn)
    path.write_bytes(gzip.compress(turned.to_bytes(), 1))
