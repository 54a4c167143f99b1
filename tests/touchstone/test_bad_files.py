"""Files that are refused: one line with the case id, and what to do."""

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.touchstone.cases import (
    DIM,
    PIXDIM,
    QFORM_CODE,
    SROW_X,
    VOX_OFFSET,
    dataset,
    patch,
    rewrite,
    same,
)
from touchstone_jax import io
from touchstone_jax.findings import VolumeError
from touchstone_jax.layouts.case_files import Case


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return dataset(tmp_path, orientations=("RAS",))[0]


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut_gzip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def _cut_voxels(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-200]))


def _cut_plain(path: Path) -> None:
    path.write_bytes(gzip.decompress(path.read_bytes())[:-200])  # the bytes decide, not the name


def _bomb(path: Path) -> None:
    whole = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(whole + bytes(1 << 24)))  # 16 MiB in 16 KiB


def _promises(path: Path) -> None:
    patch(path, DIM, "<4h", 3, 22000, 22000, 22000)


def _begins_late(path: Path) -> None:
    patch(path, VOX_OFFSET, "<f", 1e9)


def _html(path: Path) -> None:
    path.write_bytes(b"<html><body>404 Not Found</body></html>" * 20)


def _damaged(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))


def _four_axes(path: Path) -> None:
    rewrite(path, lambda v: np.stack([v, v], axis=-1))


def _two_axes(path: Path) -> None:
    rewrite(path, lambda v: v[:, :, 3])


