"""Predicting whole CTs: the same however a CT is stored, in the CT's own grid, case by case."""

import gzip
import json
import shutil
import tempfile
from pathlib import Path

import jax.numpy as jnp
import nibabel
import numpy as np
import pytest
from PIL import Image

from launch.__main__ import main
from tests.touchstone.cases import SHAPE, SPACING_MM, dataset, rewrite, same, stored_as
from tests.touchstone.toy_network import HU, SCHEME, Thresholds, plan
from touchstone_jax.io import read_geometry, read_labels
from touchstone_jax.jobs import Prepare
from touchstone_jax.layouts import discover
from touchstone_jax.predict import Predict, write_prediction
from touchstone_jax.prepare.plan import write_plan

STATE = {"sharpness": jnp.float32(2)}


def _job(data: Path, task: Thresholds | None = None, **options) -> Predict:
    job = Predict(str(data), **options)
    job.restore(task or Thresholds(), STATE)
    return job


def _run(job: Predict, case: str, folder: Path) -> dict:
    (folder / case).mkdir(parents=True)
    return json.loads(json.dumps(job.run(case, folder / case)))


def _labels(folder: Path, case: str) -> np.ndarray:
    path = folder / case / "combined_labels.nii.gz"
    return read_labels(path, case=case, like=read_geometry(path, case=case)[0])[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One phantom without noise, stored three times: as RAS, LPS and with permuted axes."""
    folder = tmp_path / "data"
    (case,) = dataset(folder, noise_hu=0.0)
    first = case.ct.parent
    for name, orientation in (("lps", "LPS"), ("permuted", "SAL")):
        shutil.copytree(first, folder / name)
        for path in (folder / name).rglob("*.nii.gz"):
            stored_as(path, orientation)
    first.rename(folder / "ras")
    return folder


# ---------------------------------------------------------------- geometry


@pytest.mark.parametrize("spacing_mm", [SPACING_MM, (5.5, 3.5, 4.0)])
def test_prediction_does_not_depend_on_how_the_ct_is_stored(
    data: Path, tmp_path: Path, spacing_mm: tuple[float, ...]
) -> None:
    job, out = _job(data, Thresholds(plan=plan(spacing_mm=spacing_mm))), tmp_path / "out"
    rows = {case: _run(job, case, out) for case in ("ras", "lps", "permuted")}
    found = {case: _labels(out, case) for case in rows}
    assert set(np.unique(found["ras"])) == {0, *(SCHEME.indices[name] for name in HU)}
    for case in ("lps", "permuted"):
        np.testing.assert_array_equal(found[case], found["ras"])
        volumes = {k: v for k, v in rows[case].items() if k.startswith("ml_")}
        assert volumes == pytest.approx({k: rows["ras"][k] for k in volumes}, rel=1e-6)
    assert {rows[case]["shape"] for case in rows} == {"24 22 20", "20 22 24"}


@pytest.mark.parametrize("case", ["ras", "lps", "permuted"])
def test_files_have_the_bits_of_the_ct_s_grid(data: Path, tmp_path: Path, case: str) -> None:
    ct = data / case / "ct.nii.gz"
    rewrite(ct, same, sform_code=2, qform_code=1, xyzt_units=10)
    _run(_job(data), case, tmp_path)
    expected = nibabel.load(ct)
    written = [tmp_path / case / "combined_labels.nii.gz"]
    written += [tmp_path / case / "predictions" / f"{name}.nii.gz" for name in SCHEME.indices]
    assert sorted((tmp_path / case).rglob("*.nii.gz")) == sorted(written)
    for path in written:
        found = nibabel.load(path)
        assert found.shape == expected.shape and found.get_data_dtype() == np.uint8
        assert found.affine.tobytes() == expected.affine.tobytes()
        for field in ("srow_x", "srow_y", "srow_z", "pixdim", "quatern_b", "qoffset_x"):
            assert found.header[field].tobytes() == expected.header[field].tobytes(), field
        assert (found.header["sform_code"], found.header["qform_code"]) == (2, 1)
    whole = np.asanyarray(nibabel.load(written[0]).dataobj)
    for path, index in zip(written[1:], SCHEME.indices.values(), strict=True):
        np.testing.assert_array_equal(np.asanyarray(nibabel.load(path).dataobj), whole == index)


def test_without_resampling_the_thresholds_come_back(data: Path, tmp_path: Path) -> None:
    """End to end against the labels that the phantom was made with, and volumes in ml."""
    case = discover(data)[0]
    spacing = read_geometry(case.ct, case=case.id)[0].spacing_mm
    exact = Thresholds(plan=plan(spacing_mm=tuple(spacing)))
    row = _run(_job(data, exact), "ras", tmp_path)
    truth = np.asanyarray(nibabel.load(data / "ras" / "combined_labels.nii.gz").dataobj)
    found = np.asanyarray(nibabel.load(tmp_path / "ras" / "combined_labels.nii.gz").dataobj)
    for name in ("aorta", "postcava"):
        np.testing.assert_array_equal(found == SCHEME.indices[name], truth == SCHEME.indices[name])
        voxels = (truth == SCHEME.indices[name]).sum()
        assert row[f"ml_{name}"] == pytest.approx(voxels * np.prod(spacing) / 1000, rel=1e-6)
    # 24 x 22 x 20 voxels by windows of 16 x 12 x 10.
    assert row["windows"] == 2 * 3 * 3 and row["ml_liver"] == 0 and row["network_seconds"] >= 0


def test_nearest_resampling_takes_the_nearest_voxel(data: Path, tmp_path: Path) -> None:
    task = Thresholds(plan=plan(spacing_mm=tuple(2 * s for s in SPACING_MM)))
    job = _job(data, task, resampling="nearest")
    _run(job, "ras", tmp_path)
    found = _labels(tmp_path, "ras")
    image, _ = job._inputs.load("ras", job.plan, ())
    small = job.sliding.labels(image)
    sizes = zip(SHAPE, small.shape, strict=True)
    at = [np.floor((np.arange(n) + 0.5) * m / n).astype(int) for n, m in sizes]
    np.testing.assert_array_equal(found, small[np.ix_(*at)])


# ---------------------------------------------------------------- inputs


def test_prepared_cases_give_the_same_files_as_their_cts(data: Path, tmp_path: Path) -> None:
    task = Thresholds(plan=plan(spacing_mm=(5.5, 3.5, 4.0)))
    write_plan(tmp_path / "plan.json", task.plan)
    prepare = Prepare(str(data), plan=str(tmp_path / "plan.json"))
    for case in ("ras", "permuted"):
        (tmp_path / "prepared" / case).mkdir(parents=True)
        prepare.run(case, tmp_path / "prepared" / case)
    from_cts, from_prepared = _job(data, task), _job(tmp_path / "prepared", task)
    assert from_prepared.cases() == ["permuted", "ras"]
    for case in from_prepared.cases():
        _run(from_cts, case, tmp_path / "a")
        _run(from_prepared, case, tmp_path / "b")
        files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a" / case).rglob("*.gz"))
        assert len(files) == 10
        for file in files:
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    before = from_prepared.fingerprint("ras")
    assert before == from_prepared.fingerprint("ras") != from_prepared.fingerprint("permuted")


def test_prepared_cases_must_follow_the_network_s_plan(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    write_plan(tmp_path / "plan.json", plan())
    (folder / "ras").mkdir(parents=True)
    Prepare(str(data), plan=str(tmp_path / "plan.json")).run("ras", folder / "ras")
    # What the network was trained on, a patch of its own, is no other plan.
    assert _run_in(_job(folder, Thresholds(plan=plan(patch=(8, 8, 8)))), tmp_path)["ml_aorta"] > 0
    with pytest.raises(ValueError, match=r"^ras: prepared by another plan.*\(other mean_hu\)"):
        _run_in(_job(folder, Thresholds(plan=plan(mean_hu=51.0))), tmp_path)
    write_plan(folder / "plan.json", plan(mean_hu=51.0))
    with pytest.raises(ValueError, match=r"^ras: prepared by plan \w+, .*plan.json is \w+"):
        _run_in(_job(folder, Thresholds(plan=plan(mean_hu=51.0))), tmp_path)
    raw = (folder / "ras" / "image" / "c" / "0" / "0" / "0").read_bytes()
    write_plan(folder / "plan.json", plan())
    spoilt = raw[:100] + bytes([raw[100] ^ 255]) + raw[101:]
    (folder / "ras" / "image" / "c" / "0" / "0" / "0").write_bytes(spoilt)
    with pytest.raises(ValueError, match=r"^ras: image: "):
        _run_in(_job(folder), tmp_path)


def _run_in(job: Predict, folder: Path) -> dict:
    return _run(job, "ras", Path(tempfile.mkdtemp(dir=folder)))


def test_a_folder_of_cts_alone(data: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    shutil.copy(data / "ras" / "ct.nii.gz", flat / "patient 1.nii.gz")
    job = _job(flat)
    assert job.cases() == ["patient 1"]
    _run(job, "patient 1", tmp_path / "a")
    _run(_job(data), "ras", tmp_path / "b")
    one, other = _labels(tmp_path / "a", "patient 1"), _labels(tmp_path / "b", "ras")
    np.testing.assert_array_equal(one, other)


def test_one_bad_ct_is_told_and_the_next_goes_on(data: Path, tmp_path: Path) -> None:
    raw = gzip.decompress((data / "lps" / "ct.nii.gz").read_bytes())
    (data / "lps" / "ct.nii.gz").write_bytes(gzip.compress(raw)[:-200])
    rewrite(data / "permuted" / "ct.nii.gz", np.zeros_like)
    job = _job(data)
    with pytest.raises(ValueError, match=r"^lps: ct.nii.gz is truncated"):
        _run(job, "lps", tmp_path)
    with pytest.raises(ValueError, match="^permuted: "):
        _run(job, "permuted", tmp_path)
    assert _run(job, "ras", tmp_path)["ml_aorta"] > 0
    allowed = _job(data, allow=("constant", "not_hu"))
    assert _run(allowed, "permuted", tmp_path / "allowed")["ml_aorta"] == 0


def test_fingerprints_follow_the_ct_alone(data: Path) -> None:
    for how in ("content", "stat"):
        job = Predict(str(data), fingerprints=how)
        before = job.fingerprint("ras")
        (data / "ras" / "segmentations" / "liver.nii.gz").write_bytes(b"x")
        assert job.fingerprint("ras") == before
        rewrite(data / "ras" / "ct.nii.gz", lambda ct: ct + ct.dtype.type(1))
        assert job.fingerprint("ras") != before


# ---------------------------------------------------------------- options


def test_cleaning_and_masks_are_options(data: Path, tmp_path: Path) -> None:
    plain = _run(_job(data), "ras", tmp_path / "plain")
    options = {"clean": {"*": {"largest": True}, "aorta": {"min_ml": 1e5}}}
    options |= {"masks": False, "picture": False}
    row = _run(_job(data, **options), "ras", tmp_path / "clean")
    assert row["ml_aorta"] == 0 < plain["ml_aorta"] and row["cleaned_aorta"] > 0
    assert [p.name for p in (tmp_path / "clean" / "ras").iterdir()] == ["combined_labels.nii.gz"]
    with Image.open(tmp_path / "plain" / "ras" / "prediction.png") as drawn:
        assert np.ptp(np.asarray(drawn)) > 200
    assert "cleaned_liver" in row and "cleaned_liver" not in plain


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"resampling": "cubic"}, "resampling='cubic'; legal values: linear, nearest"),
        ({"allow": ("truncated",)}, "allow='truncated'"),
        ({"overlap": 1.5}, "overlap=1.5"),
        ({"window": (8, 8)}, r"window=\(8, 8\)"),
        ({"clean": {"liver": {"small": 1}}}, "clean: liver"),
        ({"layout": "folders"}, "layout='folders'"),
    ],
)
def test_bad_keywords(data: Path, options: dict, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Predict(str(data), **options)


def test_what_does_not_fit_the_network(data: Path, tmp_path: Path) -> None:
    task = Thresholds()
    task.channels = 26
    with pytest.raises(ValueError, match="has 26 classes; the labels abdomenatlas_1.0 have 10"):
        _job(data, task)
    with pytest.raises(ValueError, match="unknown organ 'heart'"):
        _job(data, clean={"heart": {"largest": True}})
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Predict(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="no prepared case"):
        Predict(str(data), layout="prepared")
    geometry = read_geometry(data / "lps" / "ct.nii.gz", case="lps")[0]
    with pytest.raises(ValueError, match="array has shape"):
        write_prediction(tmp_path, np.zeros((3, 3, 3), np.uint8), geometry, SCHEME)


# ---------------------------------------------------------------- by the launcher

CARD = """\"\"\"Predict phantoms and score them.\"\"\"
def get_config(arg=""):
    predict = {"name": "touchstone_jax.jobs:Predict", "data": "DATA", "batch": 2}
    evaluate = {"name": "touchstone_jax.jobs:Evaluate", "predictions": "WORK/predict",
                "references": "DATA", "skip": "empty"}
    return {"task": {"name": "tests.touchstone.toy_network:Thresholds"}, "steps": 1,
            "batch_size": 8, "jobs": {"predict": predict, "evaluate": evaluate}}
"""


def test_train_predict_evaluate_by_the_launcher(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A bad CT fails alone and is done when it is mended; what is done is not done again."""
    work, card, bad = tmp_path / "work", tmp_path / "card.py", data / "lps" / "ct.nii.gz"
    card.write_text(CARD.replace("DATA", str(data)).replace("WORK", str(work)))
    whole = bad.read_bytes()
    bad.write_bytes(whole[:500])

    def launch(verb: str) -> int:
        return main([verb, "--config", str(card), "--workdir", str(work)])

    assert launch("train") == 0
    assert launch("predict") == 1
    assert "1 of 3 cases failed: lps (ct.nii.gz is truncated" in capsys.readouterr().err
    stamp = (work / "predict" / "ras" / "combined_labels.nii.gz").stat().st_mtime_ns
    assert not (work / "predict" / "lps").exists()
    assert launch("evaluate") == 0
    assert "missing: 1 of 3 cases (lps), scored as empty ones" in capsys.readouterr().err
    bad.write_bytes(whole)
    assert launch("predict") == launch("evaluate") == 0
    assert (work / "predict" / "ras" / "combined_labels.nii.gz").stat().st_mtime_ns == stamp
    lines = (work / "evaluate" / "dsc.csv").read_text().splitlines()
    assert lines[0] == "name," + ",".join(sorted(SCHEME.indices))
    assert [line.split(",")[0] for line in lines[1:]] == ["lps", "permuted", "ras"]
    assert len({line.split(",", 1)[1] for line in lines[1:]}) == 1
    summary = json.loads((work / "evaluate" / "summary.json").read_text())
    pair = (work / "predict" / "ras" / "predictions", data / "ras" / "segmentations")
    p, r = (np.asarray(nibabel.load(f / "aorta.nii.gz").dataobj) > 0 for f in pair)
    dsc = 2 * (p & r).sum() / (p.sum() + r.sum() + 1)
    assert summary["dsc"]["by_class"]["aorta"]["mean"] == pytest.approx(dsc) and dsc > 0.4
    assert summary["cases"]["missing"] == []
