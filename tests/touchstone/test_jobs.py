"""The jobs by the launcher's protocol: ids, fingerprints, one case at a time, the summing up."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch.experiment import told
from tests.touchstone.cases import dataset, rewrite, stored_as
from touchstone_jax import jobs
from touchstone_jax.findings import read_findings
from touchstone_jax.jobs import Prepare, Verify
from touchstone_jax.prepare.plan import read_plan
from touchstone_jax.prepare.prepared import open_prepared

SMALL = {"patch_voxels": 16**3, "multiple": 8}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    dataset(tmp_path / "data", n=3)
    return tmp_path / "data"


def _run(job, folder: Path, cases=None) -> tuple[list[dict], dict[str, str]]:
    """What the launcher does: each case in a folder beside its place, renamed when it is whole."""
    rows, failed = [], {}
    for case in job.cases() if cases is None else cases:
        part = folder / f".part-{case}"
        part.mkdir(parents=True)
        try:
            row = job.run(case, part)
        except ValueError as error:
            failed[case] = str(error)
            shutil.rmtree(part)
            continue
        part.rename(folder / case)
        rows.append({"case": case, **json.loads(json.dumps(row))})
    return rows, failed


# ---------------------------------------------------------------- verify


def test_verify_tells_all_and_ends_in_an_error_if_there_are_any(data: Path, tmp_path: Path) -> None:
    job = Verify(str(data))
    rows, failed = _run(job, tmp_path / "out")
    assert [row["errors"] + row["warnings"] for row in rows] == [0, 0, 0] and not failed
    job.finish(rows, tmp_path / "out")
    assert read_findings(tmp_path / "out" / "findings.jsonl") == []
    first, second, third = job.cases()
    (data / first / "ct.nii.gz").write_bytes(b"")
    shutil.copy(data / second / "ct.nii.gz", data / third / "ct.nii.gz")
    stored_as(data / third / "ct.nii.gz", "SPL")
    rows, failed = _run(job, tmp_path / "again")
    assert not failed and rows[0]["errors"] == 1
    assert rows[0]["first"].startswith(f"{first}: ct.nii.gz is empty")
    with pytest.raises(ValueError, match=rf"errors in 2 of 3 cases.*the first: {first}: ct.nii.gz"):
        job.finish(rows, tmp_path / "again")
    found = read_findings(tmp_path / "again" / "findings.jsonl")
    assert {(f.case, f.check) for f in found} >= {(first, "unreadable"), (third, "duplicate")}


def test_verify_can_look_at_cts_alone(data: Path, tmp_path: Path) -> None:
    for path in data.glob("*/segmentations/*"):
        path.unlink()
    rows, _ = _run(Verify(str(data), layout="abdomenatlas", labels=None), tmp_path / "out")
    assert [row["errors"] for row in rows] == [0, 0, 0]


# ---------------------------------------------------------------- prepare


def test_prepare_writes_cases_a_plan_and_a_list(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    job, out = Prepare(str(data), **SMALL), tmp_path / "out"
    rows, failed = _run(job, out)
    job.finish(rows, out)
    assert not failed and capsys.readouterr().out.count("plan of 3 cases") == 1
    plan = read_plan(out / "plan.json")
    listed = json.loads((out / "dataset.json").read_text())
    assert listed["cases"] == job.cases() and listed["duplicates"] == []
    assert listed["classes"][0] == "background" and len(listed["classes"]) == 10
    assert listed["plan"] == plan.to_json()
    for case in job.cases():
        made = open_prepared(out / case)
        assert made.case == case and made.meta["plan"] == plan.digest()
        assert len(made.voxels_of(5)) and made.source.shape
    assert not list(out.glob(".part*"))


def test_a_later_start_reads_the_plan_and_makes_the_same_bytes(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _run(Prepare(str(data), **SMALL), whole)
    first = Prepare(str(data), **SMALL)
    _run(first, parts, first.cases()[:1])
    monkeypatch.setattr(jobs, "make_plan", None)  # it must not be made again
    monkeypatch.setattr(jobs.inspect, "signature", None)
    second = Prepare(str(data), **SMALL)
    assert second.fingerprint(second.cases()[0]) == first.fingerprint(first.cases()[0])
    _run(second, parts, second.cases()[1:])
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert len(files) == 3 * 7 + 2
    for file in files:
        assert (whole / file).read_bytes() == (parts / file).read_bytes(), file


def test_several_threads_make_the_same_bytes_and_one_plan(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _run(Prepare(str(data), **SMALL), tmp_path / "one")
    capsys.readouterr()
    job = Prepare(str(data), **SMALL)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda case: _run(job, tmp_path / "three", [case]), job.cases()))
    assert capsys.readouterr().out.count("plan of") == 1
    for file in (p for p in (tmp_path / "one").rglob("*") if p.is_file()):
        other = tmp_path / "three" / file.relative_to(tmp_path / "one")
        assert file.read_bytes() == other.read_bytes()


def test_a_name_with_a_space_and_an_accent_is_a_case_like_any_other(
    data: Path, tmp_path: Path
) -> None:
    sorted(data.iterdir())[0].rename(data / "Müller 7 左")
    job = Prepare(str(data), **SMALL)
    rows, failed = _run(job, tmp_path / "out")
    job.finish(rows, tmp_path / "out")
    assert (
        not failed and open_prepared(tmp_path / "out" / "Müller 7 左").meta["case"] in job.cases()
    )
    assert "Müller 7 左" in json.loads((tmp_path / "out" / "dataset.json").read_text())["cases"]


def test_a_bad_case_fails_alone(data: Path, tmp_path: Path) -> None:
    job = Prepare(str(data), **SMALL)
    bad = job.cases()[1]
    rewrite(data / bad / "ct.nii.gz", lambda v: v * 0)
    rows, failed = _run(job, tmp_path / "out")
    assert len(rows) == 2 and failed == {bad: f"{bad}: the CT is 0 everywhere"}
    job.finish(rows, tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text())["cases"]
    assert bad not in listed and len(listed) == 2


def test_an_error_that_the_user_knows_better_of_is_let_pass(data: Path, tmp_path: Path) -> None:
    masks = data / Prepare(str(data)).cases()[0] / "segmentations"
    left, right = masks / "kidney_left.nii.gz", masks / "kidney_right.nii.gz"
    left.rename(masks / "spare")
    right.rename(left)
    (masks / "spare").rename(right)
    strict = Prepare(str(data), **SMALL)
    _, failed = _run(strict, tmp_path / "strict")
    assert list(failed) == strict.cases()[:1] and "kidney_left lies to" in failed[strict.cases()[0]]
    lenient = Prepare(str(data), allow=["sides_swapped"], **SMALL)
    rows, failed = _run(lenient, tmp_path / "lenient")
    assert not failed and [row["findings"] for row in rows] == [1, 0, 0]
    assert lenient.fingerprint("phantom_00001") != strict.fingerprint("phantom_00001")
    plans = [read_plan(tmp_path / name / "plan.json") for name in ("strict", "lenient")]
    assert [plan.cases for plan in plans] == [(3, 2), (3, 3)]


def test_one_ct_under_two_names_is_listed_once(data: Path, tmp_path: Path) -> None:
    first = sorted(data.iterdir())[0]
    shutil.copytree(first, data / "zwilling")
    job = Prepare(str(data), **SMALL)
    rows, _ = _run(job, tmp_path / "out")
    job.finish(rows, tmp_path / "out")
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert listed["duplicates"] == ["zwilling"] and "zwilling" not in listed["cases"]
    assert read_findings(tmp_path / "out" / "findings.jsonl")[0].check == "duplicate"


def test_a_test_set_follows_the_plan_of_its_training_set(data: Path, tmp_path: Path) -> None:
    train, out = Prepare(str(data), spacing_mm=[6, 6, 6], **SMALL), tmp_path / "train"
    rows, _ = _run(train, out)
    train.finish(rows, out)
    dataset(tmp_path / "test", n=1, seed=9)
    test = Prepare(str(tmp_path / "test"), plan=str(out / "plan.json"))
    rows, _ = _run(test, tmp_path / "prepared")
    test.finish(rows, tmp_path / "prepared")
    assert read_plan(tmp_path / "prepared" / "plan.json") == read_plan(out / "plan.json")
    assert rows[0]["plan"] == read_plan(out / "plan.json").digest()
    # A change to a plan that cases were made by is not passed over.
    changed = json.loads((out / "plan.json").read_text()) | {"mean_hu": 1.0}
    (out / "plan.json").write_text(json.dumps(changed))
    again = Prepare(str(data), spacing_mm=[6, 6, 6], **SMALL)
    with pytest.raises(ValueError, match="were prepared by another plan"):
        again.finish([{**row, "plan": "old", "case": "c"} for row in rows], out)


# ---------------------------------------------------------------- fingerprints


def test_a_fingerprint_changes_with_what_the_result_depends_on(data: Path) -> None:
    def prints(**options) -> dict[str, str]:
        job = Prepare(str(data), **options)
        return {case: job.fingerprint(case) for case in job.cases()}

    before = prints()
    assert len(set(before.values())) == 3 and prints() == before
    assert set(prints(samples=10).values()).isdisjoint(before.values())
    assert set(prints(spacing_mm=[3, 3, 3]).values()).isdisjoint(before.values())
    first = sorted(before)[0]
    mask = data / first / "segmentations" / "liver.nii.gz"
    old = mask.read_bytes()
    # One byte of the time stamp in gzip's header: another content of the same size.
    mask.write_bytes(old[:5] + b"\x01" + old[6:])
    after = prints()
    assert after[first] != before[first]
    assert all(after[case] == before[case] for case in before if case != first)
    mask.write_bytes(old)
    assert prints() == before  # content, not time
    by_stat = prints(fingerprints="stat")
    mask.write_bytes(old)
    assert prints(fingerprints="stat")[first] != by_stat[first]
    verify = Verify(str(data))
    was = verify.fingerprint(first)
    mask.unlink()
    assert verify.fingerprint(first) != was


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": "nine"}, "unknown label scheme 'nine'"),
        ({"source_labels": "amoss"}, "did you mean 'amos'"),
        ({"layout": "bids"}, "layout='bids'"),
        ({"spacing_mm": [1, 2]}, r"spacing_mm=\[1.0, 2.0\]; expected three numbers"),
        ({"spacing_mm": [1, 2, 0]}, "expected three numbers in 0.1..20"),
        ({"spacing_mm": 1.5}, "spacing_mm=1.5; expected three numbers in 0.1..20"),
        ({"patch_voxels": 0}, "patch_voxels=0; expected at least 1"),
        ({"multiple": 0}, "multiple=0"),
        ({"intensity_cases": -1}, "intensity_cases=-1"),
        ({"overlap": "biggest"}, "overlap='biggest'"),
        ({"samples": 0}, "samples=0"),
        ({"allow": ["nonfinite"]}, "allow='nonfinite'; legal values: spacing_implausible"),
        ({"fingerprints": "name"}, "fingerprints='name'; legal values: content, stat"),
    ],
)
def test_mistakes_are_told_before_any_work(data: Path, options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Prepare(str(data), **options)


def test_a_missing_reader_is_told_once(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    for job in (Verify, Prepare):
        with pytest.raises(ModuleNotFoundError) as found:
            job(str(data))
        assert "isnet-touchstone-jax[ct]" in told(found.value)


def test_mistakes_about_files_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder"):
        Verify(str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="plan .*nowhere.json: no such file"):
        Prepare(str(data), plan=str(tmp_path / "nowhere.json"))
    job = Prepare(str(data), **SMALL)
    _run(job, tmp_path / "out", job.cases()[:1])
    plan = str(tmp_path / "out" / "plan.json")
    with pytest.raises(ValueError, match="is for abdomenatlas_1.0; labels='amos'"):
        Prepare(str(data), plan=plan, labels="amos")
    with pytest.raises(ValueError, match="spacing_mm=.* has no effect beside plan="):
        Prepare(str(data), plan=plan, spacing_mm=[2, 2, 2])
    for path in data.glob("*/segmentations/*"):
        rewrite(path, lambda v: v * 0)
    with pytest.raises(ValueError, match="no case has a voxel of the labels"):
        Prepare(str(data)).run(job.cases()[0], tmp_path)
