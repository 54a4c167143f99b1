"""Every way that a case can be bad is one finding with the case id, and the others carry on."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from tests.touchstone.cases import PIXDIM, SHAPE, dataset, patch, rewrite, same, stored_as
from tests.touchstone.test_bad_files import REFUSED
from touchstone_jax.findings import CHECKS, SEVERITIES, Finding, VolumeError, exit_code
from touchstone_jax.io import read_ct, write
from touchstone_jax.labels.schemes import SCHEMES, from_indices
from touchstone_jax.layouts import discover
from touchstone_jax.layouts.case_files import Case
from touchstone_jax.verify import examine, verify
from touchstone_jax.verify.duplicates import digest


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return dataset(tmp_path, orientations=("RAS",))[0]


def _mask(case: Case, name: str) -> Path:
    return dict(case.masks)[name]


def _told(findings) -> list[tuple[str, str]]:
    findings = list(findings)
    for finding in findings:
        assert finding.check in CHECKS and finding.severity in SEVERITIES
        assert finding.message and "\n" not in finding.message and finding.fix
        json.dumps(finding.to_json(), allow_nan=False)
    return [(finding.check, finding.severity) for finding in findings]


def test_a_good_case_has_no_finding_and_comes_back_whole(case: Case) -> None:
    seen = examine(case)
    assert seen.findings == () and seen.ct.array.shape == seen.labels.shape == SHAPE
    assert seen.labels.max() == 9 and len(seen.digest) == 32
    assert sum(seen.report.voxels.values()) == np.count_nonzero(seen.labels)
    seen.raise_errors()
    alone = examine(case, None)
    assert alone.labels is None and alone.findings == () and alone.digest == seen.digest


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(("spoil", "check", "words"), REFUSED)
def test_an_unusable_ct_is_an_error_and_the_next_case_goes_on(
    tmp_path: Path, spoil, check: str, words: str
) -> None:
    cases = dataset(tmp_path, n=2, orientations=("RAS",))
    spoil(cases[0].ct)
    begin = time.monotonic()
    findings = list(verify(cases))
    assert time.monotonic() - begin < 1
    assert _told(findings) == [(check, "error")] and findings[0].case == cases[0].id
    assert exit_code(findings) == 1
    with pytest.raises(VolumeError, match=f"^{cases[0].id}: "):
        examine(cases[0]).raise_errors()
    assert examine(cases[1]).labels is not None


@pytest.mark.parametrize(("spoil", "check", "words"), REFUSED[:17])
def test_an_unusable_mask_is_an_error_beside_what_else_is_found(
    case: Case, spoil, check: str, words: str
) -> None:
    spoil(_mask(case, "liver"))
    rewrite(_mask(case, "spleen"), lambda v: v * 0)
    seen = examine(case)
    found = _told(seen.findings)
    assert (check, "error") in found and ("empty_mask", "warning") in found
    assert seen.ct is not None and seen.labels is None


def test_missing_files_are_named(case: Case) -> None:
    case.ct.unlink()
    _mask(case, "liver").unlink()
    assert _told(examine(case).findings) == [("missing_file", "error")] * 2
    # Listed anew, the mask is no longer among the case's files.
    (again,) = discover(case.ct.parents[1])
    assert _told(examine(again).findings) == [("missing_file", "error")]


def test_a_class_without_a_mask_is_an_error_unless_the_data_set_lacks_it(case: Case) -> None:
    _mask(case, "liver").unlink()
    _mask(case, "aorta").rename(_mask(case, "aorta").with_name("aorta1.nii.gz"))
    folder = case.ct.parents[1]
    findings = examine(discover(folder)[0]).findings
    assert _told(findings) == [("missing_mask", "error"), ("unknown_mask", "warning")]
    assert "aorta, liver" in findings[0].message and "rename it to aorta" in findings[1].fix
    wider = examine(dataset(folder, orientations=("RAS",))[0], "abdomenatlas_1.1")
    assert _told(wider.findings) == [("missing_mask", "error"), ("unknown_mask", "warning")]
    narrow = discover(folder, labels="abdomenatlas_1.0")[0]
    assert ("missing_mask", "error") not in _told(examine(narrow, "abdomenatlas_1.1").findings)


def test_a_case_without_labels_is_an_error_where_labels_are_wanted(case: Case) -> None:
    bare = Case(case.id, case.ct)
    assert _told(examine(bare).findings) == [("missing_labels", "error")]
    assert examine(bare, None).findings == ()


# ---------------------------------------------------------------- the CT


def _values(case: Case, change) -> list[tuple[str, str]]:
    rewrite(case.ct, change)
    return _told(examine(case).findings)


def _organs_off(found: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without the warnings about organs, which scaled values bring with them."""
    return [entry for entry in found if entry[0] != "organ_hu"]


