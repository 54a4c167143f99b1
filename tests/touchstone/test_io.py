"""Axes, affines and voxel types of good files, and the way back to the file."""

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.touchstone.cases import (
    PIXDIM,
    QFORM_CODE,
    SFORM_CODE,
    SROW_X,
    dataset,
    patch,
    rewrite,
    same,
    stored_as,
)
from touchstone_jax import io
from touchstone_jax.findings import VolumeError
from touchstone_jax.io.geometry import Geometry
from touchstone_jax.layouts.case_files import Case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return dataset(tmp_path, orientations=("RAS",))[0]


def test_geometry_survives_json_bit_by_bit(case: Case) -> None:
    geometry, _ = io.read_geometry(case.ct, case=case.id)
    back = Geometry.from_json(json.loads(json.dumps(geometry.to_json())))
    assert back.shape == geometry.shape and back.header == geometry.header
    np.testing.assert_array_equal(back.affine, geometry.affine)


@pytest.mark.parametrize("orientation", ["LPS", "ASR", "IRP", "SPL"])
def test_the_stored_axes_do_not_matter(case: Case, orientation: str) -> None:
    plain = io.read_ct(case.ct, case=case.id)
    mask = dict(case.masks)["liver"]
    liver, notes = io.read_mask(mask, case=case.id, like=plain.geometry)
    assert liver.any() and notes == ()
    stored_as(case.ct, orientation)
    turned = io.read_ct(case.ct, case=case.id)
    assert turned.geometry.orientation == orientation
    np.testing.assert_array_equal(turned.array, plain.array)
    np.testing.assert_allclose(turned.spacing_mm, plain.spacing_mm, rtol=1e-6)
    # The mask still lies in RAS.
    again, notes = io.read_mask(mask, case=case.id, like=turned.geometry)
    np.testing.assert_array_equal(again, liver)
    assert [n.check for n in notes] == ["orientation_differs"]
    assert notes[0].severity == "warning" and orientation in notes[0].message


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint16, np.int32, np.float64, ">i2"])
def test_slope_and_intercept_are_applied_to_every_type(case: Case, dtype) -> None:
    stored = np.arange(60).reshape(3, 4, 5)
    header = nibabel.Nifti1Header(endianness=">" if dtype == ">i2" else "<")
    image = nibabel.Nifti1Image(stored.astype(dtype), np.diag([1.0, 1, 1, 1]), header)
    raw = bytearray(image.to_bytes())
    raw[112:120] = np.array([2.0, -1024.0], header.endianness + "f4").tobytes()
    case.ct.write_bytes(gzip.compress(bytes(raw)))
    volume = io.read_ct(case.ct, case=case.id)
    np.testing.assert_array_equal(volume.array, 2.0 * stored - 1024)
    assert volume.array.dtype == np.float32


def test_plain_nii_and_nifti2_and_trailing_axis_are_read(tmp_path: Path) -> None:
    voxels = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    nibabel.save(nibabel.Nifti2Image(voxels, np.eye(4)), tmp_path / "two.nii")
    nibabel.save(nibabel.Nifti1Image(voxels[..., None], np.eye(4)), tmp_path / "four.nii.gz")
    for name in ("two.nii", "four.nii.gz"):
        np.testing.assert_array_equal(io.read_ct(tmp_path / name, case="c").array, voxels)


