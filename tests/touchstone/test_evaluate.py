"""Predictions against references: published scores, policies, geometry, tables."""

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.touchstone.cases import dataset, rewrite, same, stored_as
from touchstone_jax.evaluate import FLAGS, Evaluate
from touchstone_jax.evaluate.score_tables import COLUMNS, Score, read_scores, write_scores
from touchstone_jax.io import read_geometry, write
from touchstone_jax.labels.schemes import scheme
from touchstone_jax.metrics import evaluate_mask

ORGANS = scheme("abdomenatlas_1.0").classes


def _run(job: Evaluate, folder: Path) -> tuple[dict[str, dict], dict[str, str]]:
    """Rows and failures by case, as the launcher gathers them; no `finish`."""
    rows, failed = {}, {}
    for case in job.cases():
        (folder / case).mkdir(parents=True)
        try:
            rows[case] = {"case": case, **json.loads(json.dumps(job.run(case, folder / case)))}
        except ValueError as error:
            failed[case] = str(error)
            shutil.rmtree(folder / case)
    return rows, failed


def _finish(job: Evaluate, folder: Path) -> dict:
    rows, _ = _run(job, folder)
    job.finish(list(rows.values()), folder)
    return json.loads((folder / "summary.json").read_text())


def _dsc(folder: Path) -> dict[str, Score]:
    return {s.organ: s for s in read_scores(folder / "scores.csv") if s.metric == "dsc"}


def _table(path: Path) -> dict[str, dict[str, str]]:
    with path.open() as file:
        return {row.pop("name"): row for row in csv.DictReader(file)}


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, Path]:
    """References, and predictions that are their masks moved by a voxel along x."""
    references, predictions = tmp_path / "ref", tmp_path / "pred"
    dataset(references, n=2, orientations=("RAS", "LPS"), shape=(32, 28, 24))
    for case in references.iterdir():
        (predictions / case.name).mkdir(parents=True)
        shutil.copytree(case / "segmentations", predictions / case.name / "predictions")
        for path in (predictions / case.name / "predictions").iterdir():
            rewrite(path, lambda mask: np.roll(mask, 1, axis=0))
    return predictions, references


# ---------------------------------------------------------------- values


def test_published_scores_of_a_real_ct(golden: Path, tmp_path: Path) -> None:
    told = json.loads((golden / "metrics" / "real_ct_pairs.json").read_text())["cases"]
    real_ct = golden.parent / "data" / "real_ct"
    job = Evaluate(str(real_ct), str(real_ct), missing="list", distances=True)
    summary = _finish(job, tmp_path)
    assert summary["cases"]["missing"] == ["TS_full_3mm"]
    dsc, nsd = _table(tmp_path / "dsc.csv"), _table(tmp_path / "nsd.csv")
    assert list(dsc["TS_full_3mm"]) == sorted(ORGANS)
    assert set(dsc["TS_full_3mm"].values()) == {""}
    for case, organs in told.items():
        for organ, values in organs.items():
            if values["evaluated_under_size_rule(eroded>10)"]:
                assert float(dsc[case][organ]) == pytest.approx(values["dice_touchstone"], abs=1e-6)
                assert float(nsd[case][organ]) == pytest.approx(values["nsd"]["1.5"], abs=1e-6)
            else:
                assert dsc[case][organ] == nsd[case][organ] == ""
    scored = [v["dice_touchstone"] for organs in told.values() for v in organs.values()
              if v["evaluated_under_size_rule(eroded>10)"]]  # fmt: skip
    assert sum(mean["n"] for mean in summary["dsc"]["by_class"].values()) == len(scored)
    assert summary["dsc"]["per_case"]["n"] == 2 and summary["dsc"]["macro"]["n"] <= 9
    assert summary["hd95_mm"]["by_class"]["liver"]["mean"] > 0