def test_values_that_are_not_hu(case: Case) -> None:
    assert _values(case, same) == []
    raw = read_ct(case.ct, case=case.id).array
    for change in (lambda v: raw + 1024, lambda v: (raw + 1000) / 1400, lambda v: raw - 2000):
        assert _organs_off(_values(case, change)) == [("not_hu", "error")]
    assert _organs_off(_values(case, lambda v: raw * 0 - 1024)) == [("constant", "error")]


def test_padding_and_metal_are_warnings(case: Case) -> None:
    def padded(v):
        v[:2] = -3024
        v[10, 11, :2] = 20000
        return v

    assert _values(case, padded) == [("hu_padding", "warning"), ("hu_metal", "warning")]


def test_nonfinite_voxels_are_counted_and_the_rest_is_judged(case: Case) -> None:
    def spoilt(v):
        v = v.astype(np.float32) + 1024
        v[0, 0, :3] = (np.nan, np.inf, -np.inf)
        return v

    rewrite(case.ct, spoilt)
    findings = examine(case).findings
    assert _organs_off(_told(findings)) == [("nonfinite", "error"), ("not_hu", "error")]
    assert "3 NaN or infinite of 10560" in findings[0].message
    rewrite(case.ct, lambda v: np.full(SHAPE, np.nan, np.float32))
    assert _told(examine(case).findings) == [("nonfinite", "error")]


@pytest.mark.parametrize(
    ("spacing_mm", "severity"),
    [(1e-3, "error"), (50.0, "error"), (0.2, "warning"), (12.0, "warning")],
)
def test_spacing_that_no_scanner_has(tmp_path: Path, spacing_mm: float, severity: str) -> None:
    (case,) = dataset(tmp_path, spacing_mm=(2, 2, spacing_mm), orientations=("RAS",))
    assert _told(examine(case).findings) == [("spacing_implausible", severity)]


def test_a_ct_that_would_fill_the_memory(tmp_path: Path) -> None:
    """9 mm are plausible, and so are 300 slices; both are not."""
    spacing, shape = (2, 2, 9), (20, 20, 300)
    (case,) = dataset(tmp_path, spacing_mm=spacing, shape=shape, orientations=("RAS",))
    seen = examine(case)
    assert ("too_large", "error") in _told(seen.findings)
    (told,) = (str(f) for f in seen.findings if f.check == "too_large")
    assert "45 × 41 × 2944 mm large; expected at most 2500 mm" in told
    assert not seen.errors(allow=["too_large"])


@pytest.mark.parametrize(("slices", "severity"), [(1, "error"), (5, "warning")])
def test_a_few_slices(case: Case, slices: int, severity: str) -> None:
    for path in case.files:
        rewrite(path, lambda v: v[:, :, 9 : 9 + slices])
    assert ("tiny_volume", severity) in _told(examine(case).findings)


def test_notes_of_the_header_are_findings(case: Case) -> None:
    patch(case.ct, PIXDIM + 4, "<f", 1.0)
    found = _told(examine(case).findings)
    assert ("pixdim_mismatch", "warning") in found


# ---------------------------------------------------------------- labels


def test_labels_off_the_grid(case: Case) -> None:
    affine = np.diag([4.0, 4.5, 6.0, 1.0])
    rewrite(_mask(case, "liver"), same, affine)
    rewrite(_mask(case, "spleen"), lambda v: v[:, :, 1:])
    stored_as(_mask(case, "stomach"), "LPS")
    found = _told(examine(case).findings)
    assert sorted(found) == [
        ("affine_mismatch", "error"),
        ("orientation_differs", "warning"),
        ("shape_mismatch", "error"),
    ]
    assert examine(case).labels is None