def test_oblique_is_read_along_its_own_axes_with_a_note(case: Case) -> None:
    c, s = np.cos(0.3), np.sin(0.3)
    affine = np.array([[2 * c, -2 * s, 0, 0], [2 * s, 2 * c, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    plain = io.read_ct(case.ct, case=case.id).array
    rewrite(case.ct, same, affine)
    volume = io.read_ct(case.ct, case=case.id)
    np.testing.assert_array_equal(volume.array, plain)
    np.testing.assert_allclose(volume.spacing_mm, (2, 2, 3), rtol=1e-6)
    assert [n.check for n in volume.notes] == ["oblique"]
    assert "17.2°" in volume.notes[0].message


def test_qform_that_is_shifted_is_a_note_and_one_that_is_mirrored_an_error(case: Case) -> None:
    image = nibabel.load(case.ct)
    shifted, mirrored = image.affine.copy(), image.affine.copy()
    shifted[0, 3] += 5
    mirrored[0, 0] *= -1
    for other in (shifted, mirrored):
        image.set_qform(other, 1)
        image.set_sform(image.affine, 1)
        case.ct.write_bytes(gzip.compress(image.to_bytes()))
        if other is shifted:
            notes = io.read_ct(case.ct, case=case.id).notes
            assert [n.check for n in notes] == ["qform_sform"] and "5 mm" in notes[0].message
        else:
            with pytest.raises(VolumeError, match=r"sform \(RAS\) and qform \(LAS\)"):
                io.read_ct(case.ct, case=case.id)


def test_pixdim_that_disagrees_is_a_note(case: Case) -> None:
    patch(case.ct, QFORM_CODE, "<h", 0)
    patch(case.ct, PIXDIM + 4, "<f", 1.0)
    volume = io.read_ct(case.ct, case=case.id)
    assert [n.check for n in volume.notes] == ["pixdim_mismatch"]
    assert volume.spacing_mm[0] > 2


def test_a_qfac_of_zero_means_one(case: Case, tmp_path: Path, caplog) -> None:
    before = io.read_ct(case.ct, case=case.id)
    patch(case.ct, QFORM_CODE, "<2h", 1, 0)
    patch(case.ct, PIXDIM, "<f", 0.0)
    after = io.read_ct(case.ct, case=case.id)
    assert not caplog.records  # nibabel would log that it mends it
    np.testing.assert_allclose(after.geometry.affine, before.geometry.affine, atol=1e-4)
    io.write(tmp_path / "out.nii.gz", after.array, after.geometry)
    back = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(back.affine, after.geometry.affine)


def test_qform_alone_gives_the_affine(case: Case) -> None:
    before = io.read_ct(case.ct, case=case.id)
    patch(case.ct, SFORM_CODE, "<h", 0)
    patch(case.ct, SROW_X, "<4f", *[float("nan")] * 4)
    after = io.read_ct(case.ct, case=case.id)
    np.testing.assert_allclose(after.geometry.affine, before.geometry.affine, atol=1e-4)
    json.dumps(after.geometry.to_json(), allow_nan=False)


# ---------------------------------------------------------------- writing


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "IRP"])
@pytest.mark.parametrize("codes", [(1, 1), (0, 2), (1, 0)])
def test_what_is_written_lies_on_the_grid_of_the_source_bit_by_bit(
    case: Case, tmp_path: Path, orientation: str, codes: tuple[int, int]
) -> None:
    stored_as(case.ct, orientation)
    patch(case.ct, QFORM_CODE, "<2h", *codes)
    volume = io.read_ct(case.ct, case=case.id)
    stored = Geometry.from_json(json.loads(json.dumps(volume.geometry.to_json())))
    io.write(tmp_path / "out.nii.gz", volume.array.astype(np.int16), stored)
    old, new = nibabel.load(case.ct), nibabel.load(tmp_path / "out.nii.gz")
    assert old.shape == new.shape and old.affine.tobytes() == new.affine.tobytes()
    np.testing.assert_array_equal(np.asanyarray(old.dataobj), np.asanyarray(new.dataobj))
    for name in ("sform_code", "qform_code", "quatern_b", "qoffset_x", "srow_x", "xyzt_units"):
        assert old.header[name].tobytes() == new.header[name].tobytes(), name
    assert old.header["pixdim"][:4].tobytes() == new.header["pixdim"][:4].tobytes()


def test_writing_is_reproducible_and_refuses_what_it_cannot(case: Case, tmp_path: Path) -> None:
    volume = io.read_ct(case.ct, case=case.id)
    mask = volume.array > 0
    for name in ("a.nii.gz", "b.nii.gz"):
        io.write(tmp_path / name, mask, volume.geometry)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    again, _ = io.read_mask(tmp_path / "a.nii.gz", case="a", like=volume.geometry)
    np.testing.assert_array_equal(again, mask)
    with pytest.raises(ValueError, match=r"shape \(23, 22, 20\); the grid has \(24, 22, 20\)"):
        io.write(tmp_path / "c.nii", mask[1:], volume.geometry)
    with pytest.raises(ValueError, match="ends in .nii or .nii.gz"):
        io.write(tmp_path / "c.mha", mask, volume.geometry)
    with pytest.raises(ValueError, match="cannot store float16"):
        io.write(tmp_path / "c.nii", mask.astype(np.float16), volume.geometry)