def _colours(path: Path) -> None:
    rgb = np.zeros((5, 5, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    path.write_bytes(gzip.compress(nibabel.Nifti1Image(rgb, np.eye(4)).to_bytes()))


def _complex(path: Path) -> None:
    rewrite(path, lambda v: v.astype(np.complex64))


def _sheared(path: Path) -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[1, 2] = 0.5
    rewrite(path, same, affine, qform_code=0)


def _singular(path: Path) -> None:
    patch(path, SROW_X, "<4f", 0, 0, 0, 0)


def _nan_affine(path: Path) -> None:
    patch(path, SROW_X, "<f", float("nan"))


def _no_codes(path: Path) -> None:
    patch(path, QFORM_CODE, "<2h", 0, 0)


def _spacing(value: float):
    return lambda path: patch(path, PIXDIM + 8, "<f", value)


def _nonfinite(value: float):
    def spoil(path: Path) -> None:
        def change(v):
            v = v.astype(np.float32)
            v[1, 2, 3] = value
            return v

        rewrite(path, change)

    return spoil


REFUSED = [
    (_empty, "unreadable", "empty"),
    (_cut_gzip, "truncated", "gzip stream ends early"),
    (_cut_voxels, "truncated", r"truncated: \d+ of \d+ bytes"),
    (_cut_plain, "truncated", r"truncated: \d+ of \d+ bytes"),
    (_bomb, "unreadable", r"holds far more than the \d+ bytes that its header promises"),
    (_promises, "unreadable", r"promises 10648000000000 voxels .* expected at most 2147483648"),
    (_begins_late, "unreadable", r"from byte 1000000000 on; .* from 352..16777216"),
    (_html, "unreadable", "no single-file NIfTI: it begins '<html>"),
    (_damaged, "unreadable", "ct.nii.gz: "),
    (_four_axes, "not_3d", r"4-D with shape \(24, 22, 20, 2\)"),
    (_two_axes, "not_3d", r"2-D with shape \(24, 22\)"),
    (_colours, "voxel_type", "RGB colours"),
    (_complex, "voxel_type", "complex"),
    (_sheared, "affine_sheared", r"80\.54° apart; expected 90°"),
    (_singular, "affine_singular", "singular"),
    (_nan_affine, "affine_singular", "non-finite"),
    (_no_codes, "no_orientation", "left and right are unknown"),
    (_spacing(0.0), "spacing_invalid", r"0\.0"),
    (_spacing(-2.0), "spacing_invalid", r"-2\.0"),
    (_spacing(float("inf")), "spacing_invalid", "inf"),
    (_nonfinite(float("nan")), "nonfinite", "1 NaN or infinite of 10560"),
    (_nonfinite(float("-inf")), "nonfinite", "1 NaN or infinite of 10560"),
    (Path.unlink, "missing_file", "ct.nii.gz is missing"),
]


@pytest.mark.parametrize(("spoil", "check", "words"), REFUSED)
def test_a_bad_ct_is_one_line_with_the_case_id(case: Case, spoil, check: str, words: str) -> None:
    spoil(case.ct)
    with pytest.raises(VolumeError, match=words) as caught:
        io.read_ct(case.ct, case=case.id)
    assert str(caught.value).startswith(f"{case.id}: ") and "\n" not in str(caught.value)
    assert caught.value.finding.check == check and caught.value.finding.fix


def test_random_damage_of_a_header_is_never_another_error(case: Case) -> None:
    paths = (case.ct, dict(case.masks)["liver"])
    whole = {path: gzip.decompress(path.read_bytes()) for path in paths}
    rng = np.random.default_rng(0)
    seen = set()
    for trial in range(150):
        path = paths[trial % 2]
        raw = bytearray(whole[path])
        for place in rng.integers(0, 352, rng.integers(1, 4)):
            raw[place] = rng.choice([0, 127, 128, 255, rng.integers(256)])
        path.write_bytes(bytes(raw))  # not packed again: the bytes decide, not the name
        try:
            ct = io.read_ct(case.ct, case=case.id)
            io.read_labels(paths[1], case=case.id, like=ct.geometry)
        except VolumeError as error:
            assert str(error).startswith(case.id) and "\n" not in str(error)
            seen.add(error.finding.check)
        path.write_bytes(gzip.compress(whole[path], 1))
    assert len(seen) > 5


def test_a_file_of_several_gzip_members_is_one_file(case: Case) -> None:
    whole = io.read_ct(case.ct, case=case.id).array
    raw = gzip.decompress(case.ct.read_bytes())
    case.ct.write_bytes(gzip.compress(raw[:5000]) + gzip.compress(raw[5000:]) + bytes(8))
    np.testing.assert_array_equal(io.read_ct(case.ct, case=case.id).array, whole)


def test_nonfinite_can_be_kept_and_a_typo_is_told(case: Case) -> None:
    _nonfinite(float("nan"))(case.ct)
    assert np.isnan(io.read_ct(case.ct, case=case.id, nonfinite="keep").array).sum() == 1
    with pytest.raises(ValueError, match="nonfinite='zero'; legal values: 'refuse', 'keep'"):
        io.read_ct(case.ct, case=case.id, nonfinite="zero")


# ---------------------------------------------------------------- labels


def _labels(case: Case, change) -> tuple[np.ndarray, list[str]]:
    path = dict(case.masks)["liver"]
    rewrite(path, change)
    like, _ = io.read_geometry(case.ct, case=case.id)
    labels, notes = io.read_labels(path, case=case.id, like=like)
    return labels, [n.check for n in notes]


def test_labels_a_hair_off_an_integer_are_rounded_with_a_note(case: Case) -> None:
    plain, checks = _labels(case, same)
    assert checks == [] and plain.dtype == np.uint8
    floats, checks = _labels(case, lambda v: v * 0.9999)
    np.testing.assert_array_equal(floats, plain)
    assert checks == ["label_rounded"]
    large, checks = _labels(case, lambda v: np.rint(v).astype(np.uint16) * 300)
    assert large.dtype == np.uint16 and large.max() == 300


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v * 0.7, r"has the value 0\.7 at voxel \("),
        (lambda v: np.where(v > 0, np.nan, 0), "has the value nan at voxel"),
        (lambda v: np.where(v > 0, np.inf, 0), "has the value inf at voxel"),
        (lambda v: -v.astype(np.int16), "has the label -1; expected 0..65535"),
        (lambda v: v.astype(np.int32) * 70000, "has the label 70000"),
        (lambda v: v[:-1], r"other shapes in every axis order .*\(24, 22, 20\).*\(23, 22, 20\)"),
    ],
)
def test_bad_labels_are_refused(case: Case, change, words: str) -> None:
    with pytest.raises(VolumeError, match=words) as caught:
        _labels(case, change)
    assert str(caught.value).startswith(case.id)


def test_masks_of_255_are_masks_and_label_maps_are_not(case: Case) -> None:
    path = dict(case.masks)["liver"]
    like, _ = io.read_geometry(case.ct, case=case.id)
    plain, _ = io.read_mask(path, case=case.id, like=like)
    rewrite(path, lambda v: v.astype(np.uint8) * 255)
    mask, notes = io.read_mask(path, case=case.id, like=like)
    np.testing.assert_array_equal(mask, plain)
    assert [n.check for n in notes] == ["foreground_value"]
    rewrite(path, lambda v: v // 255 + np.uint8(2))
    with pytest.raises(VolumeError, match="non_binary|has the values 0, 2, 3; expected a mask"):
        io.read_mask(path, case=case.id, like=like)