def test_values_of_masks(case: Case) -> None:
    rewrite(_mask(case, "liver"), lambda v: v * np.arange(20, dtype=np.uint8))
    rewrite(_mask(case, "spleen"), lambda v: v.astype(np.uint8) * 255)
    rewrite(_mask(case, "aorta"), lambda v: v * 0.9999)
    rewrite(_mask(case, "pancreas"), lambda v: v * 0.5)
    found = _told(examine(case).findings)
    for entry in (
        ("non_binary", "error"),
        ("foreground_value", "warning"),
        ("label_rounded", "warning"),
        ("label_not_integer", "error"),
    ):
        assert entry in found


def test_empty_and_full_masks(case: Case) -> None:
    for name in ("liver", "aorta"):
        rewrite(_mask(case, name), lambda v: v * 0)
    findings = examine(case).findings
    assert _told(findings) == [("empty_mask", "warning")] and "aorta, liver" in findings[0].message
    rewrite(_mask(case, "liver"), lambda v: v * 0 + 1)
    seen = examine(case)
    assert ("full_mask", "error") in _told(seen.findings)
    with pytest.raises(VolumeError, match="liver fills the volume"):
        seen.raise_errors()
    # Who says so may go on, but only past the check that was named.
    seen.raise_errors(allow=["full_mask"])
    with pytest.raises(VolumeError):
        seen.raise_errors(allow=["sides_swapped"])
    assert seen.labels.shape == SHAPE


def test_no_organ_at_all_is_a_warning(case: Case) -> None:
    for _, path in case.masks:
        rewrite(path, lambda v: v * 0)
    seen = examine(case)
    assert _told(seen.findings) == [("no_foreground", "warning")]
    assert seen.labels.max() == 0


def test_overlaps_are_counted_and_can_be_refused(case: Case) -> None:
    def grown(v):
        return v | np.roll(v, 2, axis=2)

    rewrite(_mask(case, "gall_bladder"), grown)
    seen = examine(case)
    overlaps = [f for f in seen.findings if f.check == "overlap"]
    assert overlaps and {f.severity for f in overlaps} == {"warning"}
    # The gall bladder is the smaller and keeps its voxels.
    shared = seen.report.overlaps["gall_bladder & liver"]
    assert shared > 0 and f"share {shared} voxels" in overlaps[0].message
    assert np.count_nonzero(seen.labels == 2) == seen.report.voxels["gall_bladder"]
    assert np.count_nonzero(seen.labels == 5) == seen.report.voxels["liver"] - shared
    refused = examine(case, overlap="refuse")
    assert ("overlap", "error") in _told(refused.findings) and refused.labels is None


def test_exchanged_kidneys_are_an_error_and_a_mirrored_patient_too(case: Case) -> None:
    left, right = _mask(case, "kidney_left"), _mask(case, "kidney_right")
    a, b = left.read_bytes(), right.read_bytes()
    left.write_bytes(b)
    right.write_bytes(a)
    findings = examine(case).findings
    assert _told(findings) == [("sides_swapped", "error")]
    assert "kidney_left lies to the patient's right of kidney_right" in findings[0].message
    left.write_bytes(a)
    right.write_bytes(b)
    for path in case.files:  # all voxels mirrored under the same affine
        rewrite(path, lambda v: v[::-1])
    assert _told(examine(case).findings) == [("sides_swapped", "error"), ("mirrored", "warning")]


def test_labels_of_another_patient_are_noticed_by_their_hu(case: Case) -> None:
    rewrite(case.ct, lambda v: np.roll(v, 11, axis=1))
    assert "organ_hu" in {check for check, _ in _told(examine(case).findings)}


