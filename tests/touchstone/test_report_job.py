"""Reports of a folder: files, bad inputs, one command; pictures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from launch.__main__ import main
from tests.touchstone.cases import dataset, rewrite, same
from touchstone_jax.findings import CHECKS, SEVERITIES, read_findings
from touchstone_jax.io import read_ct, read_labels, write
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.predict import write_prediction
from touchstone_jax.report.job import Report, read_phases
from touchstone_jax.report.pictures import draw_lesion
from touchstone_jax.report.schema import Lesion

SHAPE, SPACING_MM = (44, 40, 36), (4.0, 4.0, 5.0)


def add_mask(case, name: str, mask: np.ndarray) -> None:
    geometry = read_ct(case.ct, case="c").geometry
    write(case.ct.parent / "segmentations" / f"{name}.nii.gz", mask, geometry)


def organ(case, name: str) -> np.ndarray:
    geometry = read_ct(case.ct, case="c").geometry
    path = case.ct.parent / "segmentations" / f"{name}.nii.gz"
    return read_labels(path, case="c", like=geometry)[0] > 0


def blob(mask: np.ndarray, size: int = 3) -> np.ndarray:
    """A cube in the middle of a mask's voxels."""
    out, middle = np.zeros_like(mask), np.median(np.argwhere(mask), axis=0).astype(int)
    out[tuple(slice(m - size // 2, m - size // 2 + size) for m in middle)] = True
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cases: one sound and five with something wrong."""
    place = tmp_path_factory.mktemp("reports")
    cases = dataset(place, 6, seed=3, shape=SHAPE, spacing_mm=SPACING_MM)
    for case in cases:
        add_mask(case, "liver_lesion", blob(organ(case, "liver")))
        add_mask(case, "pancreatic_lesion", blob(organ(case, "pancreas")))
        add_mask(case, "kidney_lesion", np.zeros_like(organ(case, "liver")))
    _, missing, shifted, empty, outside, cut = cases
    (missing.ct.parent / "segmentations/liver.nii.gz").unlink()
    moved = shifted.ct.parent / "segmentations/spleen.nii.gz"
    rewrite(moved, same, affine=np.diag([4.0, 4, 5, 1]))
    add_mask(empty, "liver_lesion", np.zeros_like(organ(empty, "liver")))
    stray = np.zeros_like(organ(outside, "liver"))
    stray[1:4, 1:4, 1:4] = True
    add_mask(outside, "liver_lesion", stray)
    cut.ct.write_bytes(cut.ct.read_bytes()[:2000])
    return place


@pytest.fixture(scope="module")
def done(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Exit code and work folder of the launcher's verb."""
    workdir = tmp_path_factory.mktemp("work")
    card = "configs/touchstone/report.py"
    where = f"--config.jobs.report.data={folder}"
    return main(["report", "--config", card, "--workdir", str(workdir), where]), workdir / "report"


def text(done: tuple[int, Path], number: int) -> str:
    return (done[1] / f"phantom_{number:05d}" / "report.txt").read_text(encoding="utf-8")


def test_the_batch_goes_on_and_the_exit_code_tells(done: tuple[int, Path]) -> None:
    code, out = done
    with (out / "reports.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert code == 1 and [set(row) for row in rows] == [{"Case", "Report"}] * 6
    assert [row["Report"] for row in rows] == [text(done, n)[:-1] for n in range(3, 9)]
    found = {}
    for finding in read_findings(out / "findings.jsonl"):
        assert finding.check in CHECKS and finding.severity in SEVERITIES
        if finding.severity == "error":
            found.setdefault(finding.case, []).append(finding.check)
    assert found.pop("phantom_00004") == ["missing_mask"]
    assert found.pop("phantom_00005") == ["affine_mismatch"]
    assert found.pop("phantom_00008") == ["truncated"]
    assert found == {}


def test_each_bad_input_is_told(done: tuple[int, Path]) -> None:
    sound = text(done, 3)
    assert "Liver lesion 1:" in sound and "No tumor" not in sound
    assert "Not assessed: SMA (no usable mask); portal vein and SMV (no usable mask)" in sound
    assert "CA, CHA, SA (no usable mask)" in sound
    assert "T stage, at least T" in sound
    missing = text(done, 4)
    assert "Liver: \nSize not assessed: no usable mask of the liver." in missing
    assert "Enhancement relative to liver: not assessed" in missing
    assert "Spleen: \nSize not assessed: no usable mask of the spleen." in text(done, 5)
    assert "Liver lesion" not in text(done, 6) and "Pancreas lesion 1" in text(done, 6)
    assert "Location: outside the organ's mask." in text(done, 7)
    assert text(done, 8).startswith("FINDINGS: \nNot assessed: ct.nii.gz")


def test_numbers_can_be_traced_to_voxels(folder: Path, done: tuple[int, Path]) -> None:
    measured = json.loads((done[1] / "measurements.json").read_text(encoding="utf-8"))
    assert len(measured) == 5  # the CT that cannot be read has none
    stored = measured["phantom_00003"]
    liver = next(o for o in stored["organs"] if o["name"] == "liver")
    lesion = liver["lesions"][0]
    ct = read_ct(folder / "phantom_00003/ct.nii.gz", case="c")
    path = folder / "phantom_00003/segmentations/liver_lesion.nii.gz"
    mask = read_labels(path, case="c", like=ct.geometry)[0] > 0
    assert lesion["volume_mm3"] == pytest.approx(mask.sum() * np.prod(ct.spacing_mm))
    assert lesion["mean_hu"] == pytest.approx(ct.array[mask].mean(), abs=0.051)
    where = np.argwhere(mask)
    assert lesion["start"] == where.min(axis=0).tolist()
    assert lesion["stop"] == (where.max(axis=0) + 1).tolist()
    assert mask[:, :, lesion["slice_index"]].any()
    # A cube of three voxels: the outline's farthest points are half a voxel outside two corners.
    wide, tall = ct.spacing_mm[0], ct.spacing_mm[1]
    diagonals = (np.hypot(3 * wide, 2 * tall), np.hypot(2 * wide, 3 * tall))
    assert lesion["longest_mm"] == pytest.approx(max(diagonals))
    with (done[1] / "metadata.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    row = next(row for row in table if row["BDMAP ID"] == "phantom_00003")
    assert row["number of liver lesion instances"] == "1"
    assert row["number of kidney lesion instances"] == "0"
    assert row["number of kidney cyst instances"] == "0"
    assert row["total colon lesion volume (cm^3)"] == ""
    counted = json.loads((done[1] / "statistics.json").read_text(encoding="utf-8"))
    assert (counted["cases"], counted["reports"]) == (6, 5)
    assert counted["lesions"] == sum(
        len(o["lesions"]) for m in measured.values() for o in m["organs"]
    )


def test_a_picture_of_each_lesion(done: tuple[int, Path]) -> None:
    from PIL import Image

    names = {path.name for path in (done[1] / "phantom_00003").glob("*.png")}
    assert names == {"liver_lesion_1.png", "pancreas_lesion_1.png"}
    with Image.open(done[1] / "phantom_00003/liver_lesion_1.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    # The longest diameter is red.
    assert ((pixels[..., 0] > 200) & (pixels[..., 1] < 120) & (pixels[..., 2] < 120)).sum() > 10


def test_the_patient_s_right_is_on_the_left_and_the_front_on_top() -> None:
    hu = np.full((60, 50, 3), -160.0)
    hu[40:50, 35:45, 1] = 240  # right and in front
    lesion = Lesion(
        "cyst", 1, 9.0, 0.0, 1.0, 10.0, 5.0, 1, ((20.0, 20.0), (30.0, 20.0)),
        ((25.0, 18.0), (25.0, 22.0)), (20, 18, 1), (31, 23, 2),
    )  # fmt: skip
    pixels = np.asarray(draw_lesion(hu, (1.0, 1.0, 2.0), "liver", lesion)).astype(int)
    white = np.argwhere(pixels.min(axis=2) > 250).mean(axis=0)
    assert white[0] < pixels.shape[0] / 2 and white[1] < pixels.shape[1] / 2
    red = np.argwhere((pixels[..., 0] > 200) & (pixels[..., 1] < 120))
    assert np.ptp(red[:, 1]) > 5 * np.ptp(red[:, 0])  # along x it lies level


def test_a_second_start_does_nothing_and_a_changed_mask_one_case(
    folder: Path, done: tuple[int, Path]
) -> None:
    job = Report(str(folder))
    before = {case: job.fingerprint(case) for case in job.cases()}
    assert Report(str(folder)).fingerprint("phantom_00003") == before["phantom_00003"]
    other = Report(str(folder), rules="published")
    assert other.fingerprint("phantom_00003") != before["phantom_00003"]


def test_predictions_become_reports(folder: Path, tmp_path: Path) -> None:
    """What `predict` writes: masks of nine organs in another folder, none of lesions."""
    source = folder / "phantom_00003"
    ct = read_ct(source / "ct.nii.gz", case="c")
    labels, _ = read_labels(source / "combined_labels.nii.gz", case="c", like=ct.geometry)
    predicted = tmp_path / "predict/phantom_00003"
    predicted.mkdir(parents=True)
    write_prediction(predicted, labels, ct.geometry, scheme("abdomenatlas_1.0"))
    (tmp_path / "ct/phantom_00003").mkdir(parents=True)
    (tmp_path / "ct/phantom_00003/ct.nii.gz").write_bytes((source / "ct.nii.gz").read_bytes())
    code = main(
        [
            "report",
            "--config=configs/touchstone/report.py",
            f"--workdir={tmp_path}",
            f"--config.jobs.report.data={tmp_path / 'ct'}",
            f"--config.jobs.report.masks={tmp_path / 'predict'}",
        ]
    )
    report = (tmp_path / "report/reports.csv").read_text(encoding="utf-8")
    assert code == 0 and "Not assessed for lesions: liver, pancreas, kidneys." in report
    assert "Spleen: \nNormal size (volume:" in report or "Spleen is" in report


def test_published_rules_have_no_report_for_a_case_that_lacks_an_organ(
    folder: Path, tmp_path: Path
) -> None:
    job = Report(str(folder), rules="published", pictures=False, allow=("missing_mask",))
    (tmp_path / "phantom_00003").mkdir()
    row = job.run("phantom_00003", tmp_path / "phantom_00003")
    told = read_findings(tmp_path / "phantom_00003/findings.jsonl")
    assert row == {"lesions": 0, "errors": 1, "warnings": 0}
    assert (told[0].check, told[0].message) == ("missing_mask", "no mask colon.nii.gz")
    with pytest.raises(ValueError, match="1 errors in 1 of 1 cases, .*no mask colon.nii.gz"):
        job.finish([{"case": "phantom_00003", **row}], tmp_path)
    assert (tmp_path / "reports.csv").read_text(encoding="utf-8") == "Case,Report\n"
    assert len(read_findings(tmp_path / "findings.jsonl")) == 1


def test_errors_that_are_allowed_are_warnings(folder: Path, tmp_path: Path) -> None:
    job = Report(str(folder), allow=("missing_mask",), narrative=True)
    row = job.run("phantom_00004", tmp_path)
    assert row["errors"] == 0 and row["warnings"] > 0
    assert "The size of the liver cannot be told." in (tmp_path / "narrative.txt").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rules": "mended"}, "rules='mended'; legal values: corrected, published"),
        ({"min_component_mm3": -1}, "min_component_mm3=-1; expected 0..1000000"),
        ({"min_component_mm3": float("nan")}, "min_component_mm3=nan; expected"),
        ({"allow": ("truncated",)}, "allow='truncated'; legal values: "),
        ({"segmentations": "a/b"}, "segmentations='a/b'; expected the name of a folder"),
        ({"segmentations": ".."}, "segmentations='..'; expected the name of a folder"),
        ({"masks": "/no/such"}, "masks /no/such: no such folder"),
        ({"endpoint": {"url": "http://127.0.0.1/v1", "model": "m"}}, "no effect without narrative"),
        ({"endpoint": {"url": "ftp://x", "model": "m"}}, "endpoint url='ftp://x'; expected"),
    ],
)
def test_refusals_come_before_any_work(options, told: str, folder: Path) -> None:
    with pytest.raises((ValueError, OSError), match=told.replace("(", r"\(")):
        Report(str(folder), **options)


def test_phases(tmp_path: Path) -> None:
    path = tmp_path / "phases.csv"
    path.write_text(
        "\ufeffIndex,BDMAP ID,CT Phase\n1,a,Venous\n2,b,\n3,c,Plain\n", encoding="utf-8"
    )
    assert read_phases(path) == {"a": "Venous", "c": "Plain"}
    path.write_text("Case,CT Phase\na,plain\nb,ARTERIAL\nc,Portal\n", encoding="utf-8")
    assert read_phases(path) == {"a": "Plain", "b": "Arterial", "c": "Portal"}
    path.write_bytes(b"Case,CT Phase\n\xe4,Plain\n")
    with pytest.raises(ValueError, match=r"phases.csv: not UTF-8"):
        read_phases(path)
    path.write_text("Case,CT Phase\na,Venous\na,Plain\n", encoding="utf-8")
    with pytest.raises(ValueError, match="a has the phases 'Venous' and 'Plain'"):
        read_phases(path)
    path.write_text("id,CT Phase\n", encoding="utf-8")
    with pytest.raises(ValueError, match="columns .*; expected 'BDMAP ID'"):
        read_phases(path)


def test_a_real_ct_in_one_command(golden: Path, tmp_path: Path) -> None:
    """The example CT (TotalSegmentator's, 3 mm) with a model's nine organs, and a lesion put in."""
    source = golden.parent / "data/real_ct/TS_full_3mm"
    case = tmp_path / "data/TS_full_3mm"
    (case / "segmentations").mkdir(parents=True)
    for path in (source / "ct.nii.gz", *(source / "segmentations").glob("*.nii.gz")):
        (case / path.relative_to(source)).write_bytes(path.read_bytes())
    ct = read_ct(case / "ct.nii.gz", case="c")
    files = case / "segmentations"
    liver = read_labels(files / "liver.nii.gz", case="c", like=ct.geometry)[0] > 0
    write(files / "liver_lesion.nii.gz", blob(liver, 5), ct.geometry)
    card = "--config=configs/touchstone/report.py"
    where = f"--config.jobs.report.data={tmp_path / 'data'}"
    assert main(["report", card, f"--workdir={tmp_path}", where]) == 0
    report = (tmp_path / "report/TS_full_3mm/report.txt").read_text(encoding="utf-8")
    kidneys = sum(
        (read_labels(files / f"kidney_{side}.nii.gz", case="c", like=ct.geometry)[0] > 0).sum()
        for side in ("left", "right")
    )
    ml = kidneys * np.prod(ct.spacing_mm) / 1000
    assert f"total kidney volume: {np.round(ml, 1)} cm^3" in report
    assert "Liver lesion 1:" in report and "Volume: 3.4 cm^3" in report  # 125 voxels of 27 mm³
    assert "Not assessed for lesions: pancreas, kidneys." in report
    assert (tmp_path / "report/TS_full_3mm/liver_lesion_1.png").is_file()


def test_the_u_net_s_card_reports_what_it_predicted(golden: Path, tmp_path: Path) -> None:
    """The real CT with nine organs in the layout of `predict`, by the card that predicts them."""
    source = golden.parent / "data/real_ct/TS_full_3mm"
    ct = read_ct(source / "ct.nii.gz", case="c")
    labels, _ = read_labels(source / "combined_labels.nii.gz", case="c", like=ct.geometry)
    predicted = tmp_path / "predict/TS_full_3mm"
    predicted.mkdir(parents=True)
    write_prediction(predicted, labels, ct.geometry, scheme("abdomenatlas_1.0"))
    (tmp_path / "data/TS_full_3mm").mkdir(parents=True)
    (tmp_path / "data/TS_full_3mm/ct.nii.gz").write_bytes((source / "ct.nii.gz").read_bytes())
    card = f"--config=configs/touchstone/unet.py:{tmp_path}"
    where = f"--config.jobs.report.data={tmp_path / 'data'}"
    assert main(["report", card, f"--workdir={tmp_path}", where]) == 0
    report = (tmp_path / "report/TS_full_3mm/report.txt").read_text(encoding="utf-8")
    ml = np.round((labels == 6).sum() * np.prod(ct.spacing_mm) / 1000, 1)  # the pancreas
    assert f"Pancreas: \nNormal size (volume: {ml} cm^3)." in report
    assert "Not assessed for lesions: liver, pancreas, kidneys." in report