def test_masks_and_label_maps_have_equal_scores(data: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = data
    maps, alone = tmp_path / "maps", tmp_path / "alone"
    for folder in (maps, alone):
        folder.mkdir()
        for case in references.iterdir():
            shutil.copy(case / "combined_labels.nii.gz", folder / f"{case.name}.nii.gz")
    for case in references.iterdir():
        rewrite(maps / f"{case.name}.nii.gz", lambda labels: np.roll(labels, 1, axis=0))
    options = {"skip": "empty", "distances": True}
    one = Evaluate(str(predictions), str(references), **options)
    two = Evaluate(str(maps), str(references), layout="labelmap", **options)
    _finish(one, tmp_path / "one")
    _finish(two, tmp_path / "two")
    masks, labels = (read_scores(tmp_path / name / "scores.csv") for name in ("one", "two"))
    assert len(masks) == len(labels) == 2 * 9 * 4
    for a, b in zip(masks, labels, strict=True):
        assert (a.case, a.organ, a.metric) == (b.case, b.organ, b.metric)
    np.testing.assert_allclose([s.value for s in masks], [s.value for s in labels], rtol=1e-6)
    assert 0.3 < np.mean([s.value for s in masks if s.metric == "dsc"]) < 0.95
    _finish(Evaluate(str(maps), str(alone), **options), tmp_path / "three")
    assert [s.value for s in read_scores(tmp_path / "three" / "scores.csv")] == [
        s.value for s in labels
    ]


def test_values_are_those_of_the_metrics_in_the_reference_s_spacing(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    import nibabel

    predictions, references = data
    options = {"convention": "deepmind", "tolerance_mm": 4.0, "skip": "none"}
    job = Evaluate(str(predictions), str(references), **options)
    _finish(job, tmp_path)
    case = job.cases()[0]
    for organ in ("liver", "gall_bladder"):
        files = (predictions / case / "predictions" / f"{organ}.nii.gz",
                 references / case / "segmentations" / f"{organ}.nii.gz")  # fmt: skip
        pred, ref = (nibabel.load(path) for path in files)
        masks = (np.asarray(image.dataobj) > 0 for image in (pred, ref))
        spacing = [float(s) for s in ref.header.get_zooms()]
        expected = evaluate_mask(*masks, spacing, 4.0, convention="deepmind")
        assert float(_table(tmp_path / "dsc.csv")[case][organ]) == expected.dsc
        assert float(_table(tmp_path / "nsd.csv")[case][organ]) == pytest.approx(expected.nsd)


# ---------------------------------------------------------------- geometry


def test_other_axes_are_turned_and_other_grids_refused(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, references = data
    _finish(Evaluate(str(predictions), str(references)), tmp_path / "as_it_was")
    first, second = (predictions / case.name for case in sorted(references.iterdir()))
    for path in (first / "predictions").iterdir():
        stored_as(path, "PIL")
    _finish(Evaluate(str(predictions), str(references)), tmp_path / "turned")
    for name in ("dsc.csv", "nsd.csv"):
        kept = (tmp_path / "as_it_was" / name).read_bytes()
        assert (tmp_path / "turned" / name).read_bytes() == kept
    flags = {s.case: s.flags for s in read_scores(tmp_path / "turned" / "scores.csv")}
    assert "reoriented" in flags[first.name] and "reoriented" not in flags[second.name]

    import nibabel

    path = second / "predictions" / "pancreas.nii.gz"
    affine = nibabel.load(path).affine.copy()
    affine[0, 3] += 1.0
    rewrite(path, same, affine=affine)
    job = Evaluate(str(predictions), str(references))
    rows, _ = _run(job, tmp_path / "off")
    assert rows[second.name]["prediction"] == "failed" and rows[second.name]["dsc"] == 0
    assert "pancreas.nii.gz lies 1 mm off" in rows[second.name]["problem"]
    assert rows[first.name]["prediction"] == "ok"
    with pytest.raises(ValueError, match=r"1 of 2 predictions cannot.*empty ones: .*lies 1"):
        job.finish(list(rows.values()), tmp_path / "off")
    summary = json.loads((tmp_path / "off" / "summary.json").read_text())
    assert list(summary["cases"]["failed"]) == [second.name]
    assert summary["dsc"]["per_case"]["n"] == 2


# ---------------------------------------------------------------- policies


@pytest.mark.parametrize("policy", ["zero", "list"])
def test_missing_predictions_are_zero_or_listed(
    data: tuple[Path, Path], tmp_path: Path, policy: str, capsys: pytest.CaptureFixture
) -> None:
    predictions, references = data
    whole = _finish(Evaluate(str(predictions), str(references)), tmp_path / "whole")
    first, second = (predictions / case.name for case in sorted(references.iterdir()))
    shutil.rmtree(second)
    (first / "predictions" / "liver.nii.gz").unlink()
    shutil.copytree(first, predictions / "stranger")
    job = Evaluate(str(predictions), str(references), missing=policy)
    capsys.readouterr()
    summary = _finish(job, tmp_path / "out")
    said = capsys.readouterr()
    assert f"missing: 1 of 2 cases ({second.name})" in said.err and "dsc: per case" in said.out
    assert summary["cases"]["missing"] == [second.name]
    assert summary["cases"]["without_reference"] == ["stranger"]
    dsc = _table(tmp_path / "out" / "dsc.csv")
    before = _table(tmp_path / "whole" / "dsc.csv")
    evaluated = {organ for organ, value in before[second.name].items() if value}
    assert evaluated and list(dsc) == [first.name, second.name]
    expected = {
        organ: ("0.0" if policy == "zero" and organ in evaluated else "") for organ in ORGANS
    }
    assert dsc[second.name] == expected
    assert dsc[first.name]["liver"] == ("0.0" if policy == "zero" else "")
    liver = next(s for s in read_scores(tmp_path / "out" / "scores.csv") if s.organ == "liver")
    assert liver.flags == ("no_mask",) and liver.pred_voxels is None and liver.ref_voxels > 0
    scored = summary["dsc"]["by_class"]["liver"]
    assert scored["n"] == (2 if policy == "zero" else 0)
    assert scored["n"] + scored["left_out"] == 2
    assert whole["dsc"]["by_class"]["liver"]["n"] == 2


def test_a_reference_that_cannot_be_used_fails_and_is_counted(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    predictions, references = data
    first, second = sorted(references.iterdir())
    (first / "segmentations" / "spleen.nii.gz").write_bytes(b"")
    job = Evaluate(str(predictions), str(references))
    rows, failed = _run(job, tmp_path)
    assert list(rows) == [second.name]
    assert failed[first.name].startswith(f"{first.name}: spleen.nii.gz is empty")
    job.finish(list(rows.values()), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["cases"]["reference_failed"] == [first.name]


@pytest.mark.parametrize(("skip", "flag"), [("erosion", True), ("empty", False), ("none", False)])
def test_what_is_skipped(data: tuple[Path, Path], tmp_path: Path, skip: str, flag: bool) -> None:
    predictions, references = data
    case = sorted(references.iterdir())[0]
    files = case / "segmentations"

    def corner(mask: np.ndarray) -> np.ndarray:
        mask[:] = 0
        mask[:3, :3, :3] = 1  # one voxel survives the erosion
        return mask

    rewrite(files / "spleen.nii.gz", corner)
    rewrite(files / "stomach.nii.gz", np.zeros_like)
    (files / "pancreas.nii.gz").unlink()
    summary = _finish(Evaluate(str(predictions), str(references), skip=skip), tmp_path)
    found = _dsc(tmp_path / case.name)
    assert ("skipped" in found["spleen"].flags) == flag == math.isnan(found["spleen"].value)
    assert ("skipped" in found["stomach"].flags) == (skip != "none")
    assert "empty_reference" in found["stomach"].flags
    assert found["pancreas"].flags == ("not_annotated",) and math.isnan(found["pancreas"].value)
    if skip == "none":
        assert found["stomach"].value == 0 and found["stomach"].pred_voxels > 0
    assert summary["flags"]["not_annotated"] == 1 and set(summary["flags"]) <= set(FLAGS)


# ---------------------------------------------------------------- inputs


def test_a_file_of_both_kidneys_is_split(data: tuple[Path, Path], tmp_path: Path) -> None:
    """One file of both kidneys is split by side."""
    _, references = data
    case = sorted(references.iterdir())[0]
    segmentations = case / "segmentations"
    geometry = read_geometry(case / "ct.nii.gz", case="c")[0]
    import nibabel

    both = sum(np.asarray(nibabel.load(segmentations / f"kidney_{side}.nii.gz").dataobj)
               for side in ("left", "right"))  # fmt: skip
    target = tmp_path / "one_file" / case.name / "predictions"
    target.mkdir(parents=True)
    write(target / "kidney.nii.gz", both.astype(np.uint8), geometry)
    job = Evaluate(
        str(tmp_path / "one_file"), str(references), prediction_labels="abdomenct_1k", skip="empty"
    )
    job.run(case.name, _made(tmp_path / "out"))
    found = _dsc(tmp_path / "out")
    for side in ("left", "right"):
        assert found[f"kidney_{side}"].value == pytest.approx(1, abs=0.05)
    assert found["liver"].flags == ("no_mask",)


def test_a_label_that_the_scheme_does_not_name_is_no_background(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    _, references = data
    case = sorted(references.iterdir())[0]
    maps = _made(tmp_path / "maps")
    shutil.copy(case / "combined_labels.nii.gz", maps / f"{case.name}.nii.gz")
    rewrite(maps / f"{case.name}.nii.gz", lambda labels: labels * 3)
    job = Evaluate(str(maps), str(references))
    row = job.run(case.name, _made(tmp_path / "out"))
    assert row["prediction"] == "failed"
    assert "labels that abdomenatlas_1.0 does not name: 12 (" in row["problem"]


def test_predictions_in_a_case_s_folder(data: tuple[Path, Path], tmp_path: Path) -> None:
    """Masks in "segmentations", or label maps alone as `predict` writes without masks."""
    _, references = data
    expected = _finish(Evaluate(str(references), str(references)), tmp_path / "itself")
    assert expected["nsd"]["macro"]["mean"] == 1 and expected["cases"]["missing"] == []
    for case in sorted(references.iterdir()):
        target = _made(tmp_path / "maps" / case.name)
        shutil.copy(case / "combined_labels.nii.gz", target)
    found = _finish(Evaluate(str(tmp_path / "maps"), str(references)), tmp_path / "found")
    assert found["nsd"]["macro"]["mean"] == 1


def test_fingerprints_follow_both_sides(data: tuple[Path, Path]) -> None:
    predictions, references = data
    job = Evaluate(str(predictions), str(references))
    first, second = job.cases()
    hashes = [job.fingerprint(first)]
    assert job.fingerprint(first) == hashes[0] != job.fingerprint(second)
    (references / first / "ct.nii.gz").unlink()  # no score depends on it
    assert job.fingerprint(first) == hashes[0]
    for path in (references / first / "segmentations", predictions / first / "predictions"):
        rewrite(path / "liver.nii.gz", np.zeros_like)
        hashes.append(job.fingerprint(first))
    shutil.rmtree(predictions / first)
    hashes.append(Evaluate(str(predictions), str(references)).fingerprint(first))
    assert len(set(hashes)) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"skip": "erode"}, "unknown skip 'erode'; legal values: erosion, empty, none"),
        ({"missing": "drop"}, "unknown missing 'drop'"),
        ({"convention": "monia"}, "did you mean 'monai'"),
        ({"tolerance_mm": -1}, "tolerance_mm"),
        ({"labels": "abdomenatlas"}, "unknown label scheme"),
        ({"prediction_labels": "ten"}, "unknown label scheme 'ten'"),
    ],
)
def test_bad_keywords(data: tuple[Path, Path], options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Evaluate(*map(str, data), **options)


def test_folders_that_do_not_belong_together(data: tuple[Path, Path], tmp_path: Path) -> None:
    predictions, references = data
    for case in list(predictions.iterdir()):
        case.rename(predictions / f"other_{case.name}")
    with pytest.raises(ValueError, match="no prediction in .* has a reference"):
        Evaluate(str(predictions), str(references))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Evaluate(str(tmp_path / "none"), str(references))


def test_the_tidy_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    scores = [
        Score("a, b", "liver", "dsc", 0.1 + 0.2, 3, 4),
        Score('quote"', "liver", "nsd", math.nan, None, 0, ("missing", "skipped")),
        Score("ü", "aorta", "hd95_mm", math.inf, 0, 7, ("empty_prediction",)),
    ]
    write_scores(tmp_path / "s.csv", scores)
    assert str(read_scores(tmp_path / "s.csv")) == str(scores)
    (tmp_path / "s.csv").write_text("case,organ\n")
    with pytest.raises(ValueError, match=f"expected {', '.join(COLUMNS)}"):
        read_scores(tmp_path / "s.csv")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
