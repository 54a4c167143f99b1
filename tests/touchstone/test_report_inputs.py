"""Reports of cases with something wrong: each is told, and what is not known is not said."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from tests.touchstone.cases import dataset
from touchstone_jax.findings import Finding, read_findings
from touchstone_jax.io import read_ct, read_labels, write
from touchstone_jax.report.job import Report, write_reports
from touchstone_jax.report.metadata import empty_row, write_metadata

CASE = "phantom_00005"
Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound case with a lesion of the liver, one of the pancreas, and none of the kidneys."""
    place = tmp_path_factory.mktemp("sound")
    (case,) = dataset(place, 1, seed=5, shape=(44, 40, 36), spacing_mm=(4.0, 4.0, 5.0))
    assert case.id == CASE
    for name in ("liver", "pancreas"):
        put(place / CASE, f"{name}_lesion", cube(mask(place / CASE, name)))
    put(place / CASE, "kidney_lesion", np.zeros_like(mask(place / CASE, "liver")))
    return place


def mask(case: Path, name: str) -> np.ndarray:
    geometry = read_ct(case / "ct.nii.gz", case="c").geometry
    return read_labels(case / f"segmentations/{name}.nii.gz", case="c", like=geometry)[0] > 0


def put(case: Path, name: str, array: np.ndarray) -> None:
    geometry = read_ct(case / "ct.nii.gz", case="c").geometry
    write(case / f"segmentations/{name}.nii.gz", array, geometry)


def cube(inside: np.ndarray) -> np.ndarray:
    out, middle = np.zeros_like(inside), np.median(np.argwhere(inside), axis=0).astype(int)
    out[tuple(slice(m - 1, m + 2) for m in middle)] = True
    return out


def reported(source: Path, tmp_path: Path, change: Change, **options) -> tuple[str, list[Finding]]:
    """Text ("" if there is none) and findings of the sound case after a change to its folder."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(source, data)
    change(data / CASE)
    out.mkdir()
    row = Report(str(data), pictures=False, **options).run(CASE, out)
    found = read_findings(out / "findings.jsonl")
    assert row["errors"] == sum(f.severity == "error" for f in found)
    text = (
        (out / "report.txt").read_text(encoding="utf-8") if (out / "report.txt").is_file() else ""
    )
    return text, found


def errors(found: list[Finding]) -> list[str]:
    return [f.check for f in found if f.severity == "error"]


def of_values(values: Callable[[np.ndarray], np.ndarray]) -> Change:
    """A change of the CT's values."""

    def change(case: Path) -> None:
        ct = read_ct(case / "ct.nii.gz", case="c")
        write(case / "ct.nii.gz", values(ct.array), ct.geometry)

    return change