def test_label_maps(case: Case, tmp_path: Path) -> None:
    combined = case.ct.parent / "combined_labels.nii.gz"
    mapped = Case(
        case.id, case.ct, (), combined, discover(tmp_path, labels="abdomenatlas_1.0")[0].scheme
    )
    np.testing.assert_array_equal(examine(mapped).labels, examine(case).labels)

    def odd(v):
        v[0, 0, 0], v[0, 0, 1:3] = 200, 11
        return v

    rewrite(combined, odd)
    seen = examine(mapped)
    assert _told(seen.findings) == [("label_unknown", "error")]
    assert "11 (2 voxels), 200 (1 voxels); it has 0..9" in seen.findings[0].message
    combined.unlink()
    assert _told(examine(mapped).findings) == [("missing_file", "error")]


@pytest.mark.parametrize(
    ("name", "fix"),
    [("left kidney", "rename left kidney to kidney_left"), ("nephros", "rename them in dataset.j")],
)
def test_names_of_a_data_set_that_nobody_knows_are_told(case: Case, name: str, fix: str) -> None:
    seen = examine(case)
    combined = case.ct.parent / "combined_labels.nii.gz"
    write(combined, seen.labels, seen.ct.geometry)
    names = {**SCHEMES["abdomenatlas_1.0"].indices}
    names[name] = names.pop("kidney_left")
    own = Case(case.id, case.ct, (), combined, from_indices("mine", names))
    (found,) = examine(own).findings
    assert (found.check, found.severity) == ("unknown_name", "warning")
    assert f"no kidney_left of abdomenatlas_1.0; left out are its {name}" in found.message
    assert found.fix.startswith(fix)


def test_stray_voxels_of_a_pair_are_told(case: Case) -> None:
    folder = case.ct.parent / "segmentations"
    for name, path in case.masks:
        if name not in ("liver", "kidney_left"):
            path.unlink()

    def both(v):
        v[18:21, 6:9, 5:9] = 1
        v[0, 0, 0] = 1
        return v

    rewrite(folder / "kidney_left.nii.gz", both)
    (folder / "kidney_left.nii.gz").rename(folder / "kidney.nii.gz")
    for name in ("spleen", "pancreas"):
        (folder / "liver.nii.gz").with_name(f"{name}.nii.gz").write_bytes(
            (folder / "liver.nii.gz").read_bytes()
        )
        rewrite(folder / f"{name}.nii.gz", lambda v: v * 0)
    (pairs,) = discover(case.ct.parents[1], "abdomenatlas", labels="abdomenct_1k")
    seen = examine(pairs)
    assert _told(seen.findings)[:1] == [("dropped", "warning")]
    assert seen.labels[19, 7, 6] == 4 and seen.report.dropped == {"kidney": 1}


# ---------------------------------------------------------------- several cases


def test_the_same_ct_twice_is_an_error_however_it_is_stored(tmp_path: Path) -> None:
    cases = dataset(tmp_path, n=2, orientations=("RAS",))
    cases[1].ct.write_bytes(cases[0].ct.read_bytes())
    stored_as(cases[1].ct, "IRP")
    rewrite(cases[1].ct, lambda v: v.astype(np.float64))
    findings = list(verify(cases, None))
    assert _told(findings) == [("duplicate", "error")]
    assert str(findings[0]) == (
        f"{cases[1].id}: its CT has the same voxels and spacing as case {cases[0].id}"
    )
    rewrite(cases[1].ct, lambda v: v + (v == v.max()))
    assert list(verify(cases, None)) == []


def test_digest_tells_one_voxel_and_the_spacing(case: Case) -> None:
    before = digest(read_ct(case.ct, case=case.id))
    rewrite(case.ct, same, np.diag([4.0, 4.5, 6.1, 1.0]))
    assert digest(read_ct(case.ct, case=case.id)) != before


def test_exit_code_is_that_of_errors() -> None:
    warning = Finding("c", "overlap", "warning", "m", "f")
    assert exit_code([]) == 0 and exit_code([warning]) == 0
    assert exit_code([warning, Finding("c", "not_hu", "error", "m", "f")]) == 1


def test_an_unknown_target_is_told_before_any_file_is_read(case: Case) -> None:
    with pytest.raises(ValueError, match="did you mean 'abdomenatlas_1.0'"):
        examine(case, "abdomenatlas_1_0")