@pytest.mark.parametrize(
    ("change", "check"),
    [
        (of_values(lambda hu: np.where(hu > 0, np.nan, hu).astype(np.float32)), "nonfinite"),
        (of_values(lambda hu: np.full_like(hu, -1024)), "constant"),
        (of_values(lambda hu: (hu - hu.min()) / np.ptp(hu)), "not_hu"),
        (lambda case: (case / "ct.nii.gz").unlink(), "missing_file"),
        (lambda case: (case / "ct.nii.gz").write_bytes(b""), "unreadable"),
    ],
)
def test_a_ct_of_no_use_is_said_to_be_so(change, check, source: Path, tmp_path: Path) -> None:
    text, found = reported(source, tmp_path, change)
    assert errors(found) == [check]
    assert text.startswith("FINDINGS: \nNot assessed: ") and text.endswith("Not assessed.\n")
    with (tmp_path / "out/metadata.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["BDMAP ID"] == CASE and row["liver volume (cm^3)"] == ""


def test_a_ct_may_be_let_pass(source: Path, tmp_path: Path) -> None:
    change = of_values(lambda hu: (hu - hu.min()) / np.ptp(hu))
    text, found = reported(source, tmp_path, change, allow=("not_hu",))
    assert "Liver lesion 1" in text and errors(found) == []


def _values(name: str, value: float, dtype: type) -> Change:
    def change(case: Path) -> None:
        path = case / f"segmentations/{name}.nii.gz"
        image = nibabel.load(path)
        array = (np.asarray(image.dataobj) * value).astype(dtype)
        nibabel.save(nibabel.Nifti1Image(array, image.affine), path)

    return change


@pytest.mark.parametrize(
    ("change", "wrong", "said"),
    [
        (_values("liver", 0.5, np.float32), ["label_not_integer"], "no usable mask of the liver"),
        (_values("liver", np.nan, np.float32), ["label_not_integer"], "no usable mask"),
        (_values("liver", 2, np.uint8), [], "Liver: \nNormal size"),
        (_values("liver", 0, np.uint8), [], "the mask of the liver is empty"),
        (
            lambda case: put(case, "liver", np.ones_like(mask(case, "liver"))),
            ["full_mask"],
            "the scan ends within the organ",
        ),
        (
            lambda case: (case / "segmentations/liver_lesion.nii.gz").write_bytes(b""),
            ["unreadable"],
            "Not assessed for lesions: liver.",
        ),
    ],
)
def test_masks_of_odd_values(change, wrong, said, source: Path, tmp_path: Path) -> None:
    text, found = reported(source, tmp_path, change)
    assert errors(found) == wrong and said in text and "Pancreas lesion 1" in text


def test_exchanged_kidneys_are_an_error(source: Path, tmp_path: Path) -> None:
    def exchange(case: Path) -> None:
        left, right = mask(case, "kidney_left"), mask(case, "kidney_right")
        put(case, "kidney_left", right)
        put(case, "kidney_right", left)
        put(case, "liver", np.roll(mask(case, "spleen"), -2, axis=0))

    _, found = reported(source, tmp_path, exchange)
    assert errors(found) == ["sides_swapped"] and "mirrored" in {f.check for f in found}


def test_an_organ_far_from_soft_tissue_is_told(source: Path, tmp_path: Path) -> None:
    _, found = reported(source, tmp_path, of_values(lambda hu: hu - 300))
    told = [f.message.split()[0] for f in found if f.check == "organ_hu"]
    assert told == ["spleen", "liver", "pancreas", "kidney"]


def test_a_lesion_mask_of_an_unknown_name_is_told(source: Path, tmp_path: Path) -> None:
    def rename(case: Path) -> None:
        files = case / "segmentations"
        (files / "liver_lesion.nii.gz").rename(files / "liver_tumour.nii.gz")
        shutil.copy(files / "pancreas_lesion.nii.gz", files / "pancreatic_lesion.nii.gz")

    text, found = reported(source, tmp_path, rename)
    told = [f.message.split()[0] for f in found if f.check == "unknown_mask"]
    assert told == ["liver_tumour.nii.gz", "pancreatic_lesion.nii.gz"]
    assert "Not assessed for lesions: liver." in text


def test_names_of_totalsegmentator_are_known(source: Path, tmp_path: Path) -> None:
    def add(case: Path) -> None:
        for name in ("inferior_vena_cava", "small_bowel"):
            put(case, name, cube(mask(case, "spleen")))
        (case / "segmentations/postcava.nii.gz").unlink(missing_ok=True)

    text, _ = reported(source, tmp_path, add)
    unknown = next(line for line in text.splitlines() if line.startswith("Not assessed: "))
    assert "IVC (no usable mask)" not in unknown and "intestine" not in unknown


def test_a_case_without_any_mask_says_where_it_looked(source: Path, tmp_path: Path) -> None:
    text, found = reported(source, tmp_path, lambda case: shutil.rmtree(case / "segmentations"))
    assert errors(found)[0] == "missing_labels" and "segmentations=" in found[0].fix
    assert "Not assessed for lesions: liver, pancreas, kidneys." in text


def test_one_kidney_is_told_without_the_other(source: Path, tmp_path: Path) -> None:
    text, _ = reported(
        source, tmp_path, lambda case: (case / "segmentations/kidney_left.nii.gz").unlink()
    )
    assert "Right kidney is of normal size (right kidney volume: " in text
    assert "Size not assessed: no usable mask of the left kidney." in text
    assert "total kidney volume" not in text and "Enlarged" not in text


def test_neighbours_without_a_mask_are_not_said_to_be_free(source: Path, tmp_path: Path) -> None:
    def drop(case: Path) -> None:
        for name in ("spleen", "colon", "kidney_left", "stomach", "duodenum"):
            (case / f"segmentations/{name}.nii.gz").unlink(missing_ok=True)

    text, _ = reported(source, tmp_path, drop)
    assert "Contact with adjacent organs: not assessed." in text
    assert "contact with left adrenal gland, spleen, colon, left kidney, stomach," in text


def test_a_stray_lesion_is_outside_in_the_impression_too(source: Path, tmp_path: Path) -> None:
    def stray(case: Path) -> None:
        there = np.zeros_like(mask(case, "liver"))
        there[1:4, 1:4, 1:4] = True
        put(case, "liver_lesion", there)

    text, found = reported(source, tmp_path, stray)
    assert "liver (outside the organ's mask) mass" in text.split("IMPRESSION")[1]
    assert [f.check for f in found].count("lesion_outside") == 1


def test_published_tells_the_file_that_stopped_it(source: Path, tmp_path: Path) -> None:
    def spoil(case: Path) -> None:
        for name in ("colon", "liver_segment_4"):
            put(case, name, np.zeros_like(mask(case, "liver")))
        _values("spleen", 255, np.uint8)(case)  # a note, which is not the reason
        (case / "segmentations/liver.nii.gz").write_bytes(b"")

    text, found = reported(source, tmp_path, spoil, rules="published")
    assert text == "" and errors(found) == ["unreadable"]
    assert any("liver.nii.gz is empty" in f.message for f in found)


def test_published_says_why_nothing_is_staged(source: Path, tmp_path: Path) -> None:
    def complete(case: Path) -> None:
        for name in ("colon", "liver_segment_4"):
            put(case, name, mask(case, "liver"))

    text, found = reported(source, tmp_path, complete, rules="published")
    assert "Pancreas lesion 1" in text and "Vascular" not in text
    assert any("pancreas lesion 1 not staged" in f.message for f in found)


def test_cells_that_a_spreadsheet_would_run_are_defused(tmp_path: Path) -> None:
    names = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", 'a,b "q"', "Fäll 漢", "plain"]
    write_reports(tmp_path / "r.csv", dict.fromkeys(names, "FINDINGS: \n- none"))
    write_metadata(tmp_path / "m.csv", [empty_row(name, "x") for name in names])
    for file, column in (("r.csv", "Case"), ("m.csv", "BDMAP ID")):
        with (tmp_path / file).open(encoding="utf-8", newline="") as stream:
            got = [row[column] for row in csv.DictReader(stream)]
        assert got == [f"'{name}" for name in names[:4]] + names[4:]


def test_settings_that_fit_no_case_are_refused(source: Path, tmp_path: Path) -> None:
    phases = tmp_path / "phases.csv"
    phases.write_text("Case,CT Phase\nother,Venous\n", encoding="utf-8")
    with pytest.raises(ValueError, match="names none of the 1 cases"):
        Report(str(source), phases=str(phases))
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(source / CASE / "ct.nii.gz", flat / "a.nii.gz")
    with pytest.raises(ValueError, match=r"a.nii.gz: no folder of its own, so masks= must name"):
        Report(str(flat))
